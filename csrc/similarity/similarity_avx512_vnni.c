/* Similarity with VNNI: VPDPBUSD sums a row's four products into 32 bits, without saturation. Only
 * the screen can use it. */
#include "similarity/similarity_kernels.h"

#include "simd/intrinsics.h"

#include <stdbool.h>

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

static inline __m512i sums_add(__m512i sums, __m512i codes, __m512i query)
{
    return _mm512_dpbusd_epi32(sums, codes, query);
}

static inline __m512i sums_total(__m512i sums) { return sums; }

#include "similarity/similarity_screen_avx512.h"

void aimo_screen_avx512_vnni(const aimo_heads *heads, const aimo_head_query *queries,
                             size_t query_count, int16_t *dots, uint16_t *masks)
{
    screen_all(heads, queries, query_count, dots, masks);
}

AIMO_TARGET_END
#endif
