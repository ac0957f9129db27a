/* backend cuda: screening against cosines in f64. */
#include "cuda_fixture.h"

#include "backend/row_screen.h"
#include "base/memory.h"

#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MOST_DIM = 400, MOST_ROWS = 400, MOST_QUERIES = 70, MOST_PARTS = 8, CAPACITY = 32768 };

/* Rows in parts, as a cache has them, and queries. */
typedef struct {
    size_t dim, parts, n;
    size_t counts[MOST_PARTS];
    float rows[MOST_ROWS * MOST_DIM], queries[MOST_QUERIES * MOST_DIM];
    const float *query_list[MOST_QUERIES];
    aimo_row_screen *screen;
    aimo_screen_rows *copies[MOST_PARTS];
    aimo_screen_candidate candidates[CAPACITY];
    size_t found;
    uint8_t listed[MOST_ROWS * MOST_QUERIES];
} scene;

static scene s; /* too large for the stack */

static double dot(const float *a, const float *b, size_t n)
{
    double sum = 0.0;
    for (size_t i = 0; i < n; i++)
        sum += (double)a[i] * (double)b[i];
    return sum;
}

static void normalize(float *x, size_t n)
{
    const double norm = sqrt(dot(x, x, n));
    for (size_t i = 0; i < n; i++)
        x[i] = (float)((double)x[i] / norm);
}

/* Every third vector is near the first, every fifth has elements that are subnormal halves. */
static void fill_vector(float *x, const float *first, size_t dim, size_t index, uint64_t *random)
{
    for (size_t i = 0; i < dim; i++)
        x[i] = test_random_normal(random);
    for (size_t i = 1; index % 5 == 4 && i < dim; i++)
        x[i] *= 1e-6f;
    for (size_t i = 0; index % 3 == 2 && i < dim; i++)
        x[i] = first[i] + 0.02f * x[i];
    normalize(x, dim);
}

static size_t row_count(void)
{
    size_t rows = 0;
    for (size_t i = 0; i < s.parts; i++)
        rows += s.counts[i];
    return rows;
}

static bool scene_init(size_t dim, const size_t *counts, size_t parts, size_t n, uint64_t seed)
{
    aimo_error err = {""};
    s.dim = dim;
    s.parts = parts;
    s.n = n;
    memcpy(s.counts, counts, parts * sizeof *counts);
    for (size_t i = 0; i < row_count(); i++)
        fill_vector(s.rows + i * dim, s.rows, dim, i, &seed);
    for (size_t i = 0; i < n; i++) {
        fill_vector(s.queries + i * dim, s.rows, dim, i, &seed);
        s.query_list[i] = s.queries + i * dim;
    }
    aimo_status status = aimo_row_screen_cuda_new(0, dim, &s.screen, &err);
    const float *rows = s.rows;
    for (size_t i = 0; status == AIMO_OK && i < parts; rows += counts[i++] * dim)
        status = s.screen->ops->rows_new(s.screen, rows, counts[i], &s.copies[i], &err);
    if (status != AIMO_OK)
        test_fail(__FILE__, __LINE__, "%s", err.message);
    return status == AIMO_OK;
}

static void scene_clear(void)
{
    for (size_t i = 0; i < s.parts; i++)
        s.screen->ops->rows_free(s.screen, s.copies[i]);
    s.screen->ops->free(s.screen);
}

static aimo_status run_screen(double bar, size_t capacity, aimo_error *err)
{
    const aimo_screen_args args = {(const aimo_screen_rows *const *)s.copies, s.parts, s.query_list,
                                   s.n, bar};
    return s.screen->ops->run(s.screen, &args, s.candidates, capacity, &s.found, err);
}

/* Marks the candidates; false when one is not there, or there twice. */
static bool list_candidates(void)
{
    memset(s.listed, 0, sizeof s.listed);
    for (size_t i = 0; i < s.found; i++) {
        const aimo_screen_candidate c = s.candidates[i];
        const size_t part = c.position / AIMO_SCREEN_ROWS_MOST;
        size_t row = c.position % AIMO_SCREEN_ROWS_MOST;
        if (part >= s.parts || row >= s.counts[part] || c.query >= s.n)
            return false;
        for (size_t j = 0; j < part; j++)
            row += s.counts[j];
        if (s.listed[row * s.n + c.query]++ != 0)
            return false;
    }
    return true;
}

/* Everything that reaches the bar is there, and little else. */
static void check_bar(double bar)
{
    const double most_below = 2.5e-3; /* twice the slack of 400 elements */
    aimo_error err = {""};
    CHECK_MSG(run_screen(bar, CAPACITY, &err) == AIMO_OK, "%s", err.message);
    CHECK(s.found <= CAPACITY && list_candidates());
    for (size_t r = 0; r < row_count(); r++)
        for (size_t q = 0; q < s.n; q++) {
            const double cosine = dot(s.rows + r * s.dim, s.queries + q * s.dim, s.dim);
            const bool listed = s.listed[r * s.n + q];
            CHECK_MSG(listed || cosine < bar,
                      "dim %zu: row %zu, query %zu: %.9f is missing at %.9f", s.dim, r, q, cosine,
                      bar);
            CHECK_MSG(!listed || cosine >= bar - most_below,
                      "dim %zu: %.9f is no candidate at %.9f", s.dim, cosine, bar);
        }
}

TEST(cuda_screen_lists_what_reaches_the_bar_and_little_else)
{
    static const struct {
        size_t dim, parts, counts[MOST_PARTS], n;
    } cases[] = {
        {1, 1, {3}, 2},           {3, 2, {64, 1}, 5},     {16, 1, {65}, 64},
        {63, 3, {7, 64, 130}, 3}, {64, 1, {128}, 65},     {65, 2, {100, 20}, 70},
        {130, 1, {300}, 33},      {384, 2, {200, 64}, 7}, {400, 3, {2, 1, 3}, 1},
    };
    if (!cuda_is_here())
        return;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        if (!scene_init(cases[i].dim, cases[i].counts, cases[i].parts, cases[i].n, 11 + i))
            return;
        /* What lies at the bar: the cosine of a pair, as f64 has it. */
        const double tie = dot(s.rows + s.dim, s.queries, s.dim);
        const double bars[] = {-1.0, 0.0, 0.5, 0.9, 0.99, 1.0, tie};
        for (size_t j = 0; j < sizeof bars / sizeof bars[0]; j++)
            check_bar(bars[j]);
        scene_clear();
    }
}

TEST(cuda_screen_of_a_row_for_itself_reaches_1)
{
    static const size_t counts[] = {70};
    aimo_error err;
    if (!cuda_is_here() || !scene_init(96, counts, 1, 64, 5))
        return;
    memcpy(s.queries, s.rows, 64 * 96 * sizeof(float));
    CHECK(run_screen(1.0, CAPACITY, &err) == AIMO_OK && list_candidates());
    for (size_t i = 0; i < 64; i++)
        CHECK(s.listed[i * s.n + i]);
    scene_clear();
}

TEST(cuda_screen_counts_more_candidates_than_there_is_room_for)
{
    static const size_t counts[] = {100, 30};
    aimo_error err;
    if (!cuda_is_here() || !scene_init(8, counts, 2, 9, 3))
        return;
    memset(s.candidates, 0xee, sizeof s.candidates);
    CHECK(run_screen(-1.0, 100, &err) == AIMO_OK);
    CHECK(s.found == 130 * 9 && s.candidates[0].query == 0xeeeeeeeeu);
    CHECK(run_screen(-1.0, 130 * 9, &err) == AIMO_OK && s.found == 130 * 9);
    CHECK(list_candidates());
    scene_clear();
}

TEST(cuda_screen_refuses_devices_that_are_not_there_and_calls_that_are_too_large)
{
    static const size_t counts[] = {1};
    aimo_error err;
    if (!cuda_is_here())
        return;
    CHECK(aimo_row_screen_cuda_new(99, 8, &s.screen, &err) == AIMO_ERR_ARGUMENT);
    CHECK(strstr(err.message, "no cuda:99") != NULL);
    if (!scene_init(8, counts, 1, 1, 3))
        return;
    const aimo_screen_args args = {(const aimo_screen_rows *const *)s.copies, 1 << 20, s.query_list,
                                   1 << 10, 0.5};
    CHECK(s.screen->ops->run(s.screen, &args, s.candidates, CAPACITY, &s.found, &err) ==
          AIMO_ERR_ARGUMENT);
    const aimo_screen_args nothing = {NULL, 0, s.query_list, 1, 0.5};
    CHECK(s.screen->ops->run(s.screen, &nothing, s.candidates, CAPACITY, &s.found, &err) ==
          AIMO_OK);
    CHECK(s.found == 0);
    scene_clear();
}

/* A screen's life; the first failure ends it. */
static aimo_status life_with_fault(void (*fail_after)(long), long count, aimo_error *err)
{
    aimo_row_screen *screen;
    aimo_screen_rows *rows = NULL;
    fail_after(count);
    aimo_status status = aimo_row_screen_cuda_new(0, 8, &screen, err);
    if (status == AIMO_OK) {
        status = screen->ops->rows_new(screen, s.rows, 4, &rows, err);
        const aimo_screen_args args = {(const aimo_screen_rows *const *)&rows, 1, s.query_list, 1,
                                       0.0};
        if (status == AIMO_OK)
            status = screen->ops->run(screen, &args, s.candidates, CAPACITY, &s.found, err);
        fail_after(-1);
        if (rows != NULL)
            screen->ops->rows_free(screen, rows);
        screen->ops->free(screen);
    }
    fail_after(-1);
    return status;
}

static void check_faults(void (*fail_after)(long), const cuda_shim_controls *shim)
{
    const size_t held = shim->held(), of_core = aimo_memory_live_bytes();
    aimo_status status = AIMO_ERR_DEVICE;
    long count = 0;
    for (; status != AIMO_OK && count < 100; count++) {
        aimo_error err = {""};
        status = life_with_fault(fail_after, count, &err);
        CHECK_MSG(status == AIMO_OK || err.message[0] != '\0', "no message after %ld", count);
        CHECK_MSG(shim->held() == held && aimo_memory_live_bytes() == of_core, "leaks after %ld",
                  count);
    }
    CHECK_MSG(status == AIMO_OK && count > 4, "only %ld could fail", count);
}

TEST(cuda_screen_reports_every_fault_and_leaks_nothing)
{
    static const size_t counts[] = {4};
    const cuda_shim_controls *shim;
    if (!cuda_is_here() || (shim = shim_controls()) == NULL || !scene_init(8, counts, 1, 1, 3))
        return;
    scene_clear();
    check_faults(shim->fail_allocations_after, shim);
    check_faults(shim->fail_calls_after, shim);
}

TEST(cuda_screen_in_a_forked_child_is_an_error_and_can_be_freed)
{
    static const size_t counts[] = {4};
    if (!cuda_is_here() || !scene_init(8, counts, 1, 1, 3))
        return;
    const pid_t child = fork();
    if (child == 0) {
        aimo_error err;
        const bool refused = run_screen(0.0, CAPACITY, &err) == AIMO_ERR_DEVICE;
        scene_clear();
        _exit(refused ? 0 : 1);
    }
    int status;
    CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0);
    scene_clear();
}
