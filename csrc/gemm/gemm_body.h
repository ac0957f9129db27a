/* Blocking of the matrix product, written once for the rows that multiply in f32.
 *
 * For each group of panels and each part of k: widen the weights into a buffer that stays in the L1
 * cache, then run the register tile down the rows of x. Up to MC rows share one widening pass;
 * products with very few rows skip it (gemm_few_rows.h). Include after a simd_<isa>.h. */
#ifndef AIMO_GEMM_BODY_H
#define AIMO_GEMM_BODY_H

#include "gemm/gemm_few_rows.h"
#include "simd/simd_tile.h"

/* KC * 16 floats per panel are 24 KiB. A pair of panels overflows the smallest L1 caches and comes
 * from L2, at a tenth of L2's bandwidth, which costs less than passing sums through memory twice.
 * MC rows of x, which stay in L2, are processed before the weights are read again. */
enum { KC = 384, MC = 384 };

/* dst [k][16] = part [k_begin, k_begin + k) of one panel; k_begin is even. */
static void widen_panel(aimo_dtype dtype, const uint16_t *panel, size_t k_begin, size_t k,
                        float *dst)
{
    const uint16_t *src = panel + k_begin * PANEL_COLUMNS;
    if (dtype == AIMO_F16) {
        for (size_t i = 0; i < k * PANEL_COLUMNS; i += VF32_LANES)
            v_store(dst + i, v_load_f16(src + i));
        return;
    }
    /* bf16 comes in pairs along k; an odd k leaves a zero row after the last. */
    for (size_t i = 0; i < k; i += 2)
        for (size_t v = 0; v < PANEL_VECTORS; v++) {
            const uint16_t *pairs = src + i * PANEL_COLUMNS + v * VF32_LANES * 2;
            float *to = dst + i * PANEL_COLUMNS + v * VF32_LANES;
            v_store(to, v_load_bf16_even(pairs));
            v_store(to + PANEL_COLUMNS, v_load_bf16_odd(pairs));
        }
}

/* The part of each panel that is multiplied next. */
typedef struct {
    const char *panels; /* the first; panels are panel_bytes apart */
    size_t panel_bytes, bytes;
} next_part;

static next_part next_part_at(const aimo_gemm_args *g, aimo_dtype dtype, size_t panel, size_t k)
{
    const size_t row_bytes = PANEL_COLUMNS * aimo_dtype_size(dtype), left = g->w->k - k;
    const size_t padded_k = dtype == AIMO_BF16 ? g->w->k + g->w->k % 2 : g->w->k;
    const char *panels = g->w->panels;
    return (next_part){
        .panels = panels + (panel * padded_k + k) * row_bytes,
        .panel_bytes = padded_k * row_bytes,
        .bytes = panel < g->panel_end ? (left < KC ? left : KC) * row_bytes : 0,
    };
}

/* Prefetches share `index` of `count` into L2, because widening would otherwise wait for each of
 * its lines. */
static void prefetch_share(const next_part *next, size_t panels, size_t index, size_t count)
{
    enum { LINE = 64 };
    const size_t lines = next->bytes / LINE;
    for (size_t p = 0; p < panels; p++)
        for (size_t line = lines * index / count; line < lines * (index + 1) / count; line++)
            __builtin_prefetch(next->panels + p * next->panel_bytes + line * LINE, 0, 2);
}

/* run_tiles by strips of rows, prefetching some of the next part before each. */
static void run_strips(const tile_args *t, size_t panels, const next_part *next)
{
    const size_t strips = (t->m + TILE_ROWS - 1) / TILE_ROWS;
    for (size_t strip = 0; strip < strips; strip++) {
        const size_t row = strip * TILE_ROWS;
        tile_args rows = *t;
        rows.m = strip + 1 < strips ? TILE_ROWS : t->m - row;
        rows.x += row * t->ldx;
        rows.y += row * t->ldy;
        prefetch_share(next, panels, strip, strips);
        if (panels == TILE_PANELS)
            run_tiles(&rows, TILE_PANELS * PANEL_VECTORS, 1, PANEL_COLUMNS);
        else
            run_tiles(&rows, PANEL_VECTORS, 1, PANEL_COLUMNS);
    }
}

/* One group of panels, TILE_PANELS or 1, against rows [row, row + m) of x. */
static void multiply_group(const aimo_gemm_args *g, aimo_dtype dtype, size_t first_panel,
                           size_t panels, size_t row, size_t m)
{
    _Alignas(64) float widened[TILE_PANELS][KC * PANEL_COLUMNS];
    const size_t k = g->w->k, padded_k = dtype == AIMO_BF16 ? k + k % 2 : k;
    const size_t column = first_panel * PANEL_COLUMNS, all = panels * PANEL_COLUMNS;
    const size_t panel_size = padded_k * PANEL_COLUMNS;
    tile_args t = {
        .ldx = g->ldx,
        .m = m,
        .columns = g->w->n - column < all ? g->w->n - column : all,
        .y = g->y + row * g->ldy + column,
        .ldy = g->ldy,
    };
    for (size_t k_begin = 0; k_begin < k; k_begin += KC) {
        const bool last = k - k_begin <= KC;
        t.k = last ? k - k_begin : KC;
        t.x = g->x + row * g->ldx + k_begin;
        t.accumulate = k_begin != 0;
        t.bias = last && g->bias != NULL ? g->bias + column : NULL;
        t.activation = last ? g->activation : AIMO_ACT_NONE;
        if (dtype == AIMO_F32) {
            t.panels =
                (const float *)g->w->panels + first_panel * panel_size + k_begin * PANEL_COLUMNS;
            t.panel_stride = panel_size;
        } else {
            const uint16_t *packed = (const uint16_t *)g->w->panels + first_panel * panel_size;
            for (size_t p = 0; p < panels; p++)
                widen_panel(dtype, packed + p * panel_size, k_begin, t.k, widened[p]);
            t.panels = widened[0];
            t.panel_stride = KC * PANEL_COLUMNS;
        }
        const next_part next = last ? next_part_at(g, dtype, first_panel + panels, 0)
                                    : next_part_at(g, dtype, first_panel, k_begin + KC);
        run_strips(&t, panels, &next);
    }
}

AIMO_INLINE void gemm(const aimo_gemm_args *g, const aimo_dtype dtype)
{
    if (g->m <= FEW_ROWS) {
        gemm_few_rows(g, dtype);
        return;
    }
    for (size_t row = 0; row < g->m; row += MC) {
        const size_t m = g->m - row < MC ? g->m - row : MC;
        size_t panel = g->panel_begin;
        for (; panel + TILE_PANELS <= g->panel_end; panel += TILE_PANELS)
            multiply_group(g, dtype, panel, TILE_PANELS, row, m);
        for (; panel < g->panel_end; panel++)
            multiply_group(g, dtype, panel, 1, row, m);
    }
}

#endif
