/* Stands in for cuBLASLt: plain products with their epilogues, and checks of what is asked for.
 * Only row-major x [m, k] @ w [n, k]^T can be asked for, as its column-major transpose. */
#include "backend/cuda/cublas_lt.h"
#include "cuda_shim.h"
#include "half/half_scalar.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>

#define EXPORT __attribute__((visibility("default")))

enum { INVALID = 7, FAILED = 13 };

struct cublas_handle {
    int unused;
};
struct cublas_layout {
    int type;
    uint64_t rows, columns;
    int64_t ld;
};
struct cublas_description {
    int32_t transposed_a;
    uint32_t epilogue;
    const void *bias;
};
struct cublas_preference {
    size_t workspace_bytes;
    uint32_t reduction_schemes;
    uint32_t alignment[4]; /* a, b, c, d */
};

static int made(void *object) { return object != NULL ? CUBLAS_SUCCESS : CUBLAS_ALLOC_FAILED; }

static int freed(void *object)
{
    free(object);
    return CUBLAS_SUCCESS;
}

EXPORT size_t cublasLtGetVersion(void) { return 130000; }

EXPORT const char *cublasLtGetStatusString(int status)
{
    return status == CUBLAS_SUCCESS ? "success" : "invalid value";
}

EXPORT int cublasLtCreate(cublas_handle **out)
{
    *out = calloc(1, sizeof **out);
    return made(*out);
}

EXPORT int cublasLtDestroy(cublas_handle *handle) { return freed(handle); }

EXPORT int cublasLtMatrixLayoutCreate(cublas_layout **out, int type, uint64_t rows,
                                      uint64_t columns, int64_t ld)
{
    if (ld < (int64_t)rows)
        return INVALID;
    *out = malloc(sizeof **out);
    if (*out != NULL)
        **out = (cublas_layout){type, rows, columns, ld};
    return made(*out);
}

EXPORT int cublasLtMatrixLayoutDestroy(cublas_layout *layout) { return freed(layout); }

EXPORT int cublasLtMatmulDescCreate(cublas_description **out, int compute, int scale_type)
{
    if (compute != CUBLAS_COMPUTE_F32 || scale_type != CUBLAS_R_32F)
        return INVALID;
    *out = calloc(1, sizeof **out);
    return made(*out);
}

EXPORT int cublasLtMatmulDescDestroy(cublas_description *description) { return freed(description); }

EXPORT int cublasLtMatmulDescSetAttribute(cublas_description *description, int attribute,
                                          const void *value, size_t bytes)
{
    const struct {
        int attribute;
        void *at;
        size_t bytes;
    } settings[] = {
        {CUBLAS_DESCRIPTION_TRANS_A, &description->transposed_a, sizeof description->transposed_a},
        {CUBLAS_DESCRIPTION_EPILOGUE, &description->epilogue, sizeof description->epilogue},
        {CUBLAS_DESCRIPTION_BIAS_POINTER, &description->bias, sizeof description->bias},
    };
    for (size_t i = 0; i < sizeof settings / sizeof settings[0]; i++)
        if (settings[i].attribute == attribute && settings[i].bytes == bytes) {
            memcpy(settings[i].at, value, bytes);
            return CUBLAS_SUCCESS;
        }
    return INVALID;
}

EXPORT int cublasLtMatmulPreferenceCreate(cublas_preference **out)
{
    *out = malloc(sizeof **out);
    if (*out != NULL)
        **out = (cublas_preference){0, 7, {256, 256, 256, 256}};
    return made(*out);
}

EXPORT int cublasLtMatmulPreferenceDestroy(cublas_preference *preference)
{
    return freed(preference);
}

EXPORT int cublasLtMatmulPreferenceSetAttribute(cublas_preference *preference, int attribute,
                                                const void *value, size_t bytes)
{
    if (attribute == CUBLAS_PREFERENCE_WORKSPACE_BYTES) {
        if (bytes != sizeof preference->workspace_bytes)
            return INVALID;
        memcpy(&preference->workspace_bytes, value, bytes);
        return CUBLAS_SUCCESS;
    }
    uint32_t number;
    if (bytes != sizeof number)
        return INVALID;
    memcpy(&number, value, bytes);
    if (attribute == CUBLAS_PREFERENCE_REDUCTION_SCHEMES)
        preference->reduction_schemes = number;
    else
        preference->alignment[attribute - CUBLAS_PREFERENCE_ALIGNMENT_A] = number;
    return CUBLAS_SUCCESS;
}

/* The algorithm says how description and layouts were, so that another use of it is noticed. */
static cublas_algorithm algorithm_of(const cublas_description *description, const cublas_layout *a,
                                     const cublas_layout *b, const cublas_layout *d)
{
    return (cublas_algorithm){{a->rows, a->columns, (uint64_t)a->type, (uint64_t)b->ld,
                               (uint64_t)d->ld, (uint64_t)d->type | description->epilogue << 8, 0,
                               0}};
}

EXPORT int cublasLtMatmulAlgoGetHeuristic(cublas_handle *handle, cublas_description *description,
                                          cublas_layout *a, cublas_layout *b, cublas_layout *c,
                                          cublas_layout *d, cublas_preference *preference,
                                          int requested, cublas_heuristic *out, int *found)
{
    (void)handle, (void)c;
    const bool plain = description->epilogue == CUBLAS_EPILOGUE_NONE;
    if (requested < 1 || preference->reduction_schemes != 0) /* split-k */
        return INVALID;
    if (!plain && preference->alignment[3] < 4) /* so that there are products without an epilogue */
        return CUBLAS_NOT_SUPPORTED;
    *out = (cublas_heuristic){.algorithm = algorithm_of(description, a, b, d)};
    /* What it may rely on. */
    out->algorithm.data[6] = preference->alignment[1];
    out->algorithm.data[7] = preference->alignment[3];
    *found = 1;
    return CUBLAS_SUCCESS;
}

static float element(const void *matrix, int type, size_t i)
{
    if (type == CUBLAS_R_32F)
        return ((const float *)matrix)[i];
    const uint16_t bits = ((const uint16_t *)matrix)[i];
    return type == CUBLAS_R_16F ? aimo_f16_to_f32_one(bits) : aimo_bf16_to_f32_one(bits);
}

static void set_element(void *matrix, int type, size_t i, float x)
{
    if (type == CUBLAS_R_32F)
        ((float *)matrix)[i] = x;
    else
        ((uint16_t *)matrix)[i] =
            type == CUBLAS_R_16F ? aimo_f32_to_f16_one(x) : aimo_f32_to_bf16_one(x);
}

static float end_with(uint32_t epilogue, float x)
{
    if ((epilogue & CUBLAS_EPILOGUE_RELU) != 0)
        return x < 0.0f ? 0.0f : x;
    if ((epilogue & CUBLAS_EPILOGUE_GELU) != 0)
        return 0.5f * x * (1.0f + tanhf(0.79788456f * (x + 0.044715f * x * x * x)));
    return x;
}

/* What a product needs when its turn comes: description and layouts may be gone by then. */
typedef struct {
    cublas_description description;
    const void *a, *b;
    void *d;
    cublas_layout at, bt, dt;
} product;

static void multiply(const void *arguments)
{
    const product *p = arguments;
    const cublas_description *description = &p->description;
    for (size_t j = 0; j < p->dt.columns; j++)
        for (size_t i = 0; i < p->dt.rows; i++) {
            float sum = 0.0f;
            for (size_t k = 0; k < p->at.rows; k++)
                sum += element(p->a, p->at.type, i * (size_t)p->at.ld + k) *
                       element(p->b, p->bt.type, j * (size_t)p->bt.ld + k);
            if (description->bias != NULL)
                sum += element(description->bias, p->dt.type, i);
            set_element(p->d, p->dt.type, j * (size_t)p->dt.ld + i,
                        end_with(description->epilogue, sum));
        }
}

EXPORT int cublasLtMatmul(cublas_handle *handle, cublas_description *description, const void *alpha,
                          const void *a, cublas_layout *at, const void *b, cublas_layout *bt,
                          const void *beta, const void *c, cublas_layout *ct, void *d,
                          cublas_layout *dt, const cublas_algorithm *algorithm, void *workspace,
                          size_t workspace_bytes, void *stream)
{
    (void)handle, (void)c, (void)ct, (void)workspace_bytes;
    cublas_algorithm expected = algorithm_of(description, at, bt, dt);
    expected.data[6] = algorithm->data[6];
    expected.data[7] = algorithm->data[7];
    if ((uintptr_t)b % expected.data[6] != 0 || (uintptr_t)d % expected.data[7] != 0)
        return INVALID;
    if (*(const float *)alpha != 1.0f || *(const float *)beta != 0.0f ||
        description->transposed_a != CUBLAS_TRANSPOSED || at->rows != bt->rows ||
        at->columns != dt->rows || bt->columns != dt->columns || workspace == NULL ||
        stream == NULL || memcmp(algorithm, &expected, sizeof expected) != 0)
        return INVALID;
    if (((description->epilogue & CUBLAS_EPILOGUE_BIAS) != 0) != (description->bias != NULL))
        return INVALID;
    const product p = {*description, a, b, d, *at, *bt, *dt};
    cuda_shim_queue *queue = stream;
    return queue->enqueue(queue, multiply, &p, sizeof p) ? CUBLAS_SUCCESS : FAILED;
}
