/* Dispatch of half conversion. */
#include "half/half.h"

#include "half/half_kernels.h"

static const aimo_half_kernels rows[] = {
#define AIMO_HALF_KERNEL(isa, required)                                                            \
    {#isa,                                                                                         \
     required,                                                                                     \
     aimo_f32_to_f16_##isa,                                                                        \
     aimo_f16_to_f32_##isa,                                                                        \
     aimo_f32_to_bf16_##isa,                                                                       \
     aimo_bf16_to_f32_##isa},
#include "half/half_kernels.def"
#undef AIMO_HALF_KERNEL
};
enum { ROW_COUNT = sizeof rows / sizeof rows[0] };

const aimo_half_kernels *aimo_half_row(size_t index)
{
    return index < ROW_COUNT ? &rows[index] : NULL;
}

const aimo_half_kernels *aimo_half_select(unsigned features)
{
    const aimo_half_kernels *best = &rows[0];
    for (size_t i = 1; i < ROW_COUNT; i++)
        if ((rows[i].required & ~features) == 0)
            best = &rows[i];
    return best;
}

void aimo_f32_to_f16(const float *src, uint16_t *dst, size_t n)
{
    aimo_half_select(aimo_cpu_enabled())->f32_to_f16(src, dst, n);
}

void aimo_f16_to_f32(const uint16_t *src, float *dst, size_t n)
{
    aimo_half_select(aimo_cpu_enabled())->f16_to_f32(src, dst, n);
}

void aimo_f32_to_bf16(const float *src, uint16_t *dst, size_t n)
{
    aimo_half_select(aimo_cpu_enabled())->f32_to_bf16(src, dst, n);
}

void aimo_bf16_to_f32(const uint16_t *src, float *dst, size_t n)
{
    aimo_half_select(aimo_cpu_enabled())->bf16_to_f32(src, dst, n);
}
