/* Blocking of the 8-bit matrix product, written once for the rows that have a dot product of small
 * integers. A *unit* is what one 32-bit lane multiplies at a time: UNIT_K neighbours along k.
 *
 * Rows of x are rounded once for each block of rows; then a tile of int32 sums runs over k. Before
 * the include a row defines, besides a simd_<isa>.h,
 *   UNIT_K, UNSIGNED_X               whether x takes part as x + 128
 *   vi32, vi32_zero, vi32_set1, vi32_load, vi32_to_f32
 *   vi32_dot(sums, x, w)             sums + the products of each lane's unit
 *   round_row(x, keep, k, inverse, units)
 *   LAID_OUT_UNITS, lay_out(weights, groups, out)
 *                                    int8 weights of one panel as units [..][16], maybe in `out` */
#ifndef AIMO_GEMM_INT8_BODY_H
#define AIMO_GEMM_INT8_BODY_H

#include "gemm/gemm_int8.h"
#include "simd/simd_tile.h"

/* The rounded rows of a block stay in L2. */
enum { ROW_UNITS = 1 << 15, MOST_ROWS = 256 };

typedef struct {
    uint32_t units[ROW_UNITS]; /* [rows][ld] */
    float scale[MOST_ROWS];
    float outliers[MOST_ROWS][AIMO_INT8_OUTLIERS];
    size_t ld;
} rounded_rows;

typedef struct {
    const rounded_rows *x;
    const uint32_t *weights[TILE_PANELS]; /* [units][16] */
    aimo_int8_panel panels[TILE_PANELS];
    size_t columns;
    float *y;
    size_t ldy;
} int8_tile;

static float largest_kept(const float *x, const float *keep, size_t k)
{
    vf32 largest = v_zero(), other = v_zero();
    size_t i = 0;
    for (; i + 2 * VF32_LANES <= k; i += 2 * VF32_LANES) {
        largest = v_max(largest, v_abs(v_mul(v_load(x + i), v_load(keep + i))));
        other =
            v_max(other, v_abs(v_mul(v_load(x + i + VF32_LANES), v_load(keep + i + VF32_LANES))));
    }
    for (; i < k; i += VF32_LANES) {
        const size_t n = k - i < VF32_LANES ? k - i : VF32_LANES;
        largest = v_max(largest, v_abs(v_mul(v_load_part(x + i, n), v_load_part(keep + i, n))));
    }
    return v_reduce_max(v_max(largest, other));
}

static void round_rows(const aimo_gemm_args *g, size_t row, size_t m, const float *keep,
                       rounded_rows *out)
{
    const size_t k = g->w->k;
    out->ld = (k + UNIT_K - 1) / UNIT_K;
    for (size_t r = 0; r < m; r++) {
        const float *x = g->x + (row + r) * g->ldx;
        const float largest = largest_kept(x, keep, k);
        out->scale[r] = aimo_int8_scale(largest);
        round_row(x, keep, k, aimo_int8_inverse_scale(largest), out->units + r * out->ld);
        aimo_int8_gather(g->w->panels, x, out->outliers[r]);
    }
}

/* y = outliers @ their weights + bias, by the f32 tile. */
static void multiply_outliers(const int8_tile *t, size_t m, size_t panels, const float *bias)
{
    _Alignas(64) float widened[TILE_PANELS][AIMO_INT8_OUTLIERS * PANEL_COLUMNS];
    for (size_t p = 0; p < panels; p++)
        for (size_t i = 0; i < AIMO_INT8_OUTLIERS * PANEL_COLUMNS; i += VF32_LANES)
            v_store(widened[p] + i, v_load_f16(t->panels[p].outliers + i));
    const tile_args outliers = {
        .x = t->x->outliers[0],
        .ldx = AIMO_INT8_OUTLIERS,
        .panels = widened[0],
        .panel_stride = AIMO_INT8_OUTLIERS * PANEL_COLUMNS,
        .m = m,
        .k = AIMO_INT8_OUTLIERS,
        .columns = t->columns,
        .y = t->y,
        .ldy = t->ldy,
        .bias = bias,
    };
    if (panels == TILE_PANELS)
        run_tiles(&outliers, TILE_PANELS * PANEL_VECTORS, 1, PANEL_COLUMNS);
    else
        run_tiles(&outliers, PANEL_VECTORS, 1, PANEL_COLUMNS);
}

/* y += (sum * weights' scale) * row's scale. `rows` and `vectors` are constants at every call, so
 * that the sums stay in registers. */
AIMO_INLINE void sum_tile(const int8_tile *t, size_t row, const size_t rows, const size_t vectors)
{
    const size_t ld = t->x->ld;
    const uint32_t *x = t->x->units + row * ld;
    const uint32_t *weights[TILE_PANELS];
    AIMO_UNROLL
    for (size_t p = 0; p < TILE_PANELS; p++)
        weights[p] = t->weights[p];
    vi32 sums[TILE_ROWS][TILE_PANELS * PANEL_VECTORS];
    AIMO_UNROLL
    for (size_t v = 0; v < vectors; v++) {
        const int32_t *correction =
            t->panels[v / PANEL_VECTORS].correction + v % PANEL_VECTORS * VF32_LANES;
        AIMO_UNROLL
        for (size_t r = 0; r < rows; r++)
            sums[r][v] = UNSIGNED_X ? vi32_load(correction) : vi32_zero();
    }
    for (size_t k = 0; k < ld; k++) {
        vi32 w[TILE_PANELS * PANEL_VECTORS];
        AIMO_UNROLL
        for (size_t v = 0; v < vectors; v++)
            w[v] = vi32_load((const int32_t *)weights[v / PANEL_VECTORS] + k * PANEL_COLUMNS +
                             v % PANEL_VECTORS * VF32_LANES);
        AIMO_UNROLL
        for (size_t r = 0; r < rows; r++) {
            const vi32 a = vi32_set1((int32_t)x[r * ld + k]);
            AIMO_UNROLL
            for (size_t v = 0; v < vectors; v++)
                sums[r][v] = vi32_dot(sums[r][v], a, w[v]);
        }
    }
    AIMO_UNROLL
    for (size_t v = 0; v < vectors; v++) {
        const size_t n = lanes_left(t->columns, v);
        const vf32 scale =
            v_load(t->panels[v / PANEL_VECTORS].scale + v % PANEL_VECTORS * VF32_LANES);
        AIMO_UNROLL
        for (size_t r = 0; r < rows; r++) {
            float *y = t->y + (row + r) * t->ldy + v * VF32_LANES;
            const vf32 product = v_mul(vi32_to_f32(sums[r][v]), scale);
            v_store_part(y, v_fma(product, v_set1(t->x->scale[row + r]), v_load_part(y, n)), n);
        }
    }
}

AIMO_INLINE void sum_rows(const int8_tile *t, size_t m, const size_t vectors)
{
    size_t row = 0;
    for (; row + TILE_ROWS <= m; row += TILE_ROWS)
        sum_tile(t, row, TILE_ROWS, vectors);
    for (; row < m; row++)
        sum_tile(t, row, 1, vectors);
}

/* One group of panels, TILE_PANELS or 1, against rows [row, row + m) of x. */
static void multiply_int8_group(const aimo_gemm_args *g, const rounded_rows *x, size_t first_panel,
                                size_t panels, size_t row, size_t m)
{
    _Alignas(64) uint32_t laid_out[TILE_PANELS][LAID_OUT_UNITS];
    const size_t column = first_panel * PANEL_COLUMNS, all = panels * PANEL_COLUMNS;
    int8_tile t = {
        .x = x,
        .columns = g->w->n - column < all ? g->w->n - column : all,
        .y = g->y + row * g->ldy + column,
        .ldy = g->ldy,
    };
    for (size_t p = 0; p < panels; p++) {
        t.panels[p] = aimo_int8_panel_at(g->w->panels, g->w->k, first_panel + p);
        t.weights[p] = lay_out(t.panels[p].weights, aimo_int8_groups(g->w->k), laid_out[p]);
    }
    multiply_outliers(&t, m, panels, g->bias != NULL ? g->bias + column : NULL);
    if (panels == TILE_PANELS)
        sum_rows(&t, m, TILE_PANELS * PANEL_VECTORS);
    else
        sum_rows(&t, m, PANEL_VECTORS);
    if (g->activation != AIMO_ACT_NONE)
        activate_rows(t.y, t.ldy, m, t.columns, g->activation);
}

static void gemm_int8(const aimo_gemm_args *g)
{
    float keep[AIMO_INT8_K_LIMIT];
    rounded_rows x;
    aimo_int8_keep(g->w->panels, g->w->k, keep);
    size_t block = ROW_UNITS / ((g->w->k + UNIT_K - 1) / UNIT_K);
    block = block > MOST_ROWS ? MOST_ROWS : block;
    for (size_t row = 0; row < g->m; row += block) {
        const size_t m = g->m - row < block ? g->m - row : block;
        round_rows(g, row, m, keep, &x);
        size_t panel = g->panel_begin;
        for (; panel + TILE_PANELS <= g->panel_end; panel += TILE_PANELS)
            multiply_int8_group(g, &x, panel, TILE_PANELS, row, m);
        for (; panel < g->panel_end; panel++)
            multiply_int8_group(g, &x, panel, 1, row, m);
    }
}

#endif
