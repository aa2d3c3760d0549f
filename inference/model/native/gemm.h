// Products of a few rows of activations with packed weights.
//
// Weights are in tiles of two vectors of outputs: [num_tiles][num_groups][TILE outputs][4 bytes].
// INT8 and INT4 are codes without sign with scales, and possibly offsets, for each output and one or
// more blocks of inputs: [num_tiles]{[TILE] scales, [TILE] offsets, {[groups of a block][TILE
// outputs][4 bytes]} of each block} of each scale. INT4 has the groups 0 to 3 of a block in the lower
// four bits of the bytes, and the groups 4 to 7 in the upper ones.
// Activations are in parts: [num_rows][num_groups][num_parts][4 bytes]. A tile and up to MAX_ROWS
// rows are computed at a time, which fills the registers; a tile's weights stay in the CPU's cache
// for all rows.
#pragma once

#include "lora.h"
#include "simd.h"

#define TILE (2 * LANES)

// How the scales and offsets of a matrix are stored: in half or single precision, or NESTED: in half
// precision, and each multiplied with a byte of its block: [TILE] bytes for scales, [TILE] bytes for
// offsets, before the block's codes (Q4_K and Q5_K of GGUF).
typedef enum { HALF = 0, SINGLE = 1, NESTED = 2 } ScaleType;

// What a code's weight is: scale * (code - 8), or of INT8 - 128; scale * code + offset;
// scale * (code + offset).
typedef enum { SYMMETRIC = 0, MINIMUM = 1, ZERO_POINT = 2 } OffsetKind;

typedef struct {
    const uint8_t *weights;
    const float *bias;     // [num_outputs] or NULL
    const int32_t *order;  // [inputs] which activation each input is, or NULL: in order
    int32_t type;
    int32_t num_outputs;   // a multiple of TILE
    int32_t num_groups;    // inputs / group_size; whole blocks for INT8 and INT4
    int32_t blocks_per_scale, scale_type, offset_kind;  // INT8 and INT4 only
} Matrix;

// Rows of activations for weights of one type. For INT8 and INT4: value = scale * stored.
typedef struct {
    uint8_t *parts;  // [num_rows][num_groups][num_parts]
    float *scales;   // [num_rows][num_blocks]
    int32_t *sums;   // [num_rows][num_blocks] of the stored values
    float *totals;   // [num_rows][num_blocks] of the values
} Activations;

typedef enum { STORE, ADD, GATE } Epilogue;

// Writes out[row][output], or for GATE out[row][output / 2] = silu(gate) * up: the first half of a
// tile are gates, the second half the same outputs of up.
typedef struct {
    Epilogue epilogue;
    float *values;
    size_t stride;
    const Added *added;  // before the epilogue; NULL: nothing
} Output;

// Computes this thread's share of out = rows * matrix. A tile is never split.
void multiply(const Matrix *matrix, const Activations *rows, int num_rows, const Output *out,
              int thread, int num_threads);

// Stores a row of `count` floats (a multiple of LANES) as parts for a matrix.
void store_row(const Matrix *matrix, const float *values, int count, Activations *rows, int row);
