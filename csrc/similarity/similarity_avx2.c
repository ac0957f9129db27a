/* Similarity with AVX2, FMA and F16C.
 *
 * The screen multiplies unsigned by signed bytes. VPMADDUBSW saturates at 2^15, which two products
 * of 15 and 127 never reach. The 16-bit sums that follow may wrap, but the sum including the bias
 * is in range, as similarity.h requires, and so comes out right modulo 2^16. */
#include "similarity/similarity_kernels.h"

#include "half/half_scalar.h"
#include "simd/intrinsics.h"

#if AIMO_X86_64
AIMO_TARGET_BEGIN("avx2,fma,f16c")

static inline float sum_f32(__m256 a)
{
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
}

static inline double sum_f64(__m256d a)
{
    const __m128d s = _mm_add_pd(_mm256_castpd256_pd128(a), _mm256_extractf128_pd(a, 1));
    return _mm_cvtsd_f64(_mm_add_sd(s, _mm_unpackhi_pd(s, s)));
}

static inline __m256 load_f16(const uint16_t *x)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)x));
}

static inline __m256 load_i8(const int8_t *x)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)x)));
}

float aimo_dot_f16_avx2(const float *q, const uint16_t *x, size_t n)
{
    __m256 sum[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(),
                     _mm256_setzero_ps()};
    size_t i = 0;
    for (; i + 32 <= n; i += 32)
        for (size_t j = 0; j < 4; j++)
            sum[j] =
                _mm256_fmadd_ps(_mm256_loadu_ps(q + i + 8 * j), load_f16(x + i + 8 * j), sum[j]);
    for (; i + 8 <= n; i += 8)
        sum[0] = _mm256_fmadd_ps(_mm256_loadu_ps(q + i), load_f16(x + i), sum[0]);
    float total =
        sum_f32(_mm256_add_ps(_mm256_add_ps(sum[0], sum[1]), _mm256_add_ps(sum[2], sum[3])));
    for (; i < n; i++)
        total += q[i] * aimo_f16_to_f32_one(x[i]);
    return total;
}

float aimo_dot_i8_avx2(const float *q, const int8_t *x, size_t n)
{
    __m256 sum[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(),
                     _mm256_setzero_ps()};
    size_t i = 0;
    for (; i + 32 <= n; i += 32)
        for (size_t j = 0; j < 4; j++)
            sum[j] =
                _mm256_fmadd_ps(_mm256_loadu_ps(q + i + 8 * j), load_i8(x + i + 8 * j), sum[j]);
    for (; i + 8 <= n; i += 8)
        sum[0] = _mm256_fmadd_ps(_mm256_loadu_ps(q + i), load_i8(x + i), sum[0]);
    float total =
        sum_f32(_mm256_add_ps(_mm256_add_ps(sum[0], sum[1]), _mm256_add_ps(sum[2], sum[3])));
    for (; i < n; i++)
        total += q[i] * (float)x[i];
    return total;
}

/* sums += the eight products of q and x, each exact in f64. */
static inline void add_products_f64(__m256d sums[2], const float *q, __m256 x)
{
    const __m256d x0 = _mm256_cvtps_pd(_mm256_castps256_ps128(x));
    const __m256d x1 = _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1));
    sums[0] = _mm256_fmadd_pd(_mm256_cvtps_pd(_mm_loadu_ps(q)), x0, sums[0]);
    sums[1] = _mm256_fmadd_pd(_mm256_cvtps_pd(_mm_loadu_ps(q + 4)), x1, sums[1]);
}

double aimo_dot_f16_f64_avx2(const float *q, const uint16_t *x, size_t n)
{
    __m256d sums[4] = {_mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd(),
                       _mm256_setzero_pd()};
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        add_products_f64(sums, q + i, load_f16(x + i));
        add_products_f64(sums + 2, q + i + 8, load_f16(x + i + 8));
    }
    double total =
        sum_f64(_mm256_add_pd(_mm256_add_pd(sums[0], sums[1]), _mm256_add_pd(sums[2], sums[3])));
    for (; i < n; i++)
        total += (double)q[i] * (double)aimo_f16_to_f32_one(x[i]);
    return total;
}

double aimo_dot_i8_f64_avx2(const float *q, const int8_t *x, size_t n)
{
    __m256d sums[4] = {_mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd(),
                       _mm256_setzero_pd()};
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        add_products_f64(sums, q + i, load_i8(x + i));
        add_products_f64(sums + 2, q + i + 8, load_i8(x + i + 8));
    }
    double total =
        sum_f64(_mm256_add_pd(_mm256_add_pd(sums[0], sums[1]), _mm256_add_pd(sums[2], sums[3])));
    for (; i < n; i++)
        total += (double)q[i] * (double)x[i];
    return total;
}

/* Projects on `count` (at most 8) directions at once: each load of x serves all of them. */
static inline __attribute__((always_inline)) void project_some(const float *p, const float *x,
                                                               size_t n, float *out, size_t count)
{
    __m256 sum[8];
    for (size_t j = 0; j < count; j++)
        sum[j] = _mm256_setzero_ps();
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const __m256 v = _mm256_loadu_ps(x + i);
        for (size_t j = 0; j < count; j++)
            sum[j] = _mm256_fmadd_ps(_mm256_loadu_ps(p + j * n + i), v, sum[j]);
    }
    for (size_t j = 0; j < count; j++) {
        out[j] = sum_f32(sum[j]);
        for (size_t r = i; r < n; r++)
            out[j] += p[j * n + r] * x[r];
    }
}

void aimo_project_avx2(const float *p, size_t k, const float *x, size_t n, float *out)
{
    size_t j = 0;
    for (; j + 8 <= k; j += 8)
        project_some(p + j * n, x, n, out + j, 8);
    for (; j < k; j++)
        project_some(p + j * n, x, n, out + j, 1);
}

static inline __m256i query_group(const int8_t *codes, size_t g)
{
    int32_t four;
    memcpy(&four, codes + g * AIMO_HEAD_GROUP, sizeof four);
    return _mm256_set1_epi32(four);
}

/* Stores the dots of 16 rows and returns their mask. `low` and `high` hold two partial sums for
 * each of eight rows. */
static inline uint16_t finish_block(__m256i low, __m256i high, const uint16_t *rests,
                                    const aimo_head_query *query, int16_t *dots)
{
    const __m256i pairs = _mm256_permute4x64_epi64(_mm256_hadd_epi16(low, high), 0xd8);
    const __m256i dot = _mm256_add_epi16(pairs, _mm256_set1_epi16(query->bias));
    const __m256i both = _mm256_load_si256((const __m256i *)rests);
    const __m256i rest =
        _mm256_mulhi_epu16(_mm256_and_si256(both, _mm256_set1_epi16((int16_t)0xff00)),
                           _mm256_set1_epi16((int16_t)query->rest_scale));
    const __m256i error = _mm256_mulhi_epu16(_mm256_slli_epi16(both, 8),
                                             _mm256_set1_epi16((int16_t)query->error_scale));
    const __m256i bound = _mm256_adds_epi16(dot, _mm256_add_epi16(rest, error));
    const __m256i below = _mm256_cmpgt_epi16(_mm256_set1_epi16(query->bar), bound);
    _mm256_storeu_si256((__m256i *)dots, dot);
    const __m128i bytes =
        _mm_packs_epi16(_mm256_castsi256_si128(below), _mm256_extracti128_si256(below, 1));
    return (uint16_t)~_mm_movemask_epi8(bytes);
}

/* sums + the products of a line's codes of eight rows with the query's. */
static inline __m256i add_line(__m256i sums, const uint8_t *codes, __m256i low_query,
                               __m256i high_query)
{
    const __m256i nibbles = _mm256_set1_epi8(15);
    const __m256i both = _mm256_load_si256((const __m256i *)codes);
    const __m256i low = _mm256_and_si256(both, nibbles);
    const __m256i high = _mm256_and_si256(_mm256_srli_epi16(both, 4), nibbles);
    return _mm256_add_epi16(sums, _mm256_add_epi16(_mm256_maddubs_epi16(low, low_query),
                                                   _mm256_maddubs_epi16(high, high_query)));
}

/* Screens for `count` queries (1 or 4) at once: each line of 16 rows serves all of them. */
static inline __attribute__((always_inline)) void screen_some(const aimo_heads *heads,
                                                              const aimo_head_query *queries,
                                                              int16_t *dots, uint16_t *masks,
                                                              size_t count)
{
    const uint8_t *codes = heads->codes;
    for (size_t b = 0; b < heads->blocks; b++) {
        __m256i low[4], high[4];
        for (size_t j = 0; j < count; j++)
            low[j] = high[j] = _mm256_setzero_si256();
        for (size_t l = 0; l < heads->lines; l++, codes += 64) {
            for (size_t j = 0; j < count; j++) {
                const __m256i q0 = query_group(queries[j].codes, 2 * l);
                const __m256i q1 = query_group(queries[j].codes, 2 * l + 1);
                low[j] = add_line(low[j], codes, q0, q1);
                high[j] = add_line(high[j], codes + 32, q0, q1);
            }
        }
        for (size_t j = 0; j < count; j++) {
            const size_t block = j * heads->blocks + b;
            masks[block] = finish_block(low[j], high[j], heads->rests + b * AIMO_HEAD_BLOCK,
                                        &queries[j], dots + block * AIMO_HEAD_BLOCK);
        }
    }
}

void aimo_screen_avx2(const aimo_heads *heads, const aimo_head_query *queries, size_t query_count,
                      int16_t *dots, uint16_t *masks)
{
    size_t j = 0;
    for (; j + 4 <= query_count; j += 4)
        screen_some(heads, queries + j, dots + j * heads->blocks * AIMO_HEAD_BLOCK,
                    masks + j * heads->blocks, 4);
    for (; j < query_count; j++)
        screen_some(heads, queries + j, dots + j * heads->blocks * AIMO_HEAD_BLOCK,
                    masks + j * heads->blocks, 1);
}

/* The query's last three codes are 0, so the error and rest bytes at the end of the line may be
 * multiplied too. */
static inline int32_t tail_dot(const aimo_tail *tail, const int16_t *query)
{
    const __m128i *codes = (const __m128i *)tail->codes;
    const __m256i *q = (const __m256i *)query;
    __m256i sum = _mm256_setzero_si256();
    for (size_t i = 0; i < 4; i++)
        sum = _mm256_add_epi32(sum,
                               _mm256_madd_epi16(_mm256_cvtepi8_epi16(_mm_loadu_si128(codes + i)),
                                                 _mm256_loadu_si256(q + i)));
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}

size_t aimo_refine_avx2(const aimo_tail *tails, const int16_t *dots, const aimo_tail_query *query,
                        uint16_t *candidates, size_t count)
{
    enum { AHEAD = 12 }; /* prefetched lines: about as many as a core keeps in flight */
    for (size_t c = 0; c < count && c < AHEAD; c++)
        _mm_prefetch((const char *)&tails[candidates[c]], _MM_HINT_T0);
    size_t kept = 0;
    for (size_t c = 0; c < count; c++) {
        if (c + AHEAD < count)
            _mm_prefetch((const char *)&tails[candidates[c + AHEAD]], _MM_HINT_T0);
        const size_t row = candidates[c];
        const aimo_tail *tail = &tails[row];
        const float bound = (float)dots[row] * query->head_scale +
                            (float)tail_dot(tail, query->codes) * query->tail_scale +
                            (float)tail->rest * query->rest_scale +
                            (float)tail->error * query->error_scale;
        candidates[kept] = (uint16_t)row;
        kept += bound >= query->bar;
    }
    return kept;
}

AIMO_TARGET_END
#endif
