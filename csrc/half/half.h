/* Conversion between f32 (or f64) and the two 16-bit floats.
 *
 * Rounds once, to nearest even; subnormals are kept; magnitudes from 65520 on overflow f16 to
 * infinity; a NaN becomes a quiet NaN with its sign and top payload bits. Every row of kernels
 * gives the same bits. Large arrays are split among the threads of the pool and written with
 * non-temporal stores. */
#ifndef AIMO_HALF_HALF_H
#define AIMO_HALF_HALF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum {
    AIMO_F32_TO_F16,
    AIMO_F16_TO_F32,
    AIMO_F32_TO_BF16,
    AIMO_BF16_TO_F32,
    AIMO_F64_TO_F16,
} aimo_half_conversion;
enum { AIMO_HALF_CONVERSIONS = AIMO_F64_TO_F16 + 1, AIMO_HALF_MAX_DIMS = 64 };

/* Bytes of one element before and after the conversion. */
size_t aimo_half_src_size(aimo_half_conversion conversion);
size_t aimo_half_dst_size(aimo_half_conversion conversion);

/* dst[i] = src[i] for i < n; the arrays must not overlap and need only their type's alignment.
 * bf16 values are the upper 16 bits of the f32. */
void aimo_f32_to_f16(const float *src, uint16_t *dst, size_t n);
void aimo_f16_to_f32(const uint16_t *src, float *dst, size_t n);
void aimo_f32_to_bf16(const float *src, uint16_t *dst, size_t n);
void aimo_bf16_to_f32(const uint16_t *src, float *dst, size_t n);
void aimo_f64_to_f16(const double *src, uint16_t *dst, size_t n);
/* The same, with the conversion as an argument. */
void aimo_half_convert(aimo_half_conversion conversion, const void *src, void *dst, size_t n);

/* Two arrays of one shape, converted element by element. Strides are in bytes, may be negative, and
 * those of src may be zero; elements need no alignment. No two elements of dst share a byte, and
 * none shares one with src. */
typedef struct {
    aimo_half_conversion conversion;
    size_t ndim; /* at most AIMO_HALF_MAX_DIMS */
    const void *src;
    void *dst;
    bool src_swapped, dst_swapped; /* in the other byte order */
    size_t shape[AIMO_HALF_MAX_DIMS];
    ptrdiff_t src_stride[AIMO_HALF_MAX_DIMS], dst_stride[AIMO_HALF_MAX_DIMS];
} aimo_half_arrays;

/* Sorts the axes by dst's strides, from the largest to the smallest, makes those positive, and
 * merges axes that are contiguous; at least one axis is left. Returns the number of elements, and
 * changes nothing when there are none. */
size_t aimo_half_merge_axes(aimo_half_arrays *arrays);

/* Reorders and merges the axes of `arrays`, whose contents are undefined afterwards, then
 * converts. */
void aimo_half_convert_arrays(aimo_half_arrays *arrays);

#endif
