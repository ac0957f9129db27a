/* Similarity with VNNI: VPDPBUSD sums a row's four products into 32 bits, without saturation. Only
 * the screen has a use for it. */
#include "similarity/similarity_kernels.h"

#include "simd/intrinsics.h"

#if AIMO_X86_64
float aimo_dot_f16_avx512_vnni(const float *q, const uint16_t *x, size_t n)
{
    return aimo_dot_f16_avx512(q, x, n);
}

float aimo_dot_i8_avx512_vnni(const float *q, const int8_t *x, size_t n)
{
    return aimo_dot_i8_avx512(q, x, n);
}

double aimo_dot_f16_f64_avx512_vnni(const float *q, const uint16_t *x, size_t n)
{
    return aimo_dot_f16_f64_avx512(q, x, n);
}

double aimo_dot_i8_f64_avx512_vnni(const float *q, const int8_t *x, size_t n)
{
    return aimo_dot_i8_f64_avx512(q, x, n);
}

void aimo_project_avx512_vnni(const float *p, size_t k, const float *x, size_t n, float *out)
{
    aimo_project_avx512(p, k, x, n, out);
}

size_t aimo_refine_avx512_vnni(const aimo_tail *tails, const int16_t *dots,
                               const aimo_tail_query *query, uint16_t *candidates, size_t count)
{
    return aimo_refine_avx2(tails, dots, query, candidates, count);
}

AIMO_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")

static inline __m512i query_group(const int8_t *codes, size_t g)
{
    int32_t four;
    memcpy(&four, codes + g * AIMO_HEAD_GROUP, sizeof four);
    return _mm512_set1_epi32(four);
}

/* `sums` holds the sum of each of 16 rows, before the bias. */
static inline uint16_t finish_block(__m512i sums, const uint16_t *rests,
                                    const aimo_head_query *query, int16_t *dots)
{
    const __m256i dot =
        _mm256_add_epi16(_mm512_cvtepi32_epi16(sums), _mm256_set1_epi16(query->bias));
    const __m256i rest = _mm256_mulhi_epu16(_mm256_loadu_si256((const __m256i *)rests),
                                            _mm256_set1_epi16((int16_t)query->rest_scale));
    const __m256i bound = _mm256_adds_epi16(dot, _mm256_add_epi16(rest, _mm256_set1_epi16(1)));
    const __m256i below = _mm256_cmpgt_epi16(_mm256_set1_epi16(query->bar), bound);
    _mm256_storeu_si256((__m256i *)dots, dot);
    const __m128i bytes =
        _mm_packs_epi16(_mm256_castsi256_si128(below), _mm256_extracti128_si256(below, 1));
    return (uint16_t)~_mm_movemask_epi8(bytes);
}

/* `count` queries (1 or 4) at once. */
static inline __attribute__((always_inline)) void screen_some(const aimo_heads *heads,
                                                              const aimo_head_query *queries,
                                                              int16_t *dots, uint16_t *masks,
                                                              size_t count)
{
    const uint8_t *codes = heads->codes;
    for (size_t b = 0; b < heads->blocks; b++) {
        __m512i sums[4];
        for (size_t j = 0; j < count; j++)
            sums[j] = _mm512_setzero_si512();
        for (size_t g = 0; g < heads->groups; g++, codes += 64) {
            const __m512i rows = _mm512_loadu_si512(codes);
            for (size_t j = 0; j < count; j++)
                sums[j] = _mm512_dpbusd_epi32(sums[j], rows, query_group(queries[j].codes, g));
        }
        for (size_t j = 0; j < count; j++) {
            const size_t block = j * heads->blocks + b;
            masks[block] = finish_block(sums[j], heads->rests + b * AIMO_HEAD_BLOCK, &queries[j],
                                        dots + block * AIMO_HEAD_BLOCK);
        }
    }
}

void aimo_screen_avx512_vnni(const aimo_heads *heads, const aimo_head_query *queries,
                             size_t query_count, int16_t *dots, uint16_t *masks)
{
    size_t j = 0;
    for (; j + 4 <= query_count; j += 4)
        screen_some(heads, queries + j, dots + j * heads->blocks * AIMO_HEAD_BLOCK,
                    masks + j * heads->blocks, 4);
    for (; j < query_count; j++)
        screen_some(heads, queries + j, dots + j * heads->blocks * AIMO_HEAD_BLOCK,
                    masks + j * heads->blocks, 1);
}

AIMO_TARGET_END
#endif
