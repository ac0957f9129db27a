/* The encoder's operations with AMX: where the products with weights round to 16 or 8 bits,
 * attention multiplies bf16 tiles. Everything else is elementwise and as with AVX-512.
 *
 * As in attention_body.h, queries are laid out across the lanes, scores come out as
 * [keys][queries], and keys are processed in blocks with a running maximum and sum. Rounded keys
 * and transposed values are tiles of rows; transposed queries and the probabilities, two keys at a
 * time, are panels. So neither scores nor probabilities are ever transposed, only the result is.
 * Keys and values are converted to tiles once for up to 128 queries. How a sequence is split
 * depends on its length alone. */
#include "backend/cpu/cpu_kernels.h"
#include "simd/intrinsics.h"

#include <math.h>

#if AIMO_X86_64
AIMO_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,amx-tile,amx-int8,amx-bf16")
#include "simd/simd_avx512.h"

#include "backend/cpu/attention_head.h"
#include "simd/simd_amx.h"
#include "simd/simd_math.h"
#include "simd/simd_rows.h"

/* The most queries, keys and dimensions that are held in tiles at once; a step is 32 elements of
 * k. */
enum { QUERIES = 128, KEYS = 128, DIMS = 128, STEP = 2 * TILE_SIDE };

/* 16 x 16 words of 32 bits. */
typedef uint32_t words[TILE_SIDE][TILE_SIDE];

typedef struct {
    attention_head head;
    size_t dim_steps;
    size_t first_query, queries; /* queries [first_query, first_query + queries) */
    size_t first_key, keys;      /* the block of keys; `keys` of them */
    _Alignas(64) x_tile k[KEYS / TILE_SIDE * DIMS / STEP];  /* [keys / 16][dim steps] */
    x_tile v[DIMS / TILE_SIDE * KEYS / STEP];               /* [dims / 16][key steps], transposed */
    words q[QUERIES / TILE_SIDE * DIMS / STEP];             /* [queries / 16][dim steps] */
    words p[TILE_BLOCK_PANELS * KEYS / STEP];               /* [panels][key steps] */
    tile_sums scores[KEYS / TILE_BLOCK_ROWS];               /* [keys / 32] */
    tile_sums out[QUERIES / TILE_BLOCK_ROWS * DIMS / STEP]; /* [queries / 32][dim steps] */
    float maximum[QUERIES], sum[QUERIES];
} attention_tiles;

static size_t parts(size_t n, size_t of) { return (n + of - 1) / of; }

static size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

/* ---- into tiles ---------------------------------------------------------------------------- */

/* Swaps the two off-diagonal quarters, then those of the quarters, and so on. */
static void transpose(words w)
{
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512i rows[TILE_SIDE];
    AIMO_UNROLL
    for (int i = 0; i < TILE_SIDE; i++)
        rows[i] = _mm512_loadu_si512(w[i]);
    AIMO_UNROLL
    for (int bit = 1; bit < TILE_SIDE; bit *= 2) {
        const __m512i other = _mm512_xor_epi32(lane, _mm512_set1_epi32(bit));
        const __mmask16 upper = _mm512_test_epi32_mask(lane, _mm512_set1_epi32(bit));
        const __m512i second = _mm512_set1_epi32(TILE_SIDE);
        const __m512i low = _mm512_mask_add_epi32(lane, upper, other, second);
        const __m512i high = _mm512_mask_add_epi32(other, upper, lane, second);
        AIMO_UNROLL
        for (int i = 0; i < TILE_SIDE; i++) {
            if ((i & bit) != 0)
                continue;
            const __m512i a = rows[i], b = rows[i + bit];
            rows[i] = _mm512_permutex2var_epi32(a, low, b);
            rows[i + bit] = _mm512_permutex2var_epi32(a, high, b);
        }
    }
    AIMO_UNROLL
    for (int i = 0; i < TILE_SIDE; i++)
        _mm512_storeu_si512(w[i], rows[i]);
}

static __m512 load_dims(const float *row, size_t dim, size_t head_dim)
{
    return dim < head_dim ? v_load_part_or_full(row + dim, smaller(head_dim - dim, VF32_LANES))
                          : v_zero();
}

/* Elements [32 step, 32 step + 32) of a row, scaled and rounded; zeros from head_dim on. */
static void round_step(const float *row, size_t step, size_t head_dim, float scale,
                       uint32_t units[TILE_SIDE])
{
    for (size_t half = 0; half < 2; half++) {
        const vf32 x = load_dims(row, step * STEP + half * VF32_LANES, head_dim);
        _mm256_storeu_si256((__m256i *)(void *)units + half,
                            (__m256i)_mm512_cvtneps_pbh(v_mul(x, v_set1(scale))));
    }
}

static void load_queries(attention_tiles *t)
{
    const attention_head *h = &t->head;
    const float scale = 1.0f / sqrtf((float)h->head_dim);
    for (size_t panel = 0; panel < parts(t->queries, TILE_SIDE); panel++)
        for (size_t step = 0; step < t->dim_steps; step++) {
            words *to = &t->q[panel * t->dim_steps + step];
            memset(to, 0, sizeof *to);
            const size_t count = smaller(t->queries - panel * TILE_SIDE, TILE_SIDE);
            for (size_t i = 0; i < count; i++)
                round_step(h->q + (t->first_query + panel * TILE_SIDE + i) * h->ld, step,
                           h->head_dim, scale, (*to)[i]);
            transpose(*to);
        }
}

static void load_keys(attention_tiles *t)
{
    const attention_head *h = &t->head;
    for (size_t key = 0; key < t->keys; key++)
        for (size_t step = 0; step < t->dim_steps; step++)
            round_step(h->k + (t->first_key + key) * h->ld, step, h->head_dim, 1.0f,
                       t->k[key / TILE_SIDE * t->dim_steps + step][key % TILE_SIDE]);
}

/* Each lane's units of two neighbours along k. */
static __m512i pair_up(vf32 even, vf32 odd)
{
    const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(even));
    const __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(odd));
    return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

/* Values past the last key are set to zero although their probabilities are zero, because the
 * memory there may hold NaN. */
static void load_values(attention_tiles *t)
{
    const attention_head *h = &t->head;
    const size_t key_steps = parts(t->keys, STEP);
    for (size_t dim = 0; dim < h->head_dim; dim += TILE_SIDE)
        for (size_t step = 0; step < key_steps; step++) {
            words *to = &t->v[dim / TILE_SIDE * key_steps + step];
            for (size_t pair = 0; pair < TILE_SIDE; pair++) {
                const size_t key = step * STEP + 2 * pair;
                const float *row = h->v + (t->first_key + key) * h->ld;
                const vf32 even = key < t->keys ? load_dims(row, dim, h->head_dim) : v_zero();
                const vf32 odd =
                    key + 1 < t->keys ? load_dims(row + h->ld, dim, h->head_dim) : v_zero();
                _mm512_storeu_si512((*to)[pair], pair_up(even, odd));
            }
            transpose(*to);
        }
}

/* ---- 32 queries ---------------------------------------------------------------------------- */

/* scores [keys][queries] = keys @ queries^T */
static void multiply_keys(attention_tiles *t, size_t query, size_t panels)
{
    tile_steps s = {.steps = t->dim_steps, .units = TILE_SIDE};
    s.weights[0] = t->q[query / TILE_SIDE * t->dim_steps][0];
    s.weights[1] = s.weights[0] + t->dim_steps * TILE_SIDE * TILE_SIDE;
    for (size_t key = 0; key < t->keys; key += TILE_BLOCK_ROWS) {
        s.x[0] = &t->k[key / TILE_SIDE * t->dim_steps];
        s.x[1] = s.x[0] + t->dim_steps;
        tiles_multiply_any(&s, TILE_BF16, t->keys - key > TILE_SIDE ? 2 : 1, panels,
                           &t->scores[key / TILE_BLOCK_ROWS]);
    }
}

static vf32 load_scores(const attention_tiles *t, size_t key, size_t panel)
{
    const tile_sums *block = &t->scores[key / TILE_BLOCK_ROWS];
    return v_load(block->f32[key / TILE_SIDE % 2][panel][key % TILE_SIDE]);
}

/* e^x for x <= 0 within 1.1e-4 of its value, a fortieth of what rounding it to bf16 may lose: half
 * the instructions of v_exp (own fit; 1 at 0). Keeps NaN. */
static vf32 coarse_exp(vf32 x)
{
    const vf32 t = v_mul(v_max(v_set1(-104.0f), x), v_set1(1.44269504f));
    const vf32 n = v_round(t), f = v_sub(t, n);
    vf32 p = v_fma(v_set1(0.05500906f), f, v_set1(0.24221097f));
    p = v_fma(p, f, v_set1(0.6932829f));
    return _mm512_scalef_ps(v_fma(p, f, v_set1(1.0f)), n);
}

/* Multiplies the output accumulated so far by a factor for each query. */
static void shrink_out(attention_tiles *t, size_t query, size_t panel, vf32 factor)
{
    tile_sums *out = &t->out[query / TILE_BLOCK_ROWS * t->dim_steps];
    for (size_t dim = 0; dim < t->head.head_dim; dim++) {
        float *sums = out[dim / STEP].f32[dim / TILE_SIDE % 2][panel][dim % TILE_SIDE];
        v_store(sums, v_mul(v_load(sums), factor));
    }
}

/* probabilities = e^(scores - maximum), with the maximum over the keys so far. */
static void softmax(attention_tiles *t, size_t query, size_t panel)
{
    const size_t key_steps = parts(t->keys, STEP);
    const bool first = t->first_key == 0;
    float *maxima = t->maximum + query + panel * TILE_SIDE;
    float *sums = t->sum + query + panel * TILE_SIDE;
    vf32 maximum = load_scores(t, 0, panel);
    for (size_t key = 1; key < t->keys; key++)
        maximum = v_max(maximum, load_scores(t, key, panel));
    vf32 sum = v_zero();
    if (!first) {
        maximum = v_max(maximum, v_load(maxima));
        const vf32 factor = v_exp(v_sub(v_load(maxima), maximum));
        sum = v_mul(v_load(sums), factor);
        shrink_out(t, query, panel, factor);
    }
    uint32_t(*to)[TILE_SIDE] = t->p[panel * key_steps];
    for (size_t key = 0; key < key_steps * STEP; key += 2) {
        vf32 even = v_zero(), odd = v_zero();
        if (key < t->keys)
            even = coarse_exp(v_sub(load_scores(t, key, panel), maximum));
        if (key + 1 < t->keys)
            odd = coarse_exp(v_sub(load_scores(t, key + 1, panel), maximum));
        sum = v_add(sum, v_add(even, odd));
        _mm512_storeu_si512(to[key / 2], pair_up(even, odd));
    }
    v_store(maxima, maximum);
    v_store(sums, sum);
}

/* out [dims][queries] = [out +] values^T @ probabilities */
static void add_values(attention_tiles *t, size_t query, size_t panels)
{
    const size_t key_steps = parts(t->keys, STEP);
    tile_steps s = {.steps = key_steps, .units = TILE_SIDE, .accumulate = t->first_key != 0};
    s.weights[0] = t->p[0][0];
    s.weights[1] = t->p[key_steps][0];
    for (size_t dim = 0; dim < t->head.head_dim; dim += STEP) {
        s.x[0] = &t->v[dim / TILE_SIDE * key_steps];
        s.x[1] = s.x[0] + key_steps;
        tiles_multiply_any(&s, TILE_BF16, t->head.head_dim - dim > TILE_SIDE ? 2 : 1, panels,
                           &t->out[query / TILE_BLOCK_ROWS * t->dim_steps + dim / STEP]);
    }
}

/* ---- a head -------------------------------------------------------------------------------- */

static void store_out(attention_tiles *t)
{
    const attention_head *h = &t->head;
    for (size_t query = 0; query < t->queries; query += TILE_SIDE) {
        const vf32 inverse = v_div(v_set1(1.0f), v_load(t->sum + query));
        const size_t count = smaller(t->queries - query, TILE_SIDE);
        for (size_t dim = 0; dim < h->head_dim; dim += TILE_SIDE) {
            const tile_sums *sums = &t->out[query / TILE_BLOCK_ROWS * t->dim_steps + dim / STEP];
            words w;
            for (size_t i = 0; i < TILE_SIDE; i++) {
                const float *from = sums->f32[dim / TILE_SIDE % 2][query / TILE_SIDE % 2][i];
                v_store((float *)(void *)w[i], v_mul(v_load(from), inverse));
            }
            transpose(w);
            for (size_t i = 0; i < count; i++)
                v_store_part(h->out + (t->first_query + query + i) * h->ldo + dim,
                             v_load((const float *)(const void *)w[i]),
                             smaller(h->head_dim - dim, VF32_LANES));
        }
    }
}

static void attend(attention_tiles *t)
{
    load_queries(t);
    for (t->first_key = 0; t->first_key < t->head.length; t->first_key += KEYS) {
        t->keys = smaller(t->head.length - t->first_key, KEYS);
        load_keys(t);
        load_values(t);
        for (size_t query = 0; query < t->queries; query += TILE_BLOCK_ROWS) {
            const size_t panels = t->queries - query > TILE_SIDE ? 2 : 1;
            multiply_keys(t, query, panels);
            for (size_t panel = 0; panel < panels; panel++)
                softmax(t, query, panel);
            add_values(t, query, panels);
        }
    }
    store_out(t);
}

void aimo_attention_amx(const aimo_attention_args *args, size_t sequence, size_t head)
{
    const bool rounded = args->dtype == AIMO_BF16 || args->dtype == AIMO_INT8;
    if (!rounded || args->head_dim > DIMS) {
        aimo_attention_avx512(args, sequence, head);
        return;
    }
    attention_tiles t;
    t.head = attention_head_at(args, sequence, head);
    t.dim_steps = parts(args->head_dim, STEP);
    tiles_configure(TILE_BLOCK_ROWS, TILE_SIDE);
    for (t.first_query = 0; t.first_query < t.head.length; t.first_query += QUERIES) {
        t.queries = smaller(t.head.length - t.first_query, QUERIES);
        attend(&t);
    }
    _tile_release();
}

void aimo_embed_amx(const aimo_embed_args *args, size_t sequence)
{
    aimo_embed_avx512(args, sequence);
}

void aimo_residual_layer_norm_amx(float *x, const float *residual, const aimo_layer_norm *norm,
                                  float *y, size_t m, size_t n)
{
    aimo_residual_layer_norm_avx512(x, residual, norm, y, m, n);
}

void aimo_pool_amx(const aimo_pool_args *args, size_t sequence)
{
    aimo_pool_avx512(args, sequence);
}

AIMO_TARGET_END
#endif
