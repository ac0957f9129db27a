/* Screening: which rows may reach a cosine, found on a device by a product of halves.
 *
 * A screen proves that rows lie below the bar, and nothing else; who asks decides about the rest,
 * the candidates. Let u be a query and r a row, both of norm 1; u' and r' the same in f32, as they
 * are given, with |u - u'|, |r - r'| <= D = 2^-22; q and d those rounded to halves, and
 * a = |u' - q|, e = |r' - d| (for all rows of a call: the largest), both measured. Then
 *
 *     u.r = q.d + (u - q).r + q.(r - d) <= q.d + (a + D) + |q| (e + D),
 *     |q| <= 1 + a + D,  |d| <= 1 + e + D.
 *
 * Of q.d the device computes s. Products of halves are exact in f32. Tensor cores align what they
 * add to the largest of a few terms and cut off what lies more than 23 bits below it; with k terms,
 * filled up to whole tiles and added four or more at a time, each term is cut once, and each
 * partial sum twice, so there are at most 3k / 2 cuts; every term and partial sum is at most
 * |q||d|, but for the cuts before it. So |s - q.d| <= 2k 2^-23 |q||d|, which roundings to nearest
 * of plain f32 do not reach either. A row whose s is below the bar minus the sum of these,
 *
 *     slack = (a + D) + (1 + a + D) (e + D) + k 2^-22 (1 + a + D) (1 + e + D),
 *
 * has a cosine below the bar. Halves that are subnormal are numbers to tensor cores. */
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
    /* *out = a copy of rows [count, dim] f32, each of norm 1 within 2^-22, or all zeros; count is 1
     * to AIMO_SCREEN_ROWS_MOST. AIMO_ERR_MEMORY says how much is free. */
    aimo_status (*rows_new)(aimo_row_screen *, const float *rows, size_t count,
                            aimo_screen_rows **out, aimo_error *);
    /* No run may use them. */
    void (*rows_free)(aimo_row_screen *, aimo_screen_rows *);
    /* candidates [capacity] = every row and query whose cosine reaches the bar, and some more, in
     * no order; *found is their number. When that is above capacity, the candidates are not
     * written. */
    aimo_status (*run)(aimo_row_screen *, const aimo_screen_args *, aimo_screen_candidate *,
                       size_t capacity, size_t *found, aimo_error *);
    /* All rows were freed. */
    void (*free)(aimo_row_screen *);
} aimo_row_screen_ops;

struct aimo_row_screen {
    const aimo_row_screen_ops *ops;
    int device;
};

/* On a CUDA device, after aimo_cuda_load (backend/cuda_loader.h). AIMO_ERR_UNSUPPORTED,
 * AIMO_ERR_ARGUMENT: there is none, or no such one. */
AIMO_MUST_CHECK aimo_status aimo_row_screen_cuda_new(int device, size_t dim, aimo_row_screen **out,
                                                     aimo_error *err);

#endif
