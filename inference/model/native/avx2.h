// Vectors of AVX2 with FMA: Intel since Haswell, AMD since Zen.
#pragma once

#define LANES 8
#define MAX_ROWS 6       // rows of a product tile, with two vectors of sums each; 16 registers
#define MAX_ROWS_INT8 3  // the same with four vectors
#define MAX_ROWS_INT4 3

typedef __m256 Floats;
typedef __m256i Ints;
typedef __m256d Doubles;  // half as many lanes
typedef __m256i Longs;    // half as many lanes, unsigned
typedef __m256i Mask;     // all bits of a lane, or none

INLINE Floats load(const float *place) { return _mm256_loadu_ps(place); }
INLINE void store(float *place, Floats lanes) { _mm256_storeu_ps(place, lanes); }
INLINE Floats all_lanes(float value) { return _mm256_set1_ps(value); }
INLINE Floats fused(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
INLINE Floats max_lanes(Floats a, Floats b) { return _mm256_max_ps(a, b); }
INLINE Floats abs_lanes(Floats a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }

INLINE float sum_of(Floats a) {
    __m128 sum = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}

INLINE float max_of(Floats a) {
    __m128 most = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    most = _mm_max_ps(most, _mm_movehl_ps(most, most));
    return _mm_cvtss_f32(_mm_max_ss(most, _mm_movehdup_ps(most)));
}

INLINE Floats round_lanes(Floats a) {
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

INLINE Ints all_ints(int32_t value) { return _mm256_set1_epi32(value); }
INLINE Ints add_ints(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
INLINE Ints to_ints(Floats a) { return _mm256_cvtps_epi32(a); }
INLINE void store_ints(int32_t *place, Ints a) { _mm256_storeu_si256((__m256i *)place, a); }

INLINE int32_t sum_of_ints(Ints a) {
    __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, _MM_SHUFFLE(1, 0, 3, 2)));
    return _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 1)));
}

INLINE Ints ints_from(int32_t first) {
    return add_ints(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), all_ints(first));
}

// a * 2^exponents, for integral exponents. Two steps, for denormal results.
INLINE Floats scale_lanes(Floats a, Floats exponents) {
    const Ints whole = to_ints(_mm256_min_ps(exponents, all_lanes(254.0f)));
    const Ints half = _mm256_srai_epi32(whole, 1);
    const Ints steps[2] = {half, _mm256_sub_epi32(whole, half)};
    for (int i = 0; i < 2; i++)
        a *= _mm256_castsi256_ps(_mm256_slli_epi32(add_ints(steps[i], all_ints(127)), 23));
    return a;
}

// A group of bfloat16 or int8 has two parts: the values at even and at odd positions.
INLINE int num_parts(Type type) { return type == FLOAT32 || type == INT4 ? 1 : 2; }

// A part's weights as one float, two int16, or for INT4 four bytes.
INLINE Ints weight_part(Type type, const uint8_t *groups, int part) {
    const Ints whole = _mm256_loadu_si256((const __m256i *)groups);
    switch (type) {
        case FLOAT32:
            return whole;
        case BFLOAT16:
            return part ? _mm256_and_si256(whole, all_ints((int32_t)0xffff0000))
                        : _mm256_slli_epi32(whole, 16);
        case INT4:
            return _mm256_and_si256(part ? _mm256_srli_epi16(whole, 4) : whole,
                                    _mm256_set1_epi8(0x0f));
        default:
            return part ? _mm256_srli_epi16(whole, 8)
                        : _mm256_and_si256(whole, _mm256_set1_epi16(0xff));
    }
}

INLINE Floats dot(Type type, Floats sums, Ints weights, Ints values) {
    if (!is_whole(type))
        return _mm256_fmadd_ps(_mm256_castsi256_ps(weights), _mm256_castsi256_ps(values), sums);
    // In assembly, because with intrinsics gcc adds the products first and spills the sums: four
    // times as slow.
    Ints products;
    if (type == INT4)
        // Sums of int16: the 16 products that a block adds to each are at most 16 * 15 * 127 < 2^15.
        __asm__("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0"
                : "+x"(sums), "=&x"(products)
                : "x"(weights), "x"(values));
    else
        // Products of int16, because sums of two products of bytes can exceed int16.
        __asm__("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0"
                : "+x"(sums), "=&x"(products)
                : "x"(weights), "x"(values));
    return sums;
}

INLINE Floats sums_from(Type type, int32_t start) {
    return _mm256_castsi256_ps(all_ints(type == INT4 ? 0 : start));
}

INLINE Floats whole_sums(Type type, Floats sums, int32_t start) {
    Ints whole = _mm256_castps_si256(sums);
    if (type == INT4)
        whole = add_ints(_mm256_madd_epi16(whole, _mm256_set1_epi16(1)), all_ints(start));
    return _mm256_cvtepi32_ps(whole);
}

INLINE void two_halves(const uint8_t *place, Floats vectors[2]) {
    vectors[0] = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)place));
    vectors[1] = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)place + 1));
}

INLINE Floats bytes_as_floats(const uint8_t *place) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)place)));
}

INLINE void store_values(Type type, uint8_t *parts, Floats values) {
    (void)type;  // AVX2 has no bfloat16 products, so the values are not rounded
    _mm256_storeu_ps((float *)parts, values);
}

INLINE void store_bytes(Type type, uint8_t *parts, Ints values) {
    if (type == INT4) {
        const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(values),
                                              _mm256_extracti128_si256(values, 1));
        _mm_storel_epi64((__m128i *)parts, _mm_packs_epi16(words, words));
        return;
    }
    const Ints sorted = _mm256_shuffle_epi32(values, _MM_SHUFFLE(3, 1, 2, 0));
    const Ints packed = _mm256_packs_epi32(sorted, sorted);
    _mm_storeu_si128((__m128i *)parts,
                     _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08)));
}

INLINE Mask to_mask(Floats compared) { return _mm256_castps_si256(compared); }
INLINE Mask equal(Floats a, Floats b) { return to_mask(_mm256_cmp_ps(a, b, _CMP_EQ_OQ)); }
INLINE Mask greater(Floats a, Floats b) { return to_mask(_mm256_cmp_ps(a, b, _CMP_GT_OQ)); }
INLINE Mask not_less(Floats a, Floats b) { return to_mask(_mm256_cmp_ps(a, b, _CMP_GE_OQ)); }
INLINE Mask is_nan(Floats a) { return to_mask(_mm256_cmp_ps(a, a, _CMP_UNORD_Q)); }
INLINE Mask greater_ints(Ints a, Ints b) { return _mm256_cmpgt_epi32(a, b); }

INLINE unsigned bits_of(Mask mask) {
    return (unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(mask));
}

INLINE Mask mask_of(unsigned bits) {
    const Ints places = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    return _mm256_cmpeq_epi32(_mm256_and_si256(all_ints((int32_t)bits), places), places);
}

INLINE Floats choose(Mask mask, Floats yes, Floats no) {
    return _mm256_blendv_ps(no, yes, _mm256_castsi256_ps(mask));
}

INLINE Ints choose_ints(Mask mask, Ints yes, Ints no) {
    return _mm256_blendv_epi8(no, yes, mask);
}

INLINE Floats load_some(const float *place, Mask mask, Floats others) {
    return choose(mask, _mm256_maskload_ps(place, mask), others);
}

INLINE void store_some(float *place, Mask mask, Floats lanes) {
    _mm256_maskstore_ps(place, mask, lanes);
}

INLINE Doubles add_doubles(Doubles sums, Floats a) {
    const Doubles low = _mm256_cvtps_pd(_mm256_castps256_ps128(a));
    const Doubles high = _mm256_cvtps_pd(_mm256_extractf128_ps(a, 1));
    return _mm256_add_pd(sums, _mm256_add_pd(low, high));
}

INLINE double sum_of_doubles(Doubles a) {
    const __m128d sum = _mm_add_pd(_mm256_castpd256_pd128(a), _mm256_extractf128_pd(a, 1));
    return _mm_cvtsd_f64(_mm_add_sd(sum, _mm_unpackhi_pd(sum, sum)));
}

INLINE Longs all_longs(uint64_t value) { return _mm256_set1_epi64x((int64_t)value); }
INLINE Longs add_longs(Longs a, Longs b) { return _mm256_add_epi64(a, b); }
INLINE Longs count_longs(void) { return _mm256_setr_epi64x(0, 1, 2, 3); }

// The lower 64 bits of the products, from 32-bit halves.
INLINE Longs multiply_longs(Longs a, Longs b) {
    const Longs crossed = add_longs(_mm256_mul_epu32(_mm256_srli_epi64(a, 32), b),
                                    _mm256_mul_epu32(a, _mm256_srli_epi64(b, 32)));
    return add_longs(_mm256_mul_epu32(a, b), _mm256_slli_epi64(crossed, 32));
}

// a ^ (a >> bits)
INLINE Longs fold_longs(Longs a, int bits) {
    return _mm256_xor_si256(a, _mm256_srli_epi64(a, bits));
}

INLINE Floats lacking_lanes(Longs low, Longs high) {
    const Floats upper = _mm256_shuffle_ps(_mm256_castsi256_ps(low), _mm256_castsi256_ps(high),
                                           _MM_SHUFFLE(3, 1, 3, 1));
    const Ints sorted =
        _mm256_permute4x64_epi64(_mm256_castps_si256(upper), _MM_SHUFFLE(3, 1, 2, 0));
    const Ints lacking = _mm256_xor_si256(sorted, all_ints(-1));
    // The conversion is signed, so convert the unsigned values as two 16-bit halves.
    const Floats high_half = _mm256_cvtepi32_ps(_mm256_srli_epi32(lacking, 16));
    const Floats low_half = _mm256_cvtepi32_ps(_mm256_and_si256(lacking, all_ints(0xffff)));
    return fused(high_half, all_lanes(65536.0f), low_half);
}
