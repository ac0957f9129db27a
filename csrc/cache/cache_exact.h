/* Exact arithmetic, for comparisons that f64 cannot decide. */
#ifndef AIMO_CACHE_CACHE_EXACT_H
#define AIMO_CACHE_CACHE_EXACT_H

#include "cache/cache.h"

/* The sign (-1, 0, 1) of cos(query, row) - threshold, as real numbers.
 * query [dim] f32, finite, not zero; row [dim] f16 within [-1, 1] or int8, not zero. */
int aimo_exact_against_threshold(const float *query, const void *row, aimo_row_type type,
                                 size_t dim, double threshold);

/* The sign of cos(query, a) - cos(query, b). */
int aimo_exact_order(const float *query, const void *a, const void *b, aimo_row_type type,
                     size_t dim);

#endif
