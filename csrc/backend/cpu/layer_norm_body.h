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

/* Elements [i, i + lanes) of a row of a table with n columns. */
AIMO_INLINE vf32 row_load(aimo_dtype dtype, const void *row, size_t n, size_t i, size_t lanes)
{
    const uint16_t *halves = (const uint16_t *)row + i;
    const bool full = lanes == VF32_LANES;
    if (dtype == AIMO_F32)
        return v_load_part_or_full((const float *)row + i, lanes);
    if (dtype == AIMO_F16)
        return full ? v_load_f16(halves) : v_load_f16_part(halves, lanes);
    if (dtype == AIMO_BF16)
        return full ? v_load_bf16(halves) : v_load_bf16_part(halves, lanes);
    const int8_t *integers = row;
    float scale, widened[VF32_LANES] = {0};
    memcpy(&scale, integers + n, sizeof scale);
    for (size_t lane = 0; lane < lanes; lane++)
        widened[lane] = (float)integers[i + lane];
    return v_mul(v_load(widened), v_set1(scale));
}

AIMO_INLINE void embed_sequence(const aimo_embed_args *e, size_t sequence)
{
    const size_t begin = e->offsets[sequence], end = e->offsets[sequence + 1], n = e->hidden;
    const size_t row_bytes = aimo_table_row_bytes(e->dtype, n);
    for (size_t t = begin; t < end; t++) {
        const char *word = (const char *)e->word + (size_t)e->ids[t] * row_bytes;
        const char *position =
            (const char *)e->position + (t - begin + e->first_position) * row_bytes;
        float *out = e->out + t * n;
        V_FOR_EACH(i, lanes, n)
        {
            vf32 x = row_load(e->dtype, word, n, i, lanes);
            if (e->type != NULL)
                x = v_add(x, row_load(e->dtype, e->type, n, i, lanes));
            x = v_add(x, row_load(e->dtype, position, n, i, lanes));
            v_store_part_or_full(out + i, x, lanes);
        }
        layer_norm_row(out, &e->norm, out, n);
    }
}

#endif
