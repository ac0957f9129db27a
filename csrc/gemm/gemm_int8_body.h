/* Blocking of the 8-bit matrix product, written once for the rows of kernels with a dot product of
 * small integers. A *unit* is what one 32-bit lane multiplies at a time: UNIT_K neighbours along k.
 *
 * Rows of x are rounded once per block of rows; then a tile of int32 sums runs over k. Before
 * including this, a row includes its simd_<isa>.h and defines
 *   UNIT_K, UNSIGNED_X               whether integers of x are u rather than u - zero
 *   vi32, vi32_set1, vi32_load, vi32_to_f32; + * / of the language
 *   vi32_dot(sums, x, w)             sums + the products of each lane's unit
 *   round_row(x, k, rounding, units) x as integers; outlier channels, whose weights are 0, may come
 *                                    out as anything
 *   LAID_OUT_UNITS, lay_out(weights, groups, out)
 *                                    int8 weights of one panel as units [..][16], maybe in `out` */
#ifndef AIMO_GEMM_INT8_BODY_H
#define AIMO_GEMM_INT8_BODY_H

#include "gemm/gemm_int8.h"
#include "simd/simd_tile.h"

#include "gemm/gemm_int8_rows.h"

/* The rounded rows of a block stay in the L2 cache. */
enum { ROW_UNITS = 1 << 15, MOST_ROWS = 256 };

typedef struct {
    uint32_t units[ROW_UNITS]; /* [rows][ld] */
    float scale[MOST_ROWS];
    int32_t zero[MOST_ROWS];
    float outliers[MOST_ROWS][AIMO_INT8_OUTLIERS];
    size_t ld;
} rounded_rows;

typedef struct {
    const rounded_rows *x;
    const uint32_t *weights[TILE_PANELS]; /* [units][16] */
    aimo_int8_panel panels[TILE_PANELS];
    const float *outliers; /* [outlier_count][TILE_PANELS * 16], widened */
    size_t outlier_count;
    const float *bias; /* [TILE_PANELS * 16], zeros where there is none */
    aimo_activation activation;
    size_t columns;
    float *y;
    size_t ldy;
    /* The weights that are multiplied next and are prefetched into L2 meanwhile: in a whole tile
     * each step of k prefetches next_step bytes. */
    const char *next;
    size_t next_step;
} int8_tile;

static void round_rows(const aimo_gemm_args *g, size_t row, size_t m, const float *keep,
                       rounded_rows *out)
{
    const size_t k = g->w->k;
    out->ld = (k + UNIT_K - 1) / UNIT_K;
    for (size_t r = 0; r < m; r++) {
        const float *x = g->x + (row + r) * g->ldx;
        const aimo_int8_rounding rounding = rounding_of(x, keep, k);
        out->scale[r] = rounding.scale;
        out->zero[r] = rounding.zero;
        round_row(x, k, &rounding, out->units + r * out->ld);
        aimo_int8_gather(g->w->panels, x, out->outliers[r]);
    }
}

/* y = activation(sum * weights' scale * row's scale + bias + outliers @ their weights), in this
 * order, from the tile's registers. `rows`, `vectors` and `full` are constants at every call. */
AIMO_INLINE void finish_tile(const int8_tile *t, size_t row, const size_t rows,
                             const size_t vectors, const bool full,
                             vi32 sums[TILE_ROWS][TILE_PANELS * PANEL_VECTORS])
{
    vf32 y[TILE_ROWS][TILE_PANELS * PANEL_VECTORS];
    AIMO_UNROLL
    for (size_t v = 0; v < vectors; v++) {
        const vf32 scale =
            v_load(t->panels[v / PANEL_VECTORS].scale + v % PANEL_VECTORS * VF32_LANES);
        const vf32 bias = v_load(t->bias + v * VF32_LANES);
        AIMO_UNROLL
        for (size_t r = 0; r < rows; r++)
            y[r][v] =
                v_fma(v_mul(vi32_to_f32(sums[r][v]), scale), v_set1(t->x->scale[row + r]), bias);
    }
    const float *outliers = t->outliers;
    for (size_t o = 0; o < t->outlier_count; o++, outliers += TILE_PANELS * PANEL_COLUMNS) {
        vf32 w[TILE_PANELS * PANEL_VECTORS];
        AIMO_UNROLL
        for (size_t v = 0; v < vectors; v++)
            w[v] = v_load(outliers + v * VF32_LANES);
        AIMO_UNROLL
        for (size_t r = 0; r < rows; r++) {
            const vf32 x = v_set1(t->x->outliers[row + r][o]);
            AIMO_UNROLL
            for (size_t v = 0; v < vectors; v++)
                y[r][v] = v_fma(x, w[v], y[r][v]);
        }
    }
    float *to = t->y + row * t->ldy;
    AIMO_UNROLL
    for (size_t r = 0; r < rows; r++)
        AIMO_UNROLL
    for (size_t v = 0; v < vectors; v++) {
        if (full)
            v_store(to + r * t->ldy + v * VF32_LANES, y[r][v]);
        else
            v_store_part(to + r * t->ldy + v * VF32_LANES, y[r][v], lanes_left(t->columns, v));
    }
    if (t->activation != AIMO_ACT_NONE)
        activate_rows(to, t->ldy, rows, t->columns, t->activation);
}

AIMO_INLINE void sum_tile(const int8_tile *t, size_t row, const size_t rows, const size_t vectors,
                          const bool full)
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
        const vi32 negated_sum =
            vi32_load(t->panels[v / PANEL_VECTORS].correction + v % PANEL_VECTORS * VF32_LANES) /
            -AIMO_INT8_CORRECTION;
        AIMO_UNROLL
        for (size_t r = 0; r < rows; r++)
            sums[r][v] = vi32_set1(UNSIGNED_X ? t->x->zero[row + r] : 0) * negated_sum;
    }
    const uint32_t *x_rows[(TILE_ROWS + 2) / 3]; /* every third row of the tile */
    AIMO_UNROLL
    for (size_t r = 0; r < rows; r += 3)
        x_rows[r / 3] = x + r * ld;
    const char *next = t->next + row / TILE_ROWS * ld * t->next_step;
    for (size_t k = 0; k < ld; k++) {
        __builtin_prefetch(next + k * t->next_step, 0, 2);
        size_t step = ld;
        AIMO_OPAQUE(step);
        vi32 w[TILE_PANELS * PANEL_VECTORS];
        AIMO_UNROLL
        for (size_t v = 0; v < vectors; v++)
            w[v] = vi32_load((const int32_t *)weights[v / PANEL_VECTORS] + k * PANEL_COLUMNS +
                             v % PANEL_VECTORS * VF32_LANES);
        AIMO_UNROLL
        for (size_t r = 0; r < rows; r++) {
            const vi32 a = vi32_set1((int32_t)x_rows[r / 3][r % 3 * step]);
            AIMO_UNROLL
            for (size_t v = 0; v < vectors; v++)
                sums[r][v] = vi32_dot(sums[r][v], a, w[v]);
        }
        AIMO_UNROLL
        for (size_t r = 0; r < rows; r += 3)
            x_rows[r / 3]++;
    }
    finish_tile(t, row, rows, vectors, full, sums);
}

/* Rows left over after the whole tiles go in fours, twos and ones: a tile of one row waits for its
 * loads and takes as long as one of two or three. */
AIMO_INLINE void sum_rows(const int8_tile *t, size_t m, const size_t vectors, const bool full)
{
    size_t row = 0;
    for (; row + TILE_ROWS <= m; row += TILE_ROWS)
        sum_tile(t, row, TILE_ROWS, vectors, full);
    for (; TILE_ROWS > 4 && row + 4 <= m; row += 4)
        sum_tile(t, row, 4, vectors, full);
    for (; TILE_ROWS > 2 && row + 2 <= m; row += 2)
        sum_tile(t, row, 2, vectors, full);
    for (; row < m; row++)
        sum_tile(t, row, 1, vectors, full);
}

/* One group of panels, TILE_PANELS or 1, against rows [row, row + m) of x. */
static void multiply_int8_group(const aimo_gemm_args *g, const rounded_rows *x, size_t first_panel,
                                size_t panels, size_t row, size_t m)
{
    _Alignas(64) uint32_t laid_out[TILE_PANELS][LAID_OUT_UNITS];
    _Alignas(64) float outliers[AIMO_INT8_OUTLIERS][TILE_PANELS * PANEL_COLUMNS];
    _Alignas(64) float bias[TILE_PANELS * PANEL_COLUMNS] = {0};
    const size_t column = first_panel * PANEL_COLUMNS, all = panels * PANEL_COLUMNS;
    int8_tile t = {
        .x = x,
        .outliers = outliers[0],
        .outlier_count = aimo_int8_outlier_count(g->w->panels),
        .bias = bias,
        .activation = g->activation,
        .columns = g->w->n - column < all ? g->w->n - column : all,
        .y = g->y + row * g->ldy + column,
        .ldy = g->ldy,
        .next = (const char *)aimo_int8_panel_at(g->w->panels, g->w->k, first_panel).weights,
    };
    if (first_panel + panels < g->panel_end) {
        const size_t bytes = panels * aimo_int8_panel_bytes(g->w->k);
        t.next += bytes;
        t.next_step = bytes / ((m + TILE_ROWS - 1) / TILE_ROWS * x->ld) + 1;
    }
    if (g->bias != NULL)
        memcpy(bias, g->bias + column, t.columns * sizeof *bias);
    for (size_t p = 0; p < panels; p++) {
        t.panels[p] = aimo_int8_panel_at(g->w->panels, g->w->k, first_panel + p);
        t.weights[p] = lay_out(t.panels[p].weights, aimo_int8_groups(g->w->k), laid_out[p]);
        for (size_t o = 0; o < t.outlier_count; o++)
            for (size_t i = 0; i < PANEL_COLUMNS; i += VF32_LANES)
                v_store(outliers[o] + p * PANEL_COLUMNS + i,
                        v_load_f16(t.panels[p].outliers + o * PANEL_COLUMNS + i));
    }
    if (t.columns == TILE_PANELS * PANEL_COLUMNS)
        sum_rows(&t, m, TILE_PANELS * PANEL_VECTORS, true);
    else if (panels == TILE_PANELS)
        sum_rows(&t, m, TILE_PANELS * PANEL_VECTORS, false);
    else
        sum_rows(&t, m, PANEL_VECTORS, false);
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
