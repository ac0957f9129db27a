/* Vectors of one float in plain C: the reference for every other row.
 *
 * simd_avx2.h, simd_avx512.h and simd_neon.h define the same names; the code built on them
 * (simd_math.h, simd_tile.h, the kernels' *_body.h) is written once. Include exactly one of them
 * per file. vf32 is a vector of VF32_LANES floats.  The _part functions load zeros into lanes n and
 * above, and store nothing from them (n <= VF32_LANES). */
#ifndef AIMO_SIMD_SIMD_H
#define AIMO_SIMD_SIMD_H

#include "half/half_scalar.h"

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef float vf32;
enum { VF32_LANES = 1, TILE_ROWS = 2, TILE_PANELS = 1 };

AIMO_INLINE vf32 v_zero(void) { return 0.0f; }
AIMO_INLINE vf32 v_set1(float x) { return x; }
AIMO_INLINE vf32 v_load(const float *p) { return *p; }
AIMO_INLINE vf32 v_load_part(const float *p, size_t n) { return n != 0 ? *p : 0.0f; }
AIMO_INLINE void v_store(float *p, vf32 x) { *p = x; }
AIMO_INLINE void v_store_part(float *p, vf32 x, size_t n)
{
    if (n != 0)
        *p = x;
}
AIMO_INLINE vf32 v_add(vf32 a, vf32 b) { return a + b; }
AIMO_INLINE vf32 v_sub(vf32 a, vf32 b) { return a - b; }
AIMO_INLINE vf32 v_mul(vf32 a, vf32 b) { return a * b; }
AIMO_INLINE vf32 v_div(vf32 a, vf32 b) { return a / b; }
/* a * b + c; fused where the machine can do it. */
AIMO_INLINE vf32 v_fma(vf32 a, vf32 b, vf32 c) { return a * b + c; }
/* The second operand when either is NaN, like x86's minps and maxps. */
AIMO_INLINE vf32 v_min(vf32 a, vf32 b) { return a < b ? a : b; }
AIMO_INLINE vf32 v_max(vf32 a, vf32 b) { return a > b ? a : b; }
AIMO_INLINE vf32 v_abs(vf32 a) { return fabsf(a); }
/* x < 0 ? a : b, lane by lane. */
AIMO_INLINE vf32 v_select_negative(vf32 x, vf32 a, vf32 b) { return x < 0.0f ? a : b; }
/* To the nearest integer, ties to even. */
AIMO_INLINE vf32 v_round(vf32 a) { return nearbyintf(a); }
/* 2^n for integral n in [-126, 127]. */
AIMO_INLINE vf32 v_pow2(vf32 n)
{
    const uint32_t bits = (uint32_t)((int32_t)n + 127) << 23;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
/* Sum and maximum over the lanes, in an order that is fixed for the row. */
AIMO_INLINE float v_reduce_add(vf32 a) { return a; }
AIMO_INLINE float v_reduce_max(vf32 a) { return a; }
/* VF32_LANES halves, widened. */
AIMO_INLINE vf32 v_load_f16(const uint16_t *p) { return aimo_f16_to_f32_one(*p); }
AIMO_INLINE vf32 v_load_f16_part(const uint16_t *p, size_t n) { return n ? v_load_f16(p) : 0.0f; }
AIMO_INLINE vf32 v_load_bf16(const uint16_t *p) { return aimo_bf16_to_f32_one(*p); }
AIMO_INLINE vf32 v_load_bf16_part(const uint16_t *p, size_t n) { return n ? v_load_bf16(p) : 0.0f; }
/* VF32_LANES integers of 8 bits. */
AIMO_INLINE vf32 v_load_i8(const int8_t *p) { return (float)*p; }
/* The even or the odd elements of 2 * VF32_LANES bf16, widened. */
AIMO_INLINE vf32 v_load_bf16_even(const uint16_t *p) { return aimo_bf16_to_f32_one(p[0]); }
AIMO_INLINE vf32 v_load_bf16_odd(const uint16_t *p) { return aimo_bf16_to_f32_one(p[1]); }

#endif
