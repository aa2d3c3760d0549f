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
    const uint8_t *mask;  // a bit a token, set where allowed; NULL: all are
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

// Those of the lanes from `first` on that are of the first `count`.
INLINE Mask there(int count, int first) { return mask_of((1u << (count - first)) - 1); }

// LANES values from `first` on; beyond the last, minus infinity.
INLINE Floats values_at(const float *values, int count, int first) {
    if (first + LANES <= count) return load(values + first);
    return load_some(values + first, there(count, first), all_lanes(-INFINITY));
}

INLINE Mask allowed_at(const uint8_t *mask, int first) {
    unsigned bits = 0;
    memcpy(&bits, mask + first / 8, LANES / 8);
    return mask_of(bits);
}

INLINE Mask ahead_lanes(Floats lanes, int first, Place place) {
    const Mask same = equal(lanes, all_lanes(place.value));
    const Mask larger = greater(lanes, all_lanes(place.value));
    if (!bits_of(same)) return larger;
    return larger | (same & greater_ints(all_ints(place.id), ints_from(first)));
}

// Applies mask and temperature in place; gives the first of the largest, NaN if there is one.
static Place prepare(float *values, int count, const Params *params) {
    const float temperature = params->temperature > 0.0f ? params->temperature : 1.0f;
    const int changes = params->mask || temperature != 1.0f;
    Floats highest = all_lanes(-INFINITY);
    Ints places = all_ints(0);
    Mask broken = mask_of(0);
    for (int i = 0; i < count; i += LANES) {
        Floats lanes = values_at(values, count, i);
        if (changes) {
            lanes /= all_lanes(temperature);
            if (params->mask)
                lanes = choose(allowed_at(params->mask, i), lanes, all_lanes(-INFINITY));
            if (i + LANES <= count) store(values + i, lanes);
            else store_some(values + i, there(count, i), lanes);
        }
        broken |= no_numbers(lanes);
        const Mask larger = greater(lanes, highest);
        highest = choose(larger, lanes, highest);
        places = choose_ints(larger, ints_from(i), places);
    }
    if (bits_of(broken)) return (Place){NAN, 0};
    Place first = {max_of(highest), INT_MAX};
    int32_t ids[LANES];
    store_ints(ids, places);
    unsigned best = bits_of(equal(highest, all_lanes(first.value)));
    for (; best; best &= best - 1)
        if (ids[__builtin_ctz(best)] < first.id) first.id = ids[__builtin_ctz(best)];
    return first;
}

// The token with the largest sum of value and noise, of those ahead of `end`; `first` is the first
// of all.
static int32_t noisiest(const float *values, int count, uint64_t key, Place first, Place end) {
    Place best = {first.value + gumbel(key, first.id), first.id};
    for (int i = 0; i < count; i += LANES) {
        const Floats lanes = values_at(values, count, i);
        unsigned open = bits_of(ahead_lanes(lanes, i, end));
        if (!open) continue;
        // Its shortfall has to be below exp(value - best); the rest is room for rounding.
        const float least = best.value - 1e-4f - 1e-6f * fabsf(best.value);
        const Floats reach = exp2_lanes((lanes - all_lanes(least)) * all_lanes(LOG2_E));
        open &= bits_of(not_less(reach, shortfall_lanes(key, i)));
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
    Doubles sums = {0};
    for (int i = 0; i < count; i += LANES) {
        const Floats lanes = values_at(values, count, i);
        const Mask ahead = ahead_lanes(lanes, i, end);
        if (!bits_of(ahead)) continue;
        const Floats power = exp2_lanes((lanes - all_lanes(highest)) * all_lanes(LOG2_E));
        sums = add_doubles(sums, choose(ahead, power, all_lanes(0.0f)));
    }
    return sum_of_doubles(sums);
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
        found += __builtin_popcount(
            bits_of(not_less(values_at(values, count, i), all_lanes(least))));
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
