/* Embedding rows, residual sums and layer norm, written once for every row of kernels. The variance
 * is computed from the differences from the mean, in a second pass: E[x^2] - E[x]^2 would suffer
 * from cancellation. Include after a simd_<isa>.h. */
#ifndef AIMO_LAYER_NORM_BODY_H
#define AIMO_LAYER_NORM_BODY_H

#include "simd/simd_rows.h"

/* Several sums, used in turn for a row's vectors, so that an addition does not wait for the
 * previous one. */
typedef struct {
    vf32 part[4];
} row_sum;

AIMO_INLINE row_sum row_sum_zero(void)
{
    return (row_sum){{v_zero(), v_zero(), v_zero(), v_zero()}};
}
AIMO_INLINE float row_sum_of(const row_sum *s)
{
    return v_reduce_add(v_add(v_add(s->part[0], s->part[1]), v_add(s->part[2], s->part[3])));
}

/* Continues with the rest of a row as V_FOR_EACH would. */
#define V_FOR_THE_REST(i, lanes, n)                                                                \
    for (size_t lanes = (n) - (i) < VF32_LANES ? (n) - (i) : VF32_LANES; (i) < (n);                \
         (i) += VF32_LANES, lanes = (n) - (i) < VF32_LANES ? (n) - (i) : VF32_LANES)

/* y = layer_norm(x) for one row whose elements add up to `sum`; y may be x. */
AIMO_INLINE void norm_row(const float *x, float sum, const aimo_layer_norm *norm, float *y,
                          size_t n)
{
    const vf32 mean = v_set1(sum / (float)n);
    row_sum squares = row_sum_zero();
    size_t i = 0;
    for (; i + 4 * VF32_LANES <= n; i += 4 * VF32_LANES) {
        AIMO_UNROLL
        for (size_t part = 0; part < 4; part++) {
            const vf32 d = v_sub(v_load(x + i + part * VF32_LANES), mean);
            squares.part[part] = v_fma(d, d, squares.part[part]);
        }
    }
    V_FOR_THE_REST(i, lanes, n)
    {
        const vf32 d = v_keep(v_sub(v_load_part_or_full(x + i, lanes), mean), lanes);
        squares.part[0] = v_fma(d, d, squares.part[0]);
    }
    const float variance = row_sum_of(&squares) / (float)n;
    const vf32 scale = v_set1(1.0f / sqrtf(variance + norm->epsilon));
    V_FOR_EACH(j, lanes, n)
    {
        const vf32 d = v_mul(v_sub(v_load_part_or_full(x + j, lanes), mean), scale);
        const vf32 weight = v_load_part_or_full(norm->weight + j, lanes);
        const vf32 bias = v_load_part_or_full(norm->bias + j, lanes);
        v_store_part_or_full(y + j, v_fma(d, weight, bias), lanes);
    }
}

/* x += other; returns the sum of its elements. */
AIMO_INLINE float add_row(float *x, const float *other, size_t n)
{
    row_sum sum = row_sum_zero();
    size_t i = 0;
    for (; i + 4 * VF32_LANES <= n; i += 4 * VF32_LANES) {
        AIMO_UNROLL
        for (size_t part = 0; part < 4; part++) {
            const size_t at = i + part * VF32_LANES;
            const vf32 both = v_add(v_load(x + at), v_load(other + at));
            v_store(x + at, both);
            sum.part[part] = v_add(sum.part[part], both);
        }
    }
    V_FOR_THE_REST(i, lanes, n)
    {
        const vf32 both =
            v_add(v_load_part_or_full(x + i, lanes), v_load_part_or_full(other + i, lanes));
        v_store_part_or_full(x + i, both, lanes);
        sum.part[0] = v_add(sum.part[0], both);
    }
    return row_sum_of(&sum);
}

AIMO_INLINE void residual_layer_norm(float *x, const float *residual, const aimo_layer_norm *norm,
                                     float *y, size_t m, size_t n)
{
    for (size_t row = 0; row < m; row++) {
        const float sum = add_row(x + row * n, residual + row * n, n);
        norm_row(x + row * n, sum, norm, y + row * n, n);
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
    const int8_t *integers = (const int8_t *)row + i;
    int8_t part[VF32_LANES] = {0};
    float scale;
    memcpy(&scale, (const int8_t *)row + n, sizeof scale);
    if (!full)
        memcpy(part, integers, lanes);
    return v_mul(v_load_i8(full ? integers : part), v_set1(scale));
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
        vf32 sum = v_zero();
        V_FOR_EACH(i, lanes, n)
        {
            vf32 x = row_load(e->dtype, word, n, i, lanes);
            if (e->type != NULL)
                x = v_add(x, row_load(e->dtype, e->type, n, i, lanes));
            x = v_add(x, row_load(e->dtype, position, n, i, lanes));
            v_store_part_or_full(out + i, x, lanes);
            sum = v_add(sum, x);
        }
        norm_row(out, v_reduce_add(sum), &e->norm, out, n);
    }
}

#endif
