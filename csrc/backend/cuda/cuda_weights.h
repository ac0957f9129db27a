/* Conversion of packed weights to the operands of products on a device. */
#ifndef AIMO_CUDA_WEIGHTS_H
#define AIMO_CUDA_WEIGHTS_H

#include "base/dtype.h"

#include <stddef.h>

/* The operand type of products with weights of `dtype`: the same, or f16 for int8. */
static inline aimo_dtype cuda_operand_dtype(aimo_dtype dtype)
{
    return dtype == AIMO_INT8 ? AIMO_F16 : dtype;
}

/* dst [rows, k] of cuda_operand_dtype(dtype), row-major = rows [first, first + rows) of packed
 * panels; exact except for int8, which is rounded to f16. `row` [k] is working memory. */
void cuda_weights_unpack(aimo_dtype dtype, size_t n, size_t k, const void *panels, size_t first,
                         size_t rows, float *row, void *dst);

/* dst [n] of f16 or bf16 = src, to nearest. */
void cuda_weights_round(aimo_dtype dtype, const float *src, size_t n, void *dst);

#endif
