// The pool as inference/model/native/pool.py holds it.
#include "pool.h"

void weir_pool_free(Pool *pool) {
    if (!pool) return;
    pool_stop(pool);
    free(pool);
}

// NULL if memory or threads are short.
Pool *weir_pool_new(int num_threads) {
    // The counters have cache lines of their own.
    Pool *pool = aligned_alloc(_Alignof(Pool), sizeof *pool);
    if (!pool) return NULL;
    *pool = (Pool){0};
    if (pool_start(pool, num_threads)) {
        weir_pool_free(pool);
        return NULL;
    }
    return pool;
}
