/* Half conversion, eight lanes: FCVTN and FCVTL do f16, integer arithmetic does bf16. */
#include "half/half_kernels.h"
#include "half/half_scalar.h"
#include "simd/intrinsics.h"

#if AIMO_AARCH64

void aimo_f32_to_f16_neon(const float *src, uint16_t *dst, size_t n)
{
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const float16x4_t low = vcvt_f16_f32(vld1q_f32(src + i));
        const float16x8_t both = vcvt_high_f16_f32(low, vld1q_f32(src + i + 4));
        vst1q_u16(dst + i, vreinterpretq_u16_f16(both));
    }
    for (; i < n; i++)
        dst[i] = aimo_f32_to_f16_one(src[i]);
}

void aimo_f16_to_f32_neon(const uint16_t *src, float *dst, size_t n)
{
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const float16x8_t both = vreinterpretq_f16_u16(vld1q_u16(src + i));
        vst1q_f32(dst + i, vcvt_f32_f16(vget_low_f16(both)));
        vst1q_f32(dst + i + 4, vcvt_high_f32_f16(both));
    }
    for (; i < n; i++)
        dst[i] = aimo_f16_to_f32_one(src[i]);
}

/* In the upper half of each 32-bit lane. BFCVTN is newer than the row (Armv8.6). */
static inline uint32x4_t bf16_in_upper_half(const float *src)
{
    const float32x4_t x = vld1q_f32(src);
    const uint32x4_t bits = vreinterpretq_u32_f32(x);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
    return vbslq_u32(vceqq_f32(x, x), rounded, quiet);
}

void aimo_f32_to_bf16_neon(const float *src, uint16_t *dst, size_t n)
{
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const uint16x4_t low = vshrn_n_u32(bf16_in_upper_half(src + i), 16);
        vst1q_u16(dst + i, vshrn_high_n_u32(low, bf16_in_upper_half(src + i + 4), 16));
    }
    for (; i < n; i++)
        dst[i] = aimo_f32_to_bf16_one(src[i]);
}

void aimo_bf16_to_f32_neon(const uint16_t *src, float *dst, size_t n)
{
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const uint16x8_t both = vld1q_u16(src + i);
        vst1q_f32(dst + i, vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(both), 16)));
        vst1q_f32(dst + i + 4, vreinterpretq_f32_u32(vshll_high_n_u16(both, 16)));
    }
    for (; i < n; i++)
        dst[i] = aimo_bf16_to_f32_one(src[i]);
}

#endif
