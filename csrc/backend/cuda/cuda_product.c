/* Matrix products by cuBLASLt. It works on column-major matrices, which read row-major ones as
 * their transposes: y^T [n, m] = w [n, k] @ x^T [k, m], where w lies as [k, n] and is transposed.
 */
#include "backend/cuda/cuda_product.h"

/* Rows that algorithms are chosen for: about what a chunk of many texts has. */
enum { TYPICAL_ROWS = 4096 };

typedef struct {
    cublas_description *description;
    cublas_layout *w, *x, *y;
} operation;

aimo_status cuda_product_status(const cublas_lt *cublas, int status, const char *what,
                                aimo_error *err)
{
    if (status == CUBLAS_SUCCESS)
        return AIMO_OK;
    return aimo_fail(err, status == CUBLAS_ALLOC_FAILED ? AIMO_ERR_MEMORY : AIMO_ERR_DEVICE,
                     "CUDA: cublasLt%s: %s", what, cublas->GetStatusString(status));
}

static int type_of(aimo_dtype dtype)
{
    return dtype == AIMO_F32 ? CUBLAS_R_32F : dtype == AIMO_F16 ? CUBLAS_R_16F : CUBLAS_R_16BF;
}

static void operation_clear(operation *o, const cublas_lt *cublas)
{
    if (o->description != NULL)
        (void)cublas->MatmulDescDestroy(o->description);
    cublas_layout *const layouts[] = {o->w, o->x, o->y};
    for (size_t i = 0; i < sizeof layouts / sizeof layouts[0]; i++)
        if (layouts[i] != NULL)
            (void)cublas->MatrixLayoutDestroy(layouts[i]);
}

/* After a failure as well, the operation is to be cleared. */
static int operation_init(operation *o, const cuda_product_shape *s, size_t m,
                          const cublas_lt *cublas)
{
    const int32_t transposed = CUBLAS_TRANSPOSED;
    *o = (operation){0};
    int status = cublas->MatmulDescCreate(&o->description, CUBLAS_COMPUTE_F32, CUBLAS_R_32F);
    if (status == CUBLAS_SUCCESS)
        status = cublas->MatmulDescSetAttribute(o->description, CUBLAS_DESCRIPTION_TRANS_A,
                                                &transposed, sizeof transposed);
    if (status == CUBLAS_SUCCESS)
        status = cublas->MatrixLayoutCreate(&o->w, type_of(s->dtype), s->k, s->n, (int64_t)s->k);
    if (status == CUBLAS_SUCCESS)
        status = cublas->MatrixLayoutCreate(&o->x, type_of(s->dtype), s->k, m, (int64_t)s->ldx);
    if (status == CUBLAS_SUCCESS)
        status = cublas->MatrixLayoutCreate(&o->y, type_of(s->y_dtype), s->n, m, (int64_t)s->ldy);
    return status;
}

/* The largest power of 2, up to 16, that divides the distance of rows and the first one's address.
 */
static uint32_t alignment(size_t ld, aimo_dtype dtype, size_t offset)
{
    const size_t bytes = ld * aimo_dtype_size(dtype);
    uint32_t power = 16;
    while (bytes % power != 0 || offset % power != 0)
        power /= 2;
    return power;
}

static int prefer(cublas_preference *preference, const cuda_product_shape *s,
                  const cublas_lt *cublas)
{
    const size_t workspace = CUDA_PRODUCT_WORKSPACE;
    int status = cublas->MatmulPreferenceSetAttribute(preference, CUBLAS_PREFERENCE_WORKSPACE_BYTES,
                                                      &workspace, sizeof workspace);
    const struct {
        int attribute;
        uint32_t value;
    } settings[] = {
        {CUBLAS_PREFERENCE_REDUCTION_SCHEMES, 0}, /* none: no split-k */
        {CUBLAS_PREFERENCE_ALIGNMENT_A, alignment(s->k, s->dtype, 0)},
        {CUBLAS_PREFERENCE_ALIGNMENT_B, alignment(s->ldx, s->dtype, s->x_offset)},
        {CUBLAS_PREFERENCE_ALIGNMENT_C, alignment(s->ldy, s->y_dtype, 0)},
        {CUBLAS_PREFERENCE_ALIGNMENT_D, alignment(s->ldy, s->y_dtype, 0)},
    };
    for (size_t i = 0; i < sizeof settings / sizeof settings[0] && status == CUBLAS_SUCCESS; i++)
        status = cublas->MatmulPreferenceSetAttribute(preference, settings[i].attribute,
                                                      &settings[i].value, sizeof settings[i].value);
    return status;
}

aimo_status cuda_product_init(cuda_product *product, const cuda_product_shape *shape,
                              const cublas_lt *cublas, cublas_handle *handle, aimo_error *err)
{
    operation o;
    cublas_preference *preference = NULL;
    cublas_heuristic best = {0};
    int found = 0;
    int status = operation_init(&o, shape, TYPICAL_ROWS, cublas);
    if (status == CUBLAS_SUCCESS)
        status = cublas->MatmulPreferenceCreate(&preference);
    if (status == CUBLAS_SUCCESS)
        status = prefer(preference, shape, cublas);
    if (status == CUBLAS_SUCCESS)
        status = cublas->MatmulAlgoGetHeuristic(handle, o.description, o.w, o.x, o.y, o.y,
                                                preference, 1, &best, &found);
    if (preference != NULL)
        (void)cublas->MatmulPreferenceDestroy(preference);
    operation_clear(&o, cublas);
    AIMO_TRY(cuda_product_status(cublas, status, "MatmulAlgoGetHeuristic", err));
    if (found == 0 || best.status != CUBLAS_SUCCESS)
        return aimo_fail(err, AIMO_ERR_UNSUPPORTED,
                         "CUDA: cuBLASLt has no product of %zu x %zu with %s", shape->n, shape->k,
                         aimo_dtype_name(shape->dtype));
    *product = (cuda_product){*shape, best.algorithm};
    return AIMO_OK;
}

aimo_status cuda_product_run(const cuda_product *product, const cublas_lt *cublas,
                             cublas_handle *handle, const void *w, const void *x, size_t m, void *y,
                             void *workspace, void *stream, aimo_error *err)
{
    const float one = 1.0f, zero = 0.0f;
    operation o;
    int status = operation_init(&o, &product->shape, m, cublas);
    if (status == CUBLAS_SUCCESS)
        status = cublas->Matmul(handle, o.description, &one, w, o.w, x, o.x, &zero, y, o.y, y, o.y,
                                &product->algorithm, workspace, CUDA_PRODUCT_WORKSPACE, stream);
    operation_clear(&o, cublas);
    return cuda_product_status(cublas, status, "Matmul", err);
}
