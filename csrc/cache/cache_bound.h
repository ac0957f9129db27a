/* Upper bounds on cosines from a few bytes per row.
 *
 * Let y be a row and q a query, both of norm 1, and P the basis: n directions, the rows of P, each
 * about orthogonal to the others. Write G = P P^T and d >= |G - I| (`skew`), g = P q and h = P y.
 * With the rests u = q - P^T g and v = y - P^T h, P u = -(G - I) g and P v = -(G - I) h, so that
 *
 *     q.y = g.h - g.(G - I) h + u.v <= g.h + |u||v| + d|g||h|                               (1)
 *     |v|^2 = 1 - 2 |h|^2 + h.G h <= 1 - (1 - d) |h|^2, |h|^2 <= 1 + d, and so for u, g     (2)
 *
 * by Cauchy and Schwarz. Let g', h' be any other vectors of n numbers, here codes of few bits times
 * their steps. Then, by the same,
 *
 *     g.h = g'.h' + g'.(h - h') + (g - g').h <= g'.h' + |g'||h - h'| + |g - g'||h|          (3)
 *
 * g'.h' is computed from whole numbers, rounded up at the very end. |v| ("rest") and |h - h'|
 * ("error") are stored per row, rounded up. h itself is computed in f32: with e = |P y| as computed
 * minus P y, at most aimo_basis.noise, |h| >= |h~| - e and |h - h'| <= |h~ - h'| + e, and so for g.
 * The query is rounded to a unit f32 vector first, which moves g by less than 2^-23 sqrt(1 + d);
 * noise has it. What remains is the rounding of f64 arithmetic on numbers near 1, which SLACK
 * covers a thousandfold.
 *
 * A head code has 4 bits and a step of its own for each direction; the steps are folded into the
 * query's codes. With so few bits |h - h'| is about a tenth, but twice as many directions in the
 * same bytes reduce |u||v| by more than that costs, provided that each row has its own error.
 *
 * (1) and (3) are used twice: with the first directions alone (the head), and with all of them
 * (head and tail). How well P fits the data decides how many rows are skipped, never what is
 * found. */
#ifndef AIMO_CACHE_CACHE_BOUND_H
#define AIMO_CACHE_CACHE_BOUND_H

#include "cache/cache_retired.h"
#include "similarity/similarity.h"

#include <stdbool.h>

enum {
    AIMO_MAX_HEAD = 96,
    AIMO_MAX_DIRECTIONS = AIMO_MAX_HEAD + AIMO_TAIL_CODES,
};

/* The largest skew of a usable basis: the limits of the integer arithmetic rely on it. */
#define AIMO_MAX_SKEW 1e-3

/* The largest sum of the squares of all steps. With h in range a code is off by at most half a
 * step, otherwise by less than |h|, so |h - h'| stays below 1.055 and fits its byte. */
#define AIMO_MAX_STEPS 0.1

/* Immutable except for `users`. */
typedef struct {
    retired link;
    size_t dim;
    size_t head;                 /* directions of the head, a multiple of AIMO_HEAD_LINE */
    size_t tail;                 /* further directions, at most AIMO_TAIL_CODES */
    double steps[AIMO_MAX_HEAD]; /* a head code's unit, of each direction; above 0 */
    double tail_step;            /* a tail code's */
    double skew;                 /* d above */
    double noise;                /* e above */
    size_t users;                /* chunks that are coded with it; protected by the cache's lock */
    float directions[];          /* [head + tail, dim] */
} aimo_basis;

/* Sets skew and noise from the directions. */
void aimo_basis_measure(aimo_basis *basis);
/* Whether skew and steps are within their limits; a basis that fails this is never used. */
bool aimo_basis_is_usable(const aimo_basis *basis);

/* The code (0 to 15) of a coordinate, and the coordinate, in steps, that a code stands for. */
unsigned aimo_head_code(double coordinate, double step);
double aimo_head_value(unsigned code);

typedef struct {
    uint8_t head[AIMO_MAX_HEAD];
    uint16_t head_rest; /* as in aimo_heads */
    aimo_tail tail;
} aimo_row_codes;

/* Codes of the row x [dim], as stored and widened, whose norm is 1 / inverse_norm. */
void aimo_basis_encode(const aimo_basis *basis, const aimo_similarity_kernels *kernels,
                       const float *x, double inverse_norm, aimo_row_codes *codes);

/* Sums of squares over the directions so far: of a vector's coordinates, of its codes, and of their
 * differences. */
typedef struct {
    double exact, code, difference;
} aimo_code_sums;

/* A query's codes in one basis. */
typedef struct {
    int8_t head_codes[AIMO_MAX_HEAD];
    double head_scale;  /* cosine per unit of the head's dot */
    double head_margin; /* the terms of (1) and (3) that are the same for every row */
    aimo_code_sums sums;
    bool has_tail;        /* the members below are set */
    double margin;        /* of head and tail */
    aimo_head_query head; /* points to head_codes */
    aimo_tail_query tail;
} aimo_query_codes;

/* unit [dim]: the query, normalised, rounded to f32. Sets what the head needs. */
void aimo_query_prepare(const aimo_basis *basis, const aimo_similarity_kernels *kernels,
                        const float *unit, aimo_query_codes *codes);
/* Sets the rest unless it is set already: many searches end before they need it. */
void aimo_query_prepare_tail(const aimo_basis *basis, const aimo_similarity_kernels *kernels,
                             const float *unit, aimo_query_codes *codes);

/* Set the bar of the head and of the tail so that no row whose cosine is at least `bar` is
 * dropped. */
void aimo_query_set_head_bar(aimo_query_codes *codes, double bar);
void aimo_query_set_tail_bar(aimo_query_codes *codes, double bar);

/* A bound on the error of a dot product of n elements in f32, relative to the product of the norms,
 * for any order of additions. */
double aimo_dot_noise(size_t n);

/* x . x in f64, where each square is exact. */
double aimo_squared_norm(const float *x, size_t n);

/* The largest magnitude of x [n], which holds no NaN; 0 when n is 0. */
double aimo_largest(const float *x, size_t n);

#endif
