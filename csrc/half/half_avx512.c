/* Half conversion, sixteen lanes; the tail is masked. */
#include "half/half_kernels.h"
#include "simd/intrinsics.h"

#if AIMO_X86_64
AIMO_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl")

/* The lanes that are left from i on. */
static inline __mmask16 lanes(size_t i, size_t n)
{
    return n - i >= 16 ? (__mmask16)0xffff : (__mmask16)((1u << (n - i)) - 1);
}

void aimo_f32_to_f16_avx512(const float *src, uint16_t *dst, size_t n)
{
    for (size_t i = 0; i < n; i += 16) {
        const __mmask16 mask = lanes(i, n);
        const __m512 x = _mm512_maskz_loadu_ps(mask, src + i);
        _mm256_mask_storeu_epi16(dst + i, mask, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
    }
}

void aimo_f16_to_f32_avx512(const uint16_t *src, float *dst, size_t n)
{
    for (size_t i = 0; i < n; i += 16) {
        const __mmask16 mask = lanes(i, n);
        const __m256i x = _mm256_maskz_loadu_epi16(mask, src + i);
        _mm512_mask_storeu_ps(dst + i, mask, _mm512_cvtph_ps(x));
    }
}

/* VCVTNEPS2BF16 would flush subnormals to zero. */
void aimo_f32_to_bf16_avx512(const float *src, uint16_t *dst, size_t n)
{
    for (size_t i = 0; i < n; i += 16) {
        const __mmask16 mask = lanes(i, n);
        const __m512 x = _mm512_maskz_loadu_ps(mask, src + i);
        const __m512i bits = _mm512_castps_si512(x);
        const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
        const __m512i rounded =
            _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
        const __mmask16 is_nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
        const __m512i result =
            _mm512_mask_or_epi32(rounded, is_nan, bits, _mm512_set1_epi32(0x400000));
        const __m256i upper = _mm512_cvtepi32_epi16(_mm512_srli_epi32(result, 16));
        _mm256_mask_storeu_epi16(dst + i, mask, upper);
    }
}

void aimo_bf16_to_f32_avx512(const uint16_t *src, float *dst, size_t n)
{
    for (size_t i = 0; i < n; i += 16) {
        const __mmask16 mask = lanes(i, n);
        const __m512i x = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, src + i));
        _mm512_mask_storeu_epi32(dst + i, mask, _mm512_slli_epi32(x, 16));
    }
}

AIMO_TARGET_END
#endif
