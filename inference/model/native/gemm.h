// Products of a few rows of activations with packed weights.
//
// Weights are in tiles of two vectors of outputs: [num_tiles][num_groups][TILE outputs][4 bytes].
// Activations are in parts: [num_rows][num_groups][num_parts][4 bytes]. A tile and up to MAX_ROWS
// rows are computed at a time, which fills the registers; a tile's weights stay in the CPU's cache
// for all rows.
#pragma once

#include "simd.h"

#define TILE (2 * LANES)
#define BYTES_AHEAD 2048  // prefetch distance of the weights

typedef struct {
    const uint8_t *weights;
    const float *scales;  // [num_outputs], INT8 only: weight = scale * stored
    const float *bias;    // [num_outputs] or NULL
    int num_outputs;      // a multiple of TILE
    int num_groups;       // inputs / group_size
} Matrix;

// Rows of activations in the type of the weights.
typedef struct {
    uint8_t *parts;  // [num_rows][num_groups][num_parts]
    float *scales;   // [num_rows], INT8 only: value = scale * stored
    int32_t *sums;   // [num_rows], INT8 only: sum of the stored values
} Activations;

typedef enum { STORE, ADD, GATE } Epilogue;

// Writes out[row][output], or for GATE out[row][output / 2] = silu(gate) * up: the first half of a
// tile are gates, the second half the same outputs of up.
typedef struct {
    Epilogue epilogue;
    float *values;
    size_t stride;
} Output;

INLINE void finish_tile(Type type, int num_rows, Floats sums[MAX_ROWS][2], const Matrix *matrix,
                        const Activations *rows, int first_row, int tile, const Output *out) {
    const int first = tile * TILE;
#pragma GCC unroll 12
    for (int m = 0; m < num_rows; m++) {
        const int row = first_row + m;
        Floats lanes[2] = {sums[m][0], sums[m][1]};
#pragma GCC unroll 2
        for (int t = 0; t < 2; t++) {
            const int output = first + t * LANES;
            if (type == INT8)
                // Stored weights are 128 too high: subtract 128 times the row's sum.
                lanes[t] = dot_less(lanes[t], 128 * rows->sums[row]) *
                           (load(matrix->scales + output) * all_lanes(rows->scales[row]));
            if (matrix->bias) lanes[t] += load(matrix->bias + output);
        }
        float *values = out->values + (size_t)row * out->stride;
        if (out->epilogue == GATE) {
            store(values + first / 2, silu_lanes(lanes[0]) * lanes[1]);
            continue;
        }
#pragma GCC unroll 2
        for (int t = 0; t < 2; t++) {
            float *place = values + first + t * LANES;
            if (out->epilogue == ADD) lanes[t] += load(place);
            store(place, lanes[t]);
        }
    }
}

INLINE void multiply_rows(Type type, const int num_rows, const Matrix *matrix,
                          const Activations *rows, int first_row, int tile, const Output *out) {
    const size_t num_groups = (size_t)matrix->num_groups, row_parts = num_groups * num_parts(type);
    const uint8_t *weights = matrix->weights + (size_t)tile * num_groups * 2 * VECTOR_BYTES;
    const uint8_t *values = rows->parts + (size_t)first_row * row_parts * 4;
    Floats sums[MAX_ROWS][2];
#pragma GCC unroll 12
    for (int m = 0; m < num_rows; m++) sums[m][0] = sums[m][1] = all_lanes(0.0f);
    for (size_t g = 0; g < num_groups; g++) {
        const uint8_t *group = weights + g * 2 * VECTOR_BYTES;
        for (int line = 0; line < 2 * VECTOR_BYTES; line += 64)
            _mm_prefetch((const char *)group + BYTES_AHEAD + line, _MM_HINT_T0);
#pragma GCC unroll 2
        for (int part = 0; part < num_parts(type); part++) {
            const Ints w0 = weight_part(type, group, part);
            const Ints w1 = weight_part(type, group + VECTOR_BYTES, part);
#pragma GCC unroll 12
            for (int m = 0; m < num_rows; m++) {
                const Ints value = part_at(values, m * row_parts + g * num_parts(type) + part);
                sums[m][0] = dot(type, sums[m][0], w0, value);
                sums[m][1] = dot(type, sums[m][1], w1, value);
            }
        }
    }
    finish_tile(type, num_rows, sums, matrix, rows, first_row, tile, out);
}

INLINE void multiply_typed(Type type, const Matrix *matrix, const Activations *rows, int num_rows,
                           int tile, const Output *out) {
    // Blocks of similar size: seven and six rows instead of twelve and one.
    const int num_blocks = (num_rows + MAX_ROWS - 1) / MAX_ROWS;
    for (int block = 0, row = 0; block < num_blocks; block++) {
        const int count = (num_rows - row + num_blocks - block - 1) / (num_blocks - block);
        switch (count) {
#define CASE(n) \
    case n: multiply_rows(type, n, matrix, rows, row, tile, out); break;
            CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#if MAX_ROWS > 6
            CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#endif
#undef CASE
        }
        row += count;
    }
}

// Computes this thread's share of out = rows * matrix. A tile is never split.
static void multiply(Type type, const Matrix *matrix, const Activations *rows, int num_rows,
                     const Output *out, int thread, int num_threads) {
    const int num_tiles = matrix->num_outputs / TILE;
    const int begin = (int)((int64_t)num_tiles * thread / num_threads);
    const int end = (int)((int64_t)num_tiles * (thread + 1) / num_threads);
    for (int tile = begin; tile < end; tile++) {
        switch (type) {
            case FLOAT32: multiply_typed(FLOAT32, matrix, rows, num_rows, tile, out); break;
            case BFLOAT16: multiply_typed(BFLOAT16, matrix, rows, num_rows, tile, out); break;
            default: multiply_typed(INT8, matrix, rows, num_rows, tile, out);
        }
    }
}

// Stores a row of `count` floats (a multiple of LANES) as parts. INT8 is symmetric and scaled by
// the row's largest magnitude.
static void store_row(Type type, const float *values, int count, Activations *rows, int row) {
    uint8_t *parts = rows->parts + (size_t)row * part_bytes(type, (size_t)count);
    if (type != INT8) {
        for (int i = 0; i < count; i += LANES)
            store_values(type, parts + part_bytes(type, (size_t)i), load(values + i));
        return;
    }
    Floats highest = all_lanes(0.0f);
    for (int i = 0; i < count; i += LANES)
        highest = max_lanes(highest, abs_lanes(load(values + i)));
    const float magnitude = max_of(highest);
    const Floats factor = all_lanes(magnitude > 0 ? 127.0f / magnitude : 0.0f);
    Ints sum = all_ints(0);
    for (int i = 0; i < count; i += LANES) {
        const Ints whole = to_ints(load(values + i) * factor);
        sum = add_ints(sum, whole);
        store_bytes(parts + part_bytes(INT8, (size_t)i), whole);
    }
    rows->scales[row] = magnitude / 127.0f;
    rows->sums[row] = sum_of_ints(sum);
}
