/* Similarity with AMX: many queries screen at once. A block of heads, its codes widened to bytes,
 * is one tile, and sixteen queries are another, so one instruction multiplies 64 directions of 16
 * rows with 16 queries. The sums are exact integers, so small groups of queries, which would leave
 * most of a tile empty, can go to VNNI with bit-identical results. */
#include "similarity/similarity_kernels.h"

#include "simd/intrinsics.h"

#include <stdbool.h>

#if AIMO_X86_64
float aimo_dot_f16_amx(const float *q, const uint16_t *x, size_t n)
{
    return aimo_dot_f16_avx512(q, x, n);
}

float aimo_dot_i8_amx(const float *q, const int8_t *x, size_t n)
{
    return aimo_dot_i8_avx512(q, x, n);
}

double aimo_dot_f16_f64_amx(const float *q, const uint16_t *x, size_t n)
{
    return aimo_dot_f16_f64_avx512(q, x, n);
}

double aimo_dot_i8_f64_amx(const float *q, const int8_t *x, size_t n)
{
    return aimo_dot_i8_f64_avx512(q, x, n);
}

void aimo_project_amx(const float *p, size_t k, const float *x, size_t n, float *out)
{
    aimo_project_avx512(p, k, x, n, out);
}

size_t aimo_refine_amx(const aimo_tail *tails, const int16_t *dots, const aimo_tail_query *query,
                       uint16_t *candidates, size_t count)
{
    return aimo_refine_avx2(tails, dots, query, candidates, count);
}

AIMO_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,amx-tile,amx-int8,amx-bf16")
#include "similarity/similarity_finish_avx512.h"
#include "simd/simd_amx.h"

enum {
    LEAST_QUERIES = 8, /* queries that are worth a tile */
    MOST_STEPS = 8,    /* of queries */
    MOST_GROUPS = 32,  /* of rows: 128 directions */
};

/* Codes of up to 16 queries, in steps of `units` groups. */
typedef struct {
    x_tile tiles[MOST_STEPS];
    size_t steps, units;
} query_tiles;

/* As few steps as possible, all of the same width; 0 when the groups cannot be split that way. */
static size_t steps_of(size_t groups)
{
    size_t steps = (groups + TILE_SIDE - 1) / TILE_SIDE;
    while (steps <= MOST_STEPS && groups % steps != 0)
        steps++;
    return steps <= MOST_STEPS ? steps : 0;
}

static void lay_out(const aimo_head_query *queries, size_t count, query_tiles *out)
{
    const size_t step_bytes = out->units * AIMO_HEAD_GROUP;
    for (size_t step = 0; step < out->steps; step++)
        for (size_t j = 0; j < count; j++)
            memcpy(out->tiles[step][j], queries[j].codes + step * step_bytes, step_bytes);
}

/* The dots and masks of one query for `blocks` blocks, 1 or 2, whose sums begin at the first
 * one's. */
static inline void finish_blocks(const int32_t *first, const int32_t *second, const uint16_t *rests,
                                 const aimo_head_query *query, const size_t blocks, int16_t *dots,
                                 uint16_t *masks)
{
    const __mmask32 lanes = blocks == 2 ? 0xffffffff : 0xffff;
    const __m256i low = _mm512_cvtepi32_epi16(_mm512_loadu_si512(first));
    const __m256i high = _mm512_cvtepi32_epi16(_mm512_loadu_si512(second));
    __m512i dot = _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
    const uint32_t mask = finish_rows(&dot, _mm512_maskz_loadu_epi16(lanes, rests), query);
    _mm512_mask_storeu_epi16(dots, lanes, dot);
    memcpy(masks, &mask, blocks * sizeof *masks);
}

/* to [lines, 2, 64] = the codes of a block, one byte each. */
static inline void widen_block(const uint8_t *codes, size_t lines, uint32_t *to)
{
    for (size_t l = 0; l < lines; l++, to += 2 * TILE_SIDE) {
        const __m512i line = _mm512_loadu_si512(codes + l * TILE_LINE);
        _mm512_storeu_si512(to, low_codes(line));
        _mm512_storeu_si512(to + TILE_SIDE, high_codes(line));
    }
}

/* Up to 16 queries; the tiles must be configured for that number. */
static void screen_some(const aimo_heads *heads, const aimo_head_query *queries, size_t count,
                        const query_tiles *x, int16_t *dots, uint16_t *masks)
{
    const size_t block_bytes = heads->lines * TILE_LINE;
    _Alignas(64) tile_sums sums;
    _Alignas(64) uint32_t wide[2][MOST_GROUPS * TILE_SIDE];
    const tile_steps t = {
        .x = {x->tiles}, .weights = {wide[0], wide[1]}, .steps = x->steps, .units = x->units};
    for (size_t b = 0; b < heads->blocks; b += TILE_BLOCK_PANELS) {
        const size_t blocks = heads->blocks - b < 2 ? 1 : 2;
        const uint16_t *rests = heads->rests + b * AIMO_HEAD_BLOCK;
        for (size_t i = 0; i < blocks; i++)
            widen_block(heads->codes + (b + i) * block_bytes, heads->lines, wide[i]);
        tiles_multiply_any(&t, TILE_S8_U8, 1, blocks, &sums);
        for (size_t j = 0; j < count; j++) {
            const size_t at = j * heads->blocks + b;
            const int32_t *first = sums.i32[0][0][j], *second = sums.i32[0][blocks - 1][j];
            finish_blocks(first, second, rests, &queries[j], blocks, dots + at * AIMO_HEAD_BLOCK,
                          masks + at);
        }
    }
}

void aimo_screen_amx(const aimo_heads *heads, const aimo_head_query *queries, size_t query_count,
                     int16_t *dots, uint16_t *masks)
{
    const size_t groups = 2 * heads->lines;
    query_tiles x = {.steps = groups <= MOST_GROUPS ? steps_of(groups) : 0};
    x.units = x.steps != 0 ? groups / x.steps : 0;
    size_t first = 0, count;
    for (; x.steps != 0 && query_count - first >= LEAST_QUERIES; first += count) {
        count = query_count - first < TILE_SIDE ? query_count - first : TILE_SIDE;
        lay_out(queries + first, count, &x);
        tiles_configure(count, x.units);
        screen_some(heads, queries + first, count, &x,
                    dots + first * heads->blocks * AIMO_HEAD_BLOCK, masks + first * heads->blocks);
    }
    if (first != 0)
        _tile_release();
    if (first < query_count)
        aimo_screen_avx512_vnni(heads, queries + first, query_count - first,
                                dots + first * heads->blocks * AIMO_HEAD_BLOCK,
                                masks + first * heads->blocks);
}

AIMO_TARGET_END
#endif
