/* Matrix products in plain C: the reference. */
#include "gemm/gemm_int8.h"
#include "gemm/gemm_kernels.h"
#include "simd/simd_scalar.h"

#include "gemm/gemm_body.h"

typedef int32_t vi32;
enum {
    UNIT_K = 2,
    UNSIGNED_X = 0,
    LAID_OUT_UNITS = AIMO_INT8_K_LIMIT / UNIT_K * PANEL_COLUMNS,
};

AIMO_INLINE vi32 vi32_set1(int32_t x) { return x; }
AIMO_INLINE vi32 vi32_load(const int32_t *p) { return *p; }
AIMO_INLINE vf32 vi32_to_f32(vi32 x) { return (float)x; }
AIMO_INLINE int32_t low_half(int32_t pair) { return (int16_t)((uint32_t)pair & 0xffff); }
AIMO_INLINE int32_t high_half(int32_t pair) { return (int16_t)((uint32_t)pair >> 16); }
AIMO_INLINE vi32 vi32_dot(vi32 sums, vi32 x, vi32 w)
{
    return sums + low_half(x) * low_half(w) + high_half(x) * high_half(w);
}

AIMO_INLINE uint32_t pair_of(int32_t low, int32_t high)
{
    return ((uint32_t)low & 0xffff) | (uint32_t)high << 16;
}

/* NaN has no integer value; the row's scale turns the result into NaN again. */
AIMO_INLINE int32_t round_one(float x, const aimo_int8_rounding *rounding)
{
    const float q = rintf(x * rounding->inverse);
    const float least = (float)-rounding->zero, largest = least + (float)AIMO_INT8_STEPS;
    return isnan(q) ? 0 : (int32_t)v_min(v_max(q, least), largest);
}

/* units [ceil(k / 2)]: pairs of int16 */
AIMO_INLINE void round_row(const float *x, size_t k, const aimo_int8_rounding *rounding,
                           uint32_t *units)
{
    for (size_t i = 0; i < k; i += UNIT_K) {
        const int32_t low = round_one(x[i], rounding);
        units[i / UNIT_K] = pair_of(low, i + 1 < k ? round_one(x[i + 1], rounding) : 0);
    }
}

AIMO_INLINE const uint32_t *lay_out(const int8_t *weights, size_t groups, uint32_t *out)
{
    for (size_t g = 0; g < groups; g++)
        for (size_t column = 0; column < PANEL_COLUMNS; column++) {
            const int8_t *w = weights + (g * PANEL_COLUMNS + column) * AIMO_INT8_GROUP;
            out[2 * g * PANEL_COLUMNS + column] = pair_of(w[0], w[1]);
            out[(2 * g + 1) * PANEL_COLUMNS + column] = pair_of(w[2], w[3]);
        }
    return out;
}

#include "gemm/gemm_int8_body.h"

void aimo_gemm_f32_scalar(const aimo_gemm_args *args) { gemm(args, AIMO_F32); }

void aimo_gemm_f16_scalar(const aimo_gemm_args *args) { gemm(args, AIMO_F16); }

void aimo_gemm_bf16_scalar(const aimo_gemm_args *args) { gemm(args, AIMO_BF16); }

void aimo_gemm_int8_scalar(const aimo_gemm_args *args) { gemm_int8(args); }
