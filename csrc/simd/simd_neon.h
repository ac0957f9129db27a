/* Vectors of four floats: aarch64's Advanced SIMD. simd_scalar.h documents the names. Include after
 * every other header. */
#ifndef AIMO_SIMD_SIMD_H
#define AIMO_SIMD_SIMD_H

typedef float32x4_t vf32;
/* A 6 x 16 tile: 24 sums, 4 weights and 1 activation in 32 registers. */
enum { VF32_LANES = 4, TILE_ROWS = 6, TILE_PANELS = 1 };

AIMO_INLINE vf32 v_zero(void) { return vdupq_n_f32(0.0f); }
AIMO_INLINE vf32 v_set1(float x) { return vdupq_n_f32(x); }
AIMO_INLINE vf32 v_load(const float *p) { return vld1q_f32(p); }
AIMO_INLINE vf32 v_load_part(const float *p, size_t n)
{
    float lanes[4] = {0.0f};
    memcpy(lanes, p, n * sizeof *p);
    return vld1q_f32(lanes);
}
AIMO_INLINE void v_store(float *p, vf32 x) { vst1q_f32(p, x); }
AIMO_INLINE void v_store_part(float *p, vf32 x, size_t n)
{
    float lanes[4];
    vst1q_f32(lanes, x);
    memcpy(p, lanes, n * sizeof *p);
}
AIMO_INLINE vf32 v_add(vf32 a, vf32 b) { return vaddq_f32(a, b); }
AIMO_INLINE vf32 v_sub(vf32 a, vf32 b) { return vsubq_f32(a, b); }
AIMO_INLINE vf32 v_mul(vf32 a, vf32 b) { return vmulq_f32(a, b); }
AIMO_INLINE vf32 v_div(vf32 a, vf32 b) { return vdivq_f32(a, b); }
AIMO_INLINE vf32 v_fma(vf32 a, vf32 b, vf32 c) { return vfmaq_f32(c, a, b); }
/* FMIN and FMAX would return the NaN whichever operand it is. */
AIMO_INLINE vf32 v_min(vf32 a, vf32 b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
AIMO_INLINE vf32 v_max(vf32 a, vf32 b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
AIMO_INLINE vf32 v_abs(vf32 a) { return vabsq_f32(a); }
AIMO_INLINE vf32 v_select_negative(vf32 x, vf32 a, vf32 b)
{
    return vbslq_f32(vcltzq_f32(x), a, b);
}
AIMO_INLINE vf32 v_round(vf32 a) { return vrndnq_f32(a); }
AIMO_INLINE vf32 v_pow2(vf32 n)
{
    const int32x4_t exponent = vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127));
    return vreinterpretq_f32_s32(vshlq_n_s32(exponent, 23));
}
AIMO_INLINE float v_reduce_add(vf32 a) { return vaddvq_f32(a); }
AIMO_INLINE float v_reduce_max(vf32 a) { return vmaxvq_f32(a); }

AIMO_INLINE uint16x4_t load_u16_part(const uint16_t *p, size_t n)
{
    uint16_t lanes[4] = {0};
    memcpy(lanes, p, n * sizeof *p);
    return vld1_u16(lanes);
}
AIMO_INLINE vf32 widen_f16(uint16x4_t f16) { return vcvt_f32_f16(vreinterpret_f16_u16(f16)); }
AIMO_INLINE vf32 widen_bf16(uint16x4_t bf16)
{
    return vreinterpretq_f32_u32(vshll_n_u16(bf16, 16));
}
AIMO_INLINE vf32 v_load_f16(const uint16_t *p) { return widen_f16(vld1_u16(p)); }
AIMO_INLINE vf32 v_load_f16_part(const uint16_t *p, size_t n)
{
    return widen_f16(load_u16_part(p, n));
}
AIMO_INLINE vf32 v_load_bf16(const uint16_t *p) { return widen_bf16(vld1_u16(p)); }
AIMO_INLINE vf32 v_load_bf16_part(const uint16_t *p, size_t n)
{
    return widen_bf16(load_u16_part(p, n));
}
AIMO_INLINE vf32 v_load_i8(const int8_t *p)
{
    uint32_t bytes;
    memcpy(&bytes, p, sizeof bytes);
    const int16x8_t wide = vmovl_s8(vcreate_s8(bytes));
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide)));
}
AIMO_INLINE vf32 v_load_bf16_even(const uint16_t *p)
{
    const uint32x4_t pairs = vreinterpretq_u32_u16(vld1q_u16(p));
    return vreinterpretq_f32_u32(vshlq_n_u32(pairs, 16));
}
AIMO_INLINE vf32 v_load_bf16_odd(const uint16_t *p)
{
    const uint32x4_t pairs = vreinterpretq_u32_u16(vld1q_u16(p));
    return vreinterpretq_f32_u32(vandq_u32(pairs, vdupq_n_u32(0xffff0000)));
}

#endif
