/* The rows of matrix product kernels; aimo_gemm in gemm.h says what they compute. */
#ifndef AIMO_GEMM_KERNELS_H
#define AIMO_GEMM_KERNELS_H

#include "base/cpu.h"
#include "gemm/gemm.h"

typedef struct {
    const aimo_matrix *w;
    const float *x;
    size_t ldx, m;
    const float *bias;
    aimo_activation activation;
    float *y;
    size_t ldy;
    size_t panel_begin, panel_end;
} aimo_gemm_args;

struct aimo_gemm_kernels {
    const char *isa;
    unsigned required;
    void (*gemm[AIMO_DTYPE_COUNT])(const aimo_gemm_args *args); /* by the weights' dtype */
};

#define AIMO_GEMM_KERNEL(isa, required)                                                            \
    void aimo_gemm_f32_##isa(const aimo_gemm_args *args);                                          \
    void aimo_gemm_f16_##isa(const aimo_gemm_args *args);                                          \
    void aimo_gemm_bf16_##isa(const aimo_gemm_args *args);                                         \
    void aimo_gemm_int8_##isa(const aimo_gemm_args *args);
#include "gemm/gemm_kernels.def"
#undef AIMO_GEMM_KERNEL

/* Whether the row rounds x to bf16 to multiply it with bf16 weights, because its instructions take
 * both factors in bf16. */
static inline bool aimo_gemm_rounds_x(const aimo_gemm_kernels *row, aimo_dtype dtype)
{
    return dtype == AIMO_BF16 && (row->required & (AIMO_CPU_AVX512_BF16 | AIMO_CPU_AMX)) != 0;
}

/* Row `index` of the table, NULL after the last. */
const aimo_gemm_kernels *aimo_gemm_row(size_t index);
/* The strongest row whose bits are all in `features`. */
const aimo_gemm_kernels *aimo_gemm_select(unsigned features);

#endif
