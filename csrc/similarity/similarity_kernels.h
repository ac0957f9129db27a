/* The rows of similarity kernels; similarity.h says what each function does. */
#ifndef AIMO_SIMILARITY_KERNELS_H
#define AIMO_SIMILARITY_KERNELS_H

#include "base/cpu.h"
#include "similarity/similarity.h"

#define AIMO_SIMILARITY_KERNEL(isa, required)                                                      \
    float aimo_dot_f16_##isa(const float *q, const uint16_t *x, size_t n);                         \
    float aimo_dot_i8_##isa(const float *q, const int8_t *x, size_t n);                            \
    double aimo_dot_f16_f64_##isa(const float *q, const uint16_t *x, size_t n);                    \
    double aimo_dot_i8_f64_##isa(const float *q, const int8_t *x, size_t n);                       \
    void aimo_project_##isa(const float *p, size_t k, const float *x, size_t n, float *out);       \
    void aimo_screen_##isa(const aimo_heads *heads, const aimo_head_query *queries,                \
                           size_t query_count, int16_t *dots, uint16_t *masks);                    \
    size_t aimo_refine_##isa(const aimo_tail *tails, const int16_t *dots,                          \
                             const aimo_tail_query *query, uint16_t *candidates, size_t count);
#include "similarity/similarity_kernels.def"
#undef AIMO_SIMILARITY_KERNEL

#endif
