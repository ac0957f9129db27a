/* Whole products and row lookups with a packed matrix, split among the threads of the pool. */
#ifndef AIMO_GEMM_GEMM_PARALLEL_H
#define AIMO_GEMM_GEMM_PARALLEL_H

#include "gemm/gemm.h"

#include <stdint.h>

/* y = activation(x @ w^T + bias), row-major; the same sums as aimo_gemm, bit for bit.
 *
 *   x [m, k] f32   bias [n] f32 or NULL   y [m, n] f32, not overlapping x */
void aimo_gemm_parallel(const aimo_matrix *w, const float *x, size_t m, const float *bias,
                        aimo_activation activation, float *y);

/* Writes rows [first, first + rows) of w, given as src [rows, k] f32, as aimo_panels_pack does. */
void aimo_panels_pack_parallel(aimo_dtype dtype, size_t n, size_t k, void *panels, const float *src,
                               size_t first, size_t rows);

/* out [count, k] f32 = row indices[i] of the matrix; exact. AIMO_ERR_ARGUMENT, with out unchanged,
 * when an index is not in [0, n). */
AIMO_MUST_CHECK aimo_status aimo_panels_rows(const aimo_matrix *w, const int64_t *indices,
                                             size_t count, float *out, aimo_error *err);

#endif
