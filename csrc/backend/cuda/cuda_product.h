/* Matrix products by cuBLASLt: y = activation(x @ w^T + bias), row-major, summed in f32.
 *
 * The algorithm of a product is chosen once, for one number of rows, without split-k, and used for
 * every number of rows. So an element's sum runs over k in the same order whatever batch its row is
 * in, which is why a text's vector does not depend on its batch. */
#ifndef AIMO_CUDA_PRODUCT_H
#define AIMO_CUDA_PRODUCT_H

#include "backend/cuda/cublas_lt.h"
#include "base/dtype.h"
#include "gemm/gemm.h"

#include <stdbool.h>

/* Bytes of device memory that the products of a workspace may use. */
enum { CUDA_PRODUCT_WORKSPACE = 4 << 20 };

/* Everything about a product except its number of rows. */
typedef struct {
    aimo_dtype dtype;   /* of w and x */
    aimo_dtype y_dtype; /* dtype or AIMO_F32 */
    size_t n, k;
    size_t ldx, ldy;  /* elements from one row to the next */
    size_t x_offset;  /* bytes from an aligned address to x */
    const void *bias; /* device, [n] of y_dtype, or NULL; must outlive the product */
    aimo_activation activation;
} cuda_product_shape;

/* Immutable once initialized, so any number of threads may use it. */
typedef struct {
    cuda_product_shape shape;
    bool fused; /* bias and activation are part of the product; otherwise the caller applies them */
    cublas_algorithm algorithm;
    cublas_description *description;
    cublas_layout *w;
} cuda_product;

/* Whether bias and activation may become part of the product. */
bool cuda_product_may_fuse(const cuda_product_shape *shape);

/* Chooses the algorithm, one that fuses bias and activation if cuda_product_may_fuse and one
 * exists. A fused GELU is the tanh approximation, even for AIMO_ACT_GELU. AIMO_ERR_UNSUPPORTED when
 * there is no algorithm. After a failure there is nothing to clear. */
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

/* Converts a cuBLASLt status to ours; `what` names the call. */
AIMO_MUST_CHECK aimo_status cuda_product_status(const cublas_lt *cublas, int status,
                                                const char *what, aimo_error *err);

#endif
