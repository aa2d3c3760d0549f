// Creates and frees the pool for inference/model/native/pool.py.
#include "pool.h"

void weir_pool_free(Pool *pool) {
    if (!pool) return;
    pool_stop(pool);
    free(pool);
}

// Returns NULL if memory or threads cannot be allocated.
Pool *weir_pool_new(int num_threads) {
    // Aligned: the counters are on separate cache lines.
    Pool *pool = aligned_alloc(_Alignof(Pool), sizeof *pool);
    if (!pool) return NULL;
    *pool = (Pool){0};
    if (pool_start(pool, num_threads)) {
        weir_pool_free(pool);
        return NULL;
    }
    return pool;
}
