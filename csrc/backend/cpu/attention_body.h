/* Attention of one head in one sequence, written once for every row of kernels.
 *
 * Sixteen queries at a time are laid out across the lanes: scores come out transposed, [keys][16],
 * so the softmax runs down columns without horizontal steps. Keys are processed in blocks of
 * KEY_BLOCK with a running maximum and sum, so no score matrix is ever stored and the memory does
 * not depend on the length. Both products use the register tile on queries, keys and values in
 * place. Include after a simd_<isa>.h. */
#ifndef AIMO_ATTENTION_BODY_H
#define AIMO_ATTENTION_BODY_H

#include "backend/cpu/attention_head.h"
#include "simd/simd_tile.h"

enum { QUERY_BLOCK = PANEL_COLUMNS, KEY_BLOCK = 128, DIM_BLOCK = 128 };

/* One block of queries and its running softmax state. */
typedef struct {
    size_t first, count;
    vf32 maximum[PANEL_VECTORS], sum[PANEL_VECTORS];
} query_block;

/* dst [dims][16] = queries scaled by 1 / sqrt(head_dim), transposed; absent ones are zero. */
static void transpose_queries(const attention_head *h, const query_block *b, size_t dim,
                              size_t dims, float *dst)
{
    const float scale = 1.0f / sqrtf((float)h->head_dim);
    const float *query = h->q + b->first * h->ld + dim;
    size_t begin = 0;
#if defined(SIMD_TRANSPOSE)
    for (; begin + VF32_LANES <= dims; begin += VF32_LANES) {
        vf32 block[QUERY_BLOCK];
        AIMO_UNROLL
        for (size_t i = 0; i < QUERY_BLOCK; i++)
            block[i] = i < b->count ? v_load(query + i * h->ld + begin) : v_zero();
        v_transpose(block);
        AIMO_UNROLL
        for (size_t d = 0; d < VF32_LANES; d++)
            v_store(dst + (begin + d) * QUERY_BLOCK, v_mul(block[d], v_set1(scale)));
    }
#endif
    memset(dst + begin * QUERY_BLOCK, 0, (dims - begin) * QUERY_BLOCK * sizeof *dst);
    for (size_t i = 0; i < b->count; i++)
        for (size_t d = begin; d < dims; d++)
            dst[d * QUERY_BLOCK + i] = query[i * h->ld + d] * scale;
}

/* scores [keys][16] = keys @ queries^T for keys [first, first + count). */
static void compute_scores(const attention_head *h, const query_block *b, size_t first,
                           size_t count, float *scores)
{
    _Alignas(64) float queries[DIM_BLOCK * QUERY_BLOCK];
    for (size_t dim = 0; dim < h->head_dim; dim += DIM_BLOCK) {
        const size_t left = h->head_dim - dim, dims = left < DIM_BLOCK ? left : DIM_BLOCK;
        transpose_queries(h, b, dim, dims, queries);
        const tile_args t = {
            .x = h->k + first * h->ld + dim,
            .ldx = h->ld,
            .panels = queries,
            .m = count,
            .k = dims,
            .columns = QUERY_BLOCK,
            .y = scores,
            .ldy = QUERY_BLOCK,
            .accumulate = dim != 0,
        };
        run_tiles(&t, PANEL_VECTORS, 1, QUERY_BLOCK);
    }
}

/* out rows *= scales, one per query. */
static void rescale_output(const attention_head *h, const query_block *b, const float *scales)
{
    for (size_t i = 0; i < b->count; i++) {
        float *out = h->out + (b->first + i) * h->ldo;
        for (size_t d = 0; d < h->head_dim; d++)
            out[d] *= scales[i];
    }
}

/* scores = e^(scores - maximum), after updating the maximum with this block's scores; the sum and
 * the output so far are rescaled to the new maximum. */
static void softmax_block(const attention_head *h, query_block *b, float *scores, size_t count,
                          bool first)
{
    float shrink[QUERY_BLOCK];
    for (size_t v = 0; v < PANEL_VECTORS; v++) {
        float *column = scores + v * VF32_LANES;
        vf32 maximum = v_load(column);
        for (size_t key = 1; key < count; key++)
            maximum = v_max(maximum, v_load(column + key * QUERY_BLOCK));
        if (!first)
            maximum = v_max(maximum, b->maximum[v]);
        vf32 sum = v_zero();
        if (!first) {
            const vf32 factor = v_exp(v_sub(b->maximum[v], maximum));
            v_store(shrink + v * VF32_LANES, factor);
            sum = v_mul(b->sum[v], factor);
        }
        for (size_t key = 0; key < count; key++) {
            float *at = column + key * QUERY_BLOCK;
            const vf32 e = v_exp(v_sub(v_load(at), maximum));
            v_store(at, e);
            sum = v_add(sum, e);
        }
        b->maximum[v] = maximum;
        b->sum[v] = sum;
    }
    if (!first)
        rescale_output(h, b, shrink);
}

/* out [queries][head_dim] = [out +] probabilities^T @ values of keys [first, first + count). */
static void add_values(const attention_head *h, const query_block *b, const float *probabilities,
                       size_t first, size_t count)
{
    const size_t widest = TILE_PANELS * PANEL_COLUMNS;
    for (size_t dim = 0; dim < h->head_dim;) {
        const size_t left = h->head_dim - dim;
        const bool wide = left >= widest;
        const tile_args t = {
            .x = probabilities,
            .ldx = 1,
            .panels = h->v + first * h->ld + dim,
            .panel_stride = PANEL_COLUMNS,
            .m = b->count,
            .k = count,
            .columns = wide                   ? widest
                       : left < PANEL_COLUMNS ? left
                                              : PANEL_COLUMNS,
            .y = h->out + b->first * h->ldo + dim,
            .ldy = h->ldo,
            .accumulate = first != 0,
        };
        if (wide)
            run_tiles(&t, TILE_PANELS * PANEL_VECTORS, QUERY_BLOCK, h->ld);
        else
            run_tiles(&t, PANEL_VECTORS, QUERY_BLOCK, h->ld);
        dim += t.columns;
    }
}

static void attend(const attention_head *h, size_t first_query)
{
    _Alignas(64) float scores[KEY_BLOCK * QUERY_BLOCK];
    const size_t left = h->length - first_query;
    query_block b = {.first = first_query, .count = left < QUERY_BLOCK ? left : QUERY_BLOCK};
    for (size_t key = 0; key < h->length; key += KEY_BLOCK) {
        const size_t count = h->length - key < KEY_BLOCK ? h->length - key : KEY_BLOCK;
        compute_scores(h, &b, key, count, scores);
        softmax_block(h, &b, scores, count, key == 0);
        add_values(h, &b, scores, key, count);
    }
    float inverse[QUERY_BLOCK];
    for (size_t v = 0; v < PANEL_VECTORS; v++)
        v_store(inverse + v * VF32_LANES, v_div(v_set1(1.0f), b.sum[v]));
    rescale_output(h, &b, inverse);
}

AIMO_INLINE void attention(const aimo_attention_args *a, size_t sequence, size_t head)
{
    const attention_head h = attention_head_at(a, sequence, head);
    for (size_t query = 0; query < h.length; query += QUERY_BLOCK)
        attend(&h, query);
}

#endif
