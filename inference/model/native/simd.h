// Vectors of floats of the CPU's width: loads, dot products of packed groups, exponentials.
//
// All weight types have the same layout: a *group* is four bytes (one float, two bfloat16 or four
// int8), and a vector holds the same group of LANES neighbours. INT4 has four codes of four bits in
// a group; two groups are in the same four bytes, see gemm.h. The multiplicand of a group is stored
// as one or two *parts* of four bytes (num_parts): a CPU without products of such narrow values
// multiplies a group in two steps.
//
// Each CPU variant has a header with the same functions:
//   weight_part(type, groups, part)    the weights of LANES groups to multiply with that part; for
//                                      INT4 the codes in the lower (0) or upper (1) four bits
//   dot(type, sums, weights, values)   sums + products in each lane. For INT8 and INT4, weights are
//                                      unsigned, values signed, and the sums' bits are integers
//   sums_from(type, start)             sums of integers, all with the same value, for a block
//   whole_sums(type, sums, start)      such sums as floats
//   two_halves(place, vectors)         2 * LANES half-precision floats as floats
//   bytes_as_floats(place)             LANES bytes without sign as floats
//   store_values(type, parts, values)  stores LANES values as parts of FLOAT32 or BFLOAT16 groups
//   store_bytes(type, parts, values)   stores integers as parts of INT8 or INT4 groups
//   lacking_lanes(low, high)           2^32 - 1 minus the upper halves of 2 * (LANES / 2) longs
#pragma once

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

typedef enum { FLOAT32 = 0, BFLOAT16 = 1, INT8 = 2, INT4 = 3 } Type;

// Whether products are sums of integers.
INLINE int is_whole(Type type) { return type == INT8 || type == INT4; }

#ifdef __AVX512F__
#include "avx512.h"
#else
#include "avx2.h"
#endif

#define VECTOR_BYTES (4 * LANES)

// Values in a group.
INLINE int group_size(Type type) { return type == FLOAT32 ? 1 : type == BFLOAT16 ? 2 : 4; }

// Bytes of the parts of `count` values.
INLINE size_t part_bytes(Type type, size_t count) {
    return count / (size_t)group_size(type) * (size_t)num_parts(type) * 4;
}

// Activations that share a scale in INT8 and INT4; weights share one in a multiple of it.
#define BLOCK 32

// `count` values, padded to whole blocks.
INLINE size_t padded(Type type, size_t count) {
    return is_whole(type) ? (count + BLOCK - 1) / BLOCK * BLOCK : count;
}

// One part, broadcast to all lanes.
INLINE Ints part_at(const void *parts, size_t index) {
    int32_t part;
    memcpy(&part, (const char *)parts + 4 * index, 4);
    return all_ints(part);
}

// 2 to the power of x, with a relative error of about 1e-7; 0 for x below -150.
INLINE Floats exp2_lanes(Floats x) {
    x = max_lanes(x, all_lanes(-150.0f));
    const Floats whole = round_lanes(x);
    const Floats rest = x - whole;
    // Taylor series of 2^rest at 0, |rest| <= 1/2.
    Floats sum = all_lanes(1.5252734e-5f);
    sum = fused(sum, rest, all_lanes(1.5403530e-4f));
    sum = fused(sum, rest, all_lanes(1.3333558e-3f));
    sum = fused(sum, rest, all_lanes(9.6181291e-3f));
    sum = fused(sum, rest, all_lanes(5.5504109e-2f));
    sum = fused(sum, rest, all_lanes(2.4022651e-1f));
    sum = fused(sum, rest, all_lanes(6.9314718e-1f));
    sum = fused(sum, rest, all_lanes(1.0f));
    return scale_lanes(sum, whole);
}

#define LOG2_E 1.4426950408889634f

// x * sigmoid(x)
INLINE Floats silu_lanes(Floats x) {
    return x / (all_lanes(1.0f) + exp2_lanes(x * all_lanes(-LOG2_E)));
}

INLINE uint16_t to_bfloat16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
