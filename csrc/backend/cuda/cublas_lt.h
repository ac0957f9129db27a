/* The part of cuBLASLt that is used, looked up at run time: building needs none of its headers, and
 * the library loads on a machine without it. Names are those of its documentation without the
 * prefix; the numbers are part of its stable ABI. */
#ifndef AIMO_CUDA_CUBLAS_LT_H
#define AIMO_CUDA_CUBLAS_LT_H

#include "base/status.h"

#include <stddef.h>
#include <stdint.h>

typedef struct cublas_handle cublas_handle;
typedef struct cublas_layout cublas_layout;
typedef struct cublas_description cublas_description;
typedef struct cublas_preference cublas_preference;

typedef struct {
    uint64_t data[8];
} cublas_algorithm;

typedef struct {
    cublas_algorithm algorithm;
    size_t workspace_bytes;
    int status;
    float waves;
    int reserved[4];
} cublas_heuristic;

enum { CUBLAS_SUCCESS = 0, CUBLAS_ALLOC_FAILED = 3, CUBLAS_NOT_SUPPORTED = 15 };
enum { CUBLAS_R_32F = 0, CUBLAS_R_16F = 2, CUBLAS_R_16BF = 14 }; /* cudaDataType */
enum { CUBLAS_COMPUTE_F32 = 68 };
enum { CUBLAS_TRANSPOSED = 1 };
enum {
    CUBLAS_DESCRIPTION_TRANS_A = 3,
    CUBLAS_DESCRIPTION_EPILOGUE = 7,
    CUBLAS_DESCRIPTION_BIAS_POINTER = 8, /* [rows of d], of d's type */
};
/* What is applied to a product's elements. GELU is the tanh approximation. */
enum {
    CUBLAS_EPILOGUE_NONE = 1,
    CUBLAS_EPILOGUE_RELU = 2,
    CUBLAS_EPILOGUE_BIAS = 4,
    CUBLAS_EPILOGUE_RELU_BIAS = 6,
    CUBLAS_EPILOGUE_GELU = 32,
    CUBLAS_EPILOGUE_GELU_BIAS = 36,
};
enum {
    CUBLAS_PREFERENCE_WORKSPACE_BYTES = 1,
    CUBLAS_PREFERENCE_REDUCTION_SCHEMES = 3,
    CUBLAS_PREFERENCE_ALIGNMENT_A = 5,
    CUBLAS_PREFERENCE_ALIGNMENT_B = 6,
    CUBLAS_PREFERENCE_ALIGNMENT_C = 7,
    CUBLAS_PREFERENCE_ALIGNMENT_D = 8,
};

/* Matrices are column-major; a layout has `rows` x `columns` with `ld` elements between columns. */
typedef struct {
    size_t (*GetVersion)(void);
    const char *(*GetStatusString)(int);
    int (*Create)(cublas_handle **);
    int (*Destroy)(cublas_handle *);
    int (*MatrixLayoutCreate)(cublas_layout **, int type, uint64_t rows, uint64_t columns,
                              int64_t ld);
    int (*MatrixLayoutDestroy)(cublas_layout *);
    int (*MatmulDescCreate)(cublas_description **, int compute, int scale_type);
    int (*MatmulDescDestroy)(cublas_description *);
    int (*MatmulDescSetAttribute)(cublas_description *, int attribute, const void *, size_t);
    int (*MatmulPreferenceCreate)(cublas_preference **);
    int (*MatmulPreferenceDestroy)(cublas_preference *);
    int (*MatmulPreferenceSetAttribute)(cublas_preference *, int attribute, const void *, size_t);
    int (*MatmulAlgoGetHeuristic)(cublas_handle *, cublas_description *, cublas_layout *a,
                                  cublas_layout *b, cublas_layout *c, cublas_layout *d,
                                  cublas_preference *, int requested, cublas_heuristic *,
                                  int *found);
    /* d = alpha * op(a) @ op(b) + beta * c on a stream */
    int (*Matmul)(cublas_handle *, cublas_description *, const void *alpha, const void *a,
                  cublas_layout *, const void *b, cublas_layout *, const void *beta, const void *c,
                  cublas_layout *, void *d, cublas_layout *, const cublas_algorithm *,
                  void *workspace, size_t workspace_bytes, void *stream);
} cublas_lt;

/* Fills the table from the first of `files` that loads and has every function. AIMO_ERR_UNSUPPORTED
 * says why the last one failed. */
AIMO_MUST_CHECK aimo_status cublas_lt_load(const char *const *files, size_t count, cublas_lt *out,
                                           aimo_error *err);

#endif
