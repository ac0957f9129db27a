/* One 16-bit value at a time, exactly as the vector instructions do it: round to nearest even,
 * subnormals kept, overflow to infinity, a NaN quieted with its sign and top payload bits. */
#ifndef AIMO_HALF_SCALAR_H
#define AIMO_HALF_SCALAR_H

#include "base/platform.h"

#include <stdint.h>
#include <string.h>

AIMO_INLINE uint32_t aimo_f32_bits(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

AIMO_INLINE float aimo_f32_from_bits(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

AIMO_INLINE uint16_t aimo_f32_to_f16_one(float x)
{
    const uint32_t bits = aimo_f32_bits(x);
    const uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) /* NaN */
        return (uint16_t)(sign | 0x7e00 | (magnitude >> 13 & 0x3ff));
    if (magnitude >= 0x477ff000) /* 65520, halfway between the largest f16 and 2^16, and above */
        return (uint16_t)(sign | 0x7c00);
    if (magnitude >= 0x38800000) { /* 2^-14: normal; the carry of rounding may reach the exponent */
        const uint32_t rebiased = magnitude - (112u << 23);
        return (uint16_t)(sign | (rebiased + 0xfff + (rebiased >> 13 & 1)) >> 13);
    }
    if (magnitude <= 0x33000000) /* 2^-25: ties to even, which is zero */
        return (uint16_t)sign;
    /* Subnormal: adding 2^-1 leaves the value in units of 2^-24, rounded by the addition itself. */
    const float shifted = aimo_f32_from_bits(magnitude) + 0.5f;
    return (uint16_t)(sign | (aimo_f32_bits(shifted) - aimo_f32_bits(0.5f)));
}

AIMO_INLINE float aimo_f16_to_f32_one(uint16_t h)
{
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16, magnitude = h & 0x7fff;
    if (magnitude > 0x7c00) /* NaN */
        return aimo_f32_from_bits(sign | 0x7fc00000 | magnitude << 13);
    if (magnitude == 0x7c00)
        return aimo_f32_from_bits(sign | 0x7f800000);
    if (magnitude >= 0x400)
        return aimo_f32_from_bits(sign | ((magnitude << 13) + (112u << 23)));
    const float subnormal = (float)magnitude * 0x1p-24f; /* exact */
    return aimo_f32_from_bits(sign | aimo_f32_bits(subnormal));
}

AIMO_INLINE uint16_t aimo_f32_to_bf16_one(float x)
{
    const uint32_t bits = aimo_f32_bits(x);
    if ((bits & 0x7fffffff) >
        0x7f800000) /* NaN: rounding could carry it into infinity or the sign */
        return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* The low bits that a double loses when its fraction is cut to 23 bits. The last bit kept is set
 * when any bit was lost: this rounding "to odd" keeps the second rounding, to f16, from seeing a
 * tie where there was none. */
#define AIMO_F64_LOST_BITS 0x1fffffffull

AIMO_INLINE uint16_t aimo_f64_to_f16_one(double x)
{
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    if ((bits & 0x7fffffffffffffffull) >
        0x7ff0000000000000ull) /* NaN: the cast may lose its bits */
        return (uint16_t)((bits >> 48 & 0x8000) | 0x7e00 | (bits >> 42 & 0x3ff));
    bits |= (bits & AIMO_F64_LOST_BITS) + AIMO_F64_LOST_BITS;
    bits &= ~AIMO_F64_LOST_BITS;
    memcpy(&x, &bits, sizeof x);
    return aimo_f32_to_f16_one(
        (float)x); /* exact, or far outside the range where f16 values differ */
}

AIMO_INLINE float aimo_bf16_to_f32_one(uint16_t b) { return aimo_f32_from_bits((uint32_t)b << 16); }

#endif
