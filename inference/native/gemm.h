// Products of a few rows with packed weights.
//
// Weights lie in tiles of sixteen outputs: [num_tiles][num_groups][16 outputs][4 bytes]. Rows
// lie in groups, [num_rows][num_groups][4 bytes]. Two tiles and up to twelve rows are computed
// at a time, which fills the registers; the weights of a pair of tiles stay in the cache while
// all rows pass.
#pragma once

#include "simd.h"

#define MAX_ROWS 12
#define PAIR (2 * LANES)

typedef struct {
    const uint8_t *weights;
    const float *scales;  // [num_outputs], INT8 only: weight = scale * stored
    const float *bias;    // [num_outputs] or NULL
    int num_outputs;      // a multiple of 32
    int num_groups;       // inputs / group_size
} Matrix;

// Rows as a product takes them, in the type of the weights.
typedef struct {
    uint8_t *groups;  // [num_rows][num_groups * 4]
    float *scales;    // [num_rows], INT8 only: value = scale * stored
    int32_t *sums;    // [num_rows], INT8 only: of the stored values
} Rows;

typedef enum { STORE, ADD, GATE } Epilogue;

// out[row][output], or for GATE out[row][output / 2] = silu(gate) * up, where the first tile of
// a pair is the gate and the second the same outputs of up.
typedef struct {
    Epilogue epilogue;
    float *values;
    size_t stride;
} Output;

INLINE void finish_pair(Type type, int num_rows, __m512 acc[MAX_ROWS][2], const Matrix *matrix,
                        const Rows *rows, int first_row, int pair, const Output *out) {
    const int first = pair * PAIR;
#pragma GCC unroll 12
    for (int m = 0; m < num_rows; m++) {
        const int row = first_row + m;
        __m512 lanes[2] = {acc[m][0], acc[m][1]};
#pragma GCC unroll 2
        for (int t = 0; t < 2; t++) {
            const int output = first + t * LANES;
            if (type == INT8) {
                // Stored weights are 128 too high: take 128 times the row's sum off.
                const __m512i whole = _mm512_sub_epi32(_mm512_castps_si512(lanes[t]),
                                                       _mm512_set1_epi32(128 * rows->sums[row]));
                const __m512 scale = _mm512_mul_ps(_mm512_loadu_ps(matrix->scales + output),
                                                   _mm512_set1_ps(rows->scales[row]));
                lanes[t] = _mm512_mul_ps(_mm512_cvtepi32_ps(whole), scale);
            }
            if (matrix->bias)
                lanes[t] = _mm512_add_ps(lanes[t], _mm512_loadu_ps(matrix->bias + output));
        }
        float *values = out->values + (size_t)row * out->stride;
        if (out->epilogue == GATE) {
            _mm512_storeu_ps(values + first / 2, _mm512_mul_ps(silu_lanes(lanes[0]), lanes[1]));
            continue;
        }
#pragma GCC unroll 2
        for (int t = 0; t < 2; t++) {
            float *place = values + first + t * LANES;
            if (out->epilogue == ADD) lanes[t] = _mm512_add_ps(lanes[t], _mm512_loadu_ps(place));
            _mm512_storeu_ps(place, lanes[t]);
        }
    }
}

INLINE void multiply_rows(Type type, const int num_rows, const Matrix *matrix, const Rows *rows,
                          int first_row, int pair, const Output *out) {
    const int num_groups = matrix->num_groups;
    const uint8_t *left = matrix->weights + (size_t)pair * 2 * num_groups * 64;
    const uint8_t *right = left + (size_t)num_groups * 64;
    const uint8_t *values = rows->groups + (size_t)first_row * num_groups * 4;
    __m512 acc[MAX_ROWS][2];
#pragma GCC unroll 12
    for (int m = 0; m < num_rows; m++) acc[m][0] = acc[m][1] = _mm512_setzero_ps();
    for (int g = 0; g < num_groups; g++) {
        const __m512i w0 = _mm512_load_si512(left + (size_t)g * 64);
        const __m512i w1 = _mm512_load_si512(right + (size_t)g * 64);
        if (num_rows <= 2) {  // bound by memory: ask for the weights in time
            _mm_prefetch((const char *)left + (size_t)(g + 24) * 64, _MM_HINT_T0);
            _mm_prefetch((const char *)right + (size_t)(g + 24) * 64, _MM_HINT_T0);
        }
#pragma GCC unroll 12
        for (int m = 0; m < num_rows; m++) {
            const __m512i value =
                _mm512_set1_epi32(group_at(values, (size_t)m * num_groups + g));
            acc[m][0] = dot(type, acc[m][0], w0, value);
            acc[m][1] = dot(type, acc[m][1], w1, value);
        }
    }
    finish_pair(type, num_rows, acc, matrix, rows, first_row, pair, out);
}

INLINE void multiply_typed(Type type, const Matrix *matrix, const Rows *rows, int num_rows,
                           int pair, const Output *out) {
    // Blocks of even size: thirteen rows are seven and six, not twelve and one.
    const int num_blocks = (num_rows + MAX_ROWS - 1) / MAX_ROWS;
    for (int block = 0, row = 0; block < num_blocks; block++) {
        const int count = (num_rows - row + num_blocks - block - 1) / (num_blocks - block);
        switch (count) {
#define CASE(n) \
    case n: multiply_rows(type, n, matrix, rows, row, pair, out); break;
            CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
            CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#undef CASE
        }
        row += count;
    }
}

// This thread's share of out = rows * matrix. A pair of tiles is never split.
static void multiply(Type type, const Matrix *matrix, const Rows *rows, int num_rows,
                     const Output *out, int thread, int num_threads) {
    const int num_pairs = matrix->num_outputs / PAIR;
    const int begin = (int)((int64_t)num_pairs * thread / num_threads);
    const int end = (int)((int64_t)num_pairs * (thread + 1) / num_threads);
    for (int pair = begin; pair < end; pair++) {
        switch (type) {
            case FLOAT32: multiply_typed(FLOAT32, matrix, rows, num_rows, pair, out); break;
            case BFLOAT16: multiply_typed(BFLOAT16, matrix, rows, num_rows, pair, out); break;
            default: multiply_typed(INT8, matrix, rows, num_rows, pair, out);
        }
    }
}

// Stores one row of `count` floats (a multiple of 16) as groups; INT8 is symmetric, by the row's
// own largest magnitude.
static void store_row(Type type, const float *values, int count, Rows *rows, int row) {
    uint8_t *groups = rows->groups + (size_t)row * count * (4 / group_size(type));
    if (type == FLOAT32) {
        memcpy(groups, values, (size_t)count * 4);
        return;
    }
    if (type == BFLOAT16) {
        for (int i = 0; i < count; i += LANES)
            _mm256_storeu_si256((__m256i *)(groups + 2 * (size_t)i),
                                (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(values + i)));
        return;
    }
    __m512 highest = _mm512_setzero_ps();
    for (int i = 0; i < count; i += LANES)
        highest = _mm512_max_ps(highest, _mm512_abs_ps(_mm512_loadu_ps(values + i)));
    const float magnitude = _mm512_reduce_max_ps(highest);
    const __m512 factor = _mm512_set1_ps(magnitude > 0 ? 127.0f / magnitude : 0.0f);
    __m512i sum = _mm512_setzero_si512();
    for (int i = 0; i < count; i += LANES) {
        const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(values + i), factor));
        sum = _mm512_add_epi32(sum, whole);
        _mm_storeu_si128((__m128i *)(groups + i), _mm512_cvtsepi32_epi8(whole));
    }
    rows->scales[row] = magnitude / 127.0f;
    rows->sums[row] = _mm512_reduce_add_epi32(sum);
}
