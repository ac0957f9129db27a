/* The rows of half conversion; half.h says what each function does. */
#ifndef AIMO_HALF_KERNELS_H
#define AIMO_HALF_KERNELS_H

#include "base/cpu.h"
#include "half/half.h"

/* X(name, source element, destination element), in the order of aimo_half_conversion. */
#define AIMO_HALF_EACH(X)                                                                          \
    X(f32_to_f16, float, uint16_t)                                                                 \
    X(f16_to_f32, uint16_t, float)                                                                 \
    X(f32_to_bf16, float, uint16_t)                                                                \
    X(bf16_to_f32, uint16_t, float)                                                                \
    X(f64_to_f16, double, uint16_t)

/* `stream` uses non-temporal stores, which pay off when dst will not be read soon; dst must then be
 * aligned to a cache line. */
typedef void (*aimo_half_kernel)(const void *src, void *dst, size_t n, bool stream);

typedef struct {
    const char *isa;
    unsigned required;
    aimo_half_kernel convert[AIMO_HALF_CONVERSIONS];
} aimo_half_kernels;

#define AIMO_HALF_KERNEL(isa, required)                                                            \
    void aimo_f32_to_f16_##isa(const void *src, void *dst, size_t n, bool stream);                 \
    void aimo_f16_to_f32_##isa(const void *src, void *dst, size_t n, bool stream);                 \
    void aimo_f32_to_bf16_##isa(const void *src, void *dst, size_t n, bool stream);                \
    void aimo_bf16_to_f32_##isa(const void *src, void *dst, size_t n, bool stream);                \
    void aimo_f64_to_f16_##isa(const void *src, void *dst, size_t n, bool stream);
#include "half/half_kernels.def"
#undef AIMO_HALF_KERNEL

/* Row `index` of the table, NULL after the last. */
const aimo_half_kernels *aimo_half_row(size_t index);
/* The strongest row whose bits are all in `features`. */
const aimo_half_kernels *aimo_half_select(unsigned features);

#endif
