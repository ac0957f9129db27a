/* The rows of kernels for the encoder's operations other than products with weights. */
#ifndef AIMO_CPU_KERNELS_H
#define AIMO_CPU_KERNELS_H

#include "backend/backend.h"
#include "base/cpu.h"

typedef struct {
    const char *isa;
    unsigned required;
    /* One sequence of aimo_embed_args. */
    void (*embed)(const aimo_embed_args *, size_t sequence);
    /* y [m, n] = layer_norm(x + residual), row by row; x [m, n] is used as working memory. */
    void (*residual_layer_norm)(float *x, const float *residual, const aimo_layer_norm *, float *y,
                                size_t m, size_t n);
    /* One head of one sequence of aimo_attention_args. */
    void (*attention)(const aimo_attention_args *, size_t sequence, size_t head);
    /* One sequence of aimo_pool_args. */
    void (*pool)(const aimo_pool_args *, size_t sequence);
} aimo_cpu_kernels;

#define AIMO_CPU_KERNEL(isa, required)                                                             \
    void aimo_embed_##isa(const aimo_embed_args *args, size_t sequence);                           \
    void aimo_residual_layer_norm_##isa(float *x, const float *residual,                           \
                                        const aimo_layer_norm *norm, float *y, size_t m,           \
                                        size_t n);                                                 \
    void aimo_attention_##isa(const aimo_attention_args *args, size_t sequence, size_t head);      \
    void aimo_pool_##isa(const aimo_pool_args *args, size_t sequence);
#include "backend/cpu/cpu_kernels.def"
#undef AIMO_CPU_KERNEL

/* Row `index` of the table, NULL after the last. */
const aimo_cpu_kernels *aimo_cpu_kernels_row(size_t index);
/* The strongest row whose bits are all in `features`. */
const aimo_cpu_kernels *aimo_cpu_kernels_select(unsigned features);

#endif
