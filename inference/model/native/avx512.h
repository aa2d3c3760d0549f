// Vectors of AVX-512 with VNNI and BF16: Intel since Sapphire Rapids, AMD since Zen 4.
#pragma once

#define LANES 16
#define MAX_ROWS 12       // rows of a product tile, with two vectors of sums each; 32 registers
#define MAX_ROWS_INT8 7   // the same with four vectors
#define MAX_ROWS_INT4 6   // and with registers to separate two groups

typedef __m512 Floats;
typedef __m512i Ints;
typedef __m512d Doubles;  // half as many lanes
typedef __m512i Longs;    // half as many lanes, unsigned
typedef __mmask16 Mask;

INLINE Floats load(const float *place) { return _mm512_loadu_ps(place); }
INLINE void store(float *place, Floats lanes) { _mm512_storeu_ps(place, lanes); }
INLINE Floats all_lanes(float value) { return _mm512_set1_ps(value); }
INLINE Floats fused(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
INLINE Floats max_lanes(Floats a, Floats b) { return _mm512_max_ps(a, b); }
INLINE Floats abs_lanes(Floats a) { return _mm512_abs_ps(a); }
INLINE float sum_of(Floats a) { return _mm512_reduce_add_ps(a); }
INLINE float max_of(Floats a) { return _mm512_reduce_max_ps(a); }

INLINE Floats round_lanes(Floats a) {
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

// a * 2^exponents, for integral exponents.
INLINE Floats scale_lanes(Floats a, Floats exponents) { return _mm512_scalef_ps(a, exponents); }

INLINE Ints all_ints(int32_t value) { return _mm512_set1_epi32(value); }
INLINE Ints add_ints(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
INLINE Ints to_ints(Floats a) { return _mm512_cvtps_epi32(a); }
INLINE int32_t sum_of_ints(Ints a) { return _mm512_reduce_add_epi32(a); }
INLINE void store_ints(int32_t *place, Ints a) { _mm512_storeu_si512(place, a); }

INLINE Ints ints_from(int32_t first) {
    return add_ints(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                    all_ints(first));
}

// A group is multiplied in one step.
INLINE int num_parts(Type type) {
    (void)type;
    return 1;
}

INLINE Ints weight_part(Type type, const uint8_t *groups, int part) {
    const Ints whole = _mm512_loadu_si512(groups);
    if (type != INT4) return whole;
    return _mm512_and_si512(part ? _mm512_srli_epi32(whole, 4) : whole, all_ints(0x0f0f0f0f));
}

INLINE Floats dot(Type type, Floats sums, Ints weights, Ints values) {
    switch (type) {
        case FLOAT32:
            return _mm512_fmadd_ps(_mm512_castsi512_ps(weights), _mm512_castsi512_ps(values), sums);
        case BFLOAT16:
            return _mm512_dpbf16_ps(sums, (__m512bh)weights, (__m512bh)values);
        default:
            return _mm512_castsi512_ps(
                _mm512_dpbusd_epi32(_mm512_castps_si512(sums), weights, values));
    }
}

INLINE Floats sums_from(Type type, int32_t start) {
    (void)type;
    return _mm512_castsi512_ps(all_ints(start));
}

INLINE Floats whole_sums(Type type, Floats sums, int32_t start) {
    (void)type, (void)start;  // the sums began with it
    return _mm512_cvtepi32_ps(_mm512_castps_si512(sums));
}

INLINE void two_halves(const uint8_t *place, Floats vectors[2]) {
    vectors[0] = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)place));
    vectors[1] = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)place + 1));
}

INLINE Floats bytes_as_floats(const uint8_t *place) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)place)));
}

INLINE void store_values(Type type, uint8_t *parts, Floats values) {
    if (type == FLOAT32) _mm512_storeu_ps(parts, values);
    else _mm256_storeu_si256((__m256i *)parts, (__m256i)_mm512_cvtneps_pbh(values));
}

INLINE void store_bytes(Type type, uint8_t *parts, Ints values) {
    (void)type;
    _mm_storeu_si128((__m128i *)parts, _mm512_cvtsepi32_epi8(values));
}

INLINE Mask equal(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
INLINE Mask greater(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
INLINE Mask not_less(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
INLINE Mask is_nan(Floats a) { return _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q); }
INLINE Mask greater_ints(Ints a, Ints b) { return _mm512_cmpgt_epi32_mask(a, b); }
INLINE unsigned bits_of(Mask mask) { return mask; }
INLINE Mask mask_of(unsigned bits) { return (Mask)bits; }

INLINE Floats choose(Mask mask, Floats yes, Floats no) {
    return _mm512_mask_blend_ps(mask, no, yes);
}

INLINE Ints choose_ints(Mask mask, Ints yes, Ints no) {
    return _mm512_mask_blend_epi32(mask, no, yes);
}

INLINE Floats load_some(const float *place, Mask mask, Floats others) {
    return _mm512_mask_loadu_ps(others, mask, place);
}

INLINE void store_some(float *place, Mask mask, Floats lanes) {
    _mm512_mask_storeu_ps(place, mask, lanes);
}

INLINE Doubles add_doubles(Doubles sums, Floats a) {
    const Doubles low = _mm512_cvtps_pd(_mm512_castps512_ps256(a));
    const Doubles high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(a, 1));
    return _mm512_add_pd(sums, _mm512_add_pd(low, high));
}

INLINE double sum_of_doubles(Doubles a) { return _mm512_reduce_add_pd(a); }

INLINE Longs all_longs(uint64_t value) { return _mm512_set1_epi64((int64_t)value); }
INLINE Longs add_longs(Longs a, Longs b) { return _mm512_add_epi64(a, b); }
INLINE Longs multiply_longs(Longs a, Longs b) { return _mm512_mullo_epi64(a, b); }
INLINE Longs count_longs(void) { return _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7); }

// a ^ (a >> bits)
INLINE Longs fold_longs(Longs a, int bits) {
    return _mm512_xor_si512(a, _mm512_srli_epi64(a, (unsigned)bits));
}

INLINE Floats lacking_lanes(Longs low, Longs high) {
    const Ints odd =
        _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    const Ints upper = _mm512_permutex2var_epi32(low, odd, high);
    return _mm512_cvtepu32_ps(_mm512_xor_si512(upper, _mm512_set1_epi32(-1)));
}
