/* The thread pool: a list of running loops. A free thread takes the next index of the first loop
 * that has one left.
 *
 * A worker that runs out of work spins for some microseconds before it sleeps, because the loops of
 * one forward pass follow each other closely and waking a sleeper costs more than a small loop. */
#include "base/threads.h"

#include "base/memory.h"
#include "base/thread_count.h"
#include "base/thread_placement.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

enum {
    MAX_THREADS = 1024,
    SPIN_ROUNDS = 2000,
    MOST_PLACED = 8, /* with more workers, one that shares its waker's processor matters little */
};

typedef struct loop {
    aimo_loop_body body;
    void *context;
    size_t count;
    atomic_size_t next;     /* the next index to take */
    size_t helpers;         /* workers inside; protected by lock */
    pthread_cond_t changed; /* signalled when helpers falls to 0 or an inner loop opens */
    struct loop *older;     /* protected by lock */
    struct loop *outer;     /* the loop whose body started this one, or NULL */
} loop;

typedef struct {
    pthread_t thread;
    bool sleeps;
    aimo_placement placement;
} worker;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t work_arrived = PTHREAD_COND_INITIALIZER;
/* Protected by lock: */
static loop *loops;                 /* newest first */
static worker workers[MAX_THREADS]; /* worker_count of them */
static size_t worker_count;
static atomic_size_t busy; /* callers inside aimo_parallel_for and workers inside a loop */
static size_t sleeping;    /* workers waiting on work_arrived */
static bool stopping;
/* Rises with every new loop; spinning workers watch it. */
static atomic_uint arrivals;
static atomic_size_t thread_limit = 1;
static size_t default_limit = 1; /* written once by aimo_threads_init */
/* The innermost loop that this thread is running; nested loops count the thread as busy only
 * once. */
static _Thread_local loop *current;
/* Whether this thread counts as busy outside of loops, see aimo_thread_set_busy. */
static _Thread_local bool stays_busy;

static void run_indices(loop *l)
{
    loop *outer = current;
    current = l;
    size_t i;
    while ((i = atomic_fetch_add_explicit(&l->next, 1, memory_order_relaxed)) < l->count)
        l->body(l->context, i);
    current = outer;
}

static bool has_work(const loop *l)
{
    return atomic_load_explicit(&l->next, memory_order_relaxed) < l->count;
}

static bool is_inside(const loop *l, const loop *outer)
{
    while (l != NULL && l != outer)
        l = l->outer;
    return l == outer;
}

/* With lock held: a loop with indices left, nested in `outer` when that is not NULL. */
static loop *find_work(const loop *outer)
{
    if (busy >= atomic_load(&thread_limit))
        return NULL;
    for (loop *l = loops; l != NULL; l = l->older)
        if (has_work(l) && (outer == NULL || is_inside(l, outer)))
            return l;
    return NULL;
}

/* With lock held, which is released while the body runs. */
static void help(loop *l)
{
    l->helpers++;
    busy++;
    pthread_mutex_unlock(&lock);
    run_indices(l);
    pthread_mutex_lock(&lock);
    busy--;
    if (--l->helpers == 0)
        pthread_cond_signal(&l->changed);
}

AIMO_INLINE void relax_cpu(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* With lock held; returns with it held, after an arrival or a spurious wake-up. */
static void wait_for_work(worker *self)
{
    const unsigned seen = atomic_load(&arrivals);
    pthread_mutex_unlock(&lock);
    for (int round = 0; round < SPIN_ROUNDS && atomic_load(&arrivals) == seen; round++)
        relax_cpu();
    pthread_mutex_lock(&lock);
    if (atomic_load(&arrivals) == seen && !stopping) {
        sleeping++;
        self->sleeps = true;
        pthread_cond_wait(&work_arrived, &lock);
        self->sleeps = false;
        sleeping--;
    }
}

static void *worker_main(void *self)
{
    pthread_mutex_lock(&lock);
    while (!stopping) {
        loop *l = find_work(NULL);
        if (l != NULL)
            help(l);
        else
            wait_for_work(self);
    }
    pthread_mutex_unlock(&lock);
    return NULL;
}

/* With lock held. Failing to start a worker is not an error: the caller does the work. */
static void start_workers(size_t wanted)
{
    while (worker_count < wanted && worker_count < MAX_THREADS) {
        worker *w = &workers[worker_count];
        *w = (worker){.placement = AIMO_PLACEMENT_INIT};
        if (pthread_create(&w->thread, NULL, worker_main, w) != 0)
            return;
        worker_count++;
    }
}

/* With lock held. */
static void place_sleepers(void)
{
    const size_t count = worker_count < MOST_PLACED ? worker_count : MOST_PLACED;
    const int here = aimo_placement_here();
    for (size_t i = 0; i < count; i++)
        if (workers[i].sleeps)
            aimo_placement_avoid(&workers[i].placement, workers[i].thread, here);
}

/* With lock held. */
static void announce(void)
{
    atomic_fetch_add(&arrivals, 1);
    if (sleeping == 0)
        return;
    place_sleepers();
    pthread_cond_broadcast(&work_arrived);
}

/* With lock held: one thread fewer is busy, so a worker may help another caller's loop. */
static void leave_place(void)
{
    busy--;
    if (loops != NULL)
        announce();
}

static void loop_open(loop *l)
{
    pthread_cond_init(&l->changed, NULL);
    pthread_mutex_lock(&lock);
    const size_t limit = atomic_load(&thread_limit);
    start_workers(l->count < limit ? l->count - 1 : limit - 1);
    if (l->outer == NULL && !stays_busy)
        busy++;
    l->older = loops;
    loops = l;
    for (loop *outer = l->outer; outer != NULL; outer = outer->outer)
        pthread_cond_signal(&outer->changed);
    announce();
    pthread_mutex_unlock(&lock);
}

/* While others still work inside `l`, its owner helps with the inner loops that they start, and
 * with nothing else: an unrelated loop could hold it up for long. */
static void loop_close(loop *l)
{
    pthread_mutex_lock(&lock);
    loop **link = &loops;
    while (*link != l)
        link = &(*link)->older;
    *link = l->older;
    if (l->outer == NULL && !stays_busy)
        leave_place();
    while (l->helpers != 0) {
        loop *inner = find_work(l);
        if (inner != NULL)
            help(inner);
        else
            pthread_cond_wait(&l->changed, &lock);
    }
    pthread_mutex_unlock(&lock);
    pthread_cond_destroy(&l->changed);
}

void aimo_parallel_for(size_t count, aimo_loop_body body, void *context)
{
    if (count <= 1 || atomic_load(&thread_limit) == 1) {
        for (size_t i = 0; i < count; i++)
            body(context, i);
        return;
    }
    loop l = {.body = body, .context = context, .count = count, .outer = current};
    loop_open(&l);
    run_indices(&l);
    loop_close(&l);
}

size_t aimo_threads_idle(void)
{
    const size_t limit = atomic_load(&thread_limit);
    const bool counted = current != NULL || stays_busy;
    const size_t taken = atomic_load(&busy) + (counted ? 0 : 1);
    return taken < limit ? limit - taken : 0;
}

void aimo_thread_set_busy(bool is_busy)
{
    pthread_mutex_lock(&lock);
    if (is_busy && !stays_busy)
        busy++;
    else if (!is_busy && stays_busy)
        leave_place();
    stays_busy = is_busy;
    pthread_mutex_unlock(&lock);
}

size_t aimo_thread_count(void) { return atomic_load(&thread_limit); }

aimo_status aimo_thread_count_set(size_t count, aimo_error *err)
{
    if (count > MAX_THREADS)
        return aimo_fail(err, AIMO_ERR_ARGUMENT, "thread count: expected 0 to %d, got %zu",
                         MAX_THREADS, count);
    atomic_store(&thread_limit, count != 0 ? count : default_limit);
    return AIMO_OK;
}

static void before_fork(void) { pthread_mutex_lock(&lock); }

static void after_fork_in_parent(void) { pthread_mutex_unlock(&lock); }

/* Only the forking thread survives: there are no workers, no loops, and no holder of the lock. */
static void after_fork_in_child(void)
{
    pthread_mutex_init(&lock, NULL);
    pthread_cond_init(&work_arrived, NULL);
    loops = NULL;
    worker_count = sleeping = 0;
    atomic_store(&busy, 0);
    stays_busy = false;
    stopping = false;
}

aimo_status aimo_threads_init(aimo_error *err)
{
    default_limit = aimo_os_thread_count();
    if (default_limit > MAX_THREADS)
        default_limit = MAX_THREADS;
    const char *wanted = getenv("AIMO_NUM_THREADS");
    if (wanted != NULL && wanted[0] != '\0') {
        char *end;
        errno = 0;
        const long count = strtol(wanted, &end, 10);
        if (errno != 0 || *end != '\0' || count < 1 || count > MAX_THREADS)
            return aimo_fail(err, AIMO_ERR_ARGUMENT,
                             "AIMO_NUM_THREADS=%s: expected a number from 1 to %d", wanted,
                             MAX_THREADS);
        default_limit = (size_t)count;
    }
    atomic_store(&thread_limit, default_limit);
    pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
    return AIMO_OK;
}

void aimo_threads_stop(void)
{
    pthread_mutex_lock(&lock);
    stopping = true;
    announce();
    const size_t count = worker_count;
    worker_count = 0;
    pthread_mutex_unlock(&lock);
    for (size_t i = 0; i < count; i++)
        pthread_join(workers[i].thread, NULL);
    pthread_mutex_lock(&lock);
    stopping = false;
    pthread_mutex_unlock(&lock);
}
