/* One thread pool per process.
 *
 * Workers start with the first parallel loop, never at import; after fork() the child starts its
 * own. The calling thread always takes part, and workers join only while fewer than
 * aimo_thread_count() threads are busy, so several calling threads share the cores instead of
 * oversubscribing them. */
#ifndef AIMO_BASE_THREADS_H
#define AIMO_BASE_THREADS_H

#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>

/* Called once for every index below the loop's count, on any thread, in any order. */
typedef void (*aimo_loop_body)(void *context, size_t index);

/* Runs body(context, i) for i in [0, count) and returns when all have finished. Several threads may
 * start loops at once, and a body may start an inner loop. A body reports failure through its
 * context. */
void aimo_parallel_for(size_t count, aimo_loop_body body, void *context);

/* Threads that compute at the same time, the caller included: AIMO_NUM_THREADS when set, else the
 * smaller of the CPU affinity and the cgroup's cpu quota (rounded up). At least 1. */
size_t aimo_thread_count(void);

/* How many threads besides the caller could join a loop that it starts now. This is an estimate,
 * for deciding how many parts to split work into; results must not depend on it. */
size_t aimo_threads_idle(void);

/* With true, the calling thread counts as busy between its loops too, until it calls this with
 * false: it will soon start its next loop, and a worker that took its core meanwhile would be in
 * the way. Call outside of loops. */
void aimo_thread_set_busy(bool is_busy);

/* Overrides aimo_thread_count; 0 goes back to the default. AIMO_ERR_ARGUMENT above 1024. */
AIMO_MUST_CHECK aimo_status aimo_thread_count_set(size_t count, aimo_error *err);

/* Reads AIMO_NUM_THREADS and installs the fork handlers. Call once, before any other function here.
 * AIMO_ERR_ARGUMENT when the variable is not a number from 1 to 1024. */
AIMO_MUST_CHECK aimo_status aimo_threads_init(aimo_error *err);

/* Stops and joins the workers; the next loop starts new ones. For tests and leak checks. */
void aimo_threads_stop(void);

#endif
