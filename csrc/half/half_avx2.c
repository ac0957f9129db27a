/* Half conversion, 32 elements a step: F16C does f16, integer arithmetic does bf16. */
#include "half/half_kernels.h"
#include "half/half_scalar.h"
#include "simd/intrinsics.h"

#if AIMO_X86_64
AIMO_TARGET_BEGIN("avx2,fma,f16c")

#define ISA(name) aimo_##name##_avx2
#define STEP 32
#define STREAM_FENCE() _mm_sfence()

AIMO_INLINE void store(void *dst, __m256i x, bool stream)
{
    if (stream)
        _mm256_stream_si256(dst, x);
    else
        _mm256_storeu_si256(dst, x);
}

AIMO_INLINE __m128i f16_of_8(__m256 x) { return _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT); }

AIMO_INLINE void f32_to_f16_step(const float *src, uint16_t *dst, bool stream)
{
    for (int i = 0; i < 32; i += 16) {
        const __m128i low = f16_of_8(_mm256_loadu_ps(src + i));
        const __m128i high = f16_of_8(_mm256_loadu_ps(src + i + 8));
        store(dst + i, _mm256_set_m128i(high, low), stream);
    }
}

AIMO_INLINE void f16_to_f32_step(const uint16_t *src, float *dst, bool stream)
{
    for (int i = 0; i < 32; i += 8) {
        const __m128i x = _mm_loadu_si128((const __m128i *)(src + i));
        store(dst + i, _mm256_castps_si256(_mm256_cvtph_ps(x)), stream);
    }
}

/* In the lower half of each 32-bit lane. */
AIMO_INLINE __m256i bf16_of_8(const float *src)
{
    const __m256 x = _mm256_loadu_ps(src);
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded =
        _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    return _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, is_nan), 16);
}

AIMO_INLINE void f32_to_bf16_step(const float *src, uint16_t *dst, bool stream)
{
    for (int i = 0; i < 32; i += 16) {
        const __m256i packed = _mm256_packus_epi32(bf16_of_8(src + i), bf16_of_8(src + i + 8));
        store(dst + i, _mm256_permute4x64_epi64(packed, 0xd8), stream);
    }
}

AIMO_INLINE void bf16_to_f32_step(const uint16_t *src, float *dst, bool stream)
{
    for (int i = 0; i < 32; i += 8) {
        const __m256i x = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(src + i)));
        store(dst + i, _mm256_slli_epi32(x, 16), stream);
    }
}

/* As aimo_f64_to_f16_one. */
AIMO_INLINE __m128 f32_to_odd(const double *src)
{
    const __m256i lost = _mm256_set1_epi64x((long long)AIMO_F64_LOST_BITS);
    const __m256i bits = _mm256_castpd_si256(_mm256_loadu_pd(src));
    const __m256i carried = _mm256_add_epi64(_mm256_and_si256(bits, lost), lost);
    const __m256i kept = _mm256_andnot_si256(lost, _mm256_or_si256(bits, carried));
    return _mm256_cvtpd_ps(_mm256_castsi256_pd(kept));
}

AIMO_INLINE void f64_to_f16_step(const double *src, uint16_t *dst, bool stream)
{
    for (int i = 0; i < 32; i += 16) {
        const __m256 low = _mm256_set_m128(f32_to_odd(src + i + 4), f32_to_odd(src + i));
        const __m256 high = _mm256_set_m128(f32_to_odd(src + i + 12), f32_to_odd(src + i + 8));
        store(dst + i, _mm256_set_m128i(f16_of_8(high), f16_of_8(low)), stream);
    }
}

#include "half/half_body.h"

AIMO_TARGET_END
#endif
