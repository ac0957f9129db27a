/* Runs the registered tests: aimo_tests [--filter NAME] [--list]. */
#include "test.h"

#include "base/cpu.h"
#include "base/memory.h"
#include "base/scratch.h"
#include "base/threads.h"
#include "simd/intrinsics.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

static test_case *cases, *running;

void test_register(test_case *t)
{
    test_case **link = &cases;
    while (*link != NULL && strcmp((*link)->name, t->name) < 0)
        link = &(*link)->next;
    t->next = *link;
    *link = t;
}

void test_fail(const char *file, int line, const char *format, ...)
{
    char what[sizeof running->failure / 2], line_of[sizeof running->failure];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(what, sizeof what, format, arguments);
    va_end(arguments);
    snprintf(line_of, sizeof line_of, "%s:%d: %s", file, line, what);
    printf("    %s\n", line_of);
    if (running->failure[0] == '\0')
        memcpy(running->failure, line_of, sizeof line_of);
}

void test_skip(const char *reason) { printf("    skip: %s\n", reason); }

size_t test_rounds(size_t full)
{
    const bool quick = TEST_IS_SLOW || getenv("AIMO_TEST_QUICK") != NULL;
    return quick && full >= 10 ? full / 10 : full;
}

uint64_t test_random(uint64_t *state)
{
    uint64_t x = *state != 0 ? *state : 0x9e3779b97f4a7c15u;
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    *state = x;
    return x * 0x2545f4914f6cdd1du;
}

float test_random_float(uint64_t *state)
{
    return (float)(test_random(state) >> 40) * 0x1p-23f - 1.0f;
}

float test_random_normal(uint64_t *state)
{
    float sum = 0.0f;
    for (int i = 0; i < 12; i++)
        sum += 0.5f * test_random_float(state);
    return sum;
}

/* A thread that goes to sleep, or on to other work, must not hold on to 8 KiB of AMX tiles. */
static bool tiles_are_free(void)
{
#if defined(AIMO_EMULATE_ISA)
    return emu_tiles.palette == 0;
#else
    return true;
#endif
}

static bool has_failed(const test_case *t) { return t->failure[0] != '\0'; }

static void run_case(test_case *t)
{
    const size_t live_before = aimo_memory_live_bytes();
    printf("%s\n", t->name);
    running = t;
    t->run();
    aimo_memory_fail_after(-1);
    aimo_threads_stop();
    aimo_scratch_trim();
    const size_t live_after = aimo_memory_live_bytes();
    if (!has_failed(t) && live_after != live_before)
        test_fail(t->name, 0, "%zu bytes leaked", live_after - live_before);
    if (!tiles_are_free())
        test_fail(t->name, 0, "a kernel keeps its tiles");
}

/* Runs the tests whose names contain `filter`; returns how many failed, or -1 when there are
 * none. */
static int run_cases(const char *filter)
{
    int passed = 0, failed = 0;
    for (test_case *t = cases; t != NULL; t = t->next)
        if (strstr(t->name, filter) != NULL) {
            run_case(t);
            *(has_failed(t) ? &failed : &passed) += 1;
        }
    printf("row %s, %zu threads: %d passed, %d failed\n", aimo_cpu_row(), aimo_thread_count(),
           passed, failed);
    for (const test_case *t = cases; t != NULL; t = t->next)
        if (has_failed(t))
            printf("%s: %s\n", t->name, t->failure);
    return passed + failed != 0 ? failed : -1;
}

static void list_cases(const char *filter)
{
    for (const test_case *t = cases; t != NULL; t = t->next)
        if (strstr(t->name, filter) != NULL)
            printf("%s\n", t->name);
}

int main(int argc, char **argv)
{
    const char *filter = "";
    bool list = false;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--filter") == 0 && i + 1 < argc)
            filter = argv[++i];
        else if (strcmp(argv[i], "--list") == 0)
            list = true;
    }
    setvbuf(stdout, NULL, _IOLBF, 0); /* so that the last line is that of the test that crashes */
    aimo_error err;
    if (aimo_cpu_init(&err) != AIMO_OK || aimo_threads_init(&err) != AIMO_OK) {
        fprintf(stderr, "%s\n", err.message);
        return 2;
    }
    aimo_scratch_init();
    if (!list)
        return run_cases(filter) == 0 ? 0 : 1;
    list_cases(filter);
    return 0;
}
