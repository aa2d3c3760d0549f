// Attention of a step's queries over the paged cache.
//
// Keys and values are in pages of LANES slots. A vector holds one group of LANES keys, or of LANES
// dimensions of a value:
//   keys   [num_blocks][num_kv_heads][pages][head_dim / group][LANES slots][4 bytes]
//   values [num_blocks][num_kv_heads][pages][LANES / group slots][head_dim][4 bytes]
// A head's part of a block is contiguous, for the memory bandwidth. The KV cache is FLOAT32 for
// float32 weights, else BFLOAT16. An online softmax runs over chunks of the context
// (arXiv:2205.14135), so the scores stay in the CPU's cache however long the context is.
#pragma once

#include <math.h>

#include "simd.h"

#define MAX_QUERIES 8
#define CHUNK 512  // slots whose scores are in memory at a time

typedef struct {
    int num_heads, num_kv_heads, head_dim;
    int window;  // 0: none
    Type type;   // of the KV cache
} AttentionShape;

// One thread's buffers.
typedef struct {
    float scores[MAX_QUERIES][CHUNK];
    uint8_t weights[MAX_QUERIES][CHUNK * 4];  // softmax weights of the values, as parts
    uint8_t queries[MAX_QUERIES][256 * 4];    // scaled, as parts
    float sums[MAX_QUERIES][256];
} AttentionBuffers;

// Queries of one KV head that are computed together; slots [begin, end) are visible to each.
typedef struct {
    int count;
    const float *queries[MAX_QUERIES];  // [head_dim]
    float *outputs[MAX_QUERIES];        // [head_dim]
    int begin[MAX_QUERIES], end[MAX_QUERIES];
} Tile;

INLINE size_t page_bytes(const AttentionShape *shape) {
    return (size_t)LANES * shape->head_dim * (4 / group_size(shape->type));
}

// Computes the scores of `width` neighbouring pages: scores[query][LANES slots of each]. Meanwhile
// it prefetches the next pages of keys and these pages' values.
INLINE void score_pages(Type type, const int count, const int width, const uint8_t *const *pages,
                        const uint8_t *const *next, const uint8_t *const *values, int num_groups,
                        AttentionBuffers *buffers, int column) {
    Floats sums[MAX_QUERIES][2];
#pragma GCC unroll 8
    for (int q = 0; q < count; q++) sums[q][0] = sums[q][1] = all_lanes(0.0f);
    for (int g = 0; g < num_groups; g++) {
        for (int w = 0; w < width; w++) {
            _mm_prefetch((const char *)next[w] + (size_t)g * VECTOR_BYTES, _MM_HINT_T0);
            _mm_prefetch((const char *)values[w] + (size_t)g * VECTOR_BYTES, _MM_HINT_T0);
        }
#pragma GCC unroll 2
        for (int part = 0; part < num_parts(type); part++) {
            Ints keys[2];
#pragma GCC unroll 2
            for (int w = 0; w < width; w++)
                keys[w] = weight_part(type, pages[w] + (size_t)g * VECTOR_BYTES, part);
#pragma GCC unroll 8
            for (int q = 0; q < count; q++) {
                const Ints query =
                    part_at(buffers->queries[q], (size_t)g * num_parts(type) + part);
#pragma GCC unroll 2
                for (int w = 0; w < width; w++) sums[q][w] = dot(type, sums[q][w], keys[w], query);
            }
        }
    }
#pragma GCC unroll 8
    for (int q = 0; q < count; q++)
#pragma GCC unroll 2
        for (int w = 0; w < width; w++) store(&buffers->scores[q][column + w * LANES], sums[q][w]);
}

// Adds weights * values of a chunk to the sums of `width` vectors of dimensions, from `d` on.
INLINE void add_values(Type type, const int count, const int width, const uint8_t *const *pages,
                       int num_pages, int head_dim, int d, AttentionBuffers *buffers) {
    const int rows_per_page = LANES / group_size(type);
    Floats sums[MAX_QUERIES][2];
#pragma GCC unroll 8
    for (int q = 0; q < count; q++)
#pragma GCC unroll 2
        for (int w = 0; w < width; w++) sums[q][w] = load(&buffers->sums[q][d + w * LANES]);
    for (int page = 0; page < num_pages; page++) {
#pragma GCC unroll 2
        for (int r = 0; r < rows_per_page; r++) {
            const uint8_t *row = pages[page] + ((size_t)r * head_dim + d) * 4;
#pragma GCC unroll 2
            for (int part = 0; part < num_parts(type); part++) {
                const size_t index = (size_t)(page * rows_per_page + r) * num_parts(type) + part;
                Ints values[2];
#pragma GCC unroll 2
                for (int w = 0; w < width; w++)
                    values[w] = weight_part(type, row + w * VECTOR_BYTES, part);
#pragma GCC unroll 8
                for (int q = 0; q < count; q++) {
                    const Ints weight = part_at(buffers->weights[q], index);
#pragma GCC unroll 2
                    for (int w = 0; w < width; w++)
                        sums[q][w] = dot(type, sums[q][w], values[w], weight);
                }
            }
        }
    }
#pragma GCC unroll 8
    for (int q = 0; q < count; q++)
#pragma GCC unroll 2
        for (int w = 0; w < width; w++) store(&buffers->sums[q][d + w * LANES], sums[q][w]);
}

// Turns a chunk's scores into softmax weights; returns the factor to rescale the previous sums by.
static float update_softmax(Type type, float *scores, uint8_t *weights, int num_slots, int low,
                            int high, float *highest, float *total) {
    Floats lanes_highest = all_lanes(-INFINITY);
    for (int i = 0; i < num_slots; i += LANES) {
        Floats lanes = load(scores + i);
        if (i < low || i + LANES > high) {
            const Ints slots = ints_from(i);
            const Mask visible =
                greater_ints(slots, all_ints(low - 1)) & greater_ints(all_ints(high), slots);
            lanes = choose(visible, lanes, all_lanes(-INFINITY));
            store(scores + i, lanes);
        }
        lanes_highest = max_lanes(lanes_highest, lanes);
    }
    const float before = *highest;
    const float now = fmaxf(before, max_of(lanes_highest));
    if (now == -INFINITY) {  // no slot of this chunk is visible
        memset(weights, 0, part_bytes(type, (size_t)num_slots));
        return 1.0f;
    }
    Floats sum = all_lanes(0.0f);
    for (int i = 0; i < num_slots; i += LANES) {
        const Floats power = exp2_lanes(load(scores + i) - all_lanes(now));
        sum += power;
        store_values(type, weights + part_bytes(type, (size_t)i), power);
    }
    const float rescale = before == -INFINITY ? 0.0f : exp2f(before - now);
    *total = *total * rescale + sum_of(sum);
    *highest = now;
    return rescale;
}

INLINE void attend_typed(Type type, const int count, const AttentionShape *shape, const Tile *tile,
                         const uint8_t *keys, const uint8_t *values, const int32_t *pages,
                         AttentionBuffers *buffers) {
    const int head_dim = shape->head_dim, num_groups = head_dim / group_size(type);
    const float scale = LOG2_E / sqrtf((float)head_dim);
    const size_t page_size = page_bytes(shape);
    // Two vectors at a time if the registers suffice: one alone waits for the latency of its sums.
    const int width = count <= MAX_ROWS ? 2 : 1;
    float highest[MAX_QUERIES], total[MAX_QUERIES];
    int first = tile->begin[0], last = tile->end[0];
    for (int q = 0; q < count; q++) {
        highest[q] = -INFINITY;
        total[q] = 0.0f;
        if (tile->begin[q] < first) first = tile->begin[q];
        if (tile->end[q] > last) last = tile->end[q];
        for (int d = 0; d < head_dim; d += LANES) {
            store_values(type, buffers->queries[q] + part_bytes(type, (size_t)d),
                         load(tile->queries[q] + d) * all_lanes(scale));
            store(&buffers->sums[q][d], all_lanes(0.0f));
        }
    }
    for (int begin = first / LANES * LANES; begin < last; begin += CHUNK) {
        const int num_pages =
            ((last - begin < CHUNK ? last - begin : CHUNK) + LANES - 1) / LANES;
        const uint8_t *key_pages[CHUNK / LANES], *value_pages[CHUNK / LANES];
        for (int page = 0; page < num_pages; page++) {
            const size_t offset = (size_t)pages[begin / LANES + page] * page_size;
            key_pages[page] = keys + offset;
            value_pages[page] = values + offset;
        }
        for (int page = 0, next; page < num_pages; page = next) {
            next = page + width <= num_pages ? page + width : page + 1;
            const uint8_t *const *these = key_pages + page, *const *those = value_pages + page;
            const uint8_t *const *soon = next + width <= num_pages ? key_pages + next : these;
            if (next == page + 1)
                score_pages(type, count, 1, these, soon, those, num_groups, buffers, page * LANES);
            else
                score_pages(type, count, 2, these, soon, those, num_groups, buffers, page * LANES);
        }
        for (int q = 0; q < count; q++) {
            const float rescale =
                update_softmax(type, buffers->scores[q], buffers->weights[q], num_pages * LANES,
                       tile->begin[q] - begin, tile->end[q] - begin, &highest[q], &total[q]);
            if (rescale == 1.0f) continue;
            for (int d = 0; d < head_dim; d += LANES)
                store(&buffers->sums[q][d], load(&buffers->sums[q][d]) * all_lanes(rescale));
        }
        int d = 0;
        if (width == 2)
            for (; d + 2 * LANES <= head_dim; d += 2 * LANES)
                add_values(type, count, 2, value_pages, num_pages, head_dim, d, buffers);
        for (; d < head_dim; d += LANES)
            add_values(type, count, 1, value_pages, num_pages, head_dim, d, buffers);
    }
    for (int q = 0; q < count; q++)
        for (int d = 0; d < head_dim; d += LANES)
            store(tile->outputs[q] + d, load(&buffers->sums[q][d]) / all_lanes(total[q]));
}

// Attention of a tile over the pages of its sequence, for one KV head. `pages` are those of head 0;
// `keys` and `values` point to this head's part.
static void attend(const AttentionShape *shape, const Tile *tile, const uint8_t *keys,
                   const uint8_t *values, const int32_t *pages, AttentionBuffers *buffers) {
    switch (tile->count + (shape->type == FLOAT32 ? 0 : 16)) {
#define CASES(n)                                                                         \
    case n: attend_typed(FLOAT32, n, shape, tile, keys, values, pages, buffers); break;       \
    case n + 16: attend_typed(BFLOAT16, n, shape, tile, keys, values, pages, buffers); break;
        CASES(1) CASES(2) CASES(3) CASES(4) CASES(5) CASES(6) CASES(7) CASES(8)
#undef CASES
    }
}

// Stores a token's key and value of one KV head at a slot of a page.
static void store_key_value(const AttentionShape *shape, uint8_t *keys, uint8_t *values, int slot,
                            const float *key, const float *value) {
    if (shape->type == FLOAT32) {
        float *k = (float *)keys, *v = (float *)values;
        for (int d = 0; d < shape->head_dim; d++) k[d * LANES + slot] = key[d];
        memcpy(v + (size_t)slot * shape->head_dim, value, (size_t)shape->head_dim * 4);
        return;
    }
    uint16_t *k = (uint16_t *)keys, *v = (uint16_t *)values;
    for (int d = 0; d < shape->head_dim; d++) {
        k[(d / 2) * 2 * LANES + slot * 2 + d % 2] = to_bfloat16(key[d]);
        v[(slot / 2) * shape->head_dim * 2 + d * 2 + slot % 2] = to_bfloat16(value[d]);
    }
}
