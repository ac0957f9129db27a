/* Screening: finds the rows whose cosine may reach a bar, by a matrix product of halves on a
 * device.
 *
 * A screen only proves that rows are below the bar; the caller decides about the others, the
 * candidates. Let u be a query and r a row, both of norm 1; u' and r' the same in f32, as they are
 * given, with |u - u'|, |r - r'| <= D = 2^-22; q and d those rounded to halves, and a = |u' - q|, e
 * = |r' - d| (the largest over all rows of a call), both measured. Then
 *
 *     u.r = q.d + (u - q).r + q.(r - d) <= q.d + (a + D) + |q| (e + D),
 *     |q| <= 1 + a + D,  |d| <= 1 + e + D.
 *
 * The device computes s, an approximation of q.d. Products of halves are exact in f32. Tensor cores
 * align the terms that they add to the largest of a few and truncate everything more than 23 bits
 * below it. With k terms, padded to whole tiles and added four or more at a time, each term is
 * truncated once and each partial sum twice, so there are at most 3k / 2 truncations; every term
 * and partial sum is at most |q||d|, apart from earlier truncations. So |s - q.d| <= 2k 2^-23
 * |q||d|, a bound that also holds for plain f32 arithmetic, which rounds to nearest. A row whose s
 * is below the bar minus the sum of these,
 *
 *     slack = (a + D) + (1 + a + D) (e + D) + k 2^-22 (1 + a + D) (1 + e + D),
 *
 * has a cosine below the bar. Tensor cores do not flush subnormal halves to zero. */
#ifndef AIMO_BACKEND_ROW_SCREEN_H
#define AIMO_BACKEND_ROW_SCREEN_H

#include "base/status.h"

#include <stddef.h>
#include <stdint.h>

enum { AIMO_SCREEN_ROWS_MOST = 2048 }; /* rows of one aimo_screen_rows */

/* Belongs to a device and a dimension. */
typedef struct aimo_row_screen aimo_row_screen;
/* Rows in device memory; immutable. */
typedef struct aimo_screen_rows aimo_screen_rows;

typedef struct {
    uint32_t position; /* index in `rows` * AIMO_SCREEN_ROWS_MOST + row */
    uint32_t query;
} aimo_screen_candidate;

/* One search. */
typedef struct {
    const aimo_screen_rows *const *rows; /* [rows_count], of this screen */
    size_t rows_count;                   /* below 2^21 */
    const float *const *queries;         /* [n], each [dim], of norm 1 within 2^-22 */
    size_t n;                            /* below 2^31 */
    double bar;
} aimo_screen_args;

/* Any thread may call any of these. */
typedef struct {
    /* *out = a copy of rows [count, dim] f32, each of norm 1 within 2^-22 or all zeros; count is 1
     * to AIMO_SCREEN_ROWS_MOST. AIMO_ERR_MEMORY: the message says how much is free. */
    aimo_status (*rows_new)(aimo_row_screen *, const float *rows, size_t count,
                            aimo_screen_rows **out, aimo_error *);
    /* No run may be using them. */
    void (*rows_free)(aimo_row_screen *, aimo_screen_rows *);
    /* candidates [capacity] = every row and query whose cosine reaches the bar, and some more, in
     * no particular order; *found is their number. When it exceeds capacity, no candidates are
     * written. */
    aimo_status (*run)(aimo_row_screen *, const aimo_screen_args *, aimo_screen_candidate *,
                       size_t capacity, size_t *found, aimo_error *);
    /* All rows must have been freed. */
    void (*free)(aimo_row_screen *);
} aimo_row_screen_ops;

struct aimo_row_screen {
    const aimo_row_screen_ops *ops;
    int device;
};

/* A screen on a CUDA device; call after aimo_cuda_load (backend/cuda_loader.h).
 * AIMO_ERR_UNSUPPORTED when CUDA was not loaded or the device is too old, AIMO_ERR_ARGUMENT when
 * there is no such device. */
AIMO_MUST_CHECK aimo_status aimo_row_screen_cuda_new(int device, size_t dim, aimo_row_screen **out,
                                                     aimo_error *err);

#endif
