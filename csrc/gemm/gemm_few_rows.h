/* Products with 1 to 4 rows of x, as for a single short input: weights are widened as they are
 * multiplied, not into a buffer that so few rows would hardly reuse.
 *
 * Each sum takes the same steps in the same order as in the register tile, so a row's result has
 * the same bits as among many other rows. Include after a simd_<isa>.h. */
#ifndef AIMO_GEMM_FEW_ROWS_H
#define AIMO_GEMM_FEW_ROWS_H

#include "simd/simd_tile.h"

/* FEW_SUMS registers of sums keep the multipliers busy and leave room for the operands; one panel
 * needs at least PANEL_VECTORS of them for each row. */
enum { FEW_ROWS = 4, FEW_SUMS = PANEL_VECTORS > 8 ? PANEL_VECTORS : 8 };

/* VF32_LANES weights of one panel at step k, from vector v on. bf16 is stored in pairs along k;
 * `odd` is k % 2 and a constant at every call. */
AIMO_INLINE vf32 widened_weights(const void *panel, const aimo_dtype dtype, size_t k,
                                 const size_t odd, size_t v)
{
    const size_t at = k * PANEL_COLUMNS + v * VF32_LANES;
    if (dtype == AIMO_F32)
        return v_load((const float *)panel + at);
    if (dtype == AIMO_F16)
        return v_load_f16((const uint16_t *)panel + at);
    const uint16_t *pairs =
        (const uint16_t *)panel + (k - odd) * PANEL_COLUMNS + 2 * v * VF32_LANES;
    return odd ? v_load_bf16_odd(pairs) : v_load_bf16_even(pairs);
}

typedef struct {
    const aimo_gemm_args *g;
    const char *panels; /* the first of the group; panels are panel_bytes apart */
    size_t panel_bytes;
    const float *x; /* the first of the rows */
    float *y;       /* and of its columns */
    const float *bias;
    size_t columns;
} few_rows;

AIMO_INLINE void add_products(const few_rows *f, const aimo_dtype dtype, const size_t rows,
                              const size_t vectors, size_t k, const size_t odd,
                              vf32 sums[FEW_ROWS][FEW_SUMS])
{
    vf32 x[FEW_ROWS];
    AIMO_UNROLL
    for (size_t r = 0; r < rows; r++)
        x[r] = v_set1(f->x[r * f->g->ldx + k]);
    AIMO_UNROLL
    for (size_t v = 0; v < vectors; v++) {
        const char *panel = f->panels + v / PANEL_VECTORS * f->panel_bytes;
        const vf32 w = widened_weights(panel, dtype, k, odd, v % PANEL_VECTORS);
        AIMO_UNROLL
        for (size_t r = 0; r < rows; r++)
            sums[r][v] = v_fma(x[r], w, sums[r][v]);
    }
}

/* `dtype`, `rows` and `panels` are constants at every call. */
AIMO_INLINE void multiply_few(const few_rows *f, const aimo_dtype dtype, const size_t rows,
                              const size_t panels)
{
    const size_t vectors = panels * PANEL_VECTORS, k_end = f->g->w->k;
    vf32 sums[FEW_ROWS][FEW_SUMS];
    AIMO_UNROLL
    for (size_t r = 0; r < rows; r++)
        AIMO_UNROLL
    for (size_t v = 0; v < vectors; v++)
        sums[r][v] = v_zero();
    size_t k = 0;
    for (; k + 2 <= k_end; k += 2) {
        add_products(f, dtype, rows, vectors, k, 0, sums);
        add_products(f, dtype, rows, vectors, k + 1, 1, sums);
    }
    if (k < k_end)
        add_products(f, dtype, rows, vectors, k, 0, sums);
    AIMO_UNROLL
    for (size_t v = 0; v < vectors; v++) {
        const size_t n = lanes_left(f->columns, v);
        const vf32 bias = f->bias != NULL ? v_load_part(f->bias + v * VF32_LANES, n) : v_zero();
        AIMO_UNROLL
        for (size_t r = 0; r < rows; r++)
            v_store_part(f->y + r * f->g->ldy + v * VF32_LANES,
                         f->bias != NULL ? v_add(sums[r][v], bias) : sums[r][v], n);
    }
    if (f->g->activation != AIMO_ACT_NONE)
        activate_rows(f->y, f->g->ldy, rows, f->columns, f->g->activation);
}

/* All whole groups of `panels` from `panel` on; returns the panel after them. */
AIMO_INLINE size_t multiply_few_groups(const aimo_gemm_args *g, const aimo_dtype dtype,
                                       const size_t rows, const size_t panels, size_t panel)
{
    const size_t k = g->w->k, padded = dtype == AIMO_BF16 ? k + k % 2 : k;
    few_rows f = {
        .g = g,
        .panel_bytes = padded * PANEL_COLUMNS * (dtype == AIMO_F32 ? 4 : 2),
        .x = g->x,
    };
    for (; panel + panels <= g->panel_end; panel += panels) {
        const size_t column = panel * PANEL_COLUMNS, left = g->w->n - column;
        f.panels = (const char *)g->w->panels + panel * f.panel_bytes;
        f.y = g->y + column;
        f.bias = g->bias != NULL ? g->bias + column : NULL;
        f.columns = left < panels * PANEL_COLUMNS ? left : panels * PANEL_COLUMNS;
        multiply_few(&f, dtype, rows, panels);
    }
    return panel;
}

AIMO_INLINE void multiply_few_rows(const aimo_gemm_args *g, const aimo_dtype dtype,
                                   const size_t rows)
{
    const size_t most = FEW_SUMS / (rows * PANEL_VECTORS), wide = most > 0 ? most : 1;
    size_t panel = multiply_few_groups(g, dtype, rows, wide, g->panel_begin);
    if (wide > 2)
        panel = multiply_few_groups(g, dtype, rows, 2, panel);
    multiply_few_groups(g, dtype, rows, 1, panel);
}

/* The whole product of the panels that `g` names; 1 to FEW_ROWS rows. */
AIMO_INLINE void gemm_few_rows(const aimo_gemm_args *g, const aimo_dtype dtype)
{
    switch (g->m) {
    case 1:
        multiply_few_rows(g, dtype, 1);
        break;
    case 2:
        multiply_few_rows(g, dtype, 2);
        break;
    case 3:
        multiply_few_rows(g, dtype, 3);
        break;
    default:
        multiply_few_rows(g, dtype, 4);
    }
}

#endif
