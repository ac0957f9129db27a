/* Matrix products by cuBLASLt. It works on column-major matrices, for which row-major ones are
 * their transposes: y^T [n, m] = w [n, k] @ x^T [k, m], where w is stored as [k, n] and
 * transposed. */
#include "backend/cuda/cuda_product.h"

/* Rows that algorithms are chosen for: about what a chunk of many texts has. */
enum { TYPICAL_ROWS = 8192 };

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

/* cuBLASLt's GELU is the tanh approximation, which differs from the exact form by 4.8e-4 at most:
 * about as much as rounding an operand near 1 to f16, and with as little effect on vectors
 * (tests/embedding/test_gelu_forms.py). f32 products are more precise than that, so they do not
 * fuse it. */
bool cuda_product_may_fuse(const cuda_product_shape *s)
{
    return s->y_dtype != AIMO_F32 &&
           (s->activation == AIMO_ACT_NONE || s->activation == AIMO_ACT_RELU ||
            s->activation == AIMO_ACT_GELU || s->activation == AIMO_ACT_GELU_TANH);
}

static uint32_t epilogue_of(const cuda_product_shape *s)
{
    const bool bias = s->bias != NULL;
    if (s->activation == AIMO_ACT_NONE)
        return bias ? CUBLAS_EPILOGUE_BIAS : CUBLAS_EPILOGUE_NONE;
    if (s->activation == AIMO_ACT_RELU)
        return bias ? CUBLAS_EPILOGUE_RELU_BIAS : CUBLAS_EPILOGUE_RELU;
    return bias ? CUBLAS_EPILOGUE_GELU_BIAS : CUBLAS_EPILOGUE_GELU;
}

static int set(const cuda_product *p, const cublas_lt *cublas, int attribute, const void *value,
               size_t bytes)
{
    return cublas->MatmulDescSetAttribute(p->description, attribute, value, bytes);
}

/* Sets up everything that does not depend on the number of rows. The product must be cleared even
 * after a failure. */
static int describe(cuda_product *p, const cublas_lt *cublas)
{
    const cuda_product_shape *s = &p->shape;
    const int32_t transposed = CUBLAS_TRANSPOSED;
    const uint32_t epilogue = p->fused ? epilogue_of(s) : CUBLAS_EPILOGUE_NONE;
    int status = cublas->MatmulDescCreate(&p->description, CUBLAS_COMPUTE_F32, CUBLAS_R_32F);
    if (status == CUBLAS_SUCCESS)
        status = set(p, cublas, CUBLAS_DESCRIPTION_TRANS_A, &transposed, sizeof transposed);
    if (status == CUBLAS_SUCCESS)
        status = set(p, cublas, CUBLAS_DESCRIPTION_EPILOGUE, &epilogue, sizeof epilogue);
    if (status == CUBLAS_SUCCESS && p->fused && s->bias != NULL)
        status = set(p, cublas, CUBLAS_DESCRIPTION_BIAS_POINTER, &s->bias, sizeof s->bias);
    if (status == CUBLAS_SUCCESS)
        status = cublas->MatrixLayoutCreate(&p->w, type_of(s->dtype), s->k, s->n, (int64_t)s->k);
    return status;
}

void cuda_product_clear(cuda_product *p, const cublas_lt *cublas)
{
    if (p->description != NULL)
        (void)cublas->MatmulDescDestroy(p->description);
    if (p->w != NULL)
        (void)cublas->MatrixLayoutDestroy(p->w);
    *p = (cuda_product){0};
}

/* The layouts of m rows. */
typedef struct {
    cublas_layout *x, *y;
} row_layouts;

/* The layouts must be cleared even after a failure. */
static int row_layouts_init(row_layouts *rows, const cuda_product_shape *s, size_t m,
                            const cublas_lt *cublas)
{
    *rows = (row_layouts){0};
    const int status =
        cublas->MatrixLayoutCreate(&rows->x, type_of(s->dtype), s->k, m, (int64_t)s->ldx);
    if (status != CUBLAS_SUCCESS)
        return status;
    return cublas->MatrixLayoutCreate(&rows->y, type_of(s->y_dtype), s->n, m, (int64_t)s->ldy);
}

static void row_layouts_clear(row_layouts *rows, const cublas_lt *cublas)
{
    if (rows->x != NULL)
        (void)cublas->MatrixLayoutDestroy(rows->x);
    if (rows->y != NULL)
        (void)cublas->MatrixLayoutDestroy(rows->y);
}

/* The largest power of 2, up to 16, that divides both the rows' stride and the first row's
 * address. */
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

/* CUBLAS_NOT_SUPPORTED when there is no algorithm. */
static int choose(cuda_product *p, const cublas_lt *cublas, cublas_handle *handle)
{
    row_layouts rows;
    cublas_preference *preference = NULL;
    cublas_heuristic best = {0};
    int found = 0;
    int status = row_layouts_init(&rows, &p->shape, TYPICAL_ROWS, cublas);
    if (status == CUBLAS_SUCCESS)
        status = cublas->MatmulPreferenceCreate(&preference);
    if (status == CUBLAS_SUCCESS)
        status = prefer(preference, &p->shape, cublas);
    if (status == CUBLAS_SUCCESS)
        status = cublas->MatmulAlgoGetHeuristic(handle, p->description, p->w, rows.x, rows.y,
                                                rows.y, preference, 1, &best, &found);
    if (preference != NULL)
        (void)cublas->MatmulPreferenceDestroy(preference);
    row_layouts_clear(&rows, cublas);
    if (status == CUBLAS_SUCCESS && (found == 0 || best.status != CUBLAS_SUCCESS))
        status = CUBLAS_NOT_SUPPORTED;
    p->algorithm = best.algorithm;
    return status;
}

static int init(cuda_product *p, const cuda_product_shape *shape, bool fused,
                const cublas_lt *cublas, cublas_handle *handle)
{
    *p = (cuda_product){.shape = *shape, .fused = fused};
    int status = describe(p, cublas);
    if (status == CUBLAS_SUCCESS)
        status = choose(p, cublas, handle);
    if (status != CUBLAS_SUCCESS)
        cuda_product_clear(p, cublas);
    return status;
}

aimo_status cuda_product_init(cuda_product *product, const cuda_product_shape *shape,
                              const cublas_lt *cublas, cublas_handle *handle, aimo_error *err)
{
    const bool fused = cuda_product_may_fuse(shape);
    int status = init(product, shape, fused, cublas, handle);
    if (status == CUBLAS_NOT_SUPPORTED && fused)
        status = init(product, shape, false, cublas, handle);
    if (status == CUBLAS_NOT_SUPPORTED)
        return aimo_fail(err, AIMO_ERR_UNSUPPORTED,
                         "CUDA: cuBLASLt has no product of %zu x %zu with %s", shape->n, shape->k,
                         aimo_dtype_name(shape->dtype));
    return cuda_product_status(cublas, status, "MatmulAlgoGetHeuristic", err);
}

aimo_status cuda_product_run(const cuda_product *product, const cublas_lt *cublas,
                             cublas_handle *handle, const void *w, const void *x, size_t m, void *y,
                             void *workspace, void *stream, aimo_error *err)
{
    const float one = 1.0f, zero = 0.0f;
    row_layouts rows;
    int status = row_layouts_init(&rows, &product->shape, m, cublas);
    if (status == CUBLAS_SUCCESS)
        status = cublas->Matmul(handle, product->description, &one, w, product->w, x, rows.x, &zero,
                                y, rows.y, y, rows.y, &product->algorithm, workspace,
                                CUDA_PRODUCT_WORKSPACE, stream);
    row_layouts_clear(&rows, cublas);
    return cuda_product_status(cublas, status, "Matmul", err);
}
