// Standard Gumbel noise, a function of a key and a token's id alone.
//
// Counter-based: the mixer of splitmix64 (Steele et al., 2014) makes 64 bits of the two, of which
// 52 are a number strictly between 0 and 1. The same as inference/torch_drawer.py computes.
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

INLINE __m512i mix_lanes(__m512i value) {
    value = _mm512_mullo_epi64(_mm512_xor_si512(value, _mm512_srli_epi64(value, 30)),
                               _mm512_set1_epi64((int64_t)FIRST_FACTOR));
    value = _mm512_mullo_epi64(_mm512_xor_si512(value, _mm512_srli_epi64(value, 27)),
                               _mm512_set1_epi64((int64_t)SECOND_FACTOR));
    return _mm512_xor_si512(value, _mm512_srli_epi64(value, 31));
}

INLINE uint64_t noise_key(uint64_t seed, uint64_t position) {
    return mix((mix(seed + GOLDEN) ^ position) + GOLDEN);
}

static float gumbel(uint64_t key, int id) {
    const uint64_t bits = mix(key + (uint64_t)id * GOLDEN);
    const double uniform = ((double)(bits >> 12) + 0.5) * 0x1p-52;
    return (float)-log(-log(uniform));
}

// For each of sixteen ids from `first` on, what its number lacks to 1, rounded down to a multiple
// of 2^-32 (then to a float). Minus the logarithm of that is no less than the noise.
INLINE __m512 shortfall_lanes(uint64_t key, int first) {
    const __m512i count = _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7);
    const __m512i steps = _mm512_mullo_epi64(count, _mm512_set1_epi64((int64_t)GOLDEN));
    const uint64_t begin = key + (uint64_t)first * GOLDEN;
    const __m512i low = mix_lanes(_mm512_add_epi64(steps, _mm512_set1_epi64((int64_t)begin)));
    const __m512i high =
        mix_lanes(_mm512_add_epi64(steps, _mm512_set1_epi64((int64_t)(begin + 8 * GOLDEN))));
    const __m512i odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    const __m512i upper = _mm512_permutex2var_epi32(low, odd, high);  // of each, the first 32 bits
    const __m512i lacking = _mm512_xor_si512(upper, _mm512_set1_epi32(-1));
    return _mm512_mul_ps(_mm512_cvtepu32_ps(lacking), _mm512_set1_ps(0x1p-32f));
}
