// Vectors of floats, as wide as the CPU has them: loads, dot products of packed groups,
// exponentials.
//
// All three weight types share one shape: a *group* is four bytes (one float, two bfloat16 or
// four int8), and a vector holds the same group of LANES neighbours. What a group is multiplied
// with lies ready as *parts* of four bytes, one or two a group (num_parts): a CPU that has no
// product of so narrow values takes a group in two.
//
// Each kind of CPU has a header with the same names:
//   weight_part(type, groups, part)    of LANES groups, what is multiplied with that part
//   dot(type, sums, weights, values)   sums + products, in each lane. For INT8, weights are
//                                      unsigned (stored plus 128), values signed, and the bits
//                                      of the sums are those of int32
//   dot_less(sums, excess)             the floats of such sums, less an excess
//   store_values(type, parts, values)  LANES values as the parts of FLOAT32 or BFLOAT16 groups
//   store_bytes(parts, values)         the same of INT8, from whole numbers
//   lacking_lanes(low, high)           2^32 - 1 less the upper halves of 2 * (LANES / 2) longs
#pragma once

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

typedef enum { FLOAT32 = 0, BFLOAT16 = 1, INT8 = 2 } Type;

#ifdef __AVX512F__
#include "avx512.h"
#else
#include "avx2.h"
#endif

#define VECTOR_BYTES (4 * LANES)

// How many values a group of four bytes holds.
INLINE int group_size(Type type) { return type == FLOAT32 ? 1 : type == BFLOAT16 ? 2 : 4; }

// How many bytes the parts of so many values take.
INLINE size_t part_bytes(Type type, size_t count) {
    return count / (size_t)group_size(type) * (size_t)num_parts(type) * 4;
}

// The same part in all lanes.
INLINE Ints part_at(const void *parts, size_t index) {
    int32_t part;
    memcpy(&part, (const char *)parts + 4 * index, 4);
    return all_ints(part);
}

// 2 to the power of x, to about 1e-7 relative; 0 for x below -150, minus infinity included.
INLINE Floats exp2_lanes(Floats x) {
    x = max_lanes(x, all_lanes(-150.0f));
    const Floats whole = round_lanes(x);
    const Floats part = x - whole;
    // Taylor series of 2^part at 0, |part| <= 1/2.
    Floats sum = all_lanes(1.5252734e-5f);
    sum = fused(sum, part, all_lanes(1.5403530e-4f));
    sum = fused(sum, part, all_lanes(1.3333558e-3f));
    sum = fused(sum, part, all_lanes(9.6181291e-3f));
    sum = fused(sum, part, all_lanes(5.5504109e-2f));
    sum = fused(sum, part, all_lanes(2.4022651e-1f));
    sum = fused(sum, part, all_lanes(6.9314718e-1f));
    sum = fused(sum, part, all_lanes(1.0f));
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
