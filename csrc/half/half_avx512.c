/* Half conversion, 32 elements a step: one register of halves, which is one cache line. */
#include "half/half_kernels.h"
#include "half/half_scalar.h"
#include "simd/intrinsics.h"

#if AIMO_X86_64
AIMO_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl")

#define ISA(name) aimo_##name##_avx512
#define STEP 32
#define STREAM_FENCE() _mm_sfence()

AIMO_INLINE void store(void *dst, __m512i x, bool stream)
{
    if (stream)
        _mm512_stream_si512(dst, x);
    else
        _mm512_storeu_si512(dst, x);
}

AIMO_INLINE __m512i join(__m256i low, __m256i high)
{
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

AIMO_INLINE __m256i f16_of_16(const float *src)
{
    return _mm512_cvtps_ph(_mm512_loadu_ps(src), _MM_FROUND_TO_NEAREST_INT);
}

AIMO_INLINE void f32_to_f16_step(const float *src, uint16_t *dst, bool stream)
{
    store(dst, join(f16_of_16(src), f16_of_16(src + 16)), stream);
}

AIMO_INLINE void f16_to_f32_step(const uint16_t *src, float *dst, bool stream)
{
    for (int i = 0; i < 32; i += 16) {
        const __m256i x = _mm256_loadu_si256((const __m256i *)(src + i));
        store(dst + i, _mm512_castps_si512(_mm512_cvtph_ps(x)), stream);
    }
}

/* In the upper half of each 32-bit lane. VCVTNEPS2BF16 would flush subnormals to zero. */
AIMO_INLINE __m512i bf16_of_16(const float *src)
{
    const __m512 x = _mm512_loadu_ps(src);
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded =
        _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 is_nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    return _mm512_mask_or_epi32(rounded, is_nan, bits, _mm512_set1_epi32(0x400000));
}

AIMO_INLINE void f32_to_bf16_step(const float *src, uint16_t *dst, bool stream)
{
    /* 1, 3, 5, ... 63: every second half of two registers */
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i first = _mm512_slli_epi32(lane, 2);
    const __m512i upper = _mm512_add_epi32(_mm512_or_si512(first, _mm512_slli_epi32(first, 16)),
                                           _mm512_set1_epi32(0x30001));
    store(dst, _mm512_permutex2var_epi16(bf16_of_16(src), upper, bf16_of_16(src + 16)), stream);
}

AIMO_INLINE void bf16_to_f32_step(const uint16_t *src, float *dst, bool stream)
{
    for (int i = 0; i < 32; i += 16) {
        const __m256i x = _mm256_loadu_si256((const __m256i *)(src + i));
        store(dst + i, _mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16), stream);
    }
}

/* As aimo_f64_to_f16_one. */
AIMO_INLINE __m256 f32_to_odd(const double *src)
{
    const __m512i lost = _mm512_set1_epi64((long long)AIMO_F64_LOST_BITS);
    const __m512i bits = _mm512_castpd_si512(_mm512_loadu_pd(src));
    const __m512i carried = _mm512_add_epi64(_mm512_and_si512(bits, lost), lost);
    const __m512i kept = _mm512_andnot_si512(lost, _mm512_or_si512(bits, carried));
    return _mm512_cvtpd_ps(_mm512_castsi512_pd(kept));
}

AIMO_INLINE void f64_to_f16_step(const double *src, uint16_t *dst, bool stream)
{
    __m256i parts[2];
    for (int i = 0; i < 2; i++) {
        const __m256i low = _mm256_castps_si256(f32_to_odd(src + 16 * i));
        const __m256i high = _mm256_castps_si256(f32_to_odd(src + 16 * i + 8));
        const __m512 x = _mm512_castsi512_ps(join(low, high));
        parts[i] = _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT);
    }
    store(dst, join(parts[0], parts[1]), stream);
}

#include "half/half_body.h"

AIMO_TARGET_END
#endif
