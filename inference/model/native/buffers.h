// Memory that the decoder and the encoder reuse from call to call, and the shares of threads.
#pragma once

#include <stdlib.h>

#include "gemm.h"

static void *aligned(size_t bytes) { return aligned_alloc(64, (bytes + 63) / 64 * 64 + 64); }

static void activations_free(Activations *rows) {
    free(rows->parts);
    free(rows->scales);
    free(rows->sums);
    free(rows->totals);
    *rows = (Activations){NULL, NULL, NULL, NULL};
}

static int activations_allocate(Activations *rows, int num_rows, int num_values) {
    const size_t size = padded(INT8, (size_t)num_values), num_blocks = size / BLOCK;
    rows->parts = aligned((size_t)num_rows * size * 4);
    rows->scales = aligned((size_t)num_rows * num_blocks * 4);
    rows->sums = aligned((size_t)num_rows * num_blocks * 4);
    rows->totals = aligned((size_t)num_rows * num_blocks * 4);
    return rows->parts && rows->scales && rows->sums && rows->totals;
}

static int share(int count, int thread, int num_threads) {
    return (int)((int64_t)count * thread / num_threads);
}

// Grows an array to `count` values of four bytes. Returns 0 if memory is short.
static int reserve(int32_t **values, int32_t *capacity, int count) {
    if (count <= *capacity) return 1;
    int32_t *larger = realloc(*values, (size_t)count * 4);
    if (!larger) return 0;
    *values = larger;
    *capacity = count;
    return 1;
}
