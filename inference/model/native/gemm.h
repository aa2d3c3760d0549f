// Products of a few rows of activations with packed weights.
//
// Weights are in tiles of two vectors of outputs: [num_tiles][num_groups][TILE outputs][4 bytes].
// INT8 has a bfloat16 scale for each output and block of inputs, after the block's groups:
// [num_tiles][num_blocks]{[groups of a block][TILE outputs][4 bytes], [LANES][2 vectors] scales}.
// Activations are in parts: [num_rows][num_groups][num_parts][4 bytes]. A tile and up to MAX_ROWS
// rows are computed at a time, which fills the registers; a tile's weights stay in the CPU's cache
// for all rows.
#pragma once

#include "simd.h"

#define TILE (2 * LANES)
#define BYTES_AHEAD 2048  // prefetch distance of the weights

typedef struct {
    const uint8_t *weights;
    const float *bias;  // [num_outputs] or NULL
    int num_outputs;    // a multiple of TILE
    int num_groups;     // inputs / group_size; whole blocks for INT8
} Matrix;

// Rows of activations in the type of the weights.
typedef struct {
    uint8_t *parts;  // [num_rows][num_groups][num_parts]
    float *scales;   // [num_rows][num_blocks], INT8 only: value = scale * stored
    // [num_rows][num_blocks], INT8 only: -128 times the sum of the stored values, at which the sum
    // of a block's products starts, because stored weights are 128 too high.
    int32_t *starts;
} Activations;

typedef enum { STORE, ADD, GATE } Epilogue;

// Writes out[row][output], or for GATE out[row][output / 2] = silu(gate) * up: the first half of a
// tile are gates, the second half the same outputs of up.
typedef struct {
    Epilogue epilogue;
    float *values;
    size_t stride;
} Output;

#define BLOCK_GROUPS (BLOCK / 4)
#define BLOCK_BYTES (BLOCK_GROUPS * 2 * VECTOR_BYTES + TILE * 2)  // of INT8 weights of a tile

INLINE void finish_tile(int num_rows, Floats sums[MAX_ROWS][2], const Matrix *matrix,
                        int first_row, int tile, const Output *out) {
    const int first = tile * TILE;
#pragma GCC unroll 12
    for (int m = 0; m < num_rows; m++) {
        const int row = first_row + m;
        Floats lanes[2] = {sums[m][0], sums[m][1]};
#pragma GCC unroll 2
        for (int t = 0; t < 2; t++) {
            const int output = first + t * LANES;
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

// Adds the products of one group of weights with `num_rows` rows. `parts` are the first row's.
INLINE void add_products(Type type, int num_rows, Floats sums[MAX_ROWS][2], const uint8_t *group,
                         const uint8_t *values, size_t row_parts, size_t parts) {
    for (int line = 0; line < 2 * VECTOR_BYTES; line += 64)
        _mm_prefetch((const char *)group + BYTES_AHEAD + line, _MM_HINT_T0);
#pragma GCC unroll 2
    for (int part = 0; part < num_parts(type); part++) {
        const Ints w0 = weight_part(type, group, part);
        const Ints w1 = weight_part(type, group + VECTOR_BYTES, part);
#pragma GCC unroll 12
        for (int m = 0; m < num_rows; m++) {
            const Ints value = part_at(values, m * row_parts + parts + part);
            sums[m][0] = dot(type, sums[m][0], w0, value);
            sums[m][1] = dot(type, sums[m][1], w1, value);
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
    for (size_t g = 0; g < num_groups; g++)
        add_products(type, num_rows, sums, weights + g * 2 * VECTOR_BYTES, values, row_parts,
                     g * num_parts(type));
    finish_tile(num_rows, sums, matrix, first_row, tile, out);
}

// The same for INT8: sums of integers for each block, scaled and added to the total.
INLINE void multiply_blocks(const int num_rows, const Matrix *matrix, const Activations *rows,
                            int first_row, int tile, const Output *out) {
    const size_t num_groups = (size_t)matrix->num_groups, num_blocks = num_groups / BLOCK_GROUPS;
    const size_t row_parts = num_groups * num_parts(INT8);
    const uint8_t *weights = matrix->weights + (size_t)tile * num_blocks * BLOCK_BYTES;
    const uint8_t *values = rows->parts + (size_t)first_row * row_parts * 4;
    const float *row_scales = rows->scales + (size_t)first_row * num_blocks;
    const int32_t *starts = rows->starts + (size_t)first_row * num_blocks;
    Floats totals[MAX_ROWS][2];
#pragma GCC unroll 12
    for (int m = 0; m < num_rows; m++) totals[m][0] = totals[m][1] = all_lanes(0.0f);
    for (size_t b = 0; b < num_blocks; b++, weights += BLOCK_BYTES) {
        Floats sums[MAX_ROWS][2];
#pragma GCC unroll 12
        for (int m = 0; m < num_rows; m++)
            sums[m][0] = sums[m][1] = sums_from(starts[m * num_blocks + b]);
#pragma GCC unroll 8
        for (size_t g = 0; g < BLOCK_GROUPS; g++)
            add_products(INT8, num_rows, sums, weights + g * 2 * VECTOR_BYTES, values, row_parts,
                         (b * BLOCK_GROUPS + g) * num_parts(INT8));
        Floats scales[2];
        two_vectors(weights + BLOCK_GROUPS * 2 * VECTOR_BYTES, scales);
#pragma GCC unroll 12
        for (int m = 0; m < num_rows; m++) {
            const Floats row_scale = all_lanes(row_scales[m * num_blocks + b]);
            for (int t = 0; t < 2; t++)
                totals[m][t] = fused(whole_sums(sums[m][t]), scales[t] * row_scale, totals[m][t]);
        }
    }
    finish_tile(num_rows, totals, matrix, first_row, tile, out);
}

INLINE void multiply_any(Type type, const int num_rows, const Matrix *matrix,
                         const Activations *rows, int first_row, int tile, const Output *out) {
    if (type != INT8) multiply_rows(type, num_rows, matrix, rows, first_row, tile, out);
    else if (num_rows <= MAX_ROWS_INT8)
        multiply_blocks(num_rows, matrix, rows, first_row, tile, out);
}

INLINE void multiply_typed(Type type, const Matrix *matrix, const Activations *rows, int num_rows,
                           int tile, const Output *out) {
    // Blocks of similar size: seven and six rows instead of twelve and one.
    const int most = type == INT8 ? MAX_ROWS_INT8 : MAX_ROWS;
    const int num_blocks = (num_rows + most - 1) / most;
    for (int block = 0, row = 0; block < num_blocks; block++) {
        const int count = (num_rows - row + num_blocks - block - 1) / (num_blocks - block);
        switch (count) {
#define CASE(n) \
    case n: multiply_any(type, n, matrix, rows, row, tile, out); break;
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

// Stores a block of `count` <= BLOCK floats, padded with zeros, as INT8 parts scaled by the block's
// largest magnitude.
static void store_block(const float *values, int count, uint8_t *parts, float *scale,
                        int32_t *start) {
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
    const size_t end = part_bytes(INT8, (size_t)count);
    memset(parts + end, 0, part_bytes(INT8, BLOCK) - end);
    *scale = magnitude / 127.0f;
    *start = -128 * sum_of_ints(sum);
}

// Stores a row of `count` floats (a multiple of LANES) as parts.
static void store_row(Type type, const float *values, int count, Activations *rows, int row) {
    const size_t size = padded(type, (size_t)count);
    uint8_t *parts = rows->parts + (size_t)row * part_bytes(type, size);
    if (type != INT8) {
        for (int i = 0; i < count; i += LANES)
            store_values(type, parts + part_bytes(type, (size_t)i), load(values + i));
        return;
    }
    const size_t first = (size_t)row * size / BLOCK;
    for (int i = 0; i < count; i += BLOCK)
        store_block(values + i, count - i < BLOCK ? count - i : BLOCK,
                    parts + part_bytes(INT8, (size_t)i), rows->scales + first + i / BLOCK,
                    rows->starts + first + i / BLOCK);
}
