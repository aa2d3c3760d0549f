// Emulates the AVX-512 intrinsics that inference/model/native/avx512.h uses, lane by lane in plain
// C, to test it on CPUs without AVX-512. Semantics: Intel Intrinsics Guide.
#pragma once

#include_next <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#define __AVX512F__ 1  // after the include: it would declare unsupported ones
#undef _mm512_setr_epi32
#undef _mm512_setr_epi64

// Not inline: the unrolled loops, expanded lane by lane, would take minutes to compile.
#define EMULATED __attribute__((noinline, unused)) static
#define EACH(n) for (int i = 0; i < (n); i++)

typedef int32_t Words __attribute__((vector_size(64)));
typedef uint64_t Quads __attribute__((vector_size(64)));

EMULATED __m512 e_set1_ps(float x) {
    __m512 a;
    EACH(16) a[i] = x;
    return a;
}

EMULATED __m512i e_set1_epi32(int32_t x) { return (__m512i)((Words){0} + x); }
EMULATED __m512i e_set1_epi64(int64_t x) { return (__m512i)((Quads){0} + (uint64_t)x); }

EMULATED __m512 e_loadu_ps(const void *place) {
    __m512 a;
    memcpy(&a, place, 64);
    return a;
}

EMULATED __m512i e_loadu_si512(const void *place) { return (__m512i)e_loadu_ps(place); }
EMULATED void e_storeu_ps(void *place, __m512 a) { memcpy(place, &a, 64); }
EMULATED void e_storeu_si512(void *place, __m512i a) { memcpy(place, &a, 64); }

EMULATED __m512 e_mask_loadu_ps(__m512 others, __mmask16 mask, const float *place) {
    EACH(16) if (mask >> i & 1) others[i] = place[i];
    return others;
}

EMULATED void e_mask_storeu_ps(float *place, __mmask16 mask, __m512 a) {
    EACH(16) if (mask >> i & 1) place[i] = a[i];
}

EMULATED __m512 e_mask_blend_ps(__mmask16 mask, __m512 no, __m512 yes) {
    EACH(16) if (mask >> i & 1) no[i] = yes[i];
    return no;
}

EMULATED __m512i e_mask_blend_epi32(__mmask16 mask, __m512i no, __m512i yes) {
    return (__m512i)e_mask_blend_ps(mask, (__m512)no, (__m512)yes);
}

EMULATED __m512 e_fmadd_ps(__m512 a, __m512 b, __m512 c) {
    EACH(16) c[i] = fmaf(a[i], b[i], c[i]);
    return c;
}

// Returns the second operand if either is NaN.
EMULATED __m512 e_max_ps(__m512 a, __m512 b) {
    EACH(16) if (a[i] > b[i]) b[i] = a[i];
    return b;
}

EMULATED __m512 e_abs_ps(__m512 a) {
    EACH(16) a[i] = fabsf(a[i]);
    return a;
}

EMULATED __m512 e_roundscale_ps(__m512 a, int mode) {
    (void)mode;
    EACH(16) a[i] = nearbyintf(a[i]);
    return a;
}

EMULATED __m512 e_scalef_ps(__m512 a, __m512 exponents) {
    EACH(16) a[i] = exponents[i] > 300 ? a[i] * INFINITY : ldexpf(a[i], (int)exponents[i]);
    return a;
}

EMULATED float e_reduce_add_ps(__m512 a) {
    float sum = 0;
    EACH(16) sum += a[i];
    return sum;
}

EMULATED float e_reduce_max_ps(__m512 a) {
    float most = a[0];
    EACH(16) if (a[i] > most) most = a[i];
    return most;
}

EMULATED int32_t e_reduce_add_epi32(__m512i a) {
    int32_t sum = 0;
    EACH(16) sum += ((Words)a)[i];
    return sum;
}

EMULATED double e_reduce_add_pd(__m512d a) {
    double sum = 0;
    EACH(8) sum += a[i];
    return sum;
}

EMULATED __m512i e_add_epi32(__m512i a, __m512i b) { return (__m512i)((Words)a + (Words)b); }
EMULATED __m512i e_and_si512(__m512i a, __m512i b) { return a & b; }
EMULATED __m512i e_slli_epi32(__m512i a, unsigned bits) {
    for (int i = 0; i < 16; i++) ((Words *)&a)[0][i] = (int)((unsigned)((Words)a)[i] << bits);
    return a;
}
EMULATED __m512i e_srli_epi32(__m512i a, unsigned bits) {
    for (int i = 0; i < 16; i++) ((Words *)&a)[0][i] = (int)((unsigned)((Words)a)[i] >> bits);
    return a;
}
EMULATED __m512i e_add_epi64(__m512i a, __m512i b) { return (__m512i)((Quads)a + (Quads)b); }
EMULATED __m512i e_mullo_epi64(__m512i a, __m512i b) { return (__m512i)((Quads)a * (Quads)b); }
EMULATED __m512i e_srli_epi64(__m512i a, unsigned bits) { return (__m512i)((Quads)a >> bits); }
EMULATED __m512i e_xor_si512(__m512i a, __m512i b) { return a ^ b; }
EMULATED __m512d e_add_pd(__m512d a, __m512d b) { return a + b; }

EMULATED __m512i e_cvtps_epi32(__m512 a) {
    Words whole;
    EACH(16) whole[i] = (int32_t)lrintf(a[i]);
    return (__m512i)whole;
}

EMULATED __m512 e_cvtepi32_ps(__m512i a) {
    __m512 floats;
    EACH(16) floats[i] = (float)((Words)a)[i];
    return floats;
}

EMULATED __m512i e_cvtepu8_epi32(__m128i a) {
    Words whole;
    uint8_t bytes[16];
    memcpy(bytes, &a, 16);
    EACH(16) whole[i] = bytes[i];
    return (__m512i)whole;
}

EMULATED __m512 e_cvtepu32_ps(__m512i a) {
    __m512 floats;
    EACH(16) floats[i] = (float)(uint32_t)((Words)a)[i];
    return floats;
}

EMULATED __m512 e_cvtph_ps(__m256i a) {
    __m512 floats;
    uint16_t halves[16];
    memcpy(halves, &a, 32);
    EACH(16) floats[i] = _cvtsh_ss(halves[i]);
    return floats;
}

EMULATED __m512d e_cvtps_pd(__m256 a) {
    __m512d doubles;
    EACH(8) doubles[i] = a[i];
    return doubles;
}

EMULATED __m256 e_castps512_ps256(__m512 a) {
    __m256 half;
    memcpy(&half, &a, 32);
    return half;
}

EMULATED __m256 e_extractf32x8_ps(__m512 a, int half) {
    __m256 floats;
    memcpy(&floats, (const char *)&a + 32 * half, 32);
    return floats;
}

EMULATED __m128i e_cvtsepi32_epi8(__m512i a) {
    int8_t bytes[16];
    EACH(16) {
        const int32_t value = ((Words)a)[i];
        bytes[i] = (int8_t)(value > 127 ? 127 : value < -128 ? -128 : value);
    }
    __m128i packed;
    memcpy(&packed, bytes, 16);
    return packed;
}

EMULATED __m256i e_cvtneps_pbh(__m512 a) {
    uint16_t halves[16];
    EACH(16) {
        const uint32_t bits = (uint32_t)((Words)a)[i];
        halves[i] = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }
    __m256i packed;
    memcpy(&packed, halves, 32);
    return packed;
}

EMULATED float e_float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

EMULATED __m512 e_dpbf16_ps(__m512 sums, __m512bh a, __m512bh b) {
    const Words x = (Words)a, y = (Words)b;
    EACH(16) {
        const uint32_t left = (uint32_t)x[i], right = (uint32_t)y[i];
        sums[i] += e_float_of(left & 0xffff0000) * e_float_of(right & 0xffff0000);
        sums[i] += e_float_of(left << 16) * e_float_of(right << 16);
    }
    return sums;
}

EMULATED __m512i e_dpbusd_epi32(__m512i sums, __m512i a, __m512i b) {
    Words totals = (Words)sums;
    uint8_t x[64];
    int8_t y[64];
    memcpy(x, &a, 64);
    memcpy(y, &b, 64);
    EACH(64) totals[i / 4] += x[i] * y[i];
    return (__m512i)totals;
}

EMULATED __mmask16 e_cmp_ps_mask(__m512 a, __m512 b, int how) {
    unsigned mask = 0;
    EACH(16) {
        const int yes = how == _CMP_EQ_OQ   ? a[i] == b[i]
                        : how == _CMP_GT_OQ ? a[i] > b[i]
                        : how == _CMP_GE_OQ ? a[i] >= b[i]
                                            : isnan(a[i]) || isnan(b[i]);
        mask |= (unsigned)yes << i;
    }
    return (__mmask16)mask;
}

EMULATED __mmask16 e_cmpgt_epi32_mask(__m512i a, __m512i b) {
    unsigned mask = 0;
    EACH(16) mask |= (unsigned)(((Words)a)[i] > ((Words)b)[i]) << i;
    return (__mmask16)mask;
}

EMULATED __m512i e_permutex2var_epi32(__m512i a, __m512i places, __m512i b) {
    Words chosen;
    EACH(16) {
        const int place = ((Words)places)[i] & 31;
        chosen[i] = place < 16 ? ((Words)a)[place] : ((Words)b)[place - 16];
    }
    return (__m512i)chosen;
}

#define _mm512_abs_ps e_abs_ps
#define _mm512_add_epi32 e_add_epi32
#define _mm512_add_epi64 e_add_epi64
#define _mm512_add_pd e_add_pd
#define _mm512_and_si512 e_and_si512
#define _mm512_castps512_ps256 e_castps512_ps256
#define _mm512_castps_si512(a) ((__m512i)(a))
#define _mm512_castsi512_ps(a) ((__m512)(a))
#define _mm512_cmp_ps_mask e_cmp_ps_mask
#define _mm512_cmpgt_epi32_mask e_cmpgt_epi32_mask
#define _mm512_cvtepi32_ps e_cvtepi32_ps
#define _mm512_cvtepu32_ps e_cvtepu32_ps
#define _mm512_cvtepu8_epi32 e_cvtepu8_epi32
#define _mm512_cvtneps_pbh e_cvtneps_pbh
#define _mm512_cvtph_ps e_cvtph_ps
#define _mm512_cvtps_epi32 e_cvtps_epi32
#define _mm512_cvtps_pd e_cvtps_pd
#define _mm512_cvtsepi32_epi8 e_cvtsepi32_epi8
#define _mm512_dpbf16_ps e_dpbf16_ps
#define _mm512_dpbusd_epi32 e_dpbusd_epi32
#define _mm512_extractf32x8_ps e_extractf32x8_ps
#define _mm512_fmadd_ps e_fmadd_ps
#define _mm512_loadu_ps e_loadu_ps
#define _mm512_loadu_si512 e_loadu_si512
#define _mm512_mask_blend_epi32 e_mask_blend_epi32
#define _mm512_mask_blend_ps e_mask_blend_ps
#define _mm512_mask_loadu_ps e_mask_loadu_ps
#define _mm512_mask_storeu_ps e_mask_storeu_ps
#define _mm512_max_ps e_max_ps
#define _mm512_mullo_epi64 e_mullo_epi64
#define _mm512_permutex2var_epi32 e_permutex2var_epi32
#define _mm512_reduce_add_epi32 e_reduce_add_epi32
#define _mm512_reduce_add_pd e_reduce_add_pd
#define _mm512_reduce_add_ps e_reduce_add_ps
#define _mm512_reduce_max_ps e_reduce_max_ps
#define _mm512_roundscale_ps e_roundscale_ps
#define _mm512_scalef_ps e_scalef_ps
#define _mm512_set1_epi32 e_set1_epi32
#define _mm512_set1_epi64 e_set1_epi64
#define _mm512_set1_ps e_set1_ps
#define _mm512_setr_epi32(...) ((__m512i)(Words){__VA_ARGS__})
#define _mm512_setr_epi64(...) ((__m512i)(Quads){__VA_ARGS__})
#define _mm512_slli_epi32 e_slli_epi32
#define _mm512_srli_epi32 e_srli_epi32
#define _mm512_srli_epi64 e_srli_epi64
#define _mm512_storeu_ps e_storeu_ps
#define _mm512_storeu_si512 e_storeu_si512
#define _mm512_xor_si512 e_xor_si512
