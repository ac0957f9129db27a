/* Half conversion, eight elements a step: FCVTN and FCVTL do f16, integer arithmetic does bf16.
 * There are no intrinsics for non-temporal stores, so `stream` is ignored. */
#include "half/half_kernels.h"
#include "half/half_scalar.h"
#include "simd/intrinsics.h"

#if AIMO_AARCH64

#define ISA(name) aimo_##name##_neon
#define STEP 8
#define STREAM_FENCE() (void)0

AIMO_INLINE void f32_to_f16_step(const float *src, uint16_t *dst, bool stream)
{
    (void)stream;
    const float16x4_t low = vcvt_f16_f32(vld1q_f32(src));
    const float16x8_t both = vcvt_high_f16_f32(low, vld1q_f32(src + 4));
    vst1q_u16(dst, vreinterpretq_u16_f16(both));
}

AIMO_INLINE void f16_to_f32_step(const uint16_t *src, float *dst, bool stream)
{
    (void)stream;
    const float16x8_t both = vreinterpretq_f16_u16(vld1q_u16(src));
    vst1q_f32(dst, vcvt_f32_f16(vget_low_f16(both)));
    vst1q_f32(dst + 4, vcvt_high_f32_f16(both));
}

/* In the upper half of each 32-bit lane. BFCVTN is newer than the row (Armv8.6). */
AIMO_INLINE uint32x4_t bf16_in_upper_half(const float *src)
{
    const float32x4_t x = vld1q_f32(src);
    const uint32x4_t bits = vreinterpretq_u32_f32(x);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
    return vbslq_u32(vceqq_f32(x, x), rounded, quiet);
}

AIMO_INLINE void f32_to_bf16_step(const float *src, uint16_t *dst, bool stream)
{
    (void)stream;
    const uint16x4_t low = vshrn_n_u32(bf16_in_upper_half(src), 16);
    vst1q_u16(dst, vshrn_high_n_u32(low, bf16_in_upper_half(src + 4), 16));
}

AIMO_INLINE void bf16_to_f32_step(const uint16_t *src, float *dst, bool stream)
{
    (void)stream;
    const uint16x8_t both = vld1q_u16(src);
    vst1q_f32(dst, vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(both), 16)));
    vst1q_f32(dst + 4, vreinterpretq_f32_u32(vshll_high_n_u16(both, 16)));
}

/* FCVTXN rounds to odd by itself. It turns doubles beyond f32 into the largest f32, which is still
 * infinite as f16. */
AIMO_INLINE float32x4_t f32_to_odd(const double *src)
{
    return vcvtx_high_f32_f64(vcvtx_f32_f64(vld1q_f64(src)), vld1q_f64(src + 2));
}

AIMO_INLINE void f64_to_f16_step(const double *src, uint16_t *dst, bool stream)
{
    (void)stream;
    const float16x4_t low = vcvt_f16_f32(f32_to_odd(src));
    vst1q_u16(dst, vreinterpretq_u16_f16(vcvt_high_f16_f32(low, f32_to_odd(src + 4))));
}

#include "half/half_body.h"

#endif
