/* The encoder's operations with VNNI: where weights are int8, attention multiplies integers as
 * well. Everything else is elementwise and as with AVX-512.
 *
 * As in attention_body.h, queries are laid out across the lanes, scores come out as
 * [keys][queries], and keys are processed in blocks with a running maximum and sum. Queries and
 * keys are rounded to 13 bits relative to the largest of their block and multiplied in pairs, which
 * hardly changes the scores. Probabilities are rounded to 8 bits relative to the largest, values to
 * 8 bits relative to the largest of their column in the block, and four are multiplied at a time.
 * Keys and values are rounded once for up to 128 queries. How a sequence is split depends on its
 * length alone. */
#include "backend/cpu/cpu_kernels.h"
#include "simd/intrinsics.h"

#include <math.h>

#if AIMO_X86_64
AIMO_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")
#include "simd/simd_avx512.h"

#include "backend/cpu/attention_head.h"
#include "simd/simd_tile.h"

/* The most queries, keys and dimensions that are rounded at once, and queries in a vector. */
enum { QUERIES = 128, KEYS = 128, DIMS = 128, LANES = 16 };
/* The largest rounded queries and keys, values, and probabilities. With the first, an int32 score
 * just has room for DIMS products. */
enum { FACTOR_LARGEST = 4095, VALUE_LARGEST = 127, PROBABILITY_LARGEST = 255 };
_Static_assert((int64_t)FACTOR_LARGEST *FACTOR_LARGEST *DIMS <= INT32_MAX, "scores overflow");

/* A vector of its lanes' own type, as in gemm_avx512_vnni.c. */
typedef int32_t vi32 __attribute__((vector_size(64)));

typedef struct {
    attention_head head;
    size_t pairs, panels;        /* of dimensions: ceil(head_dim / 2), ceil(head_dim / 16) */
    size_t first_query, queries; /* queries [first_query, first_query + queries) */
    size_t first_key, keys;      /* the block of keys; `keys` of them */
    uint32_t k[KEYS][DIMS / 2];  /* pairs */
    uint32_t v[DIMS / LANES][KEYS / 4][LANES];    /* [panels][fours of keys] */
    uint32_t q[QUERIES / LANES][DIMS / 2][LANES]; /* pairs, transposed */
    uint32_t p[KEYS / 4][LANES];                  /* fours of keys, of the vector at hand */
    float scores[KEYS][LANES];
    float q_scale, k_scale, v_scale[DIMS];
    float maximum[QUERIES], sum[QUERIES];
} attention_integers;

static size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

static size_t parts(size_t n, size_t of) { return (n + of - 1) / of; }

/* ---- rounding ------------------------------------------------------------------------------ */

static float inverse_of(float scale) { return scale > 0x1p-110f ? 1.0f / scale : 0.0f; }

static vi32 to_integers(vf32 x, vf32 inverse)
{
    return (vi32)_mm512_cvtps_epi32(v_mul(x, inverse));
}

/* pairs [count][ceil(head_dim / 32) * 16] = rows of x, scaled by the largest magnitude among them
 * and padded with zeros; returns the step. */
static float round_pairs(const attention_head *h, const float *x, size_t count,
                         uint32_t pairs[][DIMS / 2])
{
    const size_t n = h->head_dim;
    vf32 largest = v_zero();
    for (size_t row = 0; row < count; row++)
        V_FOR_EACH(i, lanes, n)
    largest = v_max(largest, v_abs(v_load_part_or_full(x + row * h->ld + i, lanes)));
    const float scale = v_reduce_max(largest) / (float)FACTOR_LARGEST;
    const vf32 inverse = v_set1(inverse_of(scale));
    for (size_t row = 0; row < count; row++)
        for (size_t i = 0; i < parts(n, 2 * LANES) * 2 * LANES; i += LANES) {
            const vf32 part =
                i < n ? v_load_part_or_full(x + row * h->ld + i, smaller(n - i, LANES)) : v_zero();
            _mm256_storeu_si256((__m256i *)(void *)(pairs[row] + i / 2),
                                _mm512_cvtepi32_epi16((__m512i)to_integers(part, inverse)));
        }
    return scale;
}

/* The memory for the keys holds the queries until they are transposed. */
static void round_queries(attention_integers *t)
{
    const attention_head *h = &t->head;
    t->q_scale =
        round_pairs(h, h->q + t->first_query * h->ld, t->queries, t->k) / sqrtf((float)h->head_dim);
    for (size_t first = 0; first < t->queries; first += LANES)
        for (size_t pair = 0; pair < t->pairs; pair += LANES) {
            vf32 block[LANES];
            AIMO_UNROLL
            for (size_t i = 0; i < LANES; i++)
                block[i] = first + i < t->queries ? (vf32)_mm512_loadu_si512(t->k[first + i] + pair)
                                                  : v_zero();
            v_transpose(block);
            AIMO_UNROLL
            for (size_t i = 0; i < LANES; i++)
                _mm512_storeu_si512(t->q[first / LANES][pair + i], (__m512i)block[i]);
        }
}

static void round_keys(attention_integers *t)
{
    const attention_head *h = &t->head;
    t->k_scale = round_pairs(h, h->k + t->first_key * h->ld, t->keys, t->k);
}

/* Four keys' integers of 8 bits in each lane. */
static vi32 four_of(const vi32 x[4])
{
    return (x[0] & 255) | (x[1] & 255) << 8 | (x[2] & 255) << 16 | x[3] << 24;
}

static void round_values(attention_integers *t)
{
    const attention_head *h = &t->head;
    for (size_t panel = 0; panel < t->panels; panel++) {
        const size_t lanes = smaller(h->head_dim - panel * LANES, LANES);
        const float *values = h->v + t->first_key * h->ld + panel * LANES;
        vf32 largest = v_zero();
        for (size_t key = 0; key < t->keys; key++)
            largest = v_max(largest, v_abs(v_load_part(values + key * h->ld, lanes)));
        const vf32 scale = v_div(largest, v_set1((float)VALUE_LARGEST));
        const __mmask16 some = _mm512_cmp_ps_mask(scale, v_set1(0x1p-110f), _CMP_GT_OQ);
        const vf32 inverse = _mm512_maskz_div_ps(some, v_set1(1.0f), scale);
        v_store(t->v_scale + panel * LANES, scale);
        for (size_t key = 0; key < t->keys; key += 4) {
            vi32 four[4];
            for (size_t i = 0; i < 4; i++)
                four[i] = to_integers(
                    key + i < t->keys ? v_load_part(values + (key + i) * h->ld, lanes) : v_zero(),
                    inverse);
            _mm512_storeu_si512(t->v[panel][key / 4], (__m512i)four_of(four));
        }
    }
}

/* ---- products ------------------------------------------------------------------------------ */

/* scores of `rows` keys, a constant at every call, with one vector of queries. */
AIMO_INLINE void score_keys(attention_integers *t, size_t vector, size_t key, const size_t rows)
{
    vi32 sums[TILE_ROWS];
    AIMO_UNROLL
    for (size_t r = 0; r < rows; r++)
        sums[r] = (vi32)_mm512_setzero_si512();
    for (size_t pair = 0; pair < t->pairs; pair++) {
        const __m512i q = _mm512_loadu_si512(t->q[vector][pair]);
        AIMO_UNROLL
        for (size_t r = 0; r < rows; r++)
            sums[r] = (vi32)_mm512_dpwssd_epi32((__m512i)sums[r],
                                                _mm512_set1_epi32((int32_t)t->k[key + r][pair]), q);
    }
    const vf32 scale = v_set1(t->q_scale * t->k_scale);
    AIMO_UNROLL
    for (size_t r = 0; r < rows; r++)
        v_store(t->scores[key + r], v_mul(_mm512_cvtepi32_ps((__m512i)sums[r]), scale));
}

static void compute_scores(attention_integers *t, size_t vector)
{
    size_t key = 0;
    for (; key + TILE_ROWS <= t->keys; key += TILE_ROWS)
        score_keys(t, vector, key, TILE_ROWS);
    for (; key + 4 <= t->keys; key += 4)
        score_keys(t, vector, key, 4);
    for (; key + 2 <= t->keys; key += 2)
        score_keys(t, vector, key, 2);
    for (; key < t->keys; key++)
        score_keys(t, vector, key, 1);
}

/* p = the scores' exponentials in steps of 1 / 255 of the largest so far; the running sum adds up
 * the rounded ones. Returns the factor by which the results so far shrink. */
static vf32 softmax(attention_integers *t, size_t vector)
{
    float *so_far = t->maximum + vector * LANES, *sum_so_far = t->sum + vector * LANES;
    vf32 maximum = v_load(t->scores[0]), shrink = v_zero();
    for (size_t key = 1; key < t->keys; key++)
        maximum = v_max(maximum, v_load(t->scores[key]));
    if (t->first_key != 0) {
        maximum = v_max(maximum, v_load(so_far));
        shrink = v_exp(v_sub(v_load(so_far), maximum));
    }
    vi32 sum = (vi32)_mm512_setzero_si512();
    for (size_t key = 0; key < t->keys; key += 4) {
        vi32 four[4];
        AIMO_UNROLL
        for (size_t i = 0; i < 4; i++) {
            four[i] = (vi32)_mm512_setzero_si512();
            if (key + i < t->keys)
                four[i] = to_integers(v_exp(v_sub(v_load(t->scores[key + i]), maximum)),
                                      v_set1((float)PROBABILITY_LARGEST));
            sum += four[i];
        }
        _mm512_storeu_si512(t->p[key / 4], (__m512i)four_of(four));
    }
    v_store(so_far, maximum);
    v_store(sum_so_far, t->first_key != 0
                            ? v_fma(v_load(sum_so_far), shrink, _mm512_cvtepi32_ps((__m512i)sum))
                            : _mm512_cvtepi32_ps((__m512i)sum));
    return shrink;
}

/* out = [out * shrink +] p^T @ values for `rows` queries from `lane` on and `panels` panels:
 * constants at every call. */
AIMO_INLINE void add_values(const attention_integers *t, size_t query, size_t lane, size_t panel,
                            const float *shrink, const size_t rows, const size_t panels)
{
    const attention_head *h = &t->head;
    vi32 sums[TILE_ROWS][TILE_PANELS];
    AIMO_UNROLL
    for (size_t r = 0; r < rows; r++)
        AIMO_UNROLL
    for (size_t i = 0; i < panels; i++)
        sums[r][i] = (vi32)_mm512_setzero_si512();
    for (size_t four = 0; four < parts(t->keys, 4); four++) {
        __m512i values[TILE_PANELS];
        AIMO_UNROLL
        for (size_t i = 0; i < panels; i++)
            values[i] = _mm512_loadu_si512(t->v[panel + i][four]);
        AIMO_UNROLL
        for (size_t r = 0; r < rows; r++) {
            const __m512i p = _mm512_set1_epi32((int32_t)t->p[four][lane + r]);
            AIMO_UNROLL
            for (size_t i = 0; i < panels; i++)
                sums[r][i] = (vi32)_mm512_dpbusd_epi32((__m512i)sums[r][i], p, values[i]);
        }
    }
    AIMO_UNROLL
    for (size_t i = 0; i < panels; i++) {
        const size_t dim = (panel + i) * LANES, lanes = smaller(h->head_dim - dim, LANES);
        const vf32 scale = v_load(t->v_scale + dim);
        AIMO_UNROLL
        for (size_t r = 0; r < rows; r++) {
            float *out = h->out + (query + lane + r) * h->ldo + dim;
            const vf32 sum = _mm512_cvtepi32_ps((__m512i)sums[r][i]);
            const vf32 before = t->first_key != 0
                                    ? v_mul(v_load_part(out, lanes), v_set1(shrink[lane + r]))
                                    : v_zero();
            v_store_part(out, v_fma(sum, scale, before), lanes);
        }
    }
}

AIMO_INLINE void add_panels(const attention_integers *t, size_t query, size_t count, size_t panel,
                            const float *shrink, const size_t panels)
{
    size_t lane = 0;
    for (; lane + TILE_ROWS <= count; lane += TILE_ROWS)
        add_values(t, query, lane, panel, shrink, TILE_ROWS, panels);
    for (; lane + 4 <= count; lane += 4)
        add_values(t, query, lane, panel, shrink, 4, panels);
    for (; lane + 2 <= count; lane += 2)
        add_values(t, query, lane, panel, shrink, 2, panels);
    for (; lane < count; lane++)
        add_values(t, query, lane, panel, shrink, 1, panels);
}

static void divide_by_sums(const attention_integers *t)
{
    const attention_head *h = &t->head;
    for (size_t i = 0; i < t->queries; i++) {
        float *out = h->out + (t->first_query + i) * h->ldo;
        const vf32 inverse = v_set1(1.0f / t->sum[i]);
        V_FOR_EACH(d, lanes, h->head_dim)
        v_store_part_or_full(out + d, v_mul(v_load_part_or_full(out + d, lanes), inverse), lanes);
    }
}

/* Queries [first_query, first_query + queries) against all keys. */
static void attend(attention_integers *t)
{
    round_queries(t);
    for (t->first_key = 0; t->first_key < t->head.length; t->first_key += KEYS) {
        t->keys = smaller(t->head.length - t->first_key, KEYS);
        round_keys(t);
        round_values(t);
        for (size_t first = 0; first < t->queries; first += LANES) {
            const size_t count = smaller(t->queries - first, LANES);
            float shrink[LANES];
            compute_scores(t, first / LANES);
            v_store(shrink, softmax(t, first / LANES));
            size_t panel = 0;
            for (; panel + TILE_PANELS <= t->panels; panel += TILE_PANELS)
                add_panels(t, t->first_query + first, count, panel, shrink, TILE_PANELS);
            for (; panel < t->panels; panel++)
                add_panels(t, t->first_query + first, count, panel, shrink, 1);
        }
    }
    divide_by_sums(t);
}

void aimo_attention_avx512_vnni(const aimo_attention_args *args, size_t sequence, size_t head)
{
    if (args->dtype != AIMO_INT8 || args->head_dim > DIMS) {
        aimo_attention_avx512(args, sequence, head);
        return;
    }
    attention_integers t;
    t.head = attention_head_at(args, sequence, head);
    t.pairs = parts(args->head_dim, 2);
    t.panels = parts(args->head_dim, LANES);
    for (t.first_query = 0; t.first_query < t.head.length; t.first_query += QUERIES) {
        t.queries = smaller(t.head.length - t.first_query, QUERIES);
        attend(&t);
    }
}

void aimo_embed_avx512_vnni(const aimo_embed_args *args, size_t sequence)
{
    aimo_embed_avx512(args, sequence);
}

void aimo_residual_layer_norm_avx512_vnni(float *x, const float *residual,
                                          const aimo_layer_norm *norm, float *y, size_t m, size_t n)
{
    aimo_residual_layer_norm_avx512(x, residual, norm, y, m, n);
}

void aimo_pool_avx512_vnni(const aimo_pool_args *args, size_t sequence)
{
    aimo_pool_avx512(args, sequence);
}

AIMO_TARGET_END
#endif
