// Vectors of sixteen lanes: loads, dot products of packed groups, exponentials.
//
// All three weight types share one shape: a *group* is four bytes (one float, two bfloat16 or
// four int8), and a vector holds the same group of sixteen neighbours. What differs is one
// instruction.
#pragma once

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define LANES 16
#define INLINE static inline __attribute__((always_inline))

typedef enum { FLOAT32 = 0, BFLOAT16 = 1, INT8 = 2 } Type;

// How many values a group of four bytes holds.
INLINE int group_size(Type type) { return type == FLOAT32 ? 1 : type == BFLOAT16 ? 2 : 4; }

// acc + dot(weights, values) for each lane. For INT8, weights are unsigned (stored plus 128),
// values signed, and the accumulator's bits are those of int32.
INLINE __m512 dot(Type type, __m512 acc, __m512i weights, __m512i values) {
    switch (type) {
        case FLOAT32:
            return _mm512_fmadd_ps(_mm512_castsi512_ps(weights), _mm512_castsi512_ps(values), acc);
        case BFLOAT16:
            return _mm512_dpbf16_ps(acc, (__m512bh)weights, (__m512bh)values);
        default:
            return _mm512_castsi512_ps(
                _mm512_dpbusd_epi32(_mm512_castps_si512(acc), weights, values));
    }
}

// 2 to the power of x, to about 1e-7 relative; 0 for x below -150, minus infinity included.
INLINE __m512 exp2_lanes(__m512 x) {
    x = _mm512_max_ps(x, _mm512_set1_ps(-150.0f));
    const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 part = _mm512_sub_ps(x, whole);
    // Taylor series of 2^part at 0, |part| <= 1/2.
    __m512 sum = _mm512_set1_ps(1.5252734e-5f);
    sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(1.5403530e-4f));
    sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(1.3333558e-3f));
    sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(9.6181291e-3f));
    sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(5.5504109e-2f));
    sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(2.4022651e-1f));
    sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(6.9314718e-1f));
    sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(sum, whole);
}

#define LOG2_E 1.4426950408889634f

// x * sigmoid(x)
INLINE __m512 silu_lanes(__m512 x) {
    const __m512 power = exp2_lanes(_mm512_mul_ps(x, _mm512_set1_ps(-LOG2_E)));
    return _mm512_div_ps(x, _mm512_add_ps(_mm512_set1_ps(1.0f), power));
}

INLINE uint16_t to_bfloat16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

INLINE int32_t group_at(const void *groups, size_t index) {
    int32_t group;
    memcpy(&group, (const char *)groups + 4 * index, 4);
    return group;
}
