/* Packed weights, laid out plainly. */
#include "backend/cuda/cuda_weights.h"

#include "gemm/gemm.h"
#include "half/half_scalar.h"

#include <string.h>

void cuda_weights_round(aimo_dtype dtype, const float *src, size_t n, void *dst)
{
    uint16_t *halves = dst;
    for (size_t i = 0; i < n; i++)
        halves[i] = dtype == AIMO_BF16 ? aimo_f32_to_bf16_one(src[i]) : aimo_f32_to_f16_one(src[i]);
}

void cuda_weights_unpack(aimo_dtype dtype, size_t n, size_t k, const void *panels, size_t first,
                         size_t rows, float *row, void *dst)
{
    for (size_t j = 0; j < rows; j++) {
        aimo_panels_unpack(dtype, n, k, panels, row, first + j, 1);
        if (dtype == AIMO_F32)
            memcpy((float *)dst + j * k, row, k * sizeof *row);
        else
            cuda_weights_round(dtype, row, k, (uint16_t *)dst + j * k);
    }
}
