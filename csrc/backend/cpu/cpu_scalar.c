/* The encoder's operations in plain C: the reference. */
#include "backend/cpu/cpu_kernels.h"
#include "simd/simd_scalar.h"

#include "backend/cpu/attention_body.h"
#include "backend/cpu/layer_norm_body.h"
#include "backend/cpu/pooling_body.h"

void aimo_embed_scalar(const aimo_embed_args *args, size_t sequence)
{
    embed_sequence(args, sequence);
}

void aimo_residual_layer_norm_scalar(float *x, const float *residual, const aimo_layer_norm *norm,
                                     float *y, size_t m, size_t n)
{
    residual_layer_norm(x, residual, norm, y, m, n);
}

void aimo_attention_scalar(const aimo_attention_args *args, size_t sequence, size_t head)
{
    attention(args, sequence, head);
}

void aimo_pool_scalar(const aimo_pool_args *args, size_t sequence)
{
    pool_sequence(args, sequence);
}
