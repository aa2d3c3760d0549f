// Draws the next token of one row of logits.
//
// The maximum of logits and Gumbel noise is a draw from their softmax. Two things make it cheap:
//
// A logarithm is computed only for the few tokens whose noise can lift them over the best so far,
// which a bound without logarithms tells: about a dozen of a vocabulary.
//
// Nothing is sorted. top_k and top_p keep those that stand ahead of some place in the order of
// likelihood, so whatever is drawn from a set that holds them all is the right draw if it is one
// of them, and if not, it and all behind it are out, and the next draw is from what is left.
#pragma once

#include <float.h>
#include <limits.h>
#include <math.h>

#include "noise.h"
#include "simd.h"

typedef struct {
    uint64_t seed, position;
    const uint16_t *mask;  // a bit a token, set where allowed; NULL: all are
    float temperature;     // 0: the likeliest
    float top_p;           // 1: all
    float min_p;           // 0: all
    int32_t top_k;         // 0: all
} Params;

// A place in the order of likelihood, in which equals stand by id. What has a larger value or the
// same and a smaller id is ahead of it.
typedef struct {
    float value;
    int32_t id;
} Place;

static const Place END = {-INFINITY, 0};  // ahead of it is all that is possible

INLINE int is_ahead(Place a, Place b) {
    return a.value > b.value || (a.value == b.value && a.id < b.id);
}

// Sixteen values from `first` on; beyond the last, minus infinity.
INLINE __m512 values_at(const float *values, int count, int first) {
    if (first + LANES <= count) return _mm512_loadu_ps(values + first);
    const __mmask16 there = (__mmask16)((1u << (count - first)) - 1);
    return _mm512_mask_loadu_ps(_mm512_set1_ps(-INFINITY), there, values + first);
}

INLINE __m512i ids_from(int first) {
    return _mm512_add_epi32(
        _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
        _mm512_set1_epi32(first));
}

INLINE __mmask16 ahead_lanes(__m512 lanes, int first, Place place) {
    const __m512 value = _mm512_set1_ps(place.value);
    const __mmask16 equal = _mm512_cmp_ps_mask(lanes, value, _CMP_EQ_OQ);
    const __mmask16 larger = _mm512_cmp_ps_mask(lanes, value, _CMP_GT_OQ);
    if (!equal) return larger;
    return larger | (equal & _mm512_cmplt_epi32_mask(ids_from(first), _mm512_set1_epi32(place.id)));
}

// Applies mask and temperature in place; gives the first of the largest, NaN if there is one.
static Place prepare(float *values, int count, const Params *params) {
    const float temperature = params->temperature > 0.0f ? params->temperature : 1.0f;
    const int changes = params->mask || temperature != 1.0f;
    __m512 highest = _mm512_set1_ps(-INFINITY);
    __m512i places = _mm512_setzero_si512();
    __mmask16 broken = 0;
    for (int i = 0; i < count; i += LANES) {
        __m512 lanes = values_at(values, count, i);
        if (changes) {
            const __mmask16 allowed = params->mask ? params->mask[i / LANES] : (__mmask16)-1;
            lanes = _mm512_mask_div_ps(_mm512_set1_ps(-INFINITY), allowed, lanes,
                                       _mm512_set1_ps(temperature));
            const int left = count - i < LANES ? count - i : LANES;
            _mm512_mask_storeu_ps(values + i, (__mmask16)((1u << left) - 1), lanes);
        }
        broken |= _mm512_cmp_ps_mask(lanes, lanes, _CMP_UNORD_Q);
        const __mmask16 larger = _mm512_cmp_ps_mask(lanes, highest, _CMP_GT_OQ);
        highest = _mm512_mask_mov_ps(highest, larger, lanes);
        places = _mm512_mask_mov_epi32(places, larger, ids_from(i));
    }
    if (broken) return (Place){NAN, 0};
    const float value = _mm512_reduce_max_ps(highest);
    const __mmask16 best = _mm512_cmp_ps_mask(highest, _mm512_set1_ps(value), _CMP_EQ_OQ);
    return (Place){value, _mm512_mask_reduce_min_epi32(best, places)};
}

// The token with the largest sum of value and noise, of those ahead of `end`; `first` is the first
// of all.
static int32_t noisiest(const float *values, int count, uint64_t key, Place first, Place end) {
    Place best = {first.value + gumbel(key, first.id), first.id};
    for (int i = 0; i < count; i += LANES) {
        const __m512 lanes = values_at(values, count, i);
        __mmask16 open = ahead_lanes(lanes, i, end);
        if (!open) continue;
        // Its shortfall has to be below exp(value - best); the rest is room for rounding.
        const float least = best.value - 1e-4f - 1e-6f * fabsf(best.value);
        const __m512 reach = exp2_lanes(_mm512_mul_ps(_mm512_sub_ps(lanes, _mm512_set1_ps(least)),
                                                      _mm512_set1_ps(LOG2_E)));
        open &= _mm512_cmp_ps_mask(shortfall_lanes(key, i), reach, _CMP_LE_OQ);
        for (; open; open &= open - 1) {
            const int id = i + __builtin_ctz(open);
            const Place place = {values[id] + gumbel(key, id), id};
            if (is_ahead(place, best)) best = place;
        }
    }
    return best.id;
}

// The sum of exp(value - highest) over what is ahead of `end`.
static double mass(const float *values, int count, float highest, Place end) {
    __m512d low = _mm512_setzero_pd(), high = _mm512_setzero_pd();
    for (int i = 0; i < count; i += LANES) {
        const __m512 lanes = values_at(values, count, i);
        const __mmask16 ahead = ahead_lanes(lanes, i, end);
        if (!ahead) continue;
        const __m512 power = _mm512_maskz_mov_ps(
            ahead, exp2_lanes(_mm512_mul_ps(_mm512_sub_ps(lanes, _mm512_set1_ps(highest)),
                                            _mm512_set1_ps(LOG2_E))));
        low = _mm512_add_pd(low, _mm512_cvtps_pd(_mm512_castps512_ps256(power)));
        high = _mm512_add_pd(high, _mm512_cvtps_pd(_mm512_extractf32x8_ps(power, 1)));
    }
    return _mm512_reduce_add_pd(_mm512_add_pd(low, high));
}

// Floats in order as whole numbers, and back.
INLINE int32_t order_of(float value) {
    int32_t bits;
    memcpy(&bits, &value, 4);
    return bits ^ ((bits >> 31) & INT32_MAX);
}

INLINE float value_of(int32_t order) {
    const int32_t bits = order ^ ((order >> 31) & INT32_MAX);
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static int count_from(const float *values, int count, float least) {
    int found = 0;
    for (int i = 0; i < count; i += LANES)
        found += __builtin_popcount(_mm512_cmp_ps_mask(values_at(values, count, i),
                                                       _mm512_set1_ps(least), _CMP_GE_OQ));
    return found;
}

// The place that exactly k are ahead of, or the end where there are no more.
static Place behind_top(const float *values, int count, float highest, int k) {
    if (count_from(values, count, -FLT_MAX) <= k) return END;
    // At least k are from value_of(low) on, fewer from value_of(high) on.
    // (Adding 0 to a highest of -0 makes it the 0 that it equals.)
    int64_t low = order_of(-FLT_MAX), high = (int64_t)order_of(highest + 0.0f) + 1;
    while (high - low > 1) {
        const int64_t middle = low + (high - low) / 2;
        const int found = count_from(values, count, value_of((int32_t)middle));
        if (found == k) return (Place){value_of((int32_t)middle), INT_MAX};
        if (found > k) low = middle;
        else high = middle;
    }
    const float value = value_of((int32_t)low);  // of the k-th, and of others behind it
    int left = k - count_from(values, count, value_of((int32_t)high));
    for (int id = 0; id < count; id++)
        if (values[id] == value && left-- == 0) return (Place){value, id};
    return END;  // never
}

// The id drawn, -1 where no value is finite or one is none. Changes the values.
static int32_t draw_row(float *values, int count, const Params *params) {
    const Place first = prepare(values, count, params);
    if (!isfinite(first.value)) return -1;
    if (params->temperature <= 0.0f) return first.id;
    const uint64_t key = noise_key(params->seed, params->position);
    Place end = params->top_k ? behind_top(values, count, first.value, params->top_k) : END;
    const double most = params->top_p < 1.0f
                            ? params->top_p * mass(values, count, first.value, end)
                            : INFINITY;
    if (params->min_p > 0.0f) {
        const Place floor = {first.value + logf(params->min_p), INT_MAX};
        if (is_ahead(floor, end)) end = floor;
    }
    for (;;) {
        const int32_t id = noisiest(values, count, key, first, end);
        const Place drawn = {values[id], id};
        // A token stays while the mass ahead of it has not reached top_p: the first always does.
        if (isinf(most) || mass(values, count, first.value, drawn) < most) return id;
        end = drawn;
    }
}
