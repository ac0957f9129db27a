/* Vectors of eight floats: AVX2 + FMA + F16C. simd_scalar.h documents the names. Include inside a
 * target region, after every other header. */
#ifndef AIMO_SIMD_SIMD_H
#define AIMO_SIMD_SIMD_H

typedef __m256 vf32;
/* A 6 x 16 tile: 12 sums, 2 weights and 1 activation in 16 registers. */
enum { VF32_LANES = 8, TILE_ROWS = 6, TILE_PANELS = 1 };

AIMO_INLINE __m256i lane_mask(size_t n)
{
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), lanes);
}

AIMO_INLINE vf32 v_zero(void) { return _mm256_setzero_ps(); }
AIMO_INLINE vf32 v_set1(float x) { return _mm256_set1_ps(x); }
AIMO_INLINE vf32 v_load(const float *p) { return _mm256_loadu_ps(p); }
AIMO_INLINE vf32 v_load_part(const float *p, size_t n)
{
    return _mm256_maskload_ps(p, lane_mask(n));
}
AIMO_INLINE void v_store(float *p, vf32 x) { _mm256_storeu_ps(p, x); }
AIMO_INLINE void v_store_part(float *p, vf32 x, size_t n)
{
    _mm256_maskstore_ps(p, lane_mask(n), x);
}
AIMO_INLINE vf32 v_add(vf32 a, vf32 b) { return _mm256_add_ps(a, b); }
AIMO_INLINE vf32 v_sub(vf32 a, vf32 b) { return _mm256_sub_ps(a, b); }
AIMO_INLINE vf32 v_mul(vf32 a, vf32 b) { return _mm256_mul_ps(a, b); }
AIMO_INLINE vf32 v_div(vf32 a, vf32 b) { return _mm256_div_ps(a, b); }
AIMO_INLINE vf32 v_fma(vf32 a, vf32 b, vf32 c) { return _mm256_fmadd_ps(a, b, c); }
AIMO_INLINE vf32 v_min(vf32 a, vf32 b) { return _mm256_min_ps(a, b); }
AIMO_INLINE vf32 v_max(vf32 a, vf32 b) { return _mm256_max_ps(a, b); }
AIMO_INLINE vf32 v_abs(vf32 a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
AIMO_INLINE vf32 v_select_negative(vf32 x, vf32 a, vf32 b) { return _mm256_blendv_ps(b, a, x); }
AIMO_INLINE vf32 v_round(vf32 a)
{
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
AIMO_INLINE vf32 v_pow2(vf32 n)
{
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
}
AIMO_INLINE float v_reduce_add(vf32 a)
{
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
}
AIMO_INLINE float v_reduce_max(vf32 a)
{
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_shuffle_ps(s, s, 1)));
}

AIMO_INLINE __m128i load_u16_part(const uint16_t *p, size_t n)
{
    uint16_t lanes[8] = {0};
    memcpy(lanes, p, n * sizeof *p);
    return _mm_loadu_si128((const __m128i *)lanes);
}
AIMO_INLINE vf32 widen_bf16(__m128i bf16)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bf16), 16));
}
AIMO_INLINE vf32 v_load_f16(const uint16_t *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}
AIMO_INLINE vf32 v_load_f16_part(const uint16_t *p, size_t n)
{
    return _mm256_cvtph_ps(load_u16_part(p, n));
}
AIMO_INLINE vf32 v_load_bf16(const uint16_t *p)
{
    return widen_bf16(_mm_loadu_si128((const __m128i *)p));
}
AIMO_INLINE vf32 v_load_bf16_part(const uint16_t *p, size_t n)
{
    return widen_bf16(load_u16_part(p, n));
}
AIMO_INLINE vf32 v_load_i8(const int8_t *p)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}
AIMO_INLINE vf32 v_load_bf16_even(const uint16_t *p)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_loadu_si256((const __m256i *)p), 16));
}
AIMO_INLINE vf32 v_load_bf16_odd(const uint16_t *p)
{
    const __m256i pairs = _mm256_loadu_si256((const __m256i *)p);
    return _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32((int)0xffff0000)));
}

#endif
