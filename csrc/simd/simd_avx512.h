/* Vectors of sixteen floats: AVX-512 F + BW + DQ + VL. simd_scalar.h documents the names. Include
 * inside a target region, after every other header. */
#ifndef AIMO_SIMD_SIMD_H
#define AIMO_SIMD_SIMD_H

typedef __m512 vf32;
/* A 12 x 32 tile: 24 sums, 2 weights and the activations in 32 registers. */
enum { VF32_LANES = 16, TILE_ROWS = 12, TILE_PANELS = 2 };

AIMO_INLINE __mmask16 lane_mask(size_t n) { return (__mmask16)((1u << n) - 1); }

AIMO_INLINE vf32 v_zero(void) { return _mm512_setzero_ps(); }
AIMO_INLINE vf32 v_set1(float x) { return _mm512_set1_ps(x); }
AIMO_INLINE vf32 v_load(const float *p) { return _mm512_loadu_ps(p); }
AIMO_INLINE vf32 v_load_part(const float *p, size_t n)
{
    return _mm512_maskz_loadu_ps(lane_mask(n), p);
}
AIMO_INLINE void v_store(float *p, vf32 x) { _mm512_storeu_ps(p, x); }
AIMO_INLINE void v_store_part(float *p, vf32 x, size_t n)
{
    _mm512_mask_storeu_ps(p, lane_mask(n), x);
}
AIMO_INLINE vf32 v_add(vf32 a, vf32 b) { return _mm512_add_ps(a, b); }
AIMO_INLINE vf32 v_sub(vf32 a, vf32 b) { return _mm512_sub_ps(a, b); }
AIMO_INLINE vf32 v_mul(vf32 a, vf32 b) { return _mm512_mul_ps(a, b); }
AIMO_INLINE vf32 v_div(vf32 a, vf32 b) { return _mm512_div_ps(a, b); }
AIMO_INLINE vf32 v_fma(vf32 a, vf32 b, vf32 c) { return _mm512_fmadd_ps(a, b, c); }
AIMO_INLINE vf32 v_min(vf32 a, vf32 b) { return _mm512_min_ps(a, b); }
AIMO_INLINE vf32 v_max(vf32 a, vf32 b) { return _mm512_max_ps(a, b); }
AIMO_INLINE vf32 v_abs(vf32 a) { return _mm512_abs_ps(a); }
AIMO_INLINE vf32 v_select_negative(vf32 x, vf32 a, vf32 b)
{
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ), b, a);
}
AIMO_INLINE vf32 v_round(vf32 a)
{
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
AIMO_INLINE vf32 v_pow2(vf32 n)
{
    const __m512i exponent = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(exponent, 23));
}
/* table[entry] of a table that fits a register, for integral entries in range. */
#define SIMD_LOOKUP_ENTRIES 16
AIMO_INLINE vf32 v_lookup(const float *table, vf32 entry)
{
    return _mm512_permutexvar_ps(_mm512_cvtps_epi32(entry), _mm512_loadu_ps(table));
}
/* rows [16] = the transpose of rows; first of 4 x 4 blocks within lanes of 128 bits, then of lanes.
 */
#define SIMD_TRANSPOSE 1
AIMO_INLINE void v_transpose(vf32 *rows)
{
    AIMO_UNROLL
    for (size_t i = 0; i < 16; i += 4) {
        const __m512d a = _mm512_castps_pd(_mm512_unpacklo_ps(rows[i], rows[i + 1]));
        const __m512d b = _mm512_castps_pd(_mm512_unpackhi_ps(rows[i], rows[i + 1]));
        const __m512d c = _mm512_castps_pd(_mm512_unpacklo_ps(rows[i + 2], rows[i + 3]));
        const __m512d d = _mm512_castps_pd(_mm512_unpackhi_ps(rows[i + 2], rows[i + 3]));
        rows[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
        rows[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
        rows[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
        rows[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
    }
    AIMO_UNROLL
    for (size_t i = 0; i < 4; i++) {
        const vf32 a = _mm512_shuffle_f32x4(rows[i], rows[i + 4], 0x88);
        const vf32 b = _mm512_shuffle_f32x4(rows[i], rows[i + 4], 0xdd);
        const vf32 c = _mm512_shuffle_f32x4(rows[i + 8], rows[i + 12], 0x88);
        const vf32 d = _mm512_shuffle_f32x4(rows[i + 8], rows[i + 12], 0xdd);
        rows[i] = _mm512_shuffle_f32x4(a, c, 0x88);
        rows[i + 4] = _mm512_shuffle_f32x4(b, d, 0x88);
        rows[i + 8] = _mm512_shuffle_f32x4(a, c, 0xdd);
        rows[i + 12] = _mm512_shuffle_f32x4(b, d, 0xdd);
    }
}
AIMO_INLINE float v_reduce_add(vf32 a) { return _mm512_reduce_add_ps(a); }
AIMO_INLINE float v_reduce_max(vf32 a) { return _mm512_reduce_max_ps(a); }

AIMO_INLINE vf32 widen_bf16(__m256i bf16)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bf16), 16));
}
AIMO_INLINE vf32 v_load_f16(const uint16_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
AIMO_INLINE vf32 v_load_f16_part(const uint16_t *p, size_t n)
{
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(lane_mask(n), p));
}
AIMO_INLINE vf32 v_load_bf16(const uint16_t *p)
{
    return widen_bf16(_mm256_loadu_si256((const __m256i *)p));
}
AIMO_INLINE vf32 v_load_bf16_part(const uint16_t *p, size_t n)
{
    return widen_bf16(_mm256_maskz_loadu_epi16(lane_mask(n), p));
}
AIMO_INLINE vf32 v_load_i8(const int8_t *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
AIMO_INLINE vf32 v_load_bf16_even(const uint16_t *p)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(p), 16));
}
AIMO_INLINE vf32 v_load_bf16_odd(const uint16_t *p)
{
    const __m512i pairs = _mm512_loadu_si512(p);
    return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32((int)0xffff0000)));
}

#endif
