/* Dispatch of matrix products. */
#include "gemm/gemm.h"

#include "gemm/gemm_kernels.h"

#include <assert.h>

static const aimo_gemm_kernels rows[] = {
#define AIMO_GEMM_KERNEL(isa, required)                                                            \
    {#isa,                                                                                         \
     required,                                                                                     \
     {aimo_gemm_f32_##isa, aimo_gemm_f16_##isa, aimo_gemm_bf16_##isa, aimo_gemm_int8_##isa}},
#include "gemm/gemm_kernels.def"
#undef AIMO_GEMM_KERNEL
};
enum { ROW_COUNT = sizeof rows / sizeof rows[0] };

const aimo_gemm_kernels *aimo_gemm_row(size_t index)
{
    return index < ROW_COUNT ? &rows[index] : NULL;
}

const aimo_gemm_kernels *aimo_gemm_select(unsigned features)
{
    const aimo_gemm_kernels *best = &rows[0];
    for (size_t i = 1; i < ROW_COUNT; i++)
        if ((rows[i].required & ~features) == 0)
            best = &rows[i];
    return best;
}

aimo_matrix aimo_matrix_of(aimo_dtype dtype, size_t n, size_t k, const void *panels,
                           unsigned features)
{
    return (aimo_matrix){dtype, n, k, panels, aimo_gemm_select(features)};
}

size_t aimo_matrix_panel_count(const aimo_matrix *w)
{
    return (w->n + AIMO_PANEL_COLUMNS - 1) / AIMO_PANEL_COLUMNS;
}

void aimo_gemm(const aimo_matrix *w, const float *x, size_t ldx, size_t m, const float *bias,
               aimo_activation activation, float *y, size_t ldy, size_t panel_begin,
               size_t panel_end)
{
    assert(ldx >= w->k && ldy >= w->n && panel_end <= aimo_matrix_panel_count(w));
    const aimo_gemm_args args = {w, x, ldx, m, bias, activation, y, ldy, panel_begin, panel_end};
    w->kernels->gemm[w->dtype](&args);
}
