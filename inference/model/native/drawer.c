// Draws a token for each row of a step's logits; inference/model/native/sampler.py calls it.
#include "draw.h"
#include "pool.h"

typedef struct {
    float *logits;  // [num_rows][stride]
    int64_t stride;
    int32_t vocab_size, num_rows;
    const Params *params;  // [num_rows]
    int32_t *token_ids;    // [num_rows] out
    atomic_int next_row;
} Rows;

// Rows differ in what they cost: whoever is free takes the next.
static void draw_rows(void *argument, int thread) {
    (void)thread;
    Rows *rows = argument;
    int row;
    while ((row = atomic_fetch_add(&rows->next_row, 1)) < rows->num_rows)
        rows->token_ids[row] =
            draw_row(rows->logits + row * rows->stride, rows->vocab_size, &rows->params[row]);
}

// Without a pool the caller draws alone.
void weir_draw(Pool *pool, float *logits, int64_t stride, int32_t vocab_size, int32_t num_rows,
               const Params *params, int32_t *token_ids) {
    Rows rows = {logits, stride, vocab_size, num_rows, params, token_ids, 0};
    if (pool && num_rows > 1) pool_run(pool, draw_rows, &rows);
    else draw_rows(&rows, 0);
}
