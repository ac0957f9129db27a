/* cache: every answer is the exact one; its exact arithmetic, and its bounds. */
#include "cache_fixture.h"
#include "test.h"

#include "base/cpu.h"
#include "base/memory.h"
#include "cache/cache_bound.h"
#include "cache/cache_exact.h"

#include <string.h>

static const double thresholds[] = {-1.0, -0.5, 0.0, 5e-324, 0.3, 0.7, 0.85, 0.95, 0.999999, 1.0};
enum { THRESHOLDS = sizeof thresholds / sizeof thresholds[0] };

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
