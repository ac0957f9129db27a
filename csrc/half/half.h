/* Conversion between f32 and the two 16-bit floats.
 *
 * Rounds to nearest even; subnormals are kept; finite values from 65520 (f16) overflow to infinity;
 * a NaN stays a NaN with its sign. Every row gives the same bits. */
#ifndef AIMO_HALF_HALF_H
#define AIMO_HALF_HALF_H

#include <stddef.h>
#include <stdint.h>

/* dst[i] = src[i] for i < n; the arrays must not overlap and need only their type's alignment.
 * bf16 values are the upper 16 bits of the f32. */
void aimo_f32_to_f16(const float *src, uint16_t *dst, size_t n);
void aimo_f16_to_f32(const uint16_t *src, float *dst, size_t n);
void aimo_f32_to_bf16(const float *src, uint16_t *dst, size_t n);
void aimo_bf16_to_f32(const uint16_t *src, float *dst, size_t n);

#endif
