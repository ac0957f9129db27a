/* Matrices of 8-bit integers: their layout, and how x is quantized.
 *
 * A weight is q * scale with one scale for each output. An input is (u - zero) * scale with one
 * scale and one zero point for each row of x, and u in [0, 255]. Products are therefore summed
 * exactly in int32 on every instruction set: kernels whose instructions take unsigned u afterwards
 * subtract zero times the sum of the output's weights, the others subtract the zero point first. A
 * few input channels, the same for every row, carry values so large that they would leave no
 * resolution for the others; these are multiplied with f16 weights and f32 inputs instead. The
 * bytes of a matrix w [n, k], from its start:
 *
 *   int32 channels [16]                            outlier channels + 1, in any order; 0: none
 *   ceil(n / 16) panels, each of
 *     int8  weights    [ceil(k / 4)][16][4]        0 in outlier channels and beyond n and k
 *     f32   scale      [16]
 *     int32 correction [16]                        AIMO_INT8_CORRECTION * the sum of its weights
 *     f16   outliers   [16][16]                    [outlier][output] */
#ifndef AIMO_GEMM_INT8_H
#define AIMO_GEMM_INT8_H

#include "gemm/gemm.h"

#include <math.h>

enum {
    AIMO_INT8_GROUP = 4,
    AIMO_INT8_LARGEST = 127, /* of a weight */
    AIMO_INT8_STEPS = 255,   /* of an input, from the smallest value of its row to the largest */
    /* A factor of the corrections in packed files, from when 128 was the zero point of all inputs;
     * kernels divide by it. */
    AIMO_INT8_CORRECTION = -128,
    AIMO_INT8_PANEL_TAIL = AIMO_PANEL_COLUMNS * (4 + 4 + 2 * AIMO_INT8_OUTLIERS),
    AIMO_INT8_HEADER = 64,
};

typedef struct {
    const int8_t *weights;
    const float *scale;
    const int32_t *correction;
    const uint16_t *outliers;
} aimo_int8_panel;

static inline size_t aimo_int8_groups(size_t k)
{
    return (k + AIMO_INT8_GROUP - 1) / AIMO_INT8_GROUP;
}

static inline size_t aimo_int8_panel_bytes(size_t k)
{
    return aimo_int8_groups(k) * AIMO_INT8_GROUP * AIMO_PANEL_COLUMNS + AIMO_INT8_PANEL_TAIL;
}

static inline const int32_t *aimo_int8_channels(const void *panels) { return panels; }

static inline aimo_int8_panel aimo_int8_panel_at(const void *panels, size_t k, size_t index)
{
    const size_t weight_bytes = aimo_int8_panel_bytes(k) - AIMO_INT8_PANEL_TAIL;
    const char *at =
        (const char *)panels + AIMO_INT8_HEADER + index * (weight_bytes + AIMO_INT8_PANEL_TAIL);
    const float *scale = (const float *)(at + weight_bytes);
    return (aimo_int8_panel){
        .weights = (const int8_t *)at,
        .scale = scale,
        .correction = (const int32_t *)(scale + AIMO_PANEL_COLUMNS),
        .outliers = (const uint16_t *)(scale + 2 * AIMO_PANEL_COLUMNS),
    };
}

/* The number of outlier slots to read: all slots from this index on are empty. */
static inline size_t aimo_int8_outlier_count(const void *panels)
{
    size_t count = AIMO_INT8_OUTLIERS;
    while (count != 0 && aimo_int8_channels(panels)[count - 1] == 0)
        count--;
    return count;
}

/* keep [k] = 0 for outlier channels, else 1. */
static inline void aimo_int8_keep(const void *panels, size_t k, float *keep)
{
    for (size_t i = 0; i < k; i++)
        keep[i] = 1.0f;
    for (size_t o = 0; o < AIMO_INT8_OUTLIERS; o++)
        if (aimo_int8_channels(panels)[o] != 0)
            keep[aimo_int8_channels(panels)[o] - 1] = 0.0f;
}

/* values [AIMO_INT8_OUTLIERS] = the outlier channels of one row of x; 0 where there is none. */
static inline void aimo_int8_gather(const void *panels, const float *x, float *values)
{
    for (size_t o = 0; o < AIMO_INT8_OUTLIERS; o++) {
        const int32_t channel = aimo_int8_channels(panels)[o];
        values[o] = channel != 0 ? x[channel - 1] : 0.0f;
    }
}

/* The factor by which weights, or rows of a table, are multiplied before rounding to nearest even,
 * and the scale that undoes it. Rows that are nearly zero count as zero, because their inverse
 * would overflow. */
static inline float aimo_int8_inverse_scale(float largest)
{
    return largest > 0x1p-110f ? (float)AIMO_INT8_LARGEST / largest : 0.0f;
}

static inline float aimo_int8_scale(float largest) { return largest / (float)AIMO_INT8_LARGEST; }

/* How a row of x is rounded: to (u - zero) * scale, where u is x * inverse rounded to nearest even,
 * plus zero, clamped to [0, 255]. */
typedef struct {
    float scale, inverse;
    int32_t zero;
} aimo_int8_rounding;

/* For values in [least, largest], a range that includes 0. Works with halves because largest -
 * least may overflow. */
static inline aimo_int8_rounding aimo_int8_rounding_of(float least, float largest)
{
    const float scale = (0.5f * largest - 0.5f * least) / (0.5f * (float)AIMO_INT8_STEPS);
    const float inverse = scale > 0x1p-118f ? 1.0f / scale : 0.0f, zero = -least * inverse;
    /* zero is NaN when the row has an infinity. */
    return (aimo_int8_rounding){scale, inverse, zero > 0.0f ? (int32_t)rintf(zero) : 0};
}

/* The int8 cases of aimo_panels_size, _pack and _unpack (gemm.h). */
AIMO_MUST_CHECK aimo_status aimo_int8_panels_size(size_t n, size_t k, size_t *bytes,
                                                  aimo_error *err);
void aimo_int8_panels_pack(size_t k, void *panels, const float *src, size_t first, size_t rows);
void aimo_int8_panels_unpack(size_t k, const void *panels, float *dst, size_t first, size_t rows);

#endif
