/* The rows of half conversion; half.h says what each function does. */
#ifndef AIMO_HALF_KERNELS_H
#define AIMO_HALF_KERNELS_H

#include "base/cpu.h"

#include <stddef.h>
#include <stdint.h>

typedef struct {
    const char *isa;
    unsigned required;
    void (*f32_to_f16)(const float *src, uint16_t *dst, size_t n);
    void (*f16_to_f32)(const uint16_t *src, float *dst, size_t n);
    void (*f32_to_bf16)(const float *src, uint16_t *dst, size_t n);
    void (*bf16_to_f32)(const uint16_t *src, float *dst, size_t n);
} aimo_half_kernels;

#define AIMO_HALF_KERNEL(isa, required)                                                            \
    void aimo_f32_to_f16_##isa(const float *src, uint16_t *dst, size_t n);                         \
    void aimo_f16_to_f32_##isa(const uint16_t *src, float *dst, size_t n);                         \
    void aimo_f32_to_bf16_##isa(const float *src, uint16_t *dst, size_t n);                        \
    void aimo_bf16_to_f32_##isa(const uint16_t *src, float *dst, size_t n);
#include "half/half_kernels.def"
#undef AIMO_HALF_KERNEL

/* Row `index` of the table, NULL after the last. */
const aimo_half_kernels *aimo_half_row(size_t index);
/* The strongest row whose bits are all in `features`. */
const aimo_half_kernels *aimo_half_select(unsigned features);

#endif
