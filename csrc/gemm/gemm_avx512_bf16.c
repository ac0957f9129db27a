/* Matrix products with VDPBF16PS: two products per lane and step, twice the rate of f32.
 *
 * The rows of x are rounded to bf16 once per block; then a 12 x 32 tile of f32 sums runs over the
 * packed pairs of weights in place, without widening anything. */
#include "gemm/gemm_kernels.h"
#include "simd/intrinsics.h"

#if AIMO_X86_64
AIMO_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")
#include "simd/simd_avx512.h"

#include "simd/simd_tile.h"

/* The length of a part of k; between parts the sums go through memory. Two panels of weights take
 * 96 KiB and are read from L2 at a fifth of its bandwidth. MC rounded rows of x take 288 KiB of
 * L2. */
enum { KC = 1536, MC = 96 };

/* x [m, k] f32 -> pairs [m][ceil(k / 2)], with a zero after an odd k. */
static void round_rows(const float *x, size_t ldx, size_t m, size_t k, uint32_t *pairs, size_t ld)
{
    for (size_t r = 0; r < m; r++) {
        const float *from = x + r * ldx;
        uint16_t *to = (uint16_t *)(pairs + r * ld);
        size_t i = 0;
        for (; i + VF32_LANES <= 2 * ld && i + VF32_LANES <= k; i += VF32_LANES)
            _mm256_storeu_si256((__m256i *)(to + i), (__m256i)_mm512_cvtneps_pbh(v_load(from + i)));
        for (; i < 2 * ld; i += VF32_LANES) {
            const size_t left = k - i < VF32_LANES ? k - i : VF32_LANES, room = 2 * ld - i;
            _mm256_mask_storeu_epi16(to + i, lane_mask(room < VF32_LANES ? room : VF32_LANES),
                                     (__m256i)_mm512_cvtneps_pbh(v_load_part(from + i, left)));
        }
    }
}

typedef struct {
    const uint32_t *x; /* [m][ld] pairs */
    size_t ld, pairs;
    const uint32_t *panels; /* [pairs][16]; panels are panel_stride apart */
    size_t panel_stride;
    /* The weights that are multiplied next, as in gemm_int8_body.h. */
    const char *next;
    size_t next_step;
    size_t columns;
    float *y;
    size_t ldy;
    bool accumulate;
    const float *bias;          /* NULL until the last part, or where there is none */
    aimo_activation activation; /* AIMO_ACT_NONE until the last part */
} pair_tile;

/* Panel `p` of a row of `columns`; full when all of them are there. */
AIMO_INLINE vf32 load_columns(const float *row, size_t columns, size_t p, const bool full)
{
    const float *at = row + p * VF32_LANES;
    return full ? v_load(at) : v_load_part(at, lanes_left(columns, p));
}

/* y = activation([y +] x @ panels [+ bias]) for `rows` rows and `panels` panels; they and `full`,
 * whether all columns are there, are constants at every call. */
AIMO_INLINE void multiply_tile(const pair_tile *t, size_t row, const size_t rows,
                               const size_t panels, const bool full)
{
    const uint32_t *x = t->x + row * t->ld;
    float *y = t->y + row * t->ldy;
    vf32 sums[TILE_ROWS][TILE_PANELS];
    AIMO_UNROLL
    for (size_t r = 0; r < rows; r++)
        AIMO_UNROLL
    for (size_t p = 0; p < panels; p++)
        sums[r][p] = t->accumulate ? load_columns(y + r * t->ldy, t->columns, p, full) : v_zero();
    const uint32_t *x_rows[(TILE_ROWS + 2) / 3]; /* every third row of the tile */
    AIMO_UNROLL
    for (size_t r = 0; r < rows; r += 3)
        x_rows[r / 3] = x + r * t->ld;
    const char *next = t->next + row / TILE_ROWS * t->pairs * t->next_step;
    for (size_t k = 0; k < t->pairs; k++) {
        __builtin_prefetch(next + k * t->next_step, 0, 2);
        size_t ld = t->ld;
        AIMO_OPAQUE(ld);
        __m512bh w[TILE_PANELS];
        AIMO_UNROLL
        for (size_t p = 0; p < panels; p++)
            w[p] =
                (__m512bh)_mm512_loadu_si512(t->panels + p * t->panel_stride + k * PANEL_COLUMNS);
        AIMO_UNROLL
        for (size_t r = 0; r < rows; r++) {
            const __m512bh a = (__m512bh)_mm512_set1_epi32((int)x_rows[r / 3][r % 3 * ld]);
            AIMO_UNROLL
            for (size_t p = 0; p < panels; p++)
                sums[r][p] = _mm512_dpbf16_ps(sums[r][p], a, w[p]);
        }
        AIMO_UNROLL
        for (size_t r = 0; r < rows; r += 3)
            x_rows[r / 3]++;
    }
    AIMO_UNROLL
    for (size_t p = 0; p < panels; p++) {
        const vf32 bias = t->bias != NULL ? load_columns(t->bias, t->columns, p, full) : v_zero();
        AIMO_UNROLL
        for (size_t r = 0; r < rows; r++) {
            const vf32 sum = t->bias != NULL ? v_add(sums[r][p], bias) : sums[r][p];
            if (full)
                v_store(y + r * t->ldy + p * VF32_LANES, sum);
            else
                v_store_part(y + r * t->ldy + p * VF32_LANES, sum, lanes_left(t->columns, p));
        }
    }
    if (t->activation != AIMO_ACT_NONE)
        activate_rows(y, t->ldy, rows, t->columns, t->activation);
}

/* Rows left over after the whole tiles go in fours, twos and ones. */
AIMO_INLINE void multiply_rows(const pair_tile *t, size_t m, const size_t panels, const bool full)
{
    size_t row = 0;
    for (; row + TILE_ROWS <= m; row += TILE_ROWS)
        multiply_tile(t, row, TILE_ROWS, panels, full);
    for (; row + 4 <= m; row += 4)
        multiply_tile(t, row, 4, panels, full);
    for (; row + 2 <= m; row += 2)
        multiply_tile(t, row, 2, panels, full);
    for (; row < m; row++)
        multiply_tile(t, row, 1, panels, full);
}

/* Computes rows [row, row + m) of y, one part of k after another. */
static void multiply_block(const aimo_gemm_args *g, size_t row, size_t m)
{
    _Alignas(64) uint32_t x[MC * KC / 2];
    const size_t all_pairs = (g->w->k + 1) / 2, parts = (all_pairs + KC / 2 - 1) / (KC / 2);
    const size_t share = (all_pairs + parts - 1) / parts;
    for (size_t first = 0; first < all_pairs; first += share) {
        const size_t pairs = all_pairs - first < share ? all_pairs - first : share;
        const bool last = first + pairs == all_pairs;
        round_rows(g->x + row * g->ldx + 2 * first, g->ldx, m, g->w->k - 2 * first, x, pairs);
        for (size_t panel = g->panel_begin; panel < g->panel_end; panel += TILE_PANELS) {
            const size_t panels = g->panel_end - panel < TILE_PANELS ? 1 : TILE_PANELS;
            const size_t column = panel * PANEL_COLUMNS, wide = panels * PANEL_COLUMNS;
            pair_tile t = {
                .x = x,
                .ld = pairs,
                .pairs = pairs,
                .panels =
                    (const uint32_t *)g->w->panels + (panel * all_pairs + first) * PANEL_COLUMNS,
                .panel_stride = all_pairs * PANEL_COLUMNS,
                .columns = g->w->n - column < wide ? g->w->n - column : wide,
                .y = g->y + row * g->ldy + column,
                .ldy = g->ldy,
                .accumulate = first != 0,
                .bias = last && g->bias != NULL ? g->bias + column : NULL,
                .activation = last ? g->activation : AIMO_ACT_NONE,
            };
            t.next = (const char *)t.panels;
            if (panel + panels < g->panel_end) {
                t.next += panels * all_pairs * PANEL_COLUMNS * sizeof *t.panels;
                t.next_step =
                    panels * PANEL_COLUMNS * sizeof *t.panels / ((m + TILE_ROWS - 1) / TILE_ROWS) +
                    1;
            }
            if (t.columns == TILE_PANELS * PANEL_COLUMNS)
                multiply_rows(&t, m, TILE_PANELS, true);
            else if (panels == TILE_PANELS)
                multiply_rows(&t, m, TILE_PANELS, false);
            else
                multiply_rows(&t, m, 1, false);
        }
    }
}

void aimo_gemm_f32_avx512_bf16(const aimo_gemm_args *args) { aimo_gemm_f32_avx512(args); }

void aimo_gemm_f16_avx512_bf16(const aimo_gemm_args *args) { aimo_gemm_f16_avx512(args); }

void aimo_gemm_int8_avx512_bf16(const aimo_gemm_args *args) { aimo_gemm_int8_avx512_vnni(args); }

void aimo_gemm_bf16_avx512_bf16(const aimo_gemm_args *g)
{
    for (size_t row = 0; row < g->m; row += MC)
        multiply_block(g, row, g->m - row < MC ? g->m - row : MC);
}

AIMO_TARGET_END
#endif
