/* Half conversion, one value at a time: the reference. */
#include "half/half_kernels.h"
#include "half/half_scalar.h"

void aimo_f32_to_f16_scalar(const float *src, uint16_t *dst, size_t n)
{
    for (size_t i = 0; i < n; i++)
        dst[i] = aimo_f32_to_f16_one(src[i]);
}

void aimo_f16_to_f32_scalar(const uint16_t *src, float *dst, size_t n)
{
    for (size_t i = 0; i < n; i++)
        dst[i] = aimo_f16_to_f32_one(src[i]);
}

void aimo_f32_to_bf16_scalar(const float *src, uint16_t *dst, size_t n)
{
    for (size_t i = 0; i < n; i++)
        dst[i] = aimo_f32_to_bf16_one(src[i]);
}

void aimo_bf16_to_f32_scalar(const uint16_t *src, float *dst, size_t n)
{
    for (size_t i = 0; i < n; i++)
        dst[i] = aimo_bf16_to_f32_one(src[i]);
}
