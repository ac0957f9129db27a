/* The encoder's operations with NEON. */
#include "backend/cpu/cpu_kernels.h"
#include "simd/intrinsics.h"

#include <math.h>

#if AIMO_AARCH64
#include "simd/simd_neon.h"

#include "backend/cpu/attention_body.h"
#include "backend/cpu/layer_norm_body.h"
#include "backend/cpu/pooling_body.h"

void aimo_embed_neon(const aimo_embed_args *args, size_t sequence)
{
    embed_sequence(args, sequence);
}

void aimo_residual_layer_norm_neon(float *x, const float *residual, const aimo_layer_norm *norm,
                                   float *y, size_t m, size_t n)
{
    residual_layer_norm(x, residual, norm, y, m, n);
}

void aimo_attention_neon(const aimo_attention_args *args, size_t sequence, size_t head)
{
    attention(args, sequence, head);
}

void aimo_pool_neon(const aimo_pool_args *args, size_t sequence) { pool_sequence(args, sequence); }

#endif
