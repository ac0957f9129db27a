/* Matrix products with AMX tiles.
 *
 * A block of up to 384 rows of x is rounded once, tile by tile, and stays in L2; then each pair of
 * panels is read once for all of its rows, 32 x 32 sums at a time. k is split into parts, so that
 * the pair stays in L1 meanwhile: first whole steps of 16 units, then the rest of k as a part of
 * its own, with correspondingly narrow tiles. Between parts the sums are kept in y.
 *
 * How k is split depends on k alone, so an element's sum does not depend on the rows and columns
 * computed beside it. TDPBF16PS adds the even and the odd elements of a step separately, then the
 * two sums, then the sum so far; it rounds to nearest even and treats subnormals as zero. VDPBF16PS
 * does the same but adds in another order, so bf16 vectors of the amx and avx512_bf16 rows of
 * kernels differ by rounding. The sums of 8-bit integers are exact. */
#include "gemm/gemm_int8.h"
#include "gemm/gemm_kernels.h"
#include "simd/intrinsics.h"

#if AIMO_X86_64
AIMO_TARGET_BEGIN(
    "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,amx-tile,amx-int8,amx-bf16")
#include "simd/simd_avx512.h"

#include "simd/simd_tile.h"

#include "gemm/gemm_int8_avx512.h"
#include "gemm/gemm_int8_rows.h"
#include "simd/simd_amx.h"

/* 16 steps of two panels take 32 KiB of L1's 48, and of 384 rows 384 KiB of L2's 2048. The
 * encoder's chunks are cut near 256 tokens: none of them should read the weights twice. */
enum { BLOCK_ROWS = 384, PART_STEPS = 16 };
enum {
    PAIR_COLUMNS = TILE_BLOCK_PANELS * PANEL_COLUMNS,
    FINISH_ROWS =
        8, /* rows that are finished at once: 16 sums hide the latency of a multiply-add */
};

typedef struct {
    x_tile x[BLOCK_ROWS / TILE_SIDE * PART_STEPS]; /* [rows / 16][steps] of a part */
    /* For int8, of whole rows: */
    aimo_int8_rounding rounding[BLOCK_ROWS];
    float outliers[BLOCK_ROWS][AIMO_INT8_OUTLIERS];
} rounded_block;

/* A part of k, in a block of rows. */
typedef struct {
    const aimo_gemm_args *g;
    const float *keep; /* [k], for int8: 0 for outlier channels, else 1 */
    rounded_block *x;
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

/* The place of element i of row r's part, when a step has `step_elements`. */
static char *rounded_at(const block_part *p, size_t r, size_t i, size_t step_elements)
{
    x_tile *tile = p->x->x + r / TILE_SIDE * p->steps + i / step_elements;
    return (char *)(*tile)[r % TILE_SIDE] + i % step_elements * TILE_LINE / step_elements;
}

/* Rounds one row's part; zeros after an odd k. */
static void round_to_bf16(const block_part *p, size_t r)
{
    enum { STEP = 2 * TILE_SIDE };
    const size_t begin = p->first_step * STEP, k = smaller(p->g->w->k - begin, p->steps * STEP);
    const float *x = p->g->x + (p->row + r) * p->g->ldx + begin;
    for (size_t i = 0; i < k; i += VF32_LANES) {
        const __m512 values = v_load_part_or_full(x + i, smaller(k - i, VF32_LANES));
        _mm256_storeu_si256((__m256i *)(void *)rounded_at(p, r, i, STEP),
                            (__m256i)_mm512_cvtneps_pbh(values));
    }
}

/* The same for 8 bits. The first part also determines the rounding and saves the outliers, whose
 * bytes may be anything because their weights are 0. */
static void round_to_int8(const block_part *p, size_t r)
{
    enum { STEP = AIMO_INT8_GROUP * TILE_SIDE };
    const aimo_matrix *w = p->g->w;
    const float *row = p->g->x + (p->row + r) * p->g->ldx;
    if (p->first) {
        p->x->rounding[r] = rounding_of(row, p->keep, w->k);
        aimo_int8_gather(w->panels, row, p->x->outliers[r]);
    }
    const size_t begin = p->first_step * STEP, k = smaller(w->k - begin, p->steps * STEP);
    const aimo_int8_rounding *rounding = &p->x->rounding[r];
    const float *x = row + begin;
    size_t i = 0;
    for (; i + STEP <= k; i += STEP)
        _mm512_storeu_si512(rounded_at(p, r, i, STEP), rounded_64(x + i, rounding));
    for (; i < k; i += VF32_LANES)
        _mm_storeu_si128((__m128i *)(void *)rounded_at(p, r, i, STEP),
                         rounded_part(x + i, smaller(k - i, VF32_LANES), rounding));
}

/* ---- sums ---------------------------------------------------------------------------------- */

/* The data of a pair of panels: full vectors, of which the first `columns` are used. */
typedef struct {
    size_t columns;
    float bias[PAIR_COLUMNS];
    /* For int8: */
    float scale[PAIR_COLUMNS], outliers[AIMO_INT8_OUTLIERS][PAIR_COLUMNS];
    int32_t negated_sum[PAIR_COLUMNS]; /* of the weights */
    size_t outlier_count;
} panel_pair;

/* A block of sums and its place in y. */
typedef struct {
    tile_sums sums;
    float *y;
    size_t ldy, row, rows; /* rows [row, row + rows) of the block of x */
} sums_block;

static panel_pair pair_at(const aimo_gemm_args *g, size_t panel, size_t panels)
{
    const size_t column = panel * PANEL_COLUMNS;
    panel_pair pair = {.columns = smaller(g->w->n - column, panels * PANEL_COLUMNS)};
    if (g->bias != NULL)
        memcpy(pair.bias, g->bias + column, pair.columns * sizeof *pair.bias);
    if (g->w->dtype != AIMO_INT8)
        return pair;
    pair.outlier_count = aimo_int8_outlier_count(g->w->panels);
    for (size_t i = 0; i < panels; i++) {
        const aimo_int8_panel from = aimo_int8_panel_at(g->w->panels, g->w->k, panel + i);
        memcpy(pair.scale + i * PANEL_COLUMNS, from.scale, PANEL_COLUMNS * sizeof *from.scale);
        for (size_t j = 0; j < PANEL_COLUMNS; j++)
            pair.negated_sum[i * PANEL_COLUMNS + j] = from.correction[j] / -AIMO_INT8_CORRECTION;
        for (size_t o = 0; o < pair.outlier_count; o++)
            v_store(pair.outliers[o] + i * PANEL_COLUMNS,
                    v_load_f16(from.outliers + o * PANEL_COLUMNS));
    }
    return pair;
}

/* y -> sums, or sums -> y, whatever the bits mean. */
static void move_sums(sums_block *b, size_t columns, bool to_y)
{
    for (size_t r = 0; r < b->rows; r++)
        for (size_t v = 0; v < TILE_BLOCK_PANELS; v++) {
            const size_t n = lanes_left(columns, v);
            float *sums = b->sums.f32[r / TILE_SIDE][v][r % TILE_SIDE];
            float *y = b->y + r * b->ldy + v * VF32_LANES;
            if (to_y)
                v_store_part(y, v_load(sums), n);
            else
                v_store(sums, v_load_part(y, n));
        }
}

/* y = sums + bias */
static void finish_f32(const panel_pair *pair, const sums_block *b)
{
    for (size_t r = 0; r < b->rows; r++)
        for (size_t v = 0; v * VF32_LANES < pair->columns; v++) {
            const vf32 sum = v_add(v_load(b->sums.f32[r / TILE_SIDE][v][r % TILE_SIDE]),
                                   v_load(pair->bias + v * VF32_LANES));
            v_store_part(b->y + r * b->ldy + v * VF32_LANES, sum, lanes_left(pair->columns, v));
        }
}

/* y = (sum + correction) * weights' scale * row's scale + bias + outliers @ their weights for
 * `rows` rows, a constant at every call; in the order of gemm_int8_body.h, whose bits these are. */
AIMO_INLINE void finish_int8_rows(const panel_pair *pair, const sums_block *b,
                                  const rounded_block *x, size_t first, const size_t rows)
{
    vf32 y[FINISH_ROWS][TILE_BLOCK_PANELS];
    AIMO_UNROLL
    for (size_t i = 0; i < rows; i++)
        AIMO_UNROLL
    for (size_t v = 0; v < TILE_BLOCK_PANELS; v++) {
        const size_t r = first + i;
        const int32_t *sums = b->sums.i32[r / TILE_SIDE][v][r % TILE_SIDE];
        const aimo_int8_rounding *rounding = &x->rounding[b->row + r];
        const __m512i correction =
            _mm512_mullo_epi32(_mm512_set1_epi32(rounding->zero),
                               _mm512_loadu_si512(pair->negated_sum + v * VF32_LANES));
        const __m512i sum = _mm512_add_epi32(_mm512_loadu_si512(sums), correction);
        const vf32 product = v_mul(_mm512_cvtepi32_ps(sum), v_load(pair->scale + v * VF32_LANES));
        y[i][v] = v_fma(product, v_set1(rounding->scale), v_load(pair->bias + v * VF32_LANES));
    }
    for (size_t o = 0; o < pair->outlier_count; o++) {
        AIMO_UNROLL
        for (size_t i = 0; i < rows; i++)
            AIMO_UNROLL
        for (size_t v = 0; v < TILE_BLOCK_PANELS; v++)
            y[i][v] = v_fma(v_set1(x->outliers[b->row + first + i][o]),
                            v_load(pair->outliers[o] + v * VF32_LANES), y[i][v]);
    }
    AIMO_UNROLL
    for (size_t i = 0; i < rows; i++)
        AIMO_UNROLL
    for (size_t v = 0; v < TILE_BLOCK_PANELS; v++)
        v_store_part(b->y + (first + i) * b->ldy + v * VF32_LANES, y[i][v],
                     lanes_left(pair->columns, v));
}

static void finish_int8(const panel_pair *pair, const sums_block *b, const rounded_block *x)
{
    size_t r = 0;
    for (; r + FINISH_ROWS <= b->rows; r += FINISH_ROWS)
        finish_int8_rows(pair, b, x, r, FINISH_ROWS);
    for (; r < b->rows; r++)
        finish_int8_rows(pair, b, x, r, 1);
}

/* ---- blocks and parts ---------------------------------------------------------------------- */

static void multiply_tiles(aimo_dtype dtype, const tile_steps *t, size_t row_tiles, size_t panels,
                           tile_sums *sums)
{
    if (dtype == AIMO_INT8)
        tiles_multiply_any(t, TILE_U8_S8, row_tiles, panels, sums);
    else
        tiles_multiply_any(t, TILE_BF16, row_tiles, panels, sums);
}

/* Prefetches share `index` of `count` of the panels from `panel` on into L2 while those before them
 * are multiplied: a tile load would wait for each of its lines, and one pass over a block takes no
 * longer than fetching the weights from L3. */
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

/* Multiplies a pair of panels, or the last one alone, with all rows of the block. */
static void multiply_panels(const block_part *p, size_t panel, size_t panels)
{
    const aimo_gemm_args *g = p->g;
    const panel_pair pair = pair_at(g, panel, panels);
    const size_t blocks = (p->m + TILE_BLOCK_ROWS - 1) / TILE_BLOCK_ROWS;
    tile_steps t = {.steps = p->steps, .units = p->units, .accumulate = !p->first};
    for (size_t i = 0; i < panels; i++)
        t.weights[i] = panel_units(g->w, panel + i) + p->first_step * TILE_SIDE * PANEL_COLUMNS;
    _Alignas(64) sums_block b = {.ldy = g->ldy};
    for (size_t block = 0; block < blocks; block++) {
        b.row = block * TILE_BLOCK_ROWS;
        b.rows = smaller(p->m - b.row, TILE_BLOCK_ROWS);
        b.y = g->y + (p->row + b.row) * g->ldy + panel * PANEL_COLUMNS;
        t.x[0] = p->x->x + b.row / TILE_SIDE * p->steps;
        t.x[1] = t.x[0] + p->steps;
        prefetch_share(p, panel + panels, block, blocks);
        if (!p->first)
            move_sums(&b, pair.columns, false);
        multiply_tiles(g->w->dtype, &t, b.rows > TILE_SIDE ? 2 : 1, panels, &b.sums);
        if (!p->last)
            move_sums(&b, pair.columns, true);
        else if (g->w->dtype == AIMO_INT8)
            finish_int8(&pair, &b, p->x);
        else
            finish_f32(&pair, &b);
        if (p->last)
            activate_rows(b.y, b.ldy, b.rows, pair.columns, g->activation);
    }
}

static void multiply_part(const block_part *p)
{
    const aimo_gemm_args *g = p->g;
    for (size_t r = 0; r < p->m; r++) {
        if (g->w->dtype == AIMO_INT8)
            round_to_int8(p, r);
        else
            round_to_bf16(p, r);
    }
    /* In a longer block the last tiles contain rows that are neither initialized nor used:
     * reconfiguring the tiles to leave them out would take some 200 cycles for each pair of panels,
     * more than computing them. */
    tiles_configure(smaller(p->m, TILE_BLOCK_ROWS), p->units);
    for (size_t panel = g->panel_begin; panel < g->panel_end; panel += TILE_BLOCK_PANELS)
        multiply_panels(p, panel, smaller(g->panel_end - panel, TILE_BLOCK_PANELS));
}

/* Computes rows [row, row + m), one part of k after another. */
static void multiply_block(const aimo_gemm_args *g, const float *keep, size_t row, size_t m)
{
    _Alignas(64) rounded_block x;
    const size_t units = row_units(g->w), whole = units / TILE_SIDE, left = units % TILE_SIDE;
    const size_t parts = (whole + PART_STEPS - 1) / PART_STEPS;
    block_part p = {.g = g, .keep = keep, .x = &x, .row = row, .m = m, .units = TILE_SIDE};
    for (size_t part = 0; part < parts; part++) {
        const size_t end = whole * (part + 1) / parts;
        p.steps = end - p.first_step;
        p.first = part == 0;
        p.last = end == whole && left == 0;
        multiply_part(&p);
        p.first_step = end;
    }
    if (left == 0)
        return;
    p.steps = 1;
    p.units = left;
    p.first = parts == 0;
    p.last = true;
    multiply_part(&p);
}

/* Blocks have nearly the same height. The tiles are released at the end, so that the system need
 * not save 8 KiB of them when it switches threads. */
static void multiply(const aimo_gemm_args *g, const float *keep)
{
    const size_t blocks = (g->m + BLOCK_ROWS - 1) / BLOCK_ROWS;
    for (size_t block = 0; block < blocks; block++) {
        const size_t row = g->m * block / blocks;
        multiply_block(g, keep, row, g->m * (block + 1) / blocks - row);
    }
    _tile_release();
}

void aimo_gemm_f32_amx(const aimo_gemm_args *args) { aimo_gemm_f32_avx512(args); }

void aimo_gemm_f16_amx(const aimo_gemm_args *args) { aimo_gemm_f16_avx512(args); }

void aimo_gemm_bf16_amx(const aimo_gemm_args *args) { multiply(args, NULL); }

void aimo_gemm_int8_amx(const aimo_gemm_args *args)
{
    float keep[AIMO_INT8_K_LIMIT];
    aimo_int8_keep(args->w->panels, args->w->k, keep);
    multiply(args, keep);
}

AIMO_TARGET_END
#endif
