/* Embedding rows, residual sums and layer norm, written once for every row of kernels. The variance
 * is that of the differences from the mean, in a second pass: E[x^2] - E[x]^2 would cancel. Include
 * after a simd_<isa>.h. */
#ifndef AIMO_LAYER_NORM_BODY_H
#define AIMO_LAYER_NORM_BODY_H

#include "simd/simd_rows.h"

/* y = layer_norm(x) for one row; y may be x. */
AIMO_INLINE void layer_norm_row(const float *x, const aimo_layer_norm *norm, float *y, size_t n)
{
    vf32 sum = v_zero();
    V_FOR_EACH(i, lanes, n)
    sum = v_add(sum, v_load_part_or_full(x + i, lanes));
    const float mean = v_reduce_add(sum) / (float)n;

    vf32 squares = v_zero();
    V_FOR_EACH(i, lanes, n)
    {
        const vf32 d = v_keep(v_sub(v_load_part_or_full(x + i, lanes), v_set1(mean)), lanes);
        squares = v_fma(d, d, squares);
    }
    const float variance = v_reduce_add(squares) / (float)n;
    const vf32 scale = v_set1(1.0f / sqrtf(variance + norm->epsilon));

    V_FOR_EACH(i, lanes, n)
    {
        const vf32 d = v_mul(v_sub(v_load_part_or_full(x + i, lanes), v_set1(mean)), scale);
        const vf32 weight = v_load_part_or_full(norm->weight + i, lanes);
        const vf32 bias = v_load_part_or_full(norm->bias + i, lanes);
        v_store_part_or_full(y + i, v_fma(d, weight, bias), lanes);
    }
}

AIMO_INLINE void residual_layer_norm(float *x, const float *residual, const aimo_layer_norm *norm,
                                     float *y, size_t m, size_t n)
{
    for (size_t row = 0; row < m; row++) {
        float *sum = x + row * n;
        V_FOR_EACH(i, lanes, n)
        {
            const vf32 other = v_load_part_or_full(residual + row * n + i, lanes);
            v_store_part_or_full(sum + i, v_add(v_load_part_or_full(sum + i, lanes), other), lanes);
        }
        layer_norm_row(sum, norm, y + row * n, n);
    }
}

/* Elements [i, i + lanes) of row `row` of a table [rows, n]. */
AIMO_INLINE vf32 table_load(aimo_dtype dtype, const void *table, size_t at, size_t lanes)
{
    const uint16_t *halves = (const uint16_t *)table + at;
    const bool full = lanes == VF32_LANES;
    if (dtype == AIMO_F32)
        return v_load_part_or_full((const float *)table + at, lanes);
    if (dtype == AIMO_F16)
        return full ? v_load_f16(halves) : v_load_f16_part(halves, lanes);
    return full ? v_load_bf16(halves) : v_load_bf16_part(halves, lanes);
}

AIMO_INLINE void embed_sequence(const aimo_embed_args *e, size_t sequence)
{
    const size_t begin = e->offsets[sequence], end = e->offsets[sequence + 1], n = e->hidden;
    for (size_t t = begin; t < end; t++) {
        const size_t word = (size_t)e->ids[t] * n, position = (t - begin + e->first_position) * n;
        float *out = e->out + t * n;
        V_FOR_EACH(i, lanes, n)
        {
            vf32 x = table_load(e->dtype, e->word, word + i, lanes);
            if (e->type != NULL)
                x = v_add(x, table_load(e->dtype, e->type, i, lanes));
            x = v_add(x, table_load(e->dtype, e->position, position + i, lanes));
            v_store_part_or_full(out + i, x, lanes);
        }
        layer_norm_row(out, &e->norm, out, n);
    }
}

#endif
