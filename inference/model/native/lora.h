// Products of LoRA adapters, which are added to those of the matrices, row by row.
#pragma once

#include "simd.h"

// What an adapter adds to a matrix: up @ down. Of rank 0 where it adds nothing.
typedef struct {
    const float *down;  // [rank][inputs]
    const float *up;    // [rank][outputs], padded and in order as the matrix' outputs are
    int32_t rank;
} LowRank;

// The adapters of a step's rows at one matrix.
typedef struct {
    const LowRank *const *adapters;  // [num_sequences] all matrices of an adapter, or NULL
    const int32_t *sequences;        // [num_rows] sequence of each row
    float *inner;                    // [num_rows][stride] products with `down`
    size_t stride;                   // the highest rank
    int32_t number;                  // of the matrix, in all matrices of an adapter
} Added;

static const LowRank *low_rank_of(const Added *added, int row) {
    const LowRank *matrices = added->adapters[added->sequences[row]];
    return matrices && matrices[added->number].rank ? &matrices[added->number] : NULL;
}

// Multiplies a row of `count` activations (a multiple of LANES) with `down`.
static void multiply_down(const Added *added, int row, const float *values, int count) {
    const LowRank *low = low_rank_of(added, row);
    if (!low) return;
    float *inner = added->inner + (size_t)row * added->stride;
    for (int rank = 0; rank < low->rank; rank++) {
        const float *down = low->down + (size_t)rank * count;
        Floats sums = all_lanes(0.0f);
        for (int i = 0; i < count; i += LANES) sums = fused(load(values + i), load(down + i), sums);
        inner[rank] = sum_of(sums);
    }
}

// Adds a row's products of `up` to two vectors of outputs, beginning at `first`.
static __attribute__((noinline)) void add_up(const Added *added, int row, int num_outputs,
                                             int first, Floats lanes[2]) {
    const LowRank *low = low_rank_of(added, row);
    if (!low) return;
    const float *inner = added->inner + (size_t)row * added->stride;
    for (int rank = 0; rank < low->rank; rank++) {
        const float *up = low->up + (size_t)rank * num_outputs + first;
        const Floats value = all_lanes(inner[rank]);
        for (int t = 0; t < 2; t++) lanes[t] = fused(load(up + t * LANES), value, lanes[t]);
    }
}
