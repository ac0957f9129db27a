/* A brute-force cache, and vectors for tests. */
#include "cache_fixture.h"

#include "cache/cache_exact.h"
#include "half/half.h"
#include "half/half_scalar.h"
#include "test.h"

#include <string.h>

/* long double has 64 bits of precision: it can tell apart cosines that differ by more than this. */
#define APART 1e-15L

static void stored_bytes(const model *m, const model_row *r, void *bytes)
{
    if (m->type == AIMO_ROWS_F16)
        aimo_f32_to_f16(r->x, bytes, m->dim);
    else
        for (size_t i = 0; i < m->dim; i++)
            ((int8_t *)bytes)[i] = (int8_t)(r->x[i] * 128.0f);
}

long double cosine(const model *m, const float *q, const model_row *r)
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
    if (fabsl(difference) > APART)
        return difference > 0;
    uint16_t bytes[MAX_DIM];
    stored_bytes(m, r, bytes);
    return aimo_exact_against_threshold(q, bytes, m->type, m->dim, threshold) >= 0;
}

static bool before(const model *m, const float *q, const model_row *a, const model_row *b)
{
    const long double difference = cosine(m, q, a) - cosine(m, q, b);
    if (fabsl(difference) > APART)
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

bool model_add(model *m, aimo_cache *cache, const float *x, int64_t context)
{
    model_row *r = &m->rows[m->count];
    if (aimo_cache_add(cache, x, &context, 1, &r->slot, NULL) != AIMO_OK ||
        aimo_cache_vector(cache, r->slot, r->x, NULL) != AIMO_OK)
        return false;
    r->context = context;
    r->birth = ++m->count;
    return true;
}

bool agrees(const model *m, aimo_cache *cache, const float *q, int64_t context, double threshold,
            size_t k)
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

void lifelike(float *x, size_t dim, size_t cluster, uint64_t *random)
{
    uint64_t centre = cluster * 7919 + 1;
    for (size_t i = 0; i < dim; i++)
        x[i] = (test_random_normal(&centre) + 0.4f * test_random_normal(random)) /
               (1.0f + 0.12f * (float)i);
}

void make_vector(kind what, float *x, size_t dim, uint64_t *random)
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
