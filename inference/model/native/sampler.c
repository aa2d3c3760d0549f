// Samples a token for each row of a step's logits; called from inference/model/native/sampler.py.
#include "sample.h"
#include "pool.h"

typedef struct {
    float *logits;  // [num_rows][stride]
    int64_t stride;
    int32_t vocab_size, num_rows;
    const Params *params;  // [num_rows]
    int32_t *token_ids;    // [num_rows] out
    atomic_int next_row;
} Job;

// Rows differ in their cost, so each thread takes the next row when it is idle.
static void sample_rows(void *argument, int thread) {
    (void)thread;
    Job *job = argument;
    int row;
    while ((row = atomic_fetch_add(&job->next_row, 1)) < job->num_rows)
        job->token_ids[row] =
            sample_row(job->logits + row * job->stride, job->vocab_size, &job->params[row]);
}

// A NULL pool: the caller's thread samples all rows.
void weir_sample(Pool *pool, float *logits, int64_t stride, int32_t vocab_size, int32_t num_rows,
                 const Params *params, int32_t *token_ids) {
    Job job = {logits, stride, vocab_size, num_rows, params, token_ids, 0};
    if (pool && num_rows > 1) pool_run(pool, sample_rows, &job);
    else sample_rows(&job, 0);
}
