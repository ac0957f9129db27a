/* A minimal test runner: TEST(name) { CHECK(...); } registers itself, and main (test_main.c) runs
 * the tests whose names contain the --filter. */
#ifndef AIMO_TEST_H
#define AIMO_TEST_H

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define __SANITIZE_THREAD__ 1
#endif
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__) || defined(AIMO_EMULATE_ISA)
enum { TEST_IS_SLOW = true };
#else
enum { TEST_IS_SLOW = false };
#endif

typedef struct test_case {
    const char *name;
    void (*run)(void);
    struct test_case *next;
    char failure[200]; /* the first failure, repeated after all tests */
} test_case;

void test_register(test_case *t);
/* Counts a failure of the running test and prints where. */
void test_fail(const char *file, int line, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* Notes that (part of) the running test could not run here. */
void test_skip(const char *reason);

#define TEST(test_name)                                                                            \
    static void test_name(void);                                                                   \
    static test_case test_name##_case = {#test_name, test_name, NULL, ""};                         \
    __attribute__((constructor)) static void test_name##_register(void)                            \
    {                                                                                              \
        test_register(&test_name##_case);                                                          \
    }                                                                                              \
    static void test_name(void)

/* Both return from the test function at the first failure. */
#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            test_fail(__FILE__, __LINE__, "%s", #condition);                                       \
            return;                                                                                \
        }                                                                                          \
    } while (0)
#define CHECK_MSG(condition, ...)                                                                  \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            test_fail(__FILE__, __LINE__, __VA_ARGS__);                                            \
            return;                                                                                \
        }                                                                                          \
    } while (0)

/* `full` rounds, or a tenth under a sanitizer, valgrind or an emulator, all of which are slow: the
 * first is known when compiling, the others set AIMO_TEST_QUICK. */
size_t test_rounds(size_t full);

/* A small deterministic generator (xorshift64*). */
uint64_t test_random(uint64_t *state);
/* Uniform in [-1, 1). */
float test_random_float(uint64_t *state);
/* Standard normal, roughly: the sum of twelve uniforms. */
float test_random_normal(uint64_t *state);

#endif
