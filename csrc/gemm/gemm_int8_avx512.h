/* Rounding of x to 8 bits with AVX-512, for VNNI and AMX. Include after simd_avx512.h. */
#ifndef AIMO_GEMM_INT8_AVX512_H
#define AIMO_GEMM_INT8_AVX512_H

AIMO_INLINE __m512i rounded_16(const float *x, __m512 inverse)
{
    return _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x), inverse));
}

/* 64 values as signed bytes. Packing goes by lanes of 128 bits, four bytes of each vector to a
 * lane; they are put in order at the end. */
AIMO_INLINE __m512i rounded_64(const float *x, __m512 inverse)
{
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i low = _mm512_packs_epi32(rounded_16(x, inverse), rounded_16(x + 16, inverse));
    const __m512i high =
        _mm512_packs_epi32(rounded_16(x + 32, inverse), rounded_16(x + 48, inverse));
    return _mm512_permutexvar_epi32(order, _mm512_packs_epi16(low, high));
}

/* The first n of 16 values, then zeros. */
AIMO_INLINE __m128i rounded_part(const float *x, size_t n, __m512 inverse)
{
    return _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(v_mul(v_load_part(x, n), inverse)));
}

#endif
