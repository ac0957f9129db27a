/* Matrix products by cuBLASLt: y = activation(x @ w^T + bias), row-major, summed in f32.
 *
 * The algorithm of a product is chosen once, for one number of rows, without split-k, and serves
 * all numbers of rows: that the sum of an element runs over k in one order, whatever batch its row
 * is in, is what promises about vectors rest on. */
#ifndef AIMO_CUDA_PRODUCT_H
#define AIMO_CUDA_PRODUCT_H

#include "backend/cuda/cublas_lt.h"
#include "base/dtype.h"
#include "gemm/gemm.h"

#include <stdbool.h>

/* Bytes of device memory that products of a workspace may use. */
enum { CUDA_PRODUCT_WORKSPACE = 4 << 20 };

/* What a product looks like but for its number of rows. */
typedef struct {
    aimo_dtype dtype;   /* of w and x */
    aimo_dtype y_dtype; /* dtype or AIMO_F32 */
    size_t n, k;
    size_t ldx, ldy;  /* elements from one row to the next */
    size_t x_offset;  /* bytes from an aligned address to x */
    const void *bias; /* device, [n] of y_dtype, or NULL; must outlive the product */
    aimo_activation activation;
} cuda_product_shape;

/* Only read once it is initialized, by any number of threads. */
typedef struct {
    cuda_product_shape shape;
    bool fused; /* bias and activation are part of the product; else they are left to the caller */
    cublas_algorithm algorithm;
    cublas_description *description;
    cublas_layout *w;
} cuda_product;

/* Whether bias and activation may become part of the product. */
bool cuda_product_may_fuse(const cuda_product_shape *shape);

/* Chooses the algorithm, one with bias and activation if it may have them and there is one. GELU is
 * then the form with tanh, also where the exact one is asked for. AIMO_ERR_UNSUPPORTED when there
 * is no algorithm. After a failure there is nothing to clear. */
AIMO_MUST_CHECK aimo_status cuda_product_init(cuda_product *product,
                                              const cuda_product_shape *shape,
                                              const cublas_lt *cublas, cublas_handle *handle,
                                              aimo_error *err);

void cuda_product_clear(cuda_product *product, const cublas_lt *cublas);

/* Enqueues y [m, n] = x [m, k] @ w [n, k]^T; workspace has CUDA_PRODUCT_WORKSPACE bytes. */
AIMO_MUST_CHECK aimo_status cuda_product_run(const cuda_product *product, const cublas_lt *cublas,
                                             cublas_handle *handle, const void *w, const void *x,
                                             size_t m, void *y, void *workspace, void *stream,
                                             aimo_error *err);

/* Turns a status of cuBLASLt into ours; `what` names the call. */
AIMO_MUST_CHECK aimo_status cuda_product_status(const cublas_lt *cublas, int status,
                                                const char *what, aimo_error *err);

#endif
