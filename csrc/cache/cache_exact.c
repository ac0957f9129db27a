/* Every f32 is an integer multiple of 2^-149, every f16 of 2^-24. So inner products are integers in
 * those units, and cosines are compared by comparing signs and squares of integers. The integers
 * have a fixed size, enough for the largest that the arguments can produce. */
#include "cache/cache_exact.h"

#include "half/half_scalar.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

enum {
    SUM_LIMBS = 12,    /* |sum q x| < 2^(277 + 25 + 16) */
    SQUARE_LIMBS = 20, /* sum q^2 < 2^(2 * 277 + 16) */
    /* The square of a sum (24 limbs), shifted by at most twice the 1074 + 52 bits that a threshold
     * can lie below 1: 24 + 71 limbs; and a carry. */
    PRODUCT_LIMBS = 97,
};

typedef struct {
    uint32_t limbs[PRODUCT_LIMBS]; /* least significant first; zero from `count` on */
    size_t count;
} natural;

/* sum of value * 2^shift, in two's complement of SQUARE_LIMBS limbs. */
typedef struct {
    uint32_t limbs[SQUARE_LIMBS];
} accumulator;

static void accumulate(accumulator *a, int64_t value, unsigned shift)
{
    const uint32_t fill = value < 0 ? UINT32_MAX : 0;
    const unsigned start = shift / 32, bits = shift % 32;
    const uint64_t low = (uint64_t)value << bits;
    const uint32_t high = bits == 0 ? fill : (uint32_t)(value >> (64 - bits));
    uint64_t carry = 0;
    for (unsigned i = start; i < SQUARE_LIMBS; i++) {
        const uint32_t limb = i == start       ? (uint32_t)low
                              : i == start + 1 ? (uint32_t)(low >> 32)
                              : i == start + 2 ? high
                                               : fill;
        carry += (uint64_t)a->limbs[i] + limb;
        a->limbs[i] = (uint32_t)carry;
        carry >>= 32;
    }
}

/* Splits x = mantissa * 2^(shift - 149) with shift >= 0. */
static int64_t split_f32(float x, unsigned *shift)
{
    const uint32_t bits = aimo_f32_bits(x), exponent = bits >> 23 & 0xff;
    const int64_t fraction = bits & 0x7fffff;
    const int64_t mantissa = exponent == 0 ? fraction : fraction | 0x800000;
    *shift = exponent == 0 ? 0 : exponent - 1;
    return bits >> 31 ? -mantissa : mantissa;
}

/* Element i of a row in units of 2^-24 (f16) or 1 (int8); below 2^25. */
static int64_t row_integer(const void *row, aimo_row_type type, size_t i)
{
    if (type == AIMO_ROWS_INT8)
        return ((const int8_t *)row)[i];
    return (int64_t)(aimo_f16_to_f32_one(((const uint16_t *)row)[i]) * 0x1p24f);
}

static void trim(natural *n)
{
    while (n->count > 0 && n->limbs[n->count - 1] == 0)
        n->count--;
}

static natural natural_of(uint64_t value)
{
    natural n = {.limbs = {(uint32_t)value, (uint32_t)(value >> 32)}, .count = 2};
    trim(&n);
    return n;
}

static natural multiply(const natural *a, const natural *b)
{
    natural product = {.count = a->count + b->count};
    for (size_t i = 0; i < a->count; i++) {
        uint64_t carry = 0;
        for (size_t j = 0; j < b->count; j++) {
            carry += (uint64_t)a->limbs[i] * b->limbs[j] + product.limbs[i + j];
            product.limbs[i + j] = (uint32_t)carry;
            carry >>= 32;
        }
        product.limbs[i + b->count] = (uint32_t)carry;
    }
    trim(&product);
    return product;
}

static natural shift_left(const natural *a, unsigned shift)
{
    natural shifted = {.count = a->count + shift / 32 + 1};
    for (size_t i = 0; i < a->count; i++) {
        const uint64_t wide = (uint64_t)a->limbs[i] << (shift % 32);
        shifted.limbs[i + shift / 32] |= (uint32_t)wide;
        shifted.limbs[i + shift / 32 + 1] = (uint32_t)(wide >> 32);
    }
    trim(&shifted);
    return shifted;
}

static int compare(const natural *a, const natural *b)
{
    if (a->count != b->count)
        return a->count < b->count ? -1 : 1;
    for (size_t i = a->count; i-- > 0;)
        if (a->limbs[i] != b->limbs[i])
            return a->limbs[i] < b->limbs[i] ? -1 : 1;
    return 0;
}

/* |a|, and its sign. */
static natural magnitude(const accumulator *a, size_t limbs, int *sign)
{
    natural n = {.count = limbs};
    const bool negative = a->limbs[SQUARE_LIMBS - 1] >> 31;
    uint64_t carry = negative;
    for (size_t i = 0; i < limbs; i++) {
        carry += negative ? ~a->limbs[i] : a->limbs[i];
        n.limbs[i] = (uint32_t)carry;
        carry >>= 32;
    }
    trim(&n);
    *sign = n.count == 0 ? 0 : negative ? -1 : 1;
    return n;
}

/* (sum q x)^2 in units of 2^-298 times the row's unit squared, and the sign of the sum. */
static natural squared_product(const float *query, const void *row, aimo_row_type type, size_t dim,
                               int *sign)
{
    accumulator sum = {0};
    for (size_t i = 0; i < dim; i++) {
        unsigned shift;
        const int64_t q = split_f32(query[i], &shift);
        accumulate(&sum, q * row_integer(row, type, i), shift);
    }
    const natural n = magnitude(&sum, SUM_LIMBS, sign);
    return multiply(&n, &n);
}

/* sum q^2 in units of 2^-298. */
static natural squared_norm_of_query(const float *query, size_t dim)
{
    accumulator sum = {0};
    for (size_t i = 0; i < dim; i++) {
        unsigned shift;
        const int64_t q = split_f32(query[i], &shift);
        accumulate(&sum, q * q, 2 * shift);
    }
    int sign;
    return magnitude(&sum, SQUARE_LIMBS, &sign);
}

/* sum x^2 in the row's unit squared: rows are normalised, so f16 rows stay near 2^48. */
static natural squared_norm_of_row(const void *row, aimo_row_type type, size_t dim)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < dim; i++) {
        const int64_t x = row_integer(row, type, i);
        sum += (uint64_t)(x * x);
    }
    return natural_of(sum);
}

int aimo_exact_against_threshold(const float *query, const void *row, aimo_row_type type,
                                 size_t dim, double threshold)
{
    int sign;
    const natural square = squared_product(query, row, type, dim, &sign);
    const int threshold_sign = (threshold > 0) - (threshold < 0);
    if (sign != threshold_sign || sign == 0)
        return (sign > threshold_sign) - (sign < threshold_sign);
    /* |threshold| = mantissa * 2^-shift; both signs are the same, so compare squares. */
    int exponent;
    const double fraction = frexp(fabs(threshold), &exponent);
    const natural mantissa = natural_of((uint64_t)ldexp(fraction, 53));
    const natural left = shift_left(&square, 2 * (unsigned)(53 - exponent));
    natural right = multiply(&mantissa, &mantissa);
    const natural query_norm = squared_norm_of_query(query, dim);
    const natural row_norm = squared_norm_of_row(row, type, dim);
    right = multiply(&right, &query_norm);
    right = multiply(&right, &row_norm);
    return sign * compare(&left, &right);
}

int aimo_exact_order(const float *query, const void *a, const void *b, aimo_row_type type,
                     size_t dim)
{
    int sign_a, sign_b;
    natural square_a = squared_product(query, a, type, dim, &sign_a);
    natural square_b = squared_product(query, b, type, dim, &sign_b);
    if (sign_a != sign_b || sign_a == 0)
        return (sign_a > sign_b) - (sign_a < sign_b);
    const natural norm_a = squared_norm_of_row(a, type, dim);
    const natural norm_b = squared_norm_of_row(b, type, dim);
    square_a = multiply(&square_a, &norm_b);
    square_b = multiply(&square_b, &norm_a);
    return sign_a * compare(&square_a, &square_b);
}
