/* base: errors, memory, CPU rows, the thread pool, scratch memory. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "test.h"

#include "base/cpu.h"
#include "base/large_pages.h"
#include "base/memory.h"
#include "base/scratch.h"
#include "base/status.h"
#include "base/thread_count.h"
#include "base/thread_placement.h"
#include "base/threads.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

TEST(base_error_text_is_cut_not_overrun)
{
    char long_text[1000];
    memset(long_text, 'x', sizeof long_text - 1);
    long_text[sizeof long_text - 1] = '\0';
    aimo_error err;
    CHECK(aimo_fail(&err, AIMO_ERR_FORMAT, "%s", long_text) == AIMO_ERR_FORMAT);
    CHECK(strlen(err.message) == sizeof err.message - 1);
    CHECK(aimo_fail(NULL, AIMO_ERR_DEVICE, "no place for this text") == AIMO_ERR_DEVICE);
}

TEST(base_size_mul_refuses_overflow)
{
    size_t product;
    aimo_error err;
    CHECK(aimo_size_mul(3, 5, &product, "test", &err) == AIMO_OK && product == 15);
    CHECK(aimo_size_mul(0, SIZE_MAX, &product, "test", &err) == AIMO_OK && product == 0);
    CHECK(aimo_size_mul(SIZE_MAX / 2, 3, &product, "test", &err) == AIMO_ERR_ARGUMENT);
}

TEST(base_gathered_memory_keeps_its_bytes_and_is_freed_as_ever)
{
    enum { BYTES = 5 << 20, BLOCKS = 3 };
    const size_t before = aimo_memory_live_bytes();
    unsigned char *blocks[BLOCKS];
    for (size_t b = 0; b < BLOCKS; b++) {
        CHECK(aimo_memory_new((void **)&blocks[b], BYTES, 1, "test", NULL) == AIMO_OK);
        for (size_t i = 0; i < BYTES; i++)
            blocks[b][i] = (unsigned char)(i * 7 + i / 4096 + b);
        aimo_large_pages_gather(blocks[b] + b, BYTES - b);
    }
    aimo_memory_free(blocks[1]);
    aimo_large_pages_gather(blocks[0], 0);
    size_t wrong = 0;
    for (size_t b = 0; b < BLOCKS; b += 2)
        for (size_t i = 0; i < BYTES; i++)
            wrong += blocks[b][i] != (unsigned char)(i * 7 + i / 4096 + b);
    CHECK(wrong == 0);
    aimo_memory_free(blocks[0]);
    aimo_memory_free(blocks[2]);
    CHECK(aimo_memory_live_bytes() == before);
}

TEST(base_memory_is_aligned_counted_and_can_be_made_to_fail)
{
    const size_t before = aimo_memory_live_bytes();
    void *block;
    aimo_error err;
    CHECK(aimo_memory_new_zero(&block, 3, 7, "test", &err) == AIMO_OK);
    CHECK((uintptr_t)block % AIMO_CACHE_LINE == 0);
    CHECK(aimo_memory_live_bytes() == before + 21);
    aimo_memory_free(block);
    CHECK(aimo_memory_live_bytes() == before);
    CHECK(aimo_memory_new(&block, SIZE_MAX, 2, "test", &err) == AIMO_ERR_ARGUMENT);
    CHECK(aimo_memory_new(&block, SIZE_MAX - 64, 1, "test", &err) == AIMO_ERR_ARGUMENT);

    aimo_memory_fail_after(1);
    CHECK(aimo_memory_new(&block, 1, 1, "first", &err) == AIMO_OK);
    void *second;
    CHECK(aimo_memory_new(&second, 1, 1, "second", &err) == AIMO_ERR_MEMORY);
    CHECK(strstr(err.message, "second") != NULL && second == NULL);
    aimo_memory_free(block);
}

TEST(base_cpu_rows_grow_and_a_wrong_name_is_refused)
{
    const char *before = getenv("AIMO_CPU");
    char *saved = before != NULL ? strdup(before) : NULL;
    aimo_error err;
    setenv("AIMO_CPU", "pentium", 1);
    const aimo_status unknown = aimo_cpu_init(&err);
    const bool named = strstr(err.message, "pentium") != NULL;
    bool rows_work = true;
    for (size_t i = 0; aimo_cpu_row_name(i) != NULL; i++) {
        setenv("AIMO_CPU", aimo_cpu_row_name(i), 1);
        const aimo_status status = aimo_cpu_init(&err);
        const bool present = (aimo_cpu_row_features(i) & ~aimo_cpu_available()) == 0;
        rows_work &= status == (present ? AIMO_OK : AIMO_ERR_UNSUPPORTED);
        if (present)
            rows_work &= strcmp(aimo_cpu_row(), aimo_cpu_row_name(i)) == 0;
    }
    if (saved != NULL)
        setenv("AIMO_CPU", saved, 1);
    else
        unsetenv("AIMO_CPU");
    free(saved);
    CHECK(aimo_cpu_init(&err) == AIMO_OK);
    CHECK(unknown == AIMO_ERR_ARGUMENT && named);
    CHECK(rows_work);
}

typedef struct {
    atomic_int visits[1000];
    atomic_int running, most_running;
} visit_log;

static void visit(void *context, size_t index)
{
    visit_log *log = context;
    const int now = atomic_fetch_add(&log->running, 1) + 1;
    int most = atomic_load(&log->most_running);
    while (now > most && !atomic_compare_exchange_weak(&log->most_running, &most, now)) {
    }
    atomic_fetch_add(&log->visits[index], 1);
    atomic_fetch_sub(&log->running, 1);
}

static bool each_visited(const visit_log *log, size_t count, int times)
{
    for (size_t i = 0; i < 1000; i++)
        if (atomic_load(&log->visits[i]) != (i < count ? times : 0))
            return false;
    return true;
}

TEST(base_parallel_for_visits_each_index_once_with_bounded_threads)
{
    for (size_t threads = 1; threads <= 4; threads++) {
        CHECK(aimo_thread_count_set(threads, NULL) == AIMO_OK);
        for (size_t count = 0; count <= 1000; count = count < 5 ? count + 1 : count * 3) {
            static visit_log log;
            memset(&log, 0, sizeof log);
            aimo_parallel_for(count, visit, &log);
            CHECK(each_visited(&log, count, 1));
            CHECK((size_t)atomic_load(&log.most_running) <= threads);
        }
    }
    CHECK(aimo_thread_count_set(0, NULL) == AIMO_OK);
    CHECK(aimo_thread_count_set(2000, NULL) == AIMO_ERR_ARGUMENT);
}

static void nested(void *context, size_t index)
{
    (void)index;
    aimo_parallel_for(50, visit, context);
}

static void *call_loops(void *context)
{
    for (int i = 0; i < 100; i++)
        aimo_parallel_for(200, visit, context);
    return NULL;
}

TEST(base_parallel_for_may_be_nested_and_called_by_many_threads)
{
    CHECK(aimo_thread_count_set(3, NULL) == AIMO_OK);
    static visit_log log;
    memset(&log, 0, sizeof log);
    aimo_parallel_for(8, nested, &log);
    CHECK(each_visited(&log, 50, 8));

    memset(&log, 0, sizeof log);
    pthread_t callers[4];
    for (int i = 0; i < 4; i++)
        CHECK(pthread_create(&callers[i], NULL, call_loops, &log) == 0);
    for (int i = 0; i < 4; i++)
        pthread_join(callers[i], NULL);
    CHECK(each_visited(&log, 200, 400));
    CHECK(aimo_thread_count_set(0, NULL) == AIMO_OK);
}

static void *idle_beside_a_busy_thread(void *idle)
{
    aimo_thread_set_busy(true);
    *(size_t *)idle = aimo_threads_idle();
    aimo_parallel_for(2, visit, &(visit_log){0}); /* counts once, in and out of the loop */
    aimo_thread_set_busy(false);
    return NULL;
}

TEST(base_thread_that_stays_busy_keeps_its_place)
{
    CHECK(aimo_thread_count_set(2, NULL) == AIMO_OK);
    const size_t before = aimo_threads_idle();
    aimo_thread_set_busy(true);
    aimo_thread_set_busy(true); /* once is enough */
    const size_t alone = aimo_threads_idle();
    size_t beside = 9;
    pthread_t other;
    CHECK(pthread_create(&other, NULL, idle_beside_a_busy_thread, &beside) == 0);
    pthread_join(other, NULL);
    const size_t alone_again = aimo_threads_idle();
    aimo_thread_set_busy(false);
    CHECK(before == 1 && alone == 1 && beside == 0 && alone_again == 1);
    CHECK(aimo_threads_idle() == 1);
    CHECK(aimo_thread_count_set(0, NULL) == AIMO_OK);
}

#if defined(__linux__)
static void *wait_on(void *barrier)
{
    pthread_barrier_wait(barrier);
    return NULL;
}

/* Whether `thread` may run on all of `expected` but `without`, and nowhere else. */
static bool may_run_on(pthread_t thread, cpu_set_t expected, int without)
{
    cpu_set_t found;
    if (without < CPU_SETSIZE)
        CPU_CLR(without, &expected);
    return pthread_getaffinity_np(thread, sizeof found, &found) == 0 &&
           CPU_EQUAL(&found, &expected);
}

static bool placement_is_right(pthread_t sleeper, const cpu_set_t *all, int first, int second)
{
    aimo_placement placement = AIMO_PLACEMENT_INIT;
    aimo_placement_avoid(&placement, sleeper, -1); /* where the caller runs is not known */
    bool right = may_run_on(sleeper, *all, CPU_SETSIZE);
    aimo_placement_avoid(&placement, sleeper, first);
    right = right && may_run_on(sleeper, *all, first);
    aimo_placement_avoid(&placement, sleeper, second);
    right = right && may_run_on(sleeper, *all, second);

    /* Taken from the caller meanwhile: it does not come back, and with two there is no other. */
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(first, &one);
    pthread_setaffinity_np(pthread_self(), sizeof one, &one);
    pthread_setaffinity_np(sleeper, sizeof one, &one);
    aimo_placement_avoid(&placement, sleeper, first);
    right = right && may_run_on(sleeper, one, CPU_SETSIZE);
    pthread_setaffinity_np(pthread_self(), sizeof *all, all);
    return right;
}

TEST(base_placement_leaves_out_one_processor_and_gives_it_back)
{
    cpu_set_t all;
    CHECK(pthread_getaffinity_np(pthread_self(), sizeof all, &all) == 0);
    if (CPU_COUNT(&all) < 2) {
        test_skip("one processor");
        return;
    }
    int first = 0;
    while (!CPU_ISSET(first, &all))
        first++;
    int second = first + 1;
    while (!CPU_ISSET(second, &all))
        second++;
    pthread_barrier_t barrier;
    pthread_t sleeper;
    CHECK(pthread_barrier_init(&barrier, NULL, 2) == 0);
    CHECK(pthread_create(&sleeper, NULL, wait_on, &barrier) == 0);
    const bool right = placement_is_right(sleeper, &all, first, second);
    pthread_barrier_wait(&barrier);
    pthread_join(sleeper, NULL);
    pthread_barrier_destroy(&barrier);
    CHECK(right);
}
#endif

#if !defined(__SANITIZE_THREAD__) /* TSan does not follow threads into a forked child */
TEST(base_pool_and_scratch_work_in_a_forked_child)
{
    CHECK(aimo_thread_count_set(3, NULL) == AIMO_OK);
    static visit_log log;
    memset(&log, 0, sizeof log);
    aimo_parallel_for(100, visit, &log);
    fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        memset(&log, 0, sizeof log);
        aimo_parallel_for(100, visit, &log);
        void *block;
        const bool leased = aimo_scratch_lease(&block, 1000, NULL) == AIMO_OK;
        _exit(leased && each_visited(&log, 100, 1) ? 0 : 1);
    }
    int status = 1;
    CHECK(child > 0 && waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    CHECK(aimo_thread_count_set(0, NULL) == AIMO_OK);
}
#endif

TEST(base_thread_count_is_at_least_one)
{
    CHECK(aimo_os_thread_count() >= 1);
    CHECK(aimo_thread_count() >= 1);
}

TEST(base_scratch_reuses_blocks_and_stays_flat)
{
    aimo_scratch_trim();
    size_t settled = 0;
    uint64_t random = 1;
    for (int round = 0; round < 1000; round++) {
        void *block;
        CHECK(aimo_scratch_lease(&block, 1 + test_random(&random) % 100000, NULL) == AIMO_OK);
        CHECK((uintptr_t)block % AIMO_CACHE_LINE == 0);
        aimo_scratch_return(block);
        if (round == 500)
            settled = aimo_scratch_bytes();
    }
    CHECK(aimo_scratch_bytes() <= 100000 && settled > 0);

    aimo_scratch_trim();
    aimo_memory_fail_after(0);
    void *block;
    CHECK(aimo_scratch_lease(&block, 64, NULL) == AIMO_ERR_MEMORY && block == NULL);
    aimo_memory_fail_after(-1);
    CHECK(aimo_scratch_bytes() == 0);
}
