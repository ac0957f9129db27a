/* cache with a device: how copies come and go beside searches, over a screen in plain C.
 * tests/cuda/test_cache_cuda.c has the rest. */
#include "test.h"

#include "base/memory.h"
#include "cache/cache.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

enum { DIM = 8, ROWS = 2300, QUERIES = 16, NEW_ROWS = 64 };

struct aimo_screen_rows {
    size_t count;
    float rows[AIMO_SCREEN_ROWS_MOST * DIM];
};

typedef struct {
    aimo_row_screen base;
    atomic_size_t copies; /* that exist now */
    bool *freed;
} plain_screen;

static plain_screen *as_plain(aimo_row_screen *screen) { return (plain_screen *)screen; }

static aimo_status plain_rows_new(aimo_row_screen *screen, const float *rows, size_t count,
                                  aimo_screen_rows **out, aimo_error *err)
{
    AIMO_TRY(aimo_memory_new((void **)out, 1, sizeof **out, "rows", err));
    (*out)->count = count;
    memcpy((*out)->rows, rows, count * DIM * sizeof *rows);
    atomic_fetch_add(&as_plain(screen)->copies, 1);
    return AIMO_OK;
}

static void plain_rows_free(aimo_row_screen *screen, aimo_screen_rows *rows)
{
    memset(rows, 0, sizeof *rows); /* who still reads them finds nothing */
    atomic_fetch_sub(&as_plain(screen)->copies, 1);
    aimo_memory_free(rows);
}

static aimo_status plain_run(aimo_row_screen *screen, const aimo_screen_args *args,
                             aimo_screen_candidate *candidates, size_t capacity, size_t *found,
                             aimo_error *err)
{
    (void)screen;
    (void)err;
    *found = 0;
    for (size_t i = 0; i < args->rows_count; i++)
        for (size_t r = 0; r < args->rows[i]->count; r++)
            for (size_t q = 0; q < args->n; q++) {
                float dot = 0.0f;
                for (size_t j = 0; j < DIM; j++)
                    dot += args->queries[q][j] * args->rows[i]->rows[r * DIM + j];
                if ((double)dot < args->bar - 1e-5)
                    continue;
                if (*found < capacity)
                    candidates[*found] = (aimo_screen_candidate){
                        (uint32_t)(i * AIMO_SCREEN_ROWS_MOST + r), (uint32_t)q};
                ++*found;
            }
    return AIMO_OK;
}

static void plain_free(aimo_row_screen *screen)
{
    *as_plain(screen)->freed = atomic_load(&as_plain(screen)->copies) == 0;
    aimo_memory_free(screen);
}

static const aimo_row_screen_ops plain_ops = {plain_rows_new, plain_rows_free, plain_run,
                                              plain_free};

static float rows[ROWS][DIM];

/* A cache with the rows, and a screen that sets *freed when it is freed after its copies. */
static aimo_cache *cache_with_screen(bool *freed)
{
    aimo_cache *cache;
    plain_screen *screen;
    uint64_t random = 3;
    *freed = false;
    if (aimo_cache_new(&cache, DIM, AIMO_ROWS_F16, NULL) != AIMO_OK ||
        aimo_memory_new_zero((void **)&screen, 1, sizeof *screen, "screen", NULL) != AIMO_OK)
        return NULL;
    screen->base = (aimo_row_screen){&plain_ops, 0};
    screen->freed = freed;
    aimo_cache_use_device(cache, &screen->base);
    for (size_t i = 0; i < ROWS; i++) {
        int64_t slot;
        const int64_t context = 0;
        for (size_t j = 0; j < DIM; j++)
            rows[i][j] = test_random_normal(&random);
        if (aimo_cache_add(cache, rows[i], &context, 1, &slot, NULL) != AIMO_OK)
            return NULL;
    }
    return cache;
}

static atomic_bool stop;

static void *optimize_often(void *cache)
{
    while (!atomic_load(&stop))
        if (aimo_cache_optimize(cache, NULL) != AIMO_OK)
            return cache;
    return NULL;
}

static void *add_and_remove(void *cache)
{
    uint64_t random = 5;
    while (!atomic_load(&stop)) {
        float x[DIM];
        int64_t slots[NEW_ROWS];
        const int64_t context = 0;
        for (size_t i = 0; i < NEW_ROWS; i++) {
            for (size_t j = 0; j < DIM; j++)
                x[j] = test_random_normal(&random);
            if (aimo_cache_add(cache, x, &context, 1, &slots[i], NULL) != AIMO_OK)
                return cache;
        }
        for (size_t i = 0; i < NEW_ROWS; i++)
            if (aimo_cache_remove(cache, slots[i], NULL) != AIMO_OK)
                return cache;
    }
    return NULL;
}

/* Rows that stay are found by themselves; returns how many were not. */
static size_t missing_rows(aimo_cache *cache, size_t first)
{
    static const int64_t contexts[QUERIES];
    int64_t slots[QUERIES];
    double scores[QUERIES];
    if (aimo_cache_search(cache, rows[first], contexts, QUERIES, 0.999, 1, slots, scores, NULL) !=
        AIMO_OK)
        return QUERIES;
    size_t missing = 0;
    for (size_t i = 0; i < QUERIES; i++)
        missing += slots[i] < 0;
    return missing;
}

TEST(cache_with_a_device_is_searched_while_rows_come_and_go)
{
    bool freed;
    aimo_cache *cache = cache_with_screen(&freed);
    CHECK(cache != NULL && aimo_cache_optimize(cache, NULL) == AIMO_OK);
    pthread_t writers[2];
    atomic_store(&stop, false);
    CHECK(pthread_create(&writers[0], NULL, optimize_often, cache) == 0);
    CHECK(pthread_create(&writers[1], NULL, add_and_remove, cache) == 0);
    size_t missing = 0;
    for (size_t round = 0; round < test_rounds(300); round++)
        missing += missing_rows(cache, round * 7);
    atomic_store(&stop, true);
    void *failed[2];
    for (size_t i = 0; i < 2; i++)
        pthread_join(writers[i], &failed[i]);
    aimo_cache_device device;
    aimo_cache_get_device(cache, &device);
    aimo_cache_free(cache);
    CHECK(missing == 0 && failed[0] == NULL && failed[1] == NULL && freed);
    CHECK(device.searches != 0 && device.failures == 0);
}
