/* Matrix products with AMX tiles.
 *
 * A block of up to 256 rows of x is rounded once, tile by tile, and stays in L2; then each pair of
 * panels is read once for all of its rows, 32 x 32 sums at a time. k is taken in parts, so that the
 * pair stays in L1 meanwhile: whole steps of 16 units first, and what is left of k as a part of its
 * own, with tiles that are as narrow. Between parts the sums wait in y.
 *
 * How k is cut depends on k alone, so an element's sum does not depend on what it is computed
 * beside. TDPBF16PS adds up the even and the odd elements of a step apart, then both, then the sum
 * so far; it rounds to nearest even and takes subnormal numbers for zero, as VDPBF16PS does, which
 * however adds in another order: bf16 vectors of the amx and avx512_bf16 rows differ by rounding.
 * The sums of 8-bit integers are exact. */
#include "gemm/gemm_int8.h"
#include "gemm/gemm_kernels.h"
#include "simd/intrinsics.h"

#if AIMO_X86_64
AIMO_TARGET_BEGIN(
    "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,amx-tile,amx-int8,amx-bf16")
#include "simd/simd_avx512.h"

#include "simd/simd_tile.h"

#include "simd/simd_amx.h"

/* 16 steps of two panels take 32 KiB of L1's 48, and of 256 rows 256 KiB of L2's 2048. */
enum { BLOCK_ROWS = 256, PART_STEPS = 16 };

typedef struct {
    x_tile x[BLOCK_ROWS / TILE_SIDE * PART_STEPS]; /* [rows / 16][steps] of a part */
    float scale[BLOCK_ROWS];                       /* int8 only, as the rest */
    float outliers[BLOCK_ROWS][AIMO_INT8_OUTLIERS];
} rounded_block;

/* A part of k, in a block of rows. */
typedef struct {
    const aimo_gemm_args *g;
    tile_factors factors;
    const rounded_block *x;
    size_t row, m;            /* rows [row, row + m) of x and y */
    size_t first_step, steps; /* the part, in steps of 16 units */
    size_t units;             /* of a step: 16, or fewer in the last part */
    bool first, last;
} block_part;

static size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

/* Units of k in a row of x. */
static size_t row_units(const aimo_matrix *w)
{
    return w->dtype == AIMO_INT8 ? aimo_int8_groups(w->k) : (w->k + 1) / 2;
}

static const uint32_t *panel_units(const aimo_matrix *w, size_t panel)
{
    if (w->dtype == AIMO_INT8)
        return (const uint32_t *)(const void *)aimo_int8_panel_at(w->panels, w->k, panel).weights;
    return (const uint32_t *)w->panels + panel * row_units(w) * PANEL_COLUMNS;
}

/* ---- rounding of x ------------------------------------------------------------------------- */

/* The tile that has row r's first step. */
static x_tile *row_tile(rounded_block *out, const block_part *p, size_t r)
{
    return out->x + r / TILE_SIDE * p->steps;
}

/* One row's part, 32 elements a step; zeros behind an odd k. */
static void round_to_bf16(const block_part *p, size_t r, rounded_block *out)
{
    const size_t begin = p->first_step * 2 * TILE_SIDE;
    const float *x = p->g->x + (p->row + r) * p->g->ldx + begin;
    const size_t k = smaller(p->g->w->k - begin, p->steps * 2 * TILE_SIDE);
    for (size_t i = 0; i < k; i += VF32_LANES) {
        const vf32 values = v_load_part_or_full(x + i, smaller(k - i, VF32_LANES));
        x_tile *tile = row_tile(out, p, r) + i / (2 * TILE_SIDE);
        __m256i *to = (__m256i *)(void *)(*tile)[r % TILE_SIDE] + i / VF32_LANES % 2;
        _mm256_storeu_si256(to, (__m256i)_mm512_cvtneps_pbh(values));
    }
}

static void round_block(const block_part *p, rounded_block *out)
{
    for (size_t r = 0; r < p->m; r++)
        round_to_bf16(p, r, out);
}

/* ---- sums ---------------------------------------------------------------------------------- */

/* A block of sums, and where it belongs in y. */
typedef struct {
    tile_sums sums;
    float *y;
    size_t ldy, row, rows, panel, columns;
} sums_block;

/* y -> sums, or sums -> y, whatever the bits mean. */
static void move_sums(sums_block *b, bool to_y)
{
    for (size_t r = 0; r < b->rows; r++)
        for (size_t v = 0; v < TILE_BLOCK_PANELS; v++) {
            const size_t n = lanes_left(b->columns, v);
            float *sums = b->sums.f32[r / TILE_SIDE][v][r % TILE_SIDE];
            float *y = b->y + r * b->ldy + v * VF32_LANES;
            if (to_y)
                v_store_part(y, v_load(sums), n);
            else
                v_store(sums, v_load_part(y, n));
        }
}

/* y = activation(sums + bias) */
static void finish_f32(const block_part *p, const sums_block *b)
{
    for (size_t v = 0; v < TILE_BLOCK_PANELS; v++) {
        const size_t n = lanes_left(b->columns, v);
        if (n == 0)
            return;
        const float *from = p->g->bias;
        const vf32 bias = from != NULL
                              ? v_load_part(from + b->panel * PANEL_COLUMNS + v * VF32_LANES, n)
                              : v_zero();
        for (size_t r = 0; r < b->rows; r++) {
            const vf32 sum = v_add(v_load(b->sums.f32[r / TILE_SIDE][v][r % TILE_SIDE]), bias);
            v_store_part(b->y + r * b->ldy + v * VF32_LANES, activate(sum, p->g->activation), n);
        }
    }
}

/* Share `index` of `count` of the panels from `panel` on, on its way to L2 while those before them
 * are multiplied: a tile's load would wait for each of its lines, and one pass over a block takes
 * no longer than the weights' way from L3. */
static void prefetch_share(const block_part *p, size_t panel, size_t index, size_t count)
{
    const size_t end = smaller(panel + TILE_BLOCK_PANELS, p->g->panel_end);
    const size_t lines = p->steps * p->units, first_line = p->first_step * TILE_SIDE;
    for (; panel < end; panel++) {
        const uint32_t *at = panel_units(p->g->w, panel) + first_line * PANEL_COLUMNS;
        for (size_t line = lines * index / count; line < lines * (index + 1) / count; line++)
            _mm_prefetch((const char *)(at + line * PANEL_COLUMNS), _MM_HINT_T1);
    }
}

/* A pair of panels, or the last one alone, against all rows of the block. */
static void multiply_panels(const block_part *p, size_t panel, size_t panels)
{
    const aimo_matrix *w = p->g->w;
    const size_t column = panel * PANEL_COLUMNS, unit = p->first_step * TILE_SIDE * PANEL_COLUMNS;
    const size_t blocks = (p->m + TILE_BLOCK_ROWS - 1) / TILE_BLOCK_ROWS;
    tile_steps t = {.steps = p->steps, .units = p->units, .accumulate = !p->first};
    for (size_t i = 0; i < panels; i++)
        t.weights[i] = panel_units(w, panel + i) + unit;
    sums_block b = {
        .ldy = p->g->ldy,
        .panel = panel,
        .columns = smaller(w->n - column, panels * PANEL_COLUMNS),
    };
    for (size_t r = 0; r < p->m; r += TILE_BLOCK_ROWS) {
        const size_t row_tiles = p->m - r > TILE_SIDE ? 2 : 1;
        prefetch_share(p, panel + panels, r / TILE_BLOCK_ROWS, blocks);
        t.x[0] = p->x->x + r / TILE_SIDE * p->steps;
        t.x[1] = t.x[0] + p->steps;
        b.y = p->g->y + (p->row + r) * p->g->ldy + column;
        b.row = r;
        b.rows = smaller(p->m - r, TILE_BLOCK_ROWS);
        if (!p->first)
            move_sums(&b, false);
        tiles_multiply_any(&t, p->factors, row_tiles, panels, &b.sums);
        if (!p->last)
            move_sums(&b, true);
        else
            finish_f32(p, &b);
    }
}

/* ---- blocks and parts ---------------------------------------------------------------------- */

static void multiply_part(const block_part *p, rounded_block *x)
{
    const aimo_gemm_args *g = p->g;
    round_block(p, x);
    /* The last tiles of a longer block have rows that nobody wants: a configuration of their own,
     * for each pair of panels, takes some 200 cycles, more than they do. */
    tiles_configure(smaller(p->m, TILE_BLOCK_ROWS), p->units);
    for (size_t panel = g->panel_begin; panel < g->panel_end; panel += TILE_BLOCK_PANELS)
        multiply_panels(p, panel, smaller(g->panel_end - panel, TILE_BLOCK_PANELS));
}

/* Rows [row, row + m), one part of k after the other. */
static void multiply_block(const aimo_gemm_args *g, tile_factors factors, size_t row, size_t m)
{
    rounded_block x;
    const size_t units = row_units(g->w), whole = units / TILE_SIDE, left = units % TILE_SIDE;
    const size_t parts = (whole + PART_STEPS - 1) / PART_STEPS;
    block_part p = {.g = g, .factors = factors, .x = &x, .row = row, .m = m, .units = TILE_SIDE};
    for (size_t part = 0; part < parts; part++) {
        const size_t end = whole * (part + 1) / parts;
        p.steps = end - p.first_step;
        p.first = part == 0;
        p.last = end == whole && left == 0;
        multiply_part(&p, &x);
        p.first_step = end;
    }
    if (left == 0)
        return;
    p.steps = 1;
    p.units = left;
    p.first = parts == 0;
    p.last = true;
    multiply_part(&p, &x);
}

/* Blocks of nearly the same height; tiles are given back, so that a thread that sleeps or goes on
 * elsewhere has no 8 KiB of them to be saved. */
static void multiply(const aimo_gemm_args *g, tile_factors factors)
{
    const size_t blocks = (g->m + BLOCK_ROWS - 1) / BLOCK_ROWS;
    for (size_t block = 0; block < blocks; block++) {
        const size_t row = g->m * block / blocks;
        multiply_block(g, factors, row, g->m * (block + 1) / blocks - row);
    }
    _tile_release();
}

void aimo_gemm_f32_amx(const aimo_gemm_args *args) { aimo_gemm_f32_avx512(args); }

void aimo_gemm_f16_amx(const aimo_gemm_args *args) { aimo_gemm_f16_avx512(args); }

void aimo_gemm_bf16_amx(const aimo_gemm_args *args) { multiply(args, TILE_BF16); }

void aimo_gemm_int8_amx(const aimo_gemm_args *args) { aimo_gemm_int8_avx512_vnni(args); }

AIMO_TARGET_END
#endif
