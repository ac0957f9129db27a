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
 * noise has it. What is left are roundings of f64 arithmetic on numbers near 1; SLACK covers them a
 * thousandfold.
 *
 * A head's code has 4 bits and a step of its own for each direction, which goes into the query's
 * codes. So few bits make |h - h'| about a tenth, but for the same bytes twice as many directions
 * leave less of |u||v| than that costs, if each row has its own error.
 *
 * (1) and (3) are used twice: with the first directions alone (the head), and with all of them
 * (head and tail). Whether P fits the data decides how much is passed over, never what is found. */
#ifndef AIMO_CACHE_CACHE_BOUND_H
#define AIMO_CACHE_CACHE_BOUND_H

#include "cache/cache_retired.h"
#include "similarity/similarity.h"

#include <stdbool.h>

enum {
    AIMO_MAX_HEAD = 96,
    AIMO_MAX_DIRECTIONS = AIMO_MAX_HEAD + AIMO_TAIL_CODES,
};

/* The most skew that a basis may have: the limits of the integer arithmetic count on it. */
#define AIMO_MAX_SKEW 1e-3

/* The most that the squares of all steps may add up to. With h in range a code is off by half a
 * step, otherwise by less than |h|, so that |h - h'| stays below 1.055 and fits its byte. */
#define AIMO_MAX_STEPS 0.1

/* Immutable but for `users`. */
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
/* Whether skew and steps are within their limits; nothing is coded with a basis that is not. */
bool aimo_basis_is_usable(const aimo_basis *basis);

/* The code from 0 to 15 of a coordinate, and the coordinate, in steps, that it stands for. */
unsigned aimo_head_code(double coordinate, double step);
double aimo_head_value(unsigned code);

typedef struct {
    uint8_t head[AIMO_MAX_HEAD];
    uint16_t head_rest; /* as in aimo_heads */
    aimo_tail tail;
} aimo_row_codes;

/* Codes of row x [dim] (as stored, widened) whose norm is 1 / inverse_norm. */
void aimo_basis_encode(const aimo_basis *basis, const aimo_similarity_kernels *kernels,
                       const float *x, double inverse_norm, aimo_row_codes *codes);

/* Sums of squares over the directions so far: of a vector's coordinates, of its codes, and of what
 * lies between them. */
typedef struct {
    double exact, code, difference;
} aimo_code_sums;

/* A query as one basis sees it. */
typedef struct {
    int8_t head_codes[AIMO_MAX_HEAD];
    double head_scale;  /* cosine per unit of the head's dot */
    double head_margin; /* what (1) and (3) add whatever the row */
    aimo_code_sums sums;
    bool has_tail;        /* what follows is set */
    double margin;        /* of head and tail */
    aimo_head_query head; /* points to head_codes */
    aimo_tail_query tail;
} aimo_query_codes;

/* unit [dim]: the query, normalised, rounded to f32. Sets what the head needs. */
void aimo_query_prepare(const aimo_basis *basis, const aimo_similarity_kernels *kernels,
                        const float *unit, aimo_query_codes *codes);
/* Sets the rest, when it is not set: many searches end before it is needed. */
void aimo_query_prepare_tail(const aimo_basis *basis, const aimo_similarity_kernels *kernels,
                             const float *unit, aimo_query_codes *codes);

/* Sets the head's, the tail's bar so that no row whose cosine is `bar` or more falls. */
void aimo_query_set_head_bar(aimo_query_codes *codes, double bar);
void aimo_query_set_tail_bar(aimo_query_codes *codes, double bar);

/* The error of a dot product of n elements in f32 divided by the norms, whatever the order. */
double aimo_dot_noise(size_t n);

/* x . x in f64, where each square is exact. */
double aimo_squared_norm(const float *x, size_t n);

/* The largest magnitude of x [n], which holds no NaN; 0 when n is 0. */
double aimo_largest(const float *x, size_t n);

#endif
