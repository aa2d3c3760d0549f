// Products of a few rows of activations with packed weights, see gemm.h.
#include "gemm.h"

#include <math.h>

#include "buffers.h"

#define BYTES_AHEAD 2048  // prefetch distance of the weights

#define BLOCK_GROUPS (BLOCK / 4)

// Bytes of a block of codes of a tile.
INLINE size_t code_bytes(Type type) {
    return (size_t)BLOCK_GROUPS * 2 * VECTOR_BYTES / (type == INT4 ? 2 : 1);
}

// Bytes of the scales or offsets of a tile's outputs.
INLINE size_t scale_bytes(const Matrix *matrix) {
    return TILE * (matrix->scale_type == SINGLE ? 4 : 2);
}

// Bytes of the factors of a tile's outputs before a block's codes.
INLINE size_t factor_bytes(const Matrix *matrix) {
    return matrix->scale_type == NESTED ? 2 * TILE : 0;
}

INLINE size_t header_bytes(const Matrix *matrix) {
    return scale_bytes(matrix) * (matrix->offset_kind == SYMMETRIC ? 1 : 2);
}

// Bytes of a tile of INT8 or INT4 weights.
INLINE size_t tile_bytes(const Matrix *matrix) {
    const size_t num_blocks = (size_t)matrix->num_groups / BLOCK_GROUPS;
    return num_blocks * (factor_bytes(matrix) + code_bytes(matrix->type)) +
           num_blocks / (size_t)matrix->blocks_per_scale * header_bytes(matrix);
}

// The code of a weight of zero without an offset.
INLINE int32_t middle_code(Type type) { return type == INT4 ? 8 : 128; }

INLINE void read_floats(int scale_type, const uint8_t *place, Floats values[2]) {
    if (scale_type == SINGLE) {
        values[0] = load((const float *)place);
        values[1] = load((const float *)place + LANES);
    } else {
        two_halves(place, values);
    }
}

// Reads the scales, and the offsets if there are any, of a block: weight = scale * code + offset.
// Its header has those of several blocks, `codes` are the block's.
INLINE void read_scales(const Matrix *matrix, const int has_offsets, const uint8_t *header,
                        const uint8_t *codes, Floats scales[2], Floats offsets[2]) {
    read_floats(matrix->scale_type, header, scales);
    if (!has_offsets) return;
    read_floats(matrix->scale_type, header + scale_bytes(matrix), offsets);
    for (int t = 0; t < 2; t++) {
        if (matrix->offset_kind == ZERO_POINT) offsets[t] *= scales[t];
        if (matrix->scale_type != NESTED) continue;
        scales[t] *= bytes_as_floats(codes - 2 * TILE + t * LANES);
        offsets[t] *= bytes_as_floats(codes - TILE + t * LANES);
    }
}

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
        if (out->added) {
            Floats sums_of_both[2] = {lanes[0], lanes[1]};
            add_up(out->added, row, matrix->num_outputs, first, sums_of_both);
            lanes[0] = sums_of_both[0];
            lanes[1] = sums_of_both[1];
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

INLINE int weight_parts(Type type) { return type == INT4 ? 2 : num_parts(type); }

// Adds the products of one group of weights with `num_rows` rows. `parts` are the first row's.
// For INT4 the second of two parts is BLOCK_GROUPS / 2 groups later.
INLINE void add_products(Type type, int num_rows, Floats sums[MAX_ROWS][2], const uint8_t *group,
                         const uint8_t *values, size_t row_parts, size_t parts) {
    for (int line = 0; line < 2 * VECTOR_BYTES; line += 64)
        _mm_prefetch((const char *)group + BYTES_AHEAD + line, _MM_HINT_T0);
#pragma GCC unroll 2
    for (int part = 0; part < weight_parts(type); part++) {
        const Ints w0 = weight_part(type, group, part);
        const Ints w1 = weight_part(type, group + VECTOR_BYTES, part);
        const size_t place = parts + (size_t)(type == INT4 ? part * BLOCK_GROUPS / 2 : part);
#pragma GCC unroll 12
        for (int m = 0; m < num_rows; m++) {
            const Ints value = part_at(values, m * row_parts + place);
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

// Sums of integers of a block, with the products of all its codes.
INLINE void sum_block(Type type, const int num_rows, Floats sums[MAX_ROWS][2], const uint8_t *codes,
                      const uint8_t *values, size_t row_parts, size_t block) {
#pragma GCC unroll 8
    for (size_t g = 0; g < BLOCK_GROUPS; g++)
        if (g < BLOCK_GROUPS / 2 || type != INT4)  // a constant: four steps with two groups each
            add_products(type, num_rows, sums, codes + g * 2 * VECTOR_BYTES, values, row_parts,
                         (block * BLOCK_GROUPS + g) * num_parts(type));
}

// The same for INT8 and INT4: sums of integers for each block, scaled and added to the total.
INLINE void multiply_blocks(Type type, const int has_offsets, const int num_rows,
                            const Matrix *matrix, const Activations *rows, int first_row, int tile,
                            const Output *out) {
    const size_t num_groups = (size_t)matrix->num_groups, num_blocks = num_groups / BLOCK_GROUPS;
    const size_t row_parts = num_groups * num_parts(type), first = (size_t)first_row * num_blocks;
    const size_t blocks_per_scale = (size_t)matrix->blocks_per_scale;
    const uint8_t *codes = matrix->weights + (size_t)tile * tile_bytes(matrix), *header = codes;
    const uint8_t *values = rows->parts + (size_t)first_row * row_parts * 4;
    const int32_t middle = has_offsets ? 0 : middle_code(type);
    Floats totals[MAX_ROWS][2];
#pragma GCC unroll 12
    for (int m = 0; m < num_rows; m++) totals[m][0] = totals[m][1] = all_lanes(0.0f);
    for (size_t b = 0, left = 0; b < num_blocks; b++, left--, codes += code_bytes(type)) {
        if (left == 0) {
            header = codes;
            codes += header_bytes(matrix);
            left = blocks_per_scale;
        }
        if (has_offsets) codes += factor_bytes(matrix);
        Floats sums[MAX_ROWS][2];
#pragma GCC unroll 12
        for (int m = 0; m < num_rows; m++)
            sums[m][0] = sums[m][1] =
                sums_from(type, -middle * rows->sums[first + m * num_blocks + b]);
        sum_block(type, num_rows, sums, codes, values, row_parts, b);
        Floats scales[2], offsets[2];
        read_scales(matrix, has_offsets, header, codes, scales, offsets);
#pragma GCC unroll 12
        for (int m = 0; m < num_rows; m++) {
            const size_t place = first + m * num_blocks + b;
            const Floats row_scale = all_lanes(rows->scales[place]);
            const Floats row_total = all_lanes(rows->totals[place]);
            for (int t = 0; t < 2; t++) {
                const Floats whole = whole_sums(type, sums[m][t], -middle * rows->sums[place]);
                totals[m][t] = fused(whole, scales[t] * row_scale, totals[m][t]);
                if (has_offsets) totals[m][t] = fused(offsets[t], row_total, totals[m][t]);
            }
        }
    }
    finish_tile(num_rows, totals, matrix, first_row, tile, out);
}

INLINE int max_rows(Type type) {
    return type == INT4 ? MAX_ROWS_INT4 : type == INT8 ? MAX_ROWS_INT8 : MAX_ROWS;
}

INLINE void multiply_any(Type type, const int has_offsets, const int num_rows, const Matrix *matrix,
                         const Activations *rows, int first_row, int tile, const Output *out) {
    if (!is_whole(type)) multiply_rows(type, num_rows, matrix, rows, first_row, tile, out);
    else if (num_rows <= max_rows(type))
        multiply_blocks(type, has_offsets, num_rows, matrix, rows, first_row, tile, out);
}

INLINE void multiply_typed(Type type, const int has_offsets, const Matrix *matrix,
                           const Activations *rows, int num_rows, int tile, const Output *out) {
    // Blocks of similar size: seven and six rows instead of twelve and one.
    const int most = max_rows(type), num_blocks = (num_rows + most - 1) / most;
    for (int block = 0, row = 0; block < num_blocks; block++) {
        const int count = (num_rows - row + num_blocks - block - 1) / (num_blocks - block);
        switch (count) {
#define CASE(n) \
    case n: multiply_any(type, has_offsets, n, matrix, rows, row, tile, out); break;
            CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#if MAX_ROWS > 6
            CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#endif
#undef CASE
        }
        row += count;
    }
}

void multiply(const Matrix *matrix, const Activations *rows, int num_rows, const Output *out,
              int thread, int num_threads) {
    const int num_tiles = matrix->num_outputs / TILE;
    const int begin = (int)((int64_t)num_tiles * thread / num_threads);
    const int end = (int)((int64_t)num_tiles * (thread + 1) / num_threads);
#define CASE(type, has_offsets) \
    multiply_typed(type, has_offsets, matrix, rows, num_rows, tile, out); break;
    for (int tile = begin; tile < end; tile++) {
        switch (matrix->type * 2 + (matrix->offset_kind != SYMMETRIC)) {
            case FLOAT32 * 2: CASE(FLOAT32, 0)
            case BFLOAT16 * 2: CASE(BFLOAT16, 0)
            case INT8 * 2: CASE(INT8, 0)
            case INT8 * 2 + 1: CASE(INT8, 1)
            case INT4 * 2: CASE(INT4, 0)
            default: CASE(INT4, 1)
        }
    }
#undef CASE
}

// Stores a block of `count` <= BLOCK floats, padded with zeros, as parts scaled by the block's
// largest magnitude. `place` is the block's in `rows`.
static void store_block(Type type, const float *values, int count, uint8_t *parts,
                        Activations *rows, size_t place) {
    Floats highest = all_lanes(0.0f);
    for (int i = 0; i < count; i += LANES)
        highest = max_lanes(highest, abs_lanes(load(values + i)));
    const float magnitude = max_of(highest);
    const Floats factor = all_lanes(magnitude > 0 ? 127.0f / magnitude : 0.0f);
    Ints sum = all_ints(0);
    for (int i = 0; i < count; i += LANES) {
        const Ints whole = to_ints(load(values + i) * factor);
        sum = add_ints(sum, whole);
        store_bytes(type, parts + part_bytes(type, (size_t)i), whole);
    }
    const size_t end = part_bytes(type, (size_t)count);
    memset(parts + end, 0, part_bytes(type, BLOCK) - end);
    rows->scales[place] = magnitude / 127.0f;
    rows->sums[place] = sum_of_ints(sum);
    rows->totals[place] = rows->scales[place] * (float)rows->sums[place];
}

void store_row(const Matrix *matrix, const float *values, int count, Activations *rows, int row) {
    const Type type = matrix->type;
    const size_t size = padded(type, (size_t)count);
    uint8_t *parts = rows->parts + (size_t)row * part_bytes(type, size);
    if (!is_whole(type)) {
        for (int i = 0; i < count; i += LANES)
            store_values(type, parts + part_bytes(type, (size_t)i), load(values + i));
        return;
    }
    const size_t first = (size_t)row * size / BLOCK;
    for (int i = 0; i < count; i += BLOCK) {
        const int left = count - i < BLOCK ? count - i : BLOCK;
        const float *block = values + i;
        float ordered[BLOCK];
        if (matrix->order) {
            for (int n = 0; n < left; n++) ordered[n] = values[matrix->order[i + n]];
            block = ordered;
        }
        store_block(type, block, left, parts + part_bytes(type, (size_t)i), rows,
                    first + (size_t)i / BLOCK);
    }
}

// Writes the weights of one output of an INT8 or INT4 matrix as floats.
static void expand_row(const Matrix *matrix, int output, int num_inputs, float *values) {
    const Type type = matrix->type;
    const int lane = output % TILE, has_offsets = matrix->offset_kind != SYMMETRIC;
    const uint8_t *codes = matrix->weights + (size_t)(output / TILE) * tile_bytes(matrix);
    const uint8_t *header = codes;
    float scales[TILE], offsets[TILE];
    for (int begin = 0; begin < num_inputs; begin += BLOCK, codes += code_bytes(type)) {
        if (begin % (BLOCK * matrix->blocks_per_scale) == 0) {
            header = codes;
            codes += header_bytes(matrix);
        }
        codes += factor_bytes(matrix);
        Floats vectors[2][2];
        read_scales(matrix, has_offsets, header, codes, vectors[0], vectors[1]);
        for (int t = 0; t < 2; t++) {
            const Floats middle = vectors[0][t] * all_lanes((float)-middle_code(type));
            store(scales + t * LANES, vectors[0][t]);
            store(offsets + t * LANES, has_offsets ? vectors[1][t] : middle);
        }
        for (int i = 0; i < BLOCK && begin + i < num_inputs; i++) {
            const int is_upper = type == INT4 && i >= BLOCK / 2;
            const int line = (is_upper ? i - BLOCK / 2 : i) / 4;
            const int byte = codes[line * 2 * VECTOR_BYTES + lane * 4 + i % 4];
            const int code = type == INT8 ? byte : is_upper ? byte >> 4 : byte & 15;
            values[matrix->order ? matrix->order[begin + i] : begin + i] =
                fmaf(scales[lane], (float)code, offsets[lane]);
        }
    }
}

// Writes the weights of some outputs of an INT8 or INT4 matrix: embeddings [count][num_inputs].
void weir_expand_rows(const Matrix *matrix, const int32_t *outputs, int count, int num_inputs,
                      float *values) {
    for (int i = 0; i < count; i++)
        expand_row(matrix, outputs[i], num_inputs, values + (size_t)i * num_inputs);
}

// One product alone, on the calling thread: out [num_rows][num_outputs] of values
// [num_rows][num_inputs]. Returns 1 if memory is short, else 0. For tests and measurements.
int weir_multiply(const Matrix *matrix, const float *values, int num_rows, int num_inputs,
                  float *out) {
    Activations rows;
    const int has_memory = activations_allocate(&rows, num_rows, num_inputs);
    for (int row = 0; has_memory && row < num_rows; row++)
        store_row(matrix, values + (size_t)row * num_inputs, num_inputs, &rows, row);
    const Output output = {STORE, out, (size_t)matrix->num_outputs};
    if (has_memory) multiply(matrix, &rows, num_rows, &output, 0, 1);
    activations_free(&rows);
    return !has_memory;
}
