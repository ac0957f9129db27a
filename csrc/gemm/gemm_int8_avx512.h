/* Rounding of x to 8 bits with AVX-512, for the VNNI and AMX rows of kernels. Include after
 * simd_avx512.h. */
#ifndef AIMO_GEMM_INT8_AVX512_H
#define AIMO_GEMM_INT8_AVX512_H

AIMO_INLINE __m512i rounded_16(const float *x, __m512 inverse)
{
    return _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x), inverse));
}

/* 32 values as int16 with the zero point added, in the order of packs: fours from each half in
 * turn. */
AIMO_INLINE __m512i rounded_32(const float *x, const aimo_int8_rounding *rounding)
{
    const __m512 inverse = _mm512_set1_ps(rounding->inverse);
    return _mm512_adds_epi16(
        _mm512_packs_epi32(rounded_16(x, inverse), rounded_16(x + 16, inverse)),
        _mm512_set1_epi16((int16_t)rounding->zero));
}

/* 64 values as unsigned bytes. The packing instructions work within 128-bit lanes and put four
 * bytes of each vector into a lane; the permutation restores the order. */
AIMO_INLINE __m512i rounded_64(const float *x, const aimo_int8_rounding *rounding)
{
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return _mm512_permutexvar_epi32(
        order, _mm512_packus_epi16(rounded_32(x, rounding), rounded_32(x + 32, rounding)));
}

/* The first n of 16 values, followed by the encoding of 0. */
AIMO_INLINE __m128i rounded_part(const float *x, size_t n, const aimo_int8_rounding *rounding)
{
    const __m512i q =
        _mm512_cvtps_epi32(v_mul(v_load_part(x, n), _mm512_set1_ps(rounding->inverse)));
    const __m512i above = _mm512_add_epi32(q, _mm512_set1_epi32(rounding->zero));
    return _mm512_cvtusepi32_epi8(_mm512_max_epi32(above, _mm512_setzero_si512()));
}

#endif
