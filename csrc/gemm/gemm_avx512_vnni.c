/* Matrix products with VPDPBUSD: four products per lane and step, in a 12 x 32 tile of int32 sums.
 * The instruction takes unsigned x. */
#include "gemm/gemm_int8.h"
#include "gemm/gemm_kernels.h"
#include "simd/intrinsics.h"

#if AIMO_X86_64
AIMO_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")
#include "simd/simd_avx512.h"

#include "gemm/gemm_int8_avx512.h"

/* A vector type with int32 lanes: gcc keeps arrays of __m512i sums in memory. */
typedef int32_t vi32 __attribute__((vector_size(64)));
enum { UNIT_K = 4, UNSIGNED_X = 1, LAID_OUT_UNITS = 1 };

AIMO_INLINE vi32 vi32_set1(int32_t x) { return (vi32)_mm512_set1_epi32(x); }
AIMO_INLINE vi32 vi32_load(const int32_t *p) { return (vi32)_mm512_loadu_si512(p); }
AIMO_INLINE vf32 vi32_to_f32(vi32 x) { return _mm512_cvtepi32_ps((__m512i)x); }
AIMO_INLINE vi32 vi32_dot(vi32 sums, vi32 x, vi32 w)
{
    return (vi32)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)x, (__m512i)w);
}

/* units [ceil(k / 4)]: bytes */
AIMO_INLINE void round_row(const float *x, size_t k, const aimo_int8_rounding *rounding,
                           uint32_t *units)
{
    uint8_t *bytes = (uint8_t *)units;
    size_t i = 0;
    for (; i + 4 * VF32_LANES <= k; i += 4 * VF32_LANES)
        _mm512_storeu_si512(bytes + i, rounded_64(x + i, rounding));
    const size_t padded = (k + UNIT_K - 1) / UNIT_K * UNIT_K;
    for (; i < k; i += VF32_LANES) {
        const size_t left = k - i < VF32_LANES ? k - i : VF32_LANES;
        const size_t room = padded - i < VF32_LANES ? padded - i : VF32_LANES;
        _mm_mask_storeu_epi8(bytes + i, lane_mask(room), rounded_part(x + i, left, rounding));
    }
}

/* They are already laid out as the instruction wants them. */
AIMO_INLINE const uint32_t *lay_out(const int8_t *weights, size_t groups, uint32_t *out)
{
    (void)groups, (void)out;
    return (const uint32_t *)weights;
}

#include "gemm/gemm_int8_body.h"

void aimo_gemm_f32_avx512_vnni(const aimo_gemm_args *args) { aimo_gemm_f32_avx512(args); }

void aimo_gemm_f16_avx512_vnni(const aimo_gemm_args *args) { aimo_gemm_f16_avx512(args); }

void aimo_gemm_bf16_avx512_vnni(const aimo_gemm_args *args) { aimo_gemm_bf16_avx512(args); }

void aimo_gemm_int8_avx512_vnni(const aimo_gemm_args *args) { gemm_int8(args); }

AIMO_TARGET_END
#endif
