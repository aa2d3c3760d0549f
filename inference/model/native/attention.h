// Attention of a step's queries over the paged cache.
//
// Keys and values lie in pages of LANES slots, so that a vector holds one group of LANES keys, or
// of as many dimensions of a value:
//   keys   [num_blocks][num_kv_heads][pages][head_dim / group][LANES slots][4 bytes]
//   values [num_blocks][num_kv_heads][pages][LANES / group slots][head_dim][4 bytes]
// so that what a head has of a block lies together, for the sake of the memory's bandwidth.
// The cache is FLOAT32 for float32 weights, else BFLOAT16. A softmax runs along pieces of the
// context (arXiv:2205.14135), so that scores stay in the cache however long the context is.
#pragma once

#include <math.h>

#include "simd.h"

#define MAX_QUERIES 8
#define PIECE 512  // slots whose scores are held at a time

typedef struct {
    int num_heads, num_kv_heads, head_dim;
    int window;  // 0: none
    Type type;   // of the cache
} AttentionShape;

// A thread's own room.
typedef struct {
    float scores[MAX_QUERIES][PIECE];
    uint8_t weights[MAX_QUERIES][PIECE * 4];  // of the values, as parts
    uint8_t queries[MAX_QUERIES][256 * 4];    // as parts, scaled
    float sums[MAX_QUERIES][256];
} AttentionRoom;

// The queries of one KV head that are computed together: each sees slots [begin, end).
typedef struct {
    int count;
    const float *queries[MAX_QUERIES];  // [head_dim]
    float *outputs[MAX_QUERIES];        // [head_dim]
    int begin[MAX_QUERIES], end[MAX_QUERIES];
} Tile;

INLINE size_t page_bytes(const AttentionShape *shape) {
    return (size_t)LANES * shape->head_dim * (4 / group_size(shape->type));
}

// Scores of some neighbouring pages: out[query][LANES slots of each]. As many pages of keys that
// come next, and these pages' values, are asked for little by little, so that the memory works
// while this computes.
INLINE void score_pages(Type type, const int count, const int width, const uint8_t *const *pages,
                        const uint8_t *const *next, const uint8_t *const *values, int num_groups,
                        AttentionRoom *room, int column) {
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
                    part_at(room->queries[q], (size_t)g * num_parts(type) + part);
#pragma GCC unroll 2
                for (int w = 0; w < width; w++) sums[q][w] = dot(type, sums[q][w], keys[w], query);
            }
        }
    }
#pragma GCC unroll 8
    for (int q = 0; q < count; q++)
#pragma GCC unroll 2
        for (int w = 0; w < width; w++) store(&room->scores[q][column + w * LANES], sums[q][w]);
}

// Adds weights * values of a piece to the sums of some neighbouring dimensions, from `d` on.
INLINE void add_values(Type type, const int count, const int width, const uint8_t *const *pages,
                       int num_pages, int head_dim, int d, AttentionRoom *room) {
    const int rows_per_page = LANES / group_size(type);
    Floats sums[MAX_QUERIES][2];
#pragma GCC unroll 8
    for (int q = 0; q < count; q++)
#pragma GCC unroll 2
        for (int w = 0; w < width; w++) sums[q][w] = load(&room->sums[q][d + w * LANES]);
    for (int page = 0; page < num_pages; page++) {
#pragma GCC unroll 2
        for (int r = 0; r < rows_per_page; r++) {
            const uint8_t *row = pages[page] + ((size_t)r * head_dim + d) * 4;
#pragma GCC unroll 2
            for (int part = 0; part < num_parts(type); part++) {
                const size_t place = (size_t)(page * rows_per_page + r) * num_parts(type) + part;
                Ints values[2];
#pragma GCC unroll 2
                for (int w = 0; w < width; w++)
                    values[w] = weight_part(type, row + w * VECTOR_BYTES, part);
#pragma GCC unroll 8
                for (int q = 0; q < count; q++) {
                    const Ints weight = part_at(room->weights[q], place);
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
        for (int w = 0; w < width; w++) store(&room->sums[q][d + w * LANES], sums[q][w]);
}

// Turns a piece's scores into weights of the values; gives what the sums so far shrink by.
static float soften(Type type, float *scores, uint8_t *weights, int num_slots, int low, int high,
                    float *highest, float *total) {
    Floats lanes_highest = all_lanes(-INFINITY);
    for (int i = 0; i < num_slots; i += LANES) {
        Floats lanes = load(scores + i);
        if (i < low || i + LANES > high) {
            const Ints slots = ints_from(i);
            const Mask seen =
                greater_ints(slots, all_ints(low - 1)) & greater_ints(all_ints(high), slots);
            lanes = choose(seen, lanes, all_lanes(-INFINITY));
            store(scores + i, lanes);
        }
        lanes_highest = max_lanes(lanes_highest, lanes);
    }
    const float before = *highest;
    const float now = fmaxf(before, max_of(lanes_highest));
    if (now == -INFINITY) {  // nothing of this piece is seen
        memset(weights, 0, part_bytes(type, (size_t)num_slots));
        return 1.0f;
    }
    Floats sum = all_lanes(0.0f);
    for (int i = 0; i < num_slots; i += LANES) {
        const Floats power = exp2_lanes(load(scores + i) - all_lanes(now));
        sum += power;
        store_values(type, weights + part_bytes(type, (size_t)i), power);
    }
    const float shrink = before == -INFINITY ? 0.0f : exp2f(before - now);
    *total = *total * shrink + sum_of(sum);
    *highest = now;
    return shrink;
}

INLINE void attend_typed(Type type, const int count, const AttentionShape *shape, const Tile *tile,
                         const uint8_t *keys, const uint8_t *values, const int32_t *pages,
                         AttentionRoom *room) {
    const int head_dim = shape->head_dim, num_groups = head_dim / group_size(type);
    const float scale = LOG2_E / sqrtf((float)head_dim);
    const size_t page_size = page_bytes(shape);
    // Two vectors at a time while there are registers: one alone waits for its own sums.
    const int width = count <= MAX_ROWS ? 2 : 1;
    float highest[MAX_QUERIES], total[MAX_QUERIES];
    int first = tile->begin[0], last = tile->end[0];
    for (int q = 0; q < count; q++) {
        highest[q] = -INFINITY;
        total[q] = 0.0f;
        if (tile->begin[q] < first) first = tile->begin[q];
        if (tile->end[q] > last) last = tile->end[q];
        for (int d = 0; d < head_dim; d += LANES) {
            store_values(type, room->queries[q] + part_bytes(type, (size_t)d),
                         load(tile->queries[q] + d) * all_lanes(scale));
            store(&room->sums[q][d], all_lanes(0.0f));
        }
    }
    for (int begin = first / LANES * LANES; begin < last; begin += PIECE) {
        const int num_pages =
            ((last - begin < PIECE ? last - begin : PIECE) + LANES - 1) / LANES;
        const uint8_t *key_pages[PIECE / LANES], *value_pages[PIECE / LANES];
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
                score_pages(type, count, 1, these, soon, those, num_groups, room, page * LANES);
            else
                score_pages(type, count, 2, these, soon, those, num_groups, room, page * LANES);
        }
        for (int q = 0; q < count; q++) {
            const float shrink =
                soften(type, room->scores[q], room->weights[q], num_pages * LANES,
                       tile->begin[q] - begin, tile->end[q] - begin, &highest[q], &total[q]);
            if (shrink == 1.0f) continue;
            for (int d = 0; d < head_dim; d += LANES)
                store(&room->sums[q][d], load(&room->sums[q][d]) * all_lanes(shrink));
        }
        int d = 0;
        if (width == 2)
            for (; d + 2 * LANES <= head_dim; d += 2 * LANES)
                add_values(type, count, 2, value_pages, num_pages, head_dim, d, room);
        for (; d < head_dim; d += LANES)
            add_values(type, count, 1, value_pages, num_pages, head_dim, d, room);
    }
    for (int q = 0; q < count; q++)
        for (int d = 0; d < head_dim; d += LANES)
            store(tile->outputs[q] + d, load(&room->sums[q][d]) / all_lanes(total[q]));
}

// One tile against the pages of its sequence, for one KV head: `pages` are of head 0, and the
// caches begin at this one's.
static void attend(const AttentionShape *shape, const Tile *tile, const uint8_t *keys,
                   const uint8_t *values, const int32_t *pages, AttentionRoom *room) {
    switch (tile->count + (shape->type == FLOAT32 ? 0 : 16)) {
#define CASES(n)                                                                         \
    case n: attend_typed(FLOAT32, n, shape, tile, keys, values, pages, room); break;       \
    case n + 16: attend_typed(BFLOAT16, n, shape, tile, keys, values, pages, room); break;
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
