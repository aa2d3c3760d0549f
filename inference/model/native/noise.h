// Standard Gumbel noise, a function of a key and a token id alone.
//
// A counter-based generator: the mixer of splitmix64 (Steele et al., 2014) hashes both to 64 bits;
// 52 of them make a uniform number strictly between 0 and 1. Must equal `gumbel_noise` in
// inference/sampling/torch_sampler.py.
#pragma once

#include <math.h>

#include "simd.h"

#define GOLDEN 0x9E3779B97F4A7C15u
#define FIRST_FACTOR 0xBF58476D1CE4E5B9u
#define SECOND_FACTOR 0x94D049BB133111EBu

INLINE uint64_t mix(uint64_t value) {
    value = (value ^ (value >> 30)) * FIRST_FACTOR;
    value = (value ^ (value >> 27)) * SECOND_FACTOR;
    return value ^ (value >> 31);
}

INLINE Longs mix_longs(Longs value) {
    value = multiply_longs(fold_longs(value, 30), all_longs(FIRST_FACTOR));
    value = multiply_longs(fold_longs(value, 27), all_longs(SECOND_FACTOR));
    return fold_longs(value, 31);
}

INLINE uint64_t noise_key(uint64_t seed, uint64_t position) {
    return mix((mix(seed + GOLDEN) ^ position) + GOLDEN);
}

static float gumbel(uint64_t key, int id) {
    const uint64_t bits = mix(key + (uint64_t)id * GOLDEN);
    const double uniform = ((double)(bits >> 12) + 0.5) * 0x1p-52;
    return (float)-log(-log(uniform));
}

// For each of LANES ids from `first` on: 1 - uniform, rounded down to a multiple of 2^-32 (then to
// a float). Minus its logarithm is an upper bound of the noise.
INLINE Floats shortfall_lanes(uint64_t key, int first) {
    const Longs steps = multiply_longs(count_longs(), all_longs(GOLDEN));
    const uint64_t begin = key + (uint64_t)first * GOLDEN;
    const Longs low = mix_longs(add_longs(steps, all_longs(begin)));
    const Longs high = mix_longs(add_longs(steps, all_longs(begin + LANES / 2 * GOLDEN)));
    return lacking_lanes(low, high) * all_lanes(0x1p-32f);
}
