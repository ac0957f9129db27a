/* From token vectors to one vector per sequence, written once for every row of kernels. Include
 * after a simd_<isa>.h. */
#ifndef AIMO_POOLING_BODY_H
#define AIMO_POOLING_BODY_H

#include "simd/simd_rows.h"

/* The pooled value of elements [i, i + lanes) over the tokens x [length, n]. */
AIMO_INLINE vf32 pool_lanes(const float *x, size_t length, size_t n, aimo_pooling pooling,
                            size_t lanes)
{
    if (pooling == AIMO_POOL_CLS)
        return v_load_part_or_full(x, lanes);
    if (pooling == AIMO_POOL_LAST_TOKEN)
        return v_load_part_or_full(x + (length - 1) * n, lanes);
    const bool weighted = pooling == AIMO_POOL_WEIGHTED_MEAN;
    vf32 sum = v_load_part_or_full(x, lanes);
    for (size_t t = 1; t < length; t++) {
        const vf32 token = v_load_part_or_full(x + t * n, lanes);
        if (pooling == AIMO_POOL_MAX)
            sum = v_max(sum, token);
        else
            sum = v_fma(token, v_set1(weighted ? (float)(t + 1) : 1.0f), sum);
    }
    const float count = (float)length;
    if (pooling == AIMO_POOL_MEAN)
        return v_div(sum, v_set1(count));
    if (pooling == AIMO_POOL_MEAN_SQRT_LEN)
        return v_div(sum, v_set1(sqrtf(count)));
    if (weighted)
        return v_div(sum, v_set1(0.5f * count * (count + 1.0f)));
    return sum;
}

AIMO_INLINE void pool_sequence(const aimo_pool_args *p, size_t sequence)
{
    const size_t n = p->hidden, begin = p->offsets[sequence];
    const size_t length = p->offsets[sequence + 1] - begin;
    float *out = p->out + sequence * n;
    vf32 squares = v_zero();
    V_FOR_EACH(i, lanes, n)
    {
        const vf32 pooled = pool_lanes(p->x + begin * n + i, length, n, p->pooling, lanes);
        v_store_part_or_full(out + i, pooled, lanes);
        squares = v_fma(v_keep(pooled, lanes), v_keep(pooled, lanes), squares);
    }
    if (!p->normalize)
        return;
    const float norm = sqrtf(v_reduce_add(squares));
    const vf32 divisor = v_set1(norm > 1e-12f ? norm : 1e-12f);
    V_FOR_EACH(i, lanes, n)
    v_store_part_or_full(out + i, v_div(v_load_part_or_full(out + i, lanes), divisor), lanes);
}

#endif
