/* From token vectors to one vector per sequence, written once for every row of kernels. Include
 * after a simd_<isa>.h. */
#ifndef AIMO_POOLING_BODY_H
#define AIMO_POOLING_BODY_H

#include "simd/simd_rows.h"

/* The pooled value of elements [i, i + lanes) over the tokens [skip, length) of x [length, n]. */
AIMO_INLINE vf32 pool_lanes(const float *x, size_t skip, size_t length, size_t n,
                            aimo_pooling pooling, size_t lanes)
{
    if (pooling == AIMO_POOL_LAST_TOKEN)
        return v_load_part_or_full(x + (length - 1) * n, lanes);
    vf32 sum = v_load_part_or_full(x + skip * n, lanes);
    if (pooling == AIMO_POOL_CLS)
        return sum;
    const bool weighted = pooling == AIMO_POOL_WEIGHTED_MEAN;
    if (weighted)
        sum = v_mul(sum, v_set1((float)(skip + 1)));
    for (size_t t = skip + 1; t < length; t++) {
        const vf32 token = v_load_part_or_full(x + t * n, lanes);
        if (pooling == AIMO_POOL_MAX)
            sum = v_max(sum, token);
        else
            sum = v_fma(token, v_set1(weighted ? (float)(t + 1) : 1.0f), sum);
    }
    const float count = (float)(length - skip);
    if (pooling == AIMO_POOL_MEAN)
        return v_div(sum, v_set1(count));
    if (pooling == AIMO_POOL_MEAN_SQRT_LEN)
        return v_div(sum, v_set1(sqrtf(count)));
    if (weighted)
        return v_div(sum, v_set1((float)((length * (length + 1) - skip * (skip + 1)) / 2)));
    return sum;
}

AIMO_INLINE void pool_sequence(const aimo_pool_args *p, size_t sequence)
{
    const size_t n = p->hidden, begin = p->offsets[sequence];
    const size_t length = p->offsets[sequence + 1] - begin;
    const size_t skip = p->skip < length ? p->skip : length - 1;
    float *out = p->out + sequence * p->columns;
    vf32 squares = v_zero();
    for (size_t done = 0; done < p->columns; done += n) {
        const size_t width = p->columns - done < n ? p->columns - done : n;
        const aimo_pooling pooling = p->poolings[done / n];
        V_FOR_EACH(i, lanes, width)
        {
            const vf32 pooled = pool_lanes(p->x + begin * n + i, skip, length, n, pooling, lanes);
            v_store_part_or_full(out + done + i, pooled, lanes);
            squares = v_fma(v_keep(pooled, lanes), v_keep(pooled, lanes), squares);
        }
    }
    if (!p->normalize)
        return;
    const float norm = sqrtf(v_reduce_add(squares));
    const vf32 divisor = v_set1(norm > 1e-12f ? norm : 1e-12f);
    V_FOR_EACH(i, lanes, p->columns)
    v_store_part_or_full(out + i, v_div(v_load_part_or_full(out + i, lanes), divisor), lanes);
}

#endif
