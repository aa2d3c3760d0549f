// Attention of a step's queries over the paged cache.
//
// Keys and values lie in pages of sixteen slots, so that a vector holds one group of sixteen
// keys, or of sixteen dimensions of a value:
//   keys   [num_pages][num_kv_heads][head_dim / group][16 slots][4 bytes]
//   values [num_pages][num_kv_heads][16 / group slots][head_dim][4 bytes]
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
    uint8_t weights[MAX_QUERIES][PIECE * 4];  // of the values, as groups
    uint8_t queries[MAX_QUERIES][256 * 4];    // as groups, scaled
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

// Scores of one page: out[query][16 slots].
INLINE void score_page(Type type, const int count, const uint8_t *keys, int num_groups,
                       AttentionRoom *room, int column) {
    __m512 acc[MAX_QUERIES];
#pragma GCC unroll 8
    for (int q = 0; q < count; q++) acc[q] = _mm512_setzero_ps();
    for (int g = 0; g < num_groups; g++) {
        const __m512i key = _mm512_loadu_si512(keys + (size_t)g * 64);
#pragma GCC unroll 8
        for (int q = 0; q < count; q++)
            acc[q] = dot(type, acc[q], key, _mm512_set1_epi32(group_at(room->queries[q], g)));
    }
#pragma GCC unroll 8
    for (int q = 0; q < count; q++) _mm512_storeu_ps(&room->scores[q][column], acc[q]);
}

// Adds weights * values of a piece to the sums, sixteen dimensions at a time.
INLINE void add_values(Type type, const int count, const uint8_t *const *pages, int num_pages,
                       int head_dim, AttentionRoom *room) {
    const int rows_per_page = LANES / group_size(type);
    for (int d = 0; d < head_dim; d += LANES) {
        __m512 acc[MAX_QUERIES];
#pragma GCC unroll 8
        for (int q = 0; q < count; q++) acc[q] = _mm512_loadu_ps(&room->sums[q][d]);
        for (int page = 0; page < num_pages; page++) {
            const uint8_t *values = pages[page] + (size_t)d * 4;
#pragma GCC unroll 2
            for (int r = 0; r < rows_per_page; r++) {
                const __m512i value = _mm512_loadu_si512(values + (size_t)r * head_dim * 4);
#pragma GCC unroll 8
                for (int q = 0; q < count; q++) {
                    const int32_t weight = group_at(room->weights[q], page * rows_per_page + r);
                    acc[q] = dot(type, acc[q], value, _mm512_set1_epi32(weight));
                }
            }
        }
#pragma GCC unroll 8
        for (int q = 0; q < count; q++) _mm512_storeu_ps(&room->sums[q][d], acc[q]);
    }
}

// Turns a piece's scores into weights of the values; gives what the sums so far shrink by.
static float soften(Type type, float *scores, uint8_t *weights, int num_slots, int low, int high,
                    float *highest, float *total) {
    __m512 lanes_highest = _mm512_set1_ps(-INFINITY);
    const __m512i count = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (int i = 0; i < num_slots; i += LANES) {
        __m512 lanes = _mm512_loadu_ps(scores + i);
        if (i < low || i + LANES > high) {
            const __m512i slot = _mm512_add_epi32(count, _mm512_set1_epi32(i));
            const __mmask16 seen = _mm512_cmpge_epi32_mask(slot, _mm512_set1_epi32(low)) &
                                   _mm512_cmplt_epi32_mask(slot, _mm512_set1_epi32(high));
            lanes = _mm512_mask_blend_ps(seen, _mm512_set1_ps(-INFINITY), lanes);
            _mm512_storeu_ps(scores + i, lanes);
        }
        lanes_highest = _mm512_max_ps(lanes_highest, lanes);
    }
    const float before = *highest;
    const float now = fmaxf(before, _mm512_reduce_max_ps(lanes_highest));
    if (now == -INFINITY) {  // nothing of this piece is seen
        memset(weights, 0, (size_t)num_slots * (4 / group_size(type)));
        return 1.0f;
    }
    __m512 sum = _mm512_setzero_ps();
    for (int i = 0; i < num_slots; i += LANES) {
        const __m512 power =
            exp2_lanes(_mm512_sub_ps(_mm512_loadu_ps(scores + i), _mm512_set1_ps(now)));
        sum = _mm512_add_ps(sum, power);
        if (type == FLOAT32) _mm512_storeu_ps((float *)weights + i, power);
        else _mm256_storeu_si256((__m256i *)(weights + 2 * (size_t)i),
                                 (__m256i)_mm512_cvtneps_pbh(power));
    }
    const float shrink = before == -INFINITY ? 0.0f : exp2f(before - now);
    *total = *total * shrink + _mm512_reduce_add_ps(sum);
    *highest = now;
    return shrink;
}

INLINE void attend_typed(Type type, const int count, const AttentionShape *shape, const Tile *tile,
                         const uint8_t *keys, const uint8_t *values, size_t head_offset,
                         size_t page_stride, const int32_t *pages, AttentionRoom *room) {
    const int head_dim = shape->head_dim, num_groups = head_dim / group_size(type);
    const float scale = LOG2_E / sqrtf((float)head_dim);
    float highest[MAX_QUERIES], total[MAX_QUERIES];
    int first = tile->begin[0], last = tile->end[0];
    for (int q = 0; q < count; q++) {
        highest[q] = -INFINITY;
        total[q] = 0.0f;
        if (tile->begin[q] < first) first = tile->begin[q];
        if (tile->end[q] > last) last = tile->end[q];
        for (int d = 0; d < head_dim; d += LANES) {
            const __m512 lanes =
                _mm512_mul_ps(_mm512_loadu_ps(tile->queries[q] + d), _mm512_set1_ps(scale));
            if (type == FLOAT32) _mm512_storeu_ps((float *)room->queries[q] + d, lanes);
            else _mm256_storeu_si256((__m256i *)(room->queries[q] + 2 * (size_t)d),
                                     (__m256i)_mm512_cvtneps_pbh(lanes));
            _mm512_storeu_ps(&room->sums[q][d], _mm512_setzero_ps());
        }
    }
    for (int begin = first / LANES * LANES; begin < last; begin += PIECE) {
        const int num_pages =
            ((last - begin < PIECE ? last - begin : PIECE) + LANES - 1) / LANES;
        const uint8_t *value_pages[PIECE / LANES];
        for (int page = 0; page < num_pages; page++) {
            const size_t offset = (size_t)pages[begin / LANES + page] * page_stride + head_offset;
            value_pages[page] = values + offset;
            score_page(type, count, keys + offset, num_groups, room, page * LANES);
        }
        for (int q = 0; q < count; q++) {
            const float shrink =
                soften(type, room->scores[q], room->weights[q], num_pages * LANES,
                       tile->begin[q] - begin, tile->end[q] - begin, &highest[q], &total[q]);
            if (shrink == 1.0f) continue;
            for (int d = 0; d < head_dim; d += LANES)
                _mm512_storeu_ps(&room->sums[q][d], _mm512_mul_ps(_mm512_loadu_ps(&room->sums[q][d]),
                                                                  _mm512_set1_ps(shrink)));
        }
        add_values(type, count, value_pages, num_pages, head_dim, room);
    }
    for (int q = 0; q < count; q++)
        for (int d = 0; d < head_dim; d += LANES)
            _mm512_storeu_ps(tile->outputs[q] + d, _mm512_div_ps(_mm512_loadu_ps(&room->sums[q][d]),
                                                                 _mm512_set1_ps(total[q])));
}

// One tile against the pages of its sequence, for one KV head.
static void attend(const AttentionShape *shape, const Tile *tile, const uint8_t *keys,
                   const uint8_t *values, int kv_head, const int32_t *pages, AttentionRoom *room) {
    const size_t offset = kv_head * page_bytes(shape);
    const size_t stride = shape->num_kv_heads * page_bytes(shape);
    switch (tile->count + (shape->type == FLOAT32 ? 0 : 16)) {
#define CASES(n)                                                                              \
    case n: attend_typed(FLOAT32, n, shape, tile, keys, values, offset, stride, pages, room); \
        break;                                                                                \
    case n + 16:                                                                              \
        attend_typed(BFLOAT16, n, shape, tile, keys, values, offset, stride, pages, room);    \
        break;
        CASES(1) CASES(2) CASES(3) CASES(4) CASES(5) CASES(6) CASES(7) CASES(8)
#undef CASES
    }
}

// Stores a token's key and value of one KV head at a slot.
static void store_key_value(const AttentionShape *shape, uint8_t *keys, uint8_t *values, int page,
                            int slot, int kv_head, const float *key, const float *value) {
    const size_t bytes = page_bytes(shape);
    const size_t offset = ((size_t)page * shape->num_kv_heads + kv_head) * bytes;
    if (shape->type == FLOAT32) {
        float *k = (float *)(keys + offset), *v = (float *)(values + offset);
        for (int d = 0; d < shape->head_dim; d++) k[d * LANES + slot] = key[d];
        memcpy(v + (size_t)slot * shape->head_dim, value, (size_t)shape->head_dim * 4);
        return;
    }
    uint16_t *k = (uint16_t *)(keys + offset), *v = (uint16_t *)(values + offset);
    for (int d = 0; d < shape->head_dim; d++) {
        k[(d / 2) * 2 * LANES + slot * 2 + d % 2] = to_bfloat16(key[d]);
        v[(slot / 2) * shape->head_dim * 2 + d * 2 + slot % 2] = to_bfloat16(value[d]);
    }
}
