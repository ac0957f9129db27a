/* Rounding vectors to halves, and the distance from their rounded form: the host's part of
 * screening. */
#ifndef AIMO_CUDA_SCREEN_ROUNDING_H
#define AIMO_CUDA_SCREEN_ROUNDING_H

#include <stddef.h>
#include <stdint.h>

/* out [padded] = x [dim] as halves, padded with zeros. Returns the distance between the two,
 * rounded up. */
double screen_round(const float *x, size_t dim, size_t padded, uint16_t *out);

/* The bar for the device's sums, see row_screen.h: a = query_error, e = row_error, k = padded. */
float screen_limit(double bar, double query_error, double row_error, size_t padded);

#endif
