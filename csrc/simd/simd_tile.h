/* The register tile: the one inner loop of matrix products, for weights and for attention.
 *
 * Weights are in panels of 16 columns, [k][16]: one step of k is one cache line, and a panel is
 * read sequentially. A tile keeps the sums of TILE_ROWS rows x TILE_PANELS panels in registers over
 * its part of k; each sum adds its products in the order of k, whatever the tile's shape, so an
 * element of the result never depends on the elements computed beside it. Include after a
 * simd_<isa>.h. */
#ifndef AIMO_SIMD_TILE_H
#define AIMO_SIMD_TILE_H

#include "simd/simd_math.h"
#include "simd/simd_rows.h"

enum { PANEL_COLUMNS = 16, PANEL_VECTORS = PANEL_COLUMNS / VF32_LANES };

/* y = [y +] x @ panels, [m, columns]; then + bias, then the activation. */
typedef struct {
    const float *x; /* element (r, k) at r * ldx + k * x_step */
    size_t ldx;
    const float *panels; /* panel i at panels + i * panel_stride, its row k at k * panel_step */
    size_t panel_stride;
    size_t m, k, columns; /* columns <= 16 * TILE_PANELS */
    float *y;             /* [m, ldy] */
    size_t ldy;
    bool accumulate;            /* start from y instead of zero */
    const float *bias;          /* [columns], or NULL */
    aimo_activation activation; /* AIMO_ACT_NONE until the last part of k */
} tile_args;

AIMO_INLINE vf32 activate(vf32 x, aimo_activation activation)
{
    switch (activation) {
    case AIMO_ACT_NONE:
        return x;
    case AIMO_ACT_GELU:
        return v_gelu(x);
    case AIMO_ACT_GELU_TANH: { /* 0.5 x (1 + tanh u) = x sigmoid(2u), u = sqrt(2/pi) (x + 0.044715
                                  x^3) */
        const vf32 cubic = v_fma(v_mul(x, x), v_set1(0.044715f), v_set1(1.0f));
        return v_mul(x, v_sigmoid(v_mul(v_mul(x, v_set1(1.5957691f)), cubic)));
    }
    case AIMO_ACT_QUICK_GELU:
        return v_mul(x, v_sigmoid(v_mul(x, v_set1(1.702f))));
    case AIMO_ACT_RELU:
        return v_max(v_zero(), x);
    case AIMO_ACT_SILU:
        return v_mul(x, v_sigmoid(x));
    case AIMO_ACT_TANH: /* 2 sigmoid(2x) - 1 */
        return v_fma(v_set1(2.0f), v_sigmoid(v_add(x, x)), v_set1(-1.0f));
    }
    return x;
}

/* How many of a vector's lanes are below `columns`. */
AIMO_INLINE size_t lanes_left(size_t columns, size_t vector)
{
    const size_t begin = vector * VF32_LANES;
    if (columns <= begin)
        return 0;
    return columns - begin < VF32_LANES ? columns - begin : VF32_LANES;
}

/* `activation` is a constant at every call, so that its coefficients stay in registers. */
AIMO_INLINE void activate_rows_with(float *y, size_t ldy, size_t m, size_t columns,
                                    const aimo_activation activation)
{
    for (size_t r = 0; r < m; r++) {
        float *row = y + r * ldy;
        V_FOR_EACH(i, lanes, columns)
        v_store_part_or_full(row + i, activate(v_load_part_or_full(row + i, lanes), activation),
                             lanes);
    }
}

/* Works in place, while the tile is still in the L1 cache; inside the tile it would be inlined for
 * every register. */
static void activate_rows(float *y, size_t ldy, size_t m, size_t columns,
                          aimo_activation activation)
{
#define ACTIVATE(one)                                                                              \
    case one:                                                                                      \
        activate_rows_with(y, ldy, m, columns, one);                                               \
        return;
    switch (activation) {
    case AIMO_ACT_NONE:
        return;
        ACTIVATE(AIMO_ACT_GELU)
        ACTIVATE(AIMO_ACT_GELU_TANH)
        ACTIVATE(AIMO_ACT_QUICK_GELU)
        ACTIVATE(AIMO_ACT_RELU)
        ACTIVATE(AIMO_ACT_SILU)
        ACTIVATE(AIMO_ACT_TANH)
    }
#undef ACTIVATE
}

/* `rows`, `vectors` and, except in attention, the steps are constants at every call, so that the
 * sums stay in registers and addresses are folded. */
AIMO_INLINE void tile(const tile_args *t, size_t row, const size_t rows, const size_t vectors,
                      const size_t x_step, const size_t panel_step)
{
    const float *x = t->x + row * t->ldx;
    float *y = t->y + row * t->ldy;
    const bool full = t->columns == vectors * VF32_LANES;
    vf32 sums[TILE_ROWS][TILE_PANELS * PANEL_VECTORS];

    AIMO_UNROLL
    for (size_t r = 0; r < rows; r++)
        AIMO_UNROLL
    for (size_t v = 0; v < vectors; v++) {
        const float *from = y + r * t->ldy + v * VF32_LANES;
        if (!t->accumulate)
            sums[r][v] = v_zero();
        else
            sums[r][v] = full ? v_load(from) : v_load_part(from, lanes_left(t->columns, v));
    }

    const float *weights[TILE_PANELS];
    AIMO_UNROLL
    for (size_t p = 0; p < TILE_PANELS; p++)
        weights[p] = t->panels + p * t->panel_stride;
    const float *x_rows[(TILE_ROWS + 2) / 3]; /* every third row of the tile */
    AIMO_UNROLL
    for (size_t r = 0; r < rows; r += 3)
        x_rows[r / 3] = x + r * t->ldx;
    for (size_t k = 0; k < t->k; k++) {
        size_t ldx = t->ldx;
        AIMO_OPAQUE(ldx);
        vf32 w[TILE_PANELS * PANEL_VECTORS];
        AIMO_UNROLL
        for (size_t v = 0; v < vectors; v++)
            w[v] = v_load(weights[v / PANEL_VECTORS] + k * panel_step +
                          v % PANEL_VECTORS * VF32_LANES);
        AIMO_UNROLL
        for (size_t r = 0; r < rows; r++) {
            const vf32 a = v_set1(x_rows[r / 3][r % 3 * ldx]);
            AIMO_UNROLL
            for (size_t v = 0; v < vectors; v++)
                sums[r][v] = v_fma(a, w[v], sums[r][v]);
        }
        AIMO_UNROLL
        for (size_t r = 0; r < rows; r += 3)
            x_rows[r / 3] += x_step;
    }

    AIMO_UNROLL
    for (size_t v = 0; v < vectors; v++) {
        const size_t n = lanes_left(t->columns, v);
        vf32 bias = v_zero();
        if (t->bias != NULL)
            bias =
                full ? v_load(t->bias + v * VF32_LANES) : v_load_part(t->bias + v * VF32_LANES, n);
        AIMO_UNROLL
        for (size_t r = 0; r < rows; r++) {
            float *to = y + r * t->ldy + v * VF32_LANES;
            const vf32 sum = t->bias != NULL ? v_add(sums[r][v], bias) : sums[r][v];
            if (full)
                v_store(to, sum);
            else
                v_store_part(to, sum, n);
        }
    }
    if (t->activation != AIMO_ACT_NONE)
        activate_rows(y, t->ldy, rows, t->columns, t->activation);
}

/* All m rows. Rows left over after the whole tiles go in fours, twos and ones: a tile of one row
 * waits for its sums and takes as long as one of four. */
AIMO_INLINE void run_tiles(const tile_args *t, const size_t vectors, const size_t x_step,
                           const size_t panel_step)
{
    size_t row = 0;
    for (; row + TILE_ROWS <= t->m; row += TILE_ROWS)
        tile(t, row, TILE_ROWS, vectors, x_step, panel_step);
    for (; TILE_ROWS > 4 && row + 4 <= t->m; row += 4)
        tile(t, row, 4, vectors, x_step, panel_step);
    for (; TILE_ROWS > 2 && row + 2 <= t->m; row += 2)
        tile(t, row, 2, vectors, x_step, panel_step);
    for (; row < t->m; row++)
        tile(t, row, 1, vectors, x_step, panel_step);
}

#endif
