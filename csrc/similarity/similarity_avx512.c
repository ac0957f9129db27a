/* Similarity with AVX-512 F, BW, DQ and VL: one line of codes, 16 rows by 8 directions, per load.
 * Tails of loops are masked. */
#include "similarity/similarity_kernels.h"

#include "simd/intrinsics.h"

#include <stdbool.h>

#if AIMO_X86_64
AIMO_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")

/* The mask of the lanes, at most `width`, that are left from i on. */
static inline __mmask16 lanes(size_t i, size_t n, size_t width)
{
    const size_t left = n - i < width ? n - i : width;
    return (__mmask16)((1u << left) - 1);
}

static inline __m512 load_f16(const uint16_t *x, __mmask16 mask)
{
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, x));
}

static inline __m512 load_i8(const int8_t *x, __mmask16 mask)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(mask, x)));
}

float aimo_dot_f16_avx512(const float *q, const uint16_t *x, size_t n)
{
    __m512 even = _mm512_setzero_ps(), odd = _mm512_setzero_ps();
    size_t i = 0;
    for (; i + 32 <= n; i += 32) {
        even = _mm512_fmadd_ps(_mm512_loadu_ps(q + i), load_f16(x + i, 0xffff), even);
        odd = _mm512_fmadd_ps(_mm512_loadu_ps(q + i + 16), load_f16(x + i + 16, 0xffff), odd);
    }
    for (; i < n; i += 16) {
        const __mmask16 mask = lanes(i, n, 16);
        even = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(mask, q + i), load_f16(x + i, mask), even);
    }
    return _mm512_reduce_add_ps(_mm512_add_ps(even, odd));
}

float aimo_dot_i8_avx512(const float *q, const int8_t *x, size_t n)
{
    __m512 even = _mm512_setzero_ps(), odd = _mm512_setzero_ps();
    size_t i = 0;
    for (; i + 32 <= n; i += 32) {
        even = _mm512_fmadd_ps(_mm512_loadu_ps(q + i), load_i8(x + i, 0xffff), even);
        odd = _mm512_fmadd_ps(_mm512_loadu_ps(q + i + 16), load_i8(x + i + 16, 0xffff), odd);
    }
    for (; i < n; i += 16) {
        const __mmask16 mask = lanes(i, n, 16);
        even = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(mask, q + i), load_i8(x + i, mask), even);
    }
    return _mm512_reduce_add_ps(_mm512_add_ps(even, odd));
}

/* sum + the products of the eight lanes under the mask, each exact in f64. */
static inline __m512d add_products_f64(__m512d sum, const float *q, __m256 x, __mmask8 mask)
{
    const __m512d wide = _mm512_cvtps_pd(_mm256_maskz_loadu_ps(mask, q));
    return _mm512_fmadd_pd(wide, _mm512_cvtps_pd(x), sum);
}

double aimo_dot_f16_f64_avx512(const float *q, const uint16_t *x, size_t n)
{
    __m512d sum = _mm512_setzero_pd();
    for (size_t i = 0; i < n; i += 8) {
        const __mmask8 mask = (__mmask8)lanes(i, n, 8);
        sum =
            add_products_f64(sum, q + i, _mm256_cvtph_ps(_mm_maskz_loadu_epi16(mask, x + i)), mask);
    }
    return _mm512_reduce_add_pd(sum);
}

double aimo_dot_i8_f64_avx512(const float *q, const int8_t *x, size_t n)
{
    __m512d sum = _mm512_setzero_pd();
    for (size_t i = 0; i < n; i += 8) {
        const __mmask8 mask = (__mmask8)lanes(i, n, 8);
        const __m256i codes = _mm256_cvtepi8_epi32(_mm_maskz_loadu_epi8(mask, x + i));
        sum = add_products_f64(sum, q + i, _mm256_cvtepi32_ps(codes), mask);
    }
    return _mm512_reduce_add_pd(sum);
}

static inline __attribute__((always_inline)) void project_some(const float *p, const float *x,
                                                               size_t n, float *out, size_t count)
{
    __m512 sum[8];
    for (size_t j = 0; j < count; j++)
        sum[j] = _mm512_setzero_ps();
    for (size_t i = 0; i < n; i += 16) {
        const __mmask16 mask = lanes(i, n, 16);
        const __m512 v = _mm512_maskz_loadu_ps(mask, x + i);
        for (size_t j = 0; j < count; j++)
            sum[j] = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(mask, p + j * n + i), v, sum[j]);
    }
    for (size_t j = 0; j < count; j++)
        out[j] = _mm512_reduce_add_ps(sum[j]);
}

void aimo_project_avx512(const float *p, size_t k, const float *x, size_t n, float *out)
{
    size_t j = 0;
    for (; j + 8 <= k; j += 8)
        project_some(p + j * n, x, n, out + j, 8);
    for (; j < k; j++)
        project_some(p + j * n, x, n, out + j, 1);
}

/* Two partial sums for each of 16 rows. They wrap as in similarity_avx2.c. */
static inline __m512i sums_add(__m512i sums, __m512i codes, __m512i query)
{
    return _mm512_add_epi16(sums, _mm512_maddubs_epi16(codes, query));
}

static inline __m512i sums_total(__m512i sums)
{
    return _mm512_madd_epi16(sums, _mm512_set1_epi16(1));
}

#include "similarity/similarity_screen_avx512.h"

void aimo_screen_avx512(const aimo_heads *heads, const aimo_head_query *queries, size_t query_count,
                        int16_t *dots, uint16_t *masks)
{
    screen_all(heads, queries, query_count, dots, masks);
}

AIMO_TARGET_END

/* One line per row, from memory: wider registers do not help. */
size_t aimo_refine_avx512(const aimo_tail *tails, const int16_t *dots, const aimo_tail_query *query,
                          uint16_t *candidates, size_t count)
{
    return aimo_refine_avx2(tails, dots, query, candidates, count);
}
#endif
