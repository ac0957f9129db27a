/* Matrix products with AVX2 and FMA: a 6 x 16 tile in 12 of 16 registers. */
#include "gemm/gemm_int8.h"
#include "gemm/gemm_kernels.h"
#include "simd/intrinsics.h"

#if AIMO_X86_64
AIMO_TARGET_BEGIN("avx2,fma,f16c")
#include "simd/simd_avx2.h"

#include "gemm/gemm_body.h"

/* As in gemm_avx512_vnni.c. */
typedef int32_t vi32 __attribute__((vector_size(32)));
enum {
    UNIT_K = 2,
    UNSIGNED_X = 0,
    LAID_OUT_UNITS = AIMO_INT8_K_LIMIT / UNIT_K * PANEL_COLUMNS,
};

AIMO_INLINE vi32 vi32_set1(int32_t x) { return (vi32)_mm256_set1_epi32(x); }
AIMO_INLINE vi32 vi32_load(const int32_t *p)
{
    return (vi32)_mm256_loadu_si256((const __m256i *)p);
}
AIMO_INLINE vf32 vi32_to_f32(vi32 x) { return _mm256_cvtepi32_ps((__m256i)x); }
/* Not VPMADDUBSW, because its 16-bit sums saturate. */
AIMO_INLINE vi32 vi32_dot(vi32 sums, vi32 x, vi32 w)
{
    return sums + (vi32)_mm256_madd_epi16((__m256i)x, (__m256i)w);
}

/* units [ceil(k / 2)]: pairs of int16 */
AIMO_INLINE void round_row(const float *x, size_t k, const aimo_int8_rounding *rounding,
                           uint32_t *units)
{
    int16_t *to = (int16_t *)units;
    const size_t padded = (k + 1) / 2 * 2;
    const __m256 inverse = _mm256_set1_ps(rounding->inverse);
    const __m128i least = _mm_set1_epi16((int16_t)-rounding->zero);
    const __m128i largest = _mm_set1_epi16((int16_t)(AIMO_INT8_STEPS - rounding->zero));
    for (size_t i = 0; i < k; i += VF32_LANES) {
        const size_t n = k - i < VF32_LANES ? k - i : VF32_LANES;
        const vf32 scaled = _mm256_mul_ps(v_load_part_or_full(x + i, n), inverse);
        const __m256i q = _mm256_cvtps_epi32(scaled);
        const __m128i pairs =
            _mm_packs_epi32(_mm256_castsi256_si128(q), _mm256_extracti128_si256(q, 1));
        const __m128i narrow = _mm_min_epi16(_mm_max_epi16(pairs, least), largest);
        if (padded - i >= VF32_LANES) {
            _mm_storeu_si128((__m128i *)(to + i), narrow);
        } else {
            int16_t lanes[VF32_LANES];
            _mm_storeu_si128((__m128i *)lanes, narrow);
            memcpy(to + i, lanes, (padded - i) * sizeof *to);
        }
    }
}

/* Each group of four bytes becomes two pairs of int16: the bytes are moved to the upper halves of
 * their lanes, then shifted down with their signs. */
AIMO_INLINE const uint32_t *lay_out(const int8_t *weights, size_t groups, uint32_t *out)
{
    const __m256i first =
        _mm256_setr_epi8(-1, 0, -1, 1, -1, 4, -1, 5, -1, 8, -1, 9, -1, 12, -1, 13, -1, 0, -1, 1, -1,
                         4, -1, 5, -1, 8, -1, 9, -1, 12, -1, 13);
    const __m256i two = _mm256_setr_epi8(0, 2, 0, 2, 0, 2, 0, 2, 0, 2, 0, 2, 0, 2, 0, 2, 0, 2, 0, 2,
                                         0, 2, 0, 2, 0, 2, 0, 2, 0, 2, 0, 2);
    const __m256i second = _mm256_add_epi8(first, two);
    for (size_t g = 0; g < groups; g++)
        for (size_t v = 0; v < PANEL_VECTORS; v++) {
            const size_t column = v * VF32_LANES;
            const __m256i bytes = _mm256_loadu_si256(
                (const __m256i *)(weights + (g * PANEL_COLUMNS + column) * AIMO_INT8_GROUP));
            uint32_t *to = out + 2 * g * PANEL_COLUMNS + column;
            _mm256_storeu_si256((__m256i *)to,
                                _mm256_srai_epi16(_mm256_shuffle_epi8(bytes, first), 8));
            _mm256_storeu_si256((__m256i *)(to + PANEL_COLUMNS),
                                _mm256_srai_epi16(_mm256_shuffle_epi8(bytes, second), 8));
        }
    return out;
}

#include "gemm/gemm_int8_body.h"

void aimo_gemm_f32_avx2(const aimo_gemm_args *args) { gemm(args, AIMO_F32); }

void aimo_gemm_f16_avx2(const aimo_gemm_args *args) { gemm(args, AIMO_F16); }

void aimo_gemm_bf16_avx2(const aimo_gemm_args *args) { gemm(args, AIMO_BF16); }

void aimo_gemm_int8_avx2(const aimo_gemm_args *args) { gemm_int8(args); }

AIMO_TARGET_END
#endif
