// Samples the next token of one row of logits by the Gumbel-max trick: the argmax of logits plus
// Gumbel noise is a sample from their softmax. Two optimisations:
//
// 1. Logarithms are computed only for tokens whose noise can exceed the best sum so far. A bound
//    that needs no logarithm finds them: about a dozen of a vocabulary.
//
// 2. There is no sort. top_k and top_p keep a prefix of the tokens in order of probability. Sample
//    from a longer prefix: if the result is inside the wanted prefix, it is the correct sample; if
//    not, cut the prefix before that token and sample again (rejection sampling).
#pragma once

#include <float.h>
#include <limits.h>
#include <math.h>

#include "noise.h"
#include "simd.h"

typedef struct {
    uint64_t seed, position;
    const uint8_t *mask;  // one bit per token, 1 if allowed; NULL: all are allowed
    float temperature;     // 0: greedy
    float top_p;           // 1: no filter
    float min_p;           // 0: no filter
    int32_t top_k;         // 0: no filter
} Params;

// A position in the tokens' order: by value descending, then by id ascending.
typedef struct {
    float value;
    int32_t id;
} Rank;

static const Rank END = {-INFINITY, 0};  // after every token with a finite value

INLINE int is_before(Rank a, Rank b) {
    return a.value > b.value || (a.value == b.value && a.id < b.id);
}

// The lanes from `first` on whose index is below `count`.
INLINE Mask lanes_within(int count, int first) { return mask_of((1u << (count - first)) - 1); }

// LANES values from `first` on; minus infinity after the last value.
INLINE Floats values_at(const float *values, int count, int first) {
    if (first + LANES <= count) return load(values + first);
    return load_some(values + first, lanes_within(count, first), all_lanes(-INFINITY));
}

INLINE Mask allowed_at(const uint8_t *mask, int first) {
    unsigned bits = 0;
    memcpy(&bits, mask + first / 8, LANES / 8);
    return mask_of(bits);
}

INLINE Mask lanes_before(Floats lanes, int first, Rank rank) {
    const Mask same = equal(lanes, all_lanes(rank.value));
    const Mask larger = greater(lanes, all_lanes(rank.value));
    if (!bits_of(same)) return larger;
    return larger | (same & greater_ints(all_ints(rank.id), ints_from(first)));
}

// Applies mask and temperature in place. Returns the first of the largest values; NaN if any is.
static Rank prepare(float *values, int count, const Params *params) {
    const float temperature = params->temperature > 0.0f ? params->temperature : 1.0f;
    const int changes = params->mask || temperature != 1.0f;
    Floats highest = all_lanes(-INFINITY);
    Ints ids_of_highest = all_ints(0);
    Mask broken = mask_of(0);
    for (int i = 0; i < count; i += LANES) {
        Floats lanes = values_at(values, count, i);
        if (changes) {
            lanes /= all_lanes(temperature);
            if (params->mask)
                lanes = choose(allowed_at(params->mask, i), lanes, all_lanes(-INFINITY));
            if (i + LANES <= count) store(values + i, lanes);
            else store_some(values + i, lanes_within(count, i), lanes);
        }
        broken |= is_nan(lanes);
        const Mask larger = greater(lanes, highest);
        highest = choose(larger, lanes, highest);
        ids_of_highest = choose_ints(larger, ints_from(i), ids_of_highest);
    }
    if (bits_of(broken)) return (Rank){NAN, 0};
    Rank first = {max_of(highest), INT_MAX};
    int32_t ids[LANES];
    store_ints(ids, ids_of_highest);
    unsigned best = bits_of(equal(highest, all_lanes(first.value)));
    for (; best; best &= best - 1)
        if (ids[__builtin_ctz(best)] < first.id) first.id = ids[__builtin_ctz(best)];
    return first;
}

// The token before `end` with the largest sum of value and noise. `first` is the first in order.
static int32_t gumbel_argmax(const float *values, int count, uint64_t key, Rank first, Rank end) {
    Rank best = {first.value + gumbel(key, first.id), first.id};
    for (int i = 0; i < count; i += LANES) {
        const Floats lanes = values_at(values, count, i);
        unsigned open = bits_of(lanes_before(lanes, i, end));
        if (!open) continue;
        // A token can win only if its shortfall is below exp(value - best). The margins cover
        // rounding.
        const float least = best.value - 1e-4f - 1e-6f * fabsf(best.value);
        const Floats reach = exp2_lanes((lanes - all_lanes(least)) * all_lanes(LOG2_E));
        open &= bits_of(not_less(reach, shortfall_lanes(key, i)));
        for (; open; open &= open - 1) {
            const int id = i + __builtin_ctz(open);
            const Rank rank = {values[id] + gumbel(key, id), id};
            if (is_before(rank, best)) best = rank;
        }
    }
    return best.id;
}

// The sum of exp(value - highest) over the tokens before `end`.
static double mass(const float *values, int count, float highest, Rank end) {
    Doubles sums = {0};
    for (int i = 0; i < count; i += LANES) {
        const Floats lanes = values_at(values, count, i);
        const Mask before = lanes_before(lanes, i, end);
        if (!bits_of(before)) continue;
        const Floats power = exp2_lanes((lanes - all_lanes(highest)) * all_lanes(LOG2_E));
        sums = add_doubles(sums, choose(before, power, all_lanes(0.0f)));
    }
    return sum_of_doubles(sums);
}

// Maps a float to an integer with the same order, and back.
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

// The end of the k first tokens: exactly k are before it. END if there are no more than k.
static Rank end_of_top_k(const float *values, int count, float highest, int k) {
    if (count_from(values, count, -FLT_MAX) <= k) return END;
    // Binary search. Invariant: at least k values are >= value_of(low), fewer >= value_of(high).
    // (Adding 0 turns -0 into 0, which compares equal to it but has another order.)
    int64_t low = order_of(-FLT_MAX), high = (int64_t)order_of(highest + 0.0f) + 1;
    while (high - low > 1) {
        const int64_t middle = low + (high - low) / 2;
        const int found = count_from(values, count, value_of((int32_t)middle));
        if (found == k) return (Rank){value_of((int32_t)middle), INT_MAX};
        if (found > k) low = middle;
        else high = middle;
    }
    const float value = value_of((int32_t)low);  // of the k-th token, and maybe of tokens after it
    int left = k - count_from(values, count, value_of((int32_t)high));
    for (int id = 0; id < count; id++)
        if (values[id] == value && left-- == 0) return (Rank){value, id};
    return END;  // unreachable
}

// The sampled id; -1 if no value is finite, or one is NaN or infinity. Overwrites `values`.
static int32_t sample_row(float *values, int count, const Params *params) {
    const Rank first = prepare(values, count, params);
    if (!isfinite(first.value)) return -1;
    if (params->temperature <= 0.0f) return first.id;
    const uint64_t key = noise_key(params->seed, params->position);
    Rank end = params->top_k ? end_of_top_k(values, count, first.value, params->top_k) : END;
    const double most = params->top_p < 1.0f
                            ? params->top_p * mass(values, count, first.value, end)
                            : INFINITY;
    if (params->min_p > 0.0f) {
        const Rank floor = {first.value + logf(params->min_p), INT_MAX};
        if (is_before(floor, end)) end = floor;
    }
    for (;;) {
        const int32_t id = gumbel_argmax(values, count, key, first, end);
        const Rank sampled = {values[id], id};
        // A token is kept if the mass before it is below top_p: the first one always is.
        if (isinf(most) || mass(values, count, first.value, sampled) < most) return id;
        end = sampled;
    }
}
