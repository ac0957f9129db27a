/* cache: every answer is the exact one, alone and beside writers. */
#include "test.h"

#include "base/cpu.h"
#include "base/memory.h"
#include "base/threads.h"
#include "cache/cache.h"
#include "cache/cache_bound.h"
#include "cache/cache_exact.h"
#include "half/half.h"
#include "half/half_scalar.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- a brute-force cache ------------------------------------------------------------------- */

enum { MAX_DIM = 128, MAX_ROWS = 6000 };

typedef struct {
    float x[MAX_DIM]; /* as stored, widened */
    int64_t context;
    int64_t slot; /* -1: not there */
    uint64_t birth;
} model_row;

typedef struct {
    size_t dim;
    aimo_row_type type;
    size_t count;
    model_row rows[MAX_ROWS];
} model;

static void stored_bytes(const model *m, const model_row *r, void *bytes)
{
    if (m->type == AIMO_ROWS_F16)
        aimo_f32_to_f16(r->x, bytes, m->dim);
    else
        for (size_t i = 0; i < m->dim; i++)
            ((int8_t *)bytes)[i] = (int8_t)(r->x[i] * 128.0f);
}

/* long double has 64 bits: apart by more than 1e-15, two cosines are told apart by it. */
static long double cosine(const model *m, const float *q, const model_row *r)
{
    long double dot = 0, qq = 0, xx = 0;
    for (size_t i = 0; i < m->dim; i++) {
        dot += (long double)q[i] * (long double)r->x[i];
        qq += (long double)q[i] * (long double)q[i];
        xx += (long double)r->x[i] * (long double)r->x[i];
    }
    return dot / (sqrtl(qq) * sqrtl(xx));
}

static bool reaches(const model *m, const float *q, const model_row *r, double threshold)
{
    const long double difference = cosine(m, q, r) - (long double)threshold;
    if (fabsl(difference) > 1e-15L)
        return difference > 0;
    uint16_t bytes[MAX_DIM];
    stored_bytes(m, r, bytes);
    return aimo_exact_against_threshold(q, bytes, m->type, m->dim, threshold) >= 0;
}

static bool before(const model *m, const float *q, const model_row *a, const model_row *b)
{
    const long double difference = cosine(m, q, a) - cosine(m, q, b);
    if (fabsl(difference) > 1e-15L)
        return difference > 0;
    uint16_t first[MAX_DIM], second[MAX_DIM];
    stored_bytes(m, a, first);
    stored_bytes(m, b, second);
    const int order = aimo_exact_order(q, first, second, m->type, m->dim);
    return order != 0 ? order > 0 : a->birth < b->birth;
}

/* The k best, best first; returns how many. */
static size_t model_search(const model *m, const float *q, int64_t context, double threshold,
                           size_t k, const model_row **best)
{
    size_t found = 0;
    for (size_t i = 0; i < m->count; i++) {
        const model_row *r = &m->rows[i];
        if (r->slot < 0 || r->context != context || !reaches(m, q, r, threshold))
            continue;
        size_t place = found;
        while (place > 0 && before(m, q, r, best[place - 1]))
            place--;
        if (place == k)
            continue;
        found += found < k;
        memmove(&best[place + 1], &best[place], (found - place - 1) * sizeof *best);
        best[place] = r;
    }
    return found;
}

static bool model_add(model *m, aimo_cache *cache, const float *x, int64_t context)
{
    model_row *r = &m->rows[m->count];
    if (aimo_cache_add(cache, x, &context, 1, &r->slot, NULL) != AIMO_OK ||
        aimo_cache_vector(cache, r->slot, r->x, NULL) != AIMO_OK)
        return false;
    r->context = context;
    r->birth = ++m->count;
    return true;
}

static bool agrees(const model *m, aimo_cache *cache, const float *q, int64_t context,
                   double threshold, size_t k)
{
    enum { MOST = 12 };
    const model_row *best[MOST + 1];
    int64_t slots[MOST];
    double scores[MOST];
    const size_t expected = model_search(m, q, context, threshold, k, best);
    if (aimo_cache_search(cache, q, &context, 1, threshold, k, slots, scores, NULL) != AIMO_OK)
        return false;
    for (size_t i = 0; i < k; i++) {
        if (slots[i] != (i < expected ? best[i]->slot : -1))
            return false;
        if (i < expected && (fabsl((long double)scores[i] - cosine(m, q, best[i])) > 1e-9L ||
                             scores[i] < threshold || scores[i] > 1.0))
            return false;
    }
    return true;
}

/* ---- vectors ------------------------------------------------------------------------------- */

/* Vectors as models make them: few directions matter, many are near each other. */
static void lifelike(float *x, size_t dim, size_t cluster, uint64_t *random)
{
    uint64_t centre = cluster * 7919 + 1;
    for (size_t i = 0; i < dim; i++)
        x[i] = (test_random_normal(&centre) + 0.4f * test_random_normal(random)) /
               (1.0f + 0.12f * (float)i);
}

typedef enum { LIFELIKE, ISOTROPIC, ALIKE, ONE_DIRECTION, TINY, HUGE_VALUES, SPARSE, KINDS } kind;

static void make_vector(kind what, float *x, size_t dim, uint64_t *random)
{
    lifelike(x, dim, test_random(random) % 50, random);
    for (size_t i = 0; i < dim; i++) {
        if (what == ISOTROPIC)
            x[i] = test_random_normal(random);
        else if (what == ALIKE)
            x[i] = (float)(i % 7) - 2.5f;
        else if (what == ONE_DIRECTION)
            x[i] = ((float)(i % 7) - 2.5f) * (1.0f + 0.001f * (float)(test_random(random) % 8));
        else if (what == TINY)
            x[i] = aimo_f32_from_bits((uint32_t)(test_random(random) % 200) |
                                      (uint32_t)(test_random(random) & 0x80000000u));
        else if (what == HUGE_VALUES)
            x[i] *= 1e37f;
        else if (what == SPARSE)
            x[i] = i == test_random(random) % dim ? 1.0f : 0.0f;
    }
    x[0] += what == SPARSE ? 1.0f : 0.0f;
    x[1] += what == TINY ? 1e-44f : 0.0f;
}

static const double thresholds[] = {-1.0, -0.5, 0.0, 5e-324, 0.3, 0.7, 0.85, 0.95, 0.999999, 1.0};
enum { THRESHOLDS = sizeof thresholds / sizeof thresholds[0] };

/* ---- exactness ------------------------------------------------------------------------------ */

TEST(cache_exact_arithmetic_decides_what_doubles_cannot)
{
    const uint16_t row[4] = {0x3c00, 0, 0, 0}; /* 1 0 0 0 */
    const float three_four[4] = {0.6f, 0.8f, 0, 0}, five[4] = {3, 4, 0, 0},
                tiny[4] = {1e-45f, 0, 0, 0};
    CHECK(aimo_exact_against_threshold(five, row, AIMO_ROWS_F16, 4, 0.6) == 1); /* 0.6 < 3/5 */
    CHECK(aimo_exact_against_threshold(five, row, AIMO_ROWS_F16, 4, nextafter(0.6, 1)) == -1);
    CHECK(aimo_exact_against_threshold(three_four, row, AIMO_ROWS_F16, 4, 0.75) == -1);
    CHECK(aimo_exact_against_threshold(tiny, row, AIMO_ROWS_F16, 4, 1.0) == 0);
    CHECK(aimo_exact_against_threshold(tiny, row, AIMO_ROWS_F16, 4, nextafter(1.0, 0)) == 1);
    const float down[4] = {-3, 4, 0, 0}, across[4] = {0, 3e38f, 0, 0};
    CHECK(aimo_exact_against_threshold(down, row, AIMO_ROWS_F16, 4, -0.6) == -1);
    CHECK(aimo_exact_against_threshold(down, row, AIMO_ROWS_F16, 4, nextafter(-0.6, -1)) == 1);
    CHECK(aimo_exact_against_threshold(across, row, AIMO_ROWS_F16, 4, 0.0) == 0);
    CHECK(aimo_exact_against_threshold(across, row, AIMO_ROWS_F16, 4, 5e-324) == -1);
    CHECK(aimo_exact_against_threshold(across, row, AIMO_ROWS_F16, 4, -5e-324) == 1);
    const int8_t a[4] = {127, 0, 0, 0}, b[4] = {0, 127, 0, 0}, c[4] = {-127, 0, 0, 0};
    CHECK(aimo_exact_order(five, b, a, AIMO_ROWS_INT8, 4) == 1);
    CHECK(aimo_exact_order(five, c, a, AIMO_ROWS_INT8, 4) == -1);
    CHECK(aimo_exact_order(five, a, a, AIMO_ROWS_INT8, 4) == 0);
    CHECK(aimo_exact_against_threshold(five, b, AIMO_ROWS_INT8, 4, 0.8) == -1); /* 0.8 > 4/5 */
}

/* Looks up new vectors, stored ones, scaled ones, and ones at the threshold itself. */
static bool all_lookups_agree(const model *m, aimo_cache *cache, kind what, uint64_t *random,
                              int lookups)
{
    for (int i = 0; i < lookups; i++) {
        float q[MAX_DIM];
        const model_row *r = &m->rows[test_random(random) % m->count];
        make_vector(i % 3 == 0 ? LIFELIKE : what, q, m->dim, random);
        if (i % 3 == 1)
            memcpy(q, r->x, sizeof q);
        double threshold = thresholds[test_random(random) % THRESHOLDS];
        if (i % 5 == 4) { /* within a rounding of some row's score */
            const double score = (double)cosine(m, q, r);
            threshold = fmax(-1.0, fmin(1.0, i % 2 ? score : nextafter(score, i % 4 ? 2 : -2)));
        }
        if (!agrees(m, cache, q, r->context, threshold, 1 + test_random(random) % 12)) {
            test_fail(__FILE__, __LINE__, "kind %d, lookup %d, threshold %.17g", (int)what, i,
                      threshold);
            return false;
        }
    }
    return true;
}

static void check_kind(kind what, size_t dim, aimo_row_type type, size_t rows)
{
    static model m;
    uint64_t random = (uint64_t)what * 100 + dim;
    memset(&m, 0, sizeof m);
    m.dim = dim;
    m.type = type;
    aimo_cache *cache;
    CHECK(aimo_cache_new(&cache, dim, type, NULL) == AIMO_OK);
    for (size_t i = 0; i < rows; i++) {
        float x[MAX_DIM];
        make_vector(i % 4 == 3 ? LIFELIKE : what, x, dim, &random);
        CHECK(model_add(&m, cache, i % 9 == 8 ? m.rows[i / 2].x : x,
                        (int64_t)(test_random(&random) % 8 == 0)));
    }
    const bool before_learning = all_lookups_agree(&m, cache, what, &random, 60);
    CHECK(aimo_cache_optimize(cache, NULL) == AIMO_OK);
    const bool after_learning = all_lookups_agree(&m, cache, what, &random, 200);
    for (size_t i = 0; i < rows; i += 2) {
        CHECK(aimo_cache_remove(cache, m.rows[i].slot, NULL) == AIMO_OK);
        m.rows[i].slot = -1;
    }
    const bool after_removal = all_lookups_agree(&m, cache, what, &random, 60);
    aimo_cache_free(cache);
    CHECK(before_learning && after_learning && after_removal);
}

TEST(cache_answers_are_exact_for_every_kind_of_vector)
{
    for (int what = 0; what < KINDS; what++) {
        check_kind((kind)what, 128, AIMO_ROWS_F16, test_rounds(3000));
        check_kind((kind)what, 96, AIMO_ROWS_INT8, test_rounds(1000));
        check_kind((kind)what, 3, AIMO_ROWS_F16, test_rounds(300));
    }
}

/* (1) of cache_bound.h, against cosines: for good directions, skewed ones and useless ones. */
static void random_directions(aimo_basis *basis, double skew, uint64_t *random)
{
    const size_t n = basis->head + basis->tail, dim = basis->dim;
    for (size_t j = 0; j < n; j++) {
        double square = 0;
        float *p = basis->directions + j * dim;
        for (size_t i = 0; i < dim; i++) {
            p[i] = (i == j ? 1.0f : 0.0f) + (float)skew * test_random_normal(random);
            square += (double)p[i] * (double)p[i];
        }
        for (size_t i = 0; i < dim; i++)
            p[i] = (float)((double)p[i] / sqrt(square));
    }
    aimo_basis_measure(basis);
}

static bool bounds_hold(const aimo_basis *basis, const aimo_similarity_kernels *kernels,
                        const float *x, const float *q)
{
    double xx = 0, qq = 0, dot = 0;
    float unit[MAX_DIM];
    for (size_t i = 0; i < basis->dim; i++) {
        xx += (double)x[i] * (double)x[i];
        qq += (double)q[i] * (double)q[i];
        dot += (double)x[i] * (double)q[i];
    }
    for (size_t i = 0; i < basis->dim; i++)
        unit[i] = (float)((double)q[i] / sqrt(qq));
    aimo_row_codes row;
    aimo_query_codes query;
    aimo_basis_encode(basis, kernels, x, 1.0 / sqrt(xx), &row);
    aimo_query_prepare(basis, kernels, unit, &query);
    aimo_query_prepare_tail(basis, kernels, unit, &query);
    _Alignas(64) uint8_t codes[AIMO_MAX_HEAD / 2 * AIMO_HEAD_BLOCK];
    _Alignas(64) uint16_t rests[AIMO_HEAD_BLOCK] = {row.head_rest};
    memset(codes, 0, sizeof codes);
    for (size_t i = 0; i < basis->head; i++)
        codes[i / 8 * 64 + i % 4] |= (uint8_t)(row.head[i] << (i % 8 / 4 * 4));
    const aimo_heads heads = {codes, rests, 1, basis->head / AIMO_HEAD_LINE};
    int16_t dots[AIMO_HEAD_BLOCK];
    uint16_t mask, candidate = 0;
    /* The row's own cosine is the highest bar that it must pass. */
    const double bar = dot / sqrt(xx * qq) - 1e-13;
    aimo_query_set_head_bar(&query, bar);
    aimo_query_set_tail_bar(&query, bar);
    kernels->screen(&heads, &query.head, 1, dots, &mask);
    return (mask & 1) != 0 && kernels->refine(&row.tail, dots, &query.tail, &candidate, 1) == 1;
}

TEST(cache_bounds_never_fall_below_the_cosine)
{
    const aimo_similarity_kernels *kernels = aimo_similarity_select(aimo_cpu_enabled());
    uint64_t random = 11;
    for (int round = 0; round < 60; round++) {
        static const double skews[] = {0.0, 1e-8, 1e-7, 1e-6, 5e-6};
        aimo_basis *basis;
        CHECK(aimo_memory_new((void **)&basis, 1, sizeof *basis + 96 * MAX_DIM * sizeof(float),
                              "basis", NULL) == AIMO_OK);
        *basis = (aimo_basis){.dim = 100 + (size_t)round % 29,
                              .head = 16 + (size_t)(round % 6) * 8,
                              .tail = (size_t)round % 40,
                              .tail_step = round % 2 ? 1.0 / 127 : 0.002};
        for (size_t j = 0; j < basis->head; j++)
            basis->steps[j] = round % 3 == 0 ? 0.03 : round % 3 == 1 ? 1e-5 : 0.2 / (double)(j + 1);
        random_directions(basis, skews[round % 5], &random);
        bool hold = aimo_basis_is_usable(basis);
        for (int i = 0; i < 200 && hold; i++) {
            float x[MAX_DIM], q[MAX_DIM];
            make_vector((kind)(i % ALIKE), x, basis->dim, &random);
            make_vector((kind)(i % KINDS), q, basis->dim, &random);
            for (size_t j = 0; i % 4 == 1 && j < basis->dim; j++)
                q[j] = x[j] * (1.0f + 0.01f * test_random_float(&random));
            for (size_t j = 0; i % 8 == 3 && j < basis->dim; j++)
                x[j] = q[j] = basis->directions[j]; /* all of it in one direction */
            hold = bounds_hold(basis, kernels, x, q);
        }
        aimo_memory_free(basis);
        CHECK_MSG(hold, "round %d", round);
    }
}

/* ---- life ----------------------------------------------------------------------------------- */

TEST(cache_random_changes_agree_with_a_model)
{
    static model m;
    memset(&m, 0, sizeof m);
    m.dim = 64;
    uint64_t random = 5;
    aimo_cache *cache;
    CHECK(aimo_cache_new(&cache, m.dim, AIMO_ROWS_F16, NULL) == AIMO_OK);
    size_t live = 0;
    for (size_t step = 0; step < test_rounds(9000); step++) {
        float x[MAX_DIM];
        lifelike(x, m.dim, test_random(&random) % 20, &random);
        const uint64_t dice = test_random(&random) % 10;
        if (dice < 6 && m.count < MAX_ROWS) {
            /* context 0 grows large, the others stay small and vanish */
            CHECK(model_add(&m, cache, x,
                            dice < 4 ? 0 : (int64_t)(test_random(&random) % 200) - 100));
            live++;
        } else if (m.count != 0) {
            model_row *r = &m.rows[test_random(&random) % m.count];
            if (r->slot >= 0) {
                CHECK(aimo_cache_remove(cache, r->slot, NULL) == AIMO_OK);
                CHECK(aimo_cache_remove(cache, r->slot, NULL) == AIMO_ERR_ARGUMENT);
                r->slot = -1;
                live--;
            }
        }
        CHECK(aimo_cache_count(cache) == live);
        if (step % 40 == 0)
            CHECK(agrees(&m, cache, x, (int64_t)(test_random(&random) % 3), 0.6, 5));
        if (step % 2000 == 1500)
            CHECK(aimo_cache_optimize(cache, NULL) == AIMO_OK);
    }
    for (size_t i = 0; i < m.count; i++)
        if (m.rows[i].slot >= 0)
            CHECK(aimo_cache_remove(cache, m.rows[i].slot, NULL) == AIMO_OK);
    CHECK(aimo_cache_count(cache) == 0);
    aimo_cache_free(cache);
}

/* Eviction in steady state: a million rounds leave nothing behind. */
TEST(cache_memory_stays_flat_over_a_million_replacements)
{
    enum { DIM = 16, LIVE = 500 };
    aimo_cache *cache;
    CHECK(aimo_cache_new(&cache, DIM, AIMO_ROWS_INT8, NULL) == AIMO_OK);
    int64_t slots[LIVE];
    uint64_t random = 6;
    size_t settled = 0;
    for (size_t i = 0; i < test_rounds(1000000); i++) {
        float x[DIM];
        const int64_t context = i % 1000 == 0 ? i : i % 3;
        for (size_t j = 0; j < DIM; j++)
            x[j] = test_random_float(&random);
        if (i >= LIVE)
            CHECK(aimo_cache_remove(cache, slots[i % LIVE], NULL) == AIMO_OK);
        CHECK(aimo_cache_add(cache, x, &context, 1, &slots[i % LIVE], NULL) == AIMO_OK);
        if (i == 20000)
            settled = aimo_cache_bytes(cache);
    }
    CHECK_MSG(aimo_cache_bytes(cache) < settled * 3 / 2, "%zu bytes became %zu", settled,
              aimo_cache_bytes(cache));
    aimo_cache_free(cache);
}

TEST(cache_bad_arguments_change_nothing)
{
    aimo_cache *cache;
    aimo_error err;
    CHECK(aimo_cache_new(&cache, 0, AIMO_ROWS_F16, &err) == AIMO_ERR_ARGUMENT && cache == NULL);
    CHECK(aimo_cache_new(&cache, AIMO_CACHE_MAX_DIM + 1, AIMO_ROWS_F16, &err) == AIMO_ERR_ARGUMENT);
    CHECK(aimo_cache_new(&cache, 4, AIMO_ROWS_F16, &err) == AIMO_OK);
    const float good[8] = {1, 0, 0, 0, 0, 1, 0, 0}, zero[8] = {1}, infinite[4] = {INFINITY},
                nan[4] = {0, NAN};
    const int64_t contexts[2] = {0, 0};
    int64_t slots[2];
    double scores[2];
    CHECK(aimo_cache_add(cache, zero, contexts, 2, slots, &err) == AIMO_ERR_ARGUMENT);
    CHECK(aimo_cache_add(cache, infinite, contexts, 1, slots, &err) == AIMO_ERR_ARGUMENT);
    CHECK(aimo_cache_add(cache, nan, contexts, 1, slots, &err) == AIMO_ERR_ARGUMENT);
    CHECK(aimo_cache_count(cache) == 0);
    CHECK(aimo_cache_add(cache, good, contexts, 2, slots, &err) == AIMO_OK);
    CHECK(aimo_cache_search(cache, nan, contexts, 1, 0.5, 1, slots, scores, &err) ==
          AIMO_ERR_ARGUMENT);
    CHECK(aimo_cache_search(cache, good, contexts, 1, 1.5, 1, slots, scores, &err) ==
          AIMO_ERR_ARGUMENT);
    CHECK(aimo_cache_search(cache, good, contexts, 1, NAN, 1, slots, scores, &err) ==
          AIMO_ERR_ARGUMENT);
    CHECK(aimo_cache_search(cache, good, contexts, 1, 0.5, 0, slots, scores, &err) ==
          AIMO_ERR_ARGUMENT);
    CHECK(aimo_cache_remove(cache, 2, &err) == AIMO_ERR_ARGUMENT);
    CHECK(aimo_cache_remove(cache, -1, &err) == AIMO_ERR_ARGUMENT);
    CHECK(aimo_cache_search(cache, good, contexts, 2, 1.0, 1, slots, scores, &err) == AIMO_OK);
    CHECK(slots[0] == 0 && slots[1] == 1 && scores[0] == 1.0);
    aimo_cache_free(cache);
}

TEST(cache_survives_every_allocation_failure)
{
    enum { DIM = 64, ROWS = 700 };
    static float x[ROWS * DIM];
    static int64_t contexts[ROWS], slots[ROWS];
    uint64_t random = 7;
    for (size_t i = 0; i < ROWS; i++) {
        lifelike(x + i * DIM, DIM, i % 10, &random);
        contexts[i] = (int64_t)(i % 5 == 0 ? i : 1);
    }
    bool complete = false;
    for (long failing = 0; !complete; failing += failing < 40 ? 1 : 23) {
        aimo_cache *cache;
        aimo_memory_fail_after(failing);
        complete = aimo_cache_new(&cache, DIM, AIMO_ROWS_F16, NULL) == AIMO_OK;
        const bool exists = complete;
        complete = complete && aimo_cache_add(cache, x, contexts, ROWS, slots, NULL) == AIMO_OK;
        if (exists && !complete)
            CHECK(aimo_cache_count(cache) == 0);
        complete = complete && aimo_cache_optimize(cache, NULL) == AIMO_OK;
        for (size_t i = 0; exists && i < ROWS && aimo_cache_count(cache) == ROWS - i; i++)
            CHECK(aimo_cache_remove(cache, slots[i], NULL) == AIMO_OK);
        aimo_memory_fail_after(-1);
        if (exists) {
            CHECK(aimo_cache_count(cache) == 0);
            CHECK(aimo_cache_add(cache, x, contexts, 1, slots, NULL) == AIMO_OK);
            aimo_cache_free(cache);
        }
    }
}

TEST(cache_restore_is_the_inverse_of_snapshot)
{
    for (int type = AIMO_ROWS_F16; type <= AIMO_ROWS_INT8; type++) {
        enum { DIM = 24, ROWS = 1500 };
        aimo_cache *cache, *copy;
        uint64_t random = 8;
        static int64_t slots[ROWS], contexts[ROWS], restored_slots[ROWS], restored_contexts[ROWS];
        static char rows[ROWS * DIM * 2], restored[ROWS * DIM * 2];
        CHECK(aimo_cache_new(&cache, DIM, (aimo_row_type)type, NULL) == AIMO_OK);
        CHECK(aimo_cache_new(&copy, DIM, (aimo_row_type)type, NULL) == AIMO_OK);
        for (size_t i = 0; i < ROWS; i++) {
            float x[DIM];
            const int64_t context = (int64_t)(i % 4);
            lifelike(x, DIM, i % 10, &random);
            CHECK(aimo_cache_add(cache, x, &context, 1, &slots[i], NULL) == AIMO_OK);
            if (i % 3 == 0)
                CHECK(aimo_cache_remove(cache, slots[i], NULL) == AIMO_OK);
        }
        aimo_cache_snapshot *snapshot;
        CHECK(aimo_cache_snapshot_open(cache, &snapshot, NULL) == AIMO_OK);
        const size_t count = aimo_cache_snapshot_count(snapshot);
        CHECK(count == ROWS - ROWS / 3);
        aimo_cache_snapshot_read(snapshot, rows, slots, contexts);
        aimo_cache_snapshot_close(snapshot);
        CHECK(aimo_cache_restore(copy, rows, slots, contexts, count, NULL) == AIMO_OK);
        CHECK(aimo_cache_restore(copy, rows, slots, contexts, count, NULL) == AIMO_ERR_ARGUMENT);
        CHECK(aimo_cache_snapshot_open(copy, &snapshot, NULL) == AIMO_OK);
        CHECK(aimo_cache_snapshot_count(snapshot) == count);
        aimo_cache_snapshot_read(snapshot, restored, restored_slots, restored_contexts);
        aimo_cache_snapshot_close(snapshot);
        CHECK(memcmp(rows, restored, count * DIM * (type == AIMO_ROWS_F16 ? 2 : 1)) == 0);
        CHECK(memcmp(slots, restored_slots, count * sizeof *slots) == 0);
        CHECK(memcmp(contexts, restored_contexts, count * sizeof *contexts) == 0);
        aimo_cache_free(copy);
        CHECK(aimo_cache_new(&copy, DIM, (aimo_row_type)type, NULL) == AIMO_OK);
        slots[1] = slots[0];
        CHECK(aimo_cache_restore(copy, rows, slots, contexts, count, NULL) == AIMO_ERR_ARGUMENT);
        memset(rows, 0, DIM * 2);
        slots[1] = slots[2];
        CHECK(aimo_cache_restore(copy, rows, slots, contexts, 1, NULL) == AIMO_ERR_ARGUMENT);
        CHECK(aimo_cache_count(copy) == 0);
        aimo_cache_free(copy);
        aimo_cache_free(cache);
    }
}

/* ---- concurrency ---------------------------------------------------------------------------- */

/* One writer changes a window of rows step by step; step s adds row s and removes row s - WINDOW
 * or another. A reader's answer must be that of some step between the one before its call began
 * and the one after it ended. */
enum { STREAM_DIM = 32, STEPS = 6000, WINDOW = 700, READERS = 3, STREAM_QUERIES = 6 };

typedef struct {
    aimo_cache *cache;
    float x[STEPS][STREAM_DIM];
    float queries[STREAM_QUERIES][STREAM_DIM];
    int removed_at[STEPS]; /* the step that removes row i; STEPS: none */
    int64_t slots[STEPS];
    atomic_int steps_begun, steps_done;
    atomic_bool failed;
    atomic_long lookups;
} stream;

static stream shared;

/* The best row for the query after `step` changes, by f64, whose gaps the data keeps wide. */
static int best_at(int query, int step, const double (*scores)[STEPS])
{
    int best = -1;
    for (int i = 0; i < step && i < STEPS; i++)
        if (shared.removed_at[i] >= step && (best < 0 || scores[query][i] > scores[query][best]))
            best = i;
    return best;
}

static double stream_scores[STREAM_QUERIES][STEPS];

static void *read_stream(void *seed)
{
    uint64_t random = (uint64_t)(uintptr_t)seed;
    while (atomic_load(&shared.steps_done) < STEPS && !atomic_load(&shared.failed)) {
        const int query = (int)(test_random(&random) % STREAM_QUERIES);
        const int64_t context = 7;
        int64_t slot;
        double score;
        const int from = atomic_load(&shared.steps_done);
        if (aimo_cache_search(shared.cache, shared.queries[query], &context, 1, -1.0, 1, &slot,
                              &score, NULL) != AIMO_OK)
            atomic_store(&shared.failed, true);
        const int to = atomic_load(&shared.steps_begun);
        bool explained = false;
        /* Within a step the row is added first, then one is removed: both states are legal. */
        for (int step = from; step <= to && !explained; step++) {
            const int best = best_at(query, step, (const double(*)[STEPS])stream_scores);
            const double expected = best < 0 ? 0.0 : stream_scores[query][best];
            explained = best < 0 ? slot < 0 : slot >= 0 && fabs(score - expected) < 1e-3;
            if (!explained && step < to && step < STEPS) {
                const double added = stream_scores[query][step];
                const double both = best < 0 || added > expected ? added : expected;
                explained = slot >= 0 && fabs(score - both) < 1e-3;
            }
        }
        if (!explained)
            atomic_store(&shared.failed, true);
        atomic_fetch_add(&shared.lookups, 1);
    }
    return NULL;
}

static void *write_stream(void *unused)
{
    const int64_t context = 7;
    static int removal[STEPS]; /* the row that step s removes, -1: none */
    for (int i = 0; i < STEPS; i++)
        removal[i] = -1;
    for (int i = 0; i < STEPS; i++)
        if (shared.removed_at[i] < STEPS)
            removal[shared.removed_at[i]] = i;
    for (int s = 0; s < STEPS && !atomic_load(&shared.failed); s++) {
        atomic_store(&shared.steps_begun, s + 1);
        if (aimo_cache_add(shared.cache, shared.x[s], &context, 1, &shared.slots[s], NULL) !=
            AIMO_OK)
            atomic_store(&shared.failed, true);
        if (removal[s] >= 0 &&
            aimo_cache_remove(shared.cache, shared.slots[removal[s]], NULL) != AIMO_OK)
            atomic_store(&shared.failed, true);
        atomic_store(&shared.steps_done, s + 1);
        if (s % 16 == 0)
            sched_yield();
    }
    atomic_store(&shared.steps_done, STEPS);
    return unused;
}

static void *keep_optimizing(void *unused)
{
    while (atomic_load(&shared.steps_done) < STEPS && !atomic_load(&shared.failed)) {
        if (aimo_cache_optimize(shared.cache, NULL) != AIMO_OK)
            atomic_store(&shared.failed, true);
        aimo_cache_snapshot *snapshot;
        if (aimo_cache_snapshot_open(shared.cache, &snapshot, NULL) == AIMO_OK)
            aimo_cache_snapshot_close(snapshot);
    }
    return unused;
}

/* The rows' scores differ by steps that f16 cannot blur: query q and row i lie in one plane. */
static void prepare_stream(void)
{
    uint64_t random = 9;
    memset(&shared, 0, sizeof shared);
    for (int q = 0; q < STREAM_QUERIES; q++)
        for (size_t j = 0; j < STREAM_DIM; j++)
            shared.queries[q][j] = test_random_normal(&random);
    for (int i = 0; i < STEPS; i++) {
        for (size_t j = 0; j < STREAM_DIM; j++)
            shared.x[i][j] = test_random_normal(&random) * (j < 8 ? 3.0f : 0.3f);
        shared.removed_at[i] = STEPS;
    }
    for (int s = WINDOW; s < STEPS; s++) {
        const int row = s % 3 == 0 ? s - 1 - (int)(test_random(&random) % 20) : s - WINDOW;
        if (shared.removed_at[row] == STEPS)
            shared.removed_at[row] = s;
    }
    for (int q = 0; q < STREAM_QUERIES; q++) {
        for (int i = 0; i < STEPS; i++) {
            double dot = 0, xx = 0, qq = 0;
            for (size_t j = 0; j < STREAM_DIM; j++) {
                dot += (double)shared.queries[q][j] * (double)shared.x[i][j];
                xx += (double)shared.x[i][j] * (double)shared.x[i][j];
                qq += (double)shared.queries[q][j] * (double)shared.queries[q][j];
            }
            stream_scores[q][i] = dot / sqrt(xx * qq);
        }
    }
}

TEST(cache_every_answer_beside_a_writer_is_that_of_one_instant)
{
    prepare_stream();
    CHECK(aimo_cache_new(&shared.cache, STREAM_DIM, AIMO_ROWS_F16, NULL) == AIMO_OK);
    pthread_t readers[READERS], writer, optimizer;
    CHECK(pthread_create(&writer, NULL, write_stream, NULL) == 0);
    CHECK(pthread_create(&optimizer, NULL, keep_optimizing, NULL) == 0);
    for (int i = 0; i < READERS; i++)
        CHECK(pthread_create(&readers[i], NULL, read_stream, (void *)(uintptr_t)(i + 1)) == 0);
    pthread_join(writer, NULL);
    pthread_join(optimizer, NULL);
    for (int i = 0; i < READERS; i++)
        pthread_join(readers[i], NULL);
    aimo_cache_free(shared.cache);
    CHECK(!atomic_load(&shared.failed));
    CHECK(atomic_load(&shared.lookups) > 10);
}

#if !defined(__SANITIZE_THREAD__) /* TSan does not follow threads into a forked child */
TEST(cache_works_in_a_child_forked_beside_readers_and_writers)
{
    prepare_stream();
    CHECK(aimo_cache_new(&shared.cache, STREAM_DIM, AIMO_ROWS_F16, NULL) == AIMO_OK);
    aimo_cache_init();
    pthread_t reader, writer;
    CHECK(pthread_create(&writer, NULL, write_stream, NULL) == 0);
    CHECK(pthread_create(&reader, NULL, read_stream, (void *)(uintptr_t)1) == 0);
    fflush(stdout);
    bool all_well = true;
    for (int i = 0; i < 10; i++) {
        const pid_t child = fork();
        if (child == 0) {
            const int64_t context = 7;
            int64_t slot = -1, found = -1;
            double score = 0;
            bool well = true;
            for (int j = 0; j < 600 && well; j++) /* more than one generation of removals */
                well = aimo_cache_add(shared.cache, shared.x[j], &context, 1, &slot, NULL) ==
                           AIMO_OK &&
                       aimo_cache_remove(shared.cache, slot, NULL) == AIMO_OK;
            well = well && aimo_cache_search(shared.cache, shared.x[0], &context, 1, -1.0, 1,
                                             &found, &score, NULL) == AIMO_OK;
            _exit(well ? 0 : 1);
        }
        int status = 1;
        all_well = all_well && child > 0 && waitpid(child, &status, 0) == child && status == 0;
    }
    pthread_join(writer, NULL);
    pthread_join(reader, NULL);
    aimo_cache_free(shared.cache);
    CHECK(all_well && !atomic_load(&shared.failed));
}
#endif

TEST(cache_many_queries_give_the_answers_of_one)
{
    enum { DIM = 64, ROWS = 5000, N = 150, K = 3 };
    static float x[ROWS * DIM], q[N * DIM];
    static int64_t contexts[ROWS], slots[ROWS], found[N * K], single[K];
    static double scores[N * K], single_scores[K];
    uint64_t random = 10;
    for (size_t i = 0; i < ROWS; i++) {
        lifelike(x + i * DIM, DIM, i % 40, &random);
        contexts[i] = (int64_t)(i % 17 % 3);
    }
    for (size_t i = 0; i < N; i++)
        lifelike(q + i * DIM, DIM, i % 50, &random);
    aimo_cache *cache;
    CHECK(aimo_cache_new(&cache, DIM, AIMO_ROWS_F16, NULL) == AIMO_OK);
    CHECK(aimo_cache_add(cache, x, contexts, ROWS, slots, NULL) == AIMO_OK);
    CHECK(aimo_cache_optimize(cache, NULL) == AIMO_OK);
    for (size_t threads = 1; threads <= 3; threads++) {
        CHECK(aimo_thread_count_set(threads, NULL) == AIMO_OK);
        CHECK(aimo_cache_search(cache, q, contexts, N, 0.8, K, found, scores, NULL) == AIMO_OK);
        for (size_t i = 0; i < N; i++) {
            CHECK(aimo_cache_search(cache, q + i * DIM, contexts + i, 1, 0.8, K, single,
                                    single_scores, NULL) == AIMO_OK);
            CHECK(memcmp(single, found + i * K, sizeof single) == 0);
            CHECK(memcmp(single_scores, scores + i * K, sizeof single_scores) == 0);
        }
    }
    CHECK(aimo_thread_count_set(0, NULL) == AIMO_OK);
    aimo_cache_free(cache);
}
