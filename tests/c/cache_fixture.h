/* For tests of the cache: a brute-force cache to compare with, and vectors to fill both. */
#ifndef AIMO_CACHE_FIXTURE_H
#define AIMO_CACHE_FIXTURE_H

#include "cache/cache.h"

#include <stdbool.h>

enum { MAX_DIM = 128, MAX_ROWS = 6000 };

typedef struct {
    float x[MAX_DIM]; /* as stored, widened */
    int64_t context;
    int64_t slot; /* -1: not stored */
    uint64_t birth;
} model_row;

/* The brute-force cache. */
typedef struct {
    size_t dim;
    aimo_row_type type;
    size_t count;
    model_row rows[MAX_ROWS];
} model;

/* Adds a vector to both caches; false when the one under test refuses it. */
bool model_add(model *m, aimo_cache *cache, const float *x, int64_t context);

/* Whether the cache finds the same `k` rows (at most 12) with the right scores. */
bool agrees(const model *m, aimo_cache *cache, const float *q, int64_t context, double threshold,
            size_t k);

long double cosine(const model *m, const float *q, const model_row *r);

/* Vectors like those of real models: few directions matter, and many vectors are close together. */
void lifelike(float *x, size_t dim, size_t cluster, uint64_t *random);

typedef enum { LIFELIKE, ISOTROPIC, ALIKE, ONE_DIRECTION, TINY, HUGE_VALUES, SPARSE, KINDS } kind;

void make_vector(kind what, float *x, size_t dim, uint64_t *random);

#endif
