/* Matrix products with NEON: a 6 x 16 tile in 24 of 32 registers. */
#include "gemm/gemm_int8.h"
#include "gemm/gemm_kernels.h"
#include "simd/intrinsics.h"

#if AIMO_AARCH64
#include "simd/simd_neon.h"

#include "gemm/gemm_body.h"

typedef int32x4_t vi32;
enum {
    UNIT_K = 2,
    UNSIGNED_X = 0,
    LAID_OUT_UNITS = AIMO_INT8_K_LIMIT / UNIT_K * PANEL_COLUMNS,
};

AIMO_INLINE vi32 vi32_set1(int32_t x) { return vdupq_n_s32(x); }
AIMO_INLINE vi32 vi32_load(const int32_t *p) { return vld1q_s32(p); }
AIMO_INLINE vf32 vi32_to_f32(vi32 x) { return vcvtq_f32_s32(x); }
/* Products of all eight int16, then pairwise sums: every aarch64 has these instructions. */
AIMO_INLINE vi32 vi32_dot(vi32 sums, vi32 x, vi32 w)
{
    const int16x8_t a = vreinterpretq_s16_s32(x), b = vreinterpretq_s16_s32(w);
    const int32x4_t low = vmull_s16(vget_low_s16(a), vget_low_s16(b));
    return vaddq_s32(sums, vpaddq_s32(low, vmull_high_s16(a, b)));
}

/* units [ceil(k / 2)]: pairs of int16 */
AIMO_INLINE void round_row(const float *x, size_t k, const aimo_int8_rounding *rounding,
                           uint32_t *units)
{
    int16_t *to = (int16_t *)units;
    const int16x4_t least = vdup_n_s16((int16_t)-rounding->zero);
    const int16x4_t largest = vdup_n_s16((int16_t)(AIMO_INT8_STEPS - rounding->zero));
    if (k % 2 != 0)
        to[k] = 0;
    for (size_t i = 0; i < k; i += VF32_LANES) {
        const size_t n = k - i < VF32_LANES ? k - i : VF32_LANES;
        const vf32 scaled = v_mul(v_load_part_or_full(x + i, n), v_set1(rounding->inverse));
        const int16x4_t q = vqmovn_s32(vcvtnq_s32_f32(scaled));
        int16_t lanes[VF32_LANES];
        vst1_s16(lanes, vmin_s16(vmax_s16(q, least), largest));
        memcpy(to + i, lanes, n * sizeof *to);
    }
}

/* Each group of four bytes becomes two pairs of int16. */
AIMO_INLINE const uint32_t *lay_out(const int8_t *weights, size_t groups, uint32_t *out)
{
    for (size_t g = 0; g < groups; g++)
        for (size_t column = 0; column < PANEL_COLUMNS; column += VF32_LANES) {
            const int8x16_t bytes = vld1q_s8(weights + (g * PANEL_COLUMNS + column) * UNIT_K * 2);
            const uint32x4_t low = vreinterpretq_u32_s16(vmovl_s8(vget_low_s8(bytes)));
            const uint32x4_t high = vreinterpretq_u32_s16(vmovl_high_s8(bytes));
            uint32_t *to = out + 2 * g * PANEL_COLUMNS + column;
            vst1q_u32(to, vuzp1q_u32(low, high));
            vst1q_u32(to + PANEL_COLUMNS, vuzp2q_u32(low, high));
        }
    return out;
}

#include "gemm/gemm_int8_body.h"

void aimo_gemm_f32_neon(const aimo_gemm_args *args) { gemm(args, AIMO_F32); }

void aimo_gemm_f16_neon(const aimo_gemm_args *args) { gemm(args, AIMO_F16); }

void aimo_gemm_bf16_neon(const aimo_gemm_args *args) { gemm(args, AIMO_BF16); }

void aimo_gemm_int8_neon(const aimo_gemm_args *args) { gemm_int8(args); }

#endif
