/* Matrix products with packed weights.
 *
 * A weight matrix is packed once, into panels of 16 output columns, and no other copy is kept.
 * Inputs and results are f32. Most rows of kernels widen 16-bit weights as they load them; where
 * the processor multiplies bf16 natively, and with int8 weights, x is rounded instead. Sums are
 * f32, or int32 for 8-bit integers. */
#ifndef AIMO_GEMM_GEMM_H
#define AIMO_GEMM_GEMM_H

#include "base/dtype.h"
#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum {
    AIMO_ACT_NONE,
    AIMO_ACT_GELU,       /* x Phi(x), the exact form */
    AIMO_ACT_GELU_TANH,  /* the tanh approximation: gelu_new, gelu_pytorch_tanh, gelu_fast */
    AIMO_ACT_QUICK_GELU, /* x sigmoid(1.702 x) */
    AIMO_ACT_RELU,
    AIMO_ACT_SILU, /* x sigmoid(x), also called swish */
    AIMO_ACT_TANH,
} aimo_activation;
enum { AIMO_ACTIVATION_COUNT = AIMO_ACT_TANH + 1 };

/* The layout that AIMO_PANELS_VERSION names, for a matrix w [n, k] (n outputs, k inputs):
 *   f32, f16   [ceil(n / 16)][k][16]             element (j, i) at [j / 16][i][j % 16]
 *   bf16       [ceil(n / 16)][ceil(k / 2)][16][2]  ... at [j / 16][i / 2][j % 16][i % 2]
 *   int8       [bytes]                           as gemm_int8.h says
 * with zeros beyond n and k. */
enum { AIMO_PANELS_VERSION = 1, AIMO_PANEL_COLUMNS = 16, AIMO_PANELS_DIMENSIONS = 4 };

/* For int8: how many input channels may be kept in 16 bits, and the most inputs a matrix may
 * have. */
enum { AIMO_INT8_OUTLIERS = 16, AIMO_INT8_K_LIMIT = 8192 };

typedef struct aimo_gemm_kernels aimo_gemm_kernels;

typedef struct {
    aimo_dtype dtype;
    size_t n, k;
    const void *panels;               /* not owned; aligned to 64 bytes */
    const aimo_gemm_kernels *kernels; /* the row, chosen when the matrix was made */
} aimo_matrix;

/* Bytes of the packed panels of an [n, k] matrix. AIMO_ERR_ARGUMENT when n or k is 0 or the size
 * overflows; AIMO_ERR_UNSUPPORTED when k exceeds AIMO_INT8_K_LIMIT for int8. */
AIMO_MUST_CHECK aimo_status aimo_panels_size(aimo_dtype dtype, size_t n, size_t k, size_t *bytes,
                                             aimo_error *err);

/* Writes the shape of the panels, as listed above; returns its number of dimensions. */
size_t aimo_panels_shape(aimo_dtype dtype, size_t n, size_t k,
                         size_t shape[AIMO_PANELS_DIMENSIONS]);

/* Sets which input channels of zeroed int8 panels are outliers, before anything is packed into
 * them: at most AIMO_INT8_OUTLIERS distinct channels. The choice affects precision only, not the
 * shape. */
void aimo_panels_set_outliers(void *panels, const int32_t *channels, size_t count);

/* Whether the outlier channels of int8 panels from an untrusted source are below k. */
bool aimo_panels_outliers_fit(const void *panels, size_t k);

/* Writes rows [first, first + rows) of w, given as src [rows, k] f32, into zeroed panels of an
 * [n, k] matrix. Rounds to nearest even. */
void aimo_panels_pack(aimo_dtype dtype, size_t n, size_t k, void *panels, const float *src,
                      size_t first, size_t rows);

/* dst [rows, k] f32 = rows [first, first + rows) of the matrix; exact. */
void aimo_panels_unpack(aimo_dtype dtype, size_t n, size_t k, const void *panels, float *dst,
                        size_t first, size_t rows);

/* A view of packed panels, with the strongest row of kernels for `features` (aimo_cpu_features). */
aimo_matrix aimo_matrix_of(aimo_dtype dtype, size_t n, size_t k, const void *panels,
                           unsigned features);

/* y = activation(x @ w^T + bias), row-major.
 *
 *   x [m, ldx] f32, its first k columns   bias [n] f32 or NULL   y [m, ldy] f32, not overlapping x
 *
 * Computes the columns of panels [panel_begin, panel_end) only, so that threads can split one
 * product; pass 0 and aimo_matrix_panel_count for all. The order in which an element's products are
 * added is fixed by k and the row of kernels: it depends neither on m nor on the split. */
void aimo_gemm(const aimo_matrix *w, const float *x, size_t ldx, size_t m, const float *bias,
               aimo_activation activation, float *y, size_t ldy, size_t panel_begin,
               size_t panel_end);

size_t aimo_matrix_panel_count(const aimo_matrix *w);

#endif
