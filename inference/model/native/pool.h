// A pool of threads that run one function together, with a barrier between its phases.
//
// A step of a small model takes a few milliseconds and has hundreds of phases, so a waiting thread
// spins for a while before it sleeps or yields.
#pragma once

#include <immintrin.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SPINS_BEFORE_SLEEP 4000
#define MAX_THREADS 256

typedef void (*Work)(void *argument, int thread);

typedef struct {
    int num_threads;
    Work work;
    void *argument;
    _Alignas(64) atomic_int generation;  // number of pool_run calls; workers sleep on this futex
    _Alignas(64) atomic_int arrived;
    _Alignas(64) atomic_int phase;
    atomic_int stopping;
    pthread_t threads[MAX_THREADS];
} Pool;

typedef struct {
    Pool *pool;
    int thread;
} Worker;

// Waits until every thread of the pool has reached the barrier.
static void pool_barrier(Pool *pool) {
    if (pool->num_threads == 1) return;
    const int phase = atomic_load_explicit(&pool->phase, memory_order_relaxed);
    if (atomic_fetch_add(&pool->arrived, 1) == pool->num_threads - 1) {
        atomic_store_explicit(&pool->arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&pool->phase, phase + 1, memory_order_release);
        return;
    }
    int spins = 0;
    while (atomic_load_explicit(&pool->phase, memory_order_acquire) == phase) {
        if (++spins < SPINS_BEFORE_SLEEP) _mm_pause();
        else sched_yield();  // another thread may need this core
    }
}

static void *pool_thread(void *argument) {
    Worker *worker = argument;
    Pool *pool = worker->pool;
    int seen = 0;
    for (;;) {
        int spins = 0, generation;
        while ((generation = atomic_load_explicit(&pool->generation, memory_order_acquire)) == seen) {
            if (++spins < SPINS_BEFORE_SLEEP) _mm_pause();
            else syscall(SYS_futex, &pool->generation, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
        }
        seen = generation;
        if (atomic_load(&pool->stopping)) break;
        pool->work(pool->argument, worker->thread);
        pool_barrier(pool);
    }
    free(worker);
    return NULL;
}

static void pool_wake(Pool *pool) {
    atomic_fetch_add_explicit(&pool->generation, 1, memory_order_release);
    syscall(SYS_futex, &pool->generation, FUTEX_WAKE_PRIVATE, MAX_THREADS, NULL, NULL, 0);
}

// Runs work(argument, thread) on every thread, including the caller's, and waits for all.
static void pool_run(Pool *pool, Work work, void *argument) {
    pool->work = work;
    pool->argument = argument;
    if (pool->num_threads > 1) pool_wake(pool);
    work(argument, 0);
    pool_barrier(pool);
}

static void pool_stop(Pool *pool) {
    atomic_store(&pool->stopping, 1);
    if (pool->num_threads > 1) pool_wake(pool);
    for (int thread = 1; thread < pool->num_threads; thread++)
        pthread_join(pool->threads[thread], NULL);
}

// Starts num_threads - 1 threads, as the caller is one. Returns 0 or an error number.
static int pool_start(Pool *pool, int num_threads) {
    pool->num_threads = 1;
    for (int thread = 1; thread < num_threads && thread < MAX_THREADS; thread++) {
        Worker *worker = malloc(sizeof *worker);
        if (!worker) return 12;
        worker->pool = pool;
        worker->thread = thread;
        const int error = pthread_create(&pool->threads[thread], NULL, pool_thread, worker);
        if (error) {
            free(worker);
            return error;
        }
        // No race: the threads do not read the count before the first pool_run.
        pool->num_threads = thread + 1;
    }
    return 0;
}
