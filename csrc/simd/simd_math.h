/* Elementary functions over vf32, written once for every row. tests/reference.py has the exact
 * definitions; the bounds below are checked against it. Include after a simd_<isa>.h. */
#ifndef AIMO_SIMD_MATH_H
#define AIMO_SIMD_MATH_H

/* e^x within 2 ULP on [-87.3, 88.7]; flushes to 2^-126 below, saturates near 2^128 above, keeps
 * NaN. Cody-Waite reduction to [-ln2/2, ln2/2] and a minimax polynomial (own fit). */
AIMO_INLINE vf32 v_exp(vf32 x)
{
    const vf32 clamped = v_min(v_set1(88.37f), v_max(v_set1(-87.33f), x));
    const vf32 n = v_round(v_mul(clamped, v_set1(1.44269504f)));
    vf32 r = v_fma(n, v_set1(-0.693359375f), clamped);
    r = v_fma(n, v_set1(2.12194440e-4f), r);
    vf32 p = v_set1(0.001381454f);
    p = v_fma(p, r, v_set1(0.008368745f));
    p = v_fma(p, r, v_set1(0.04166839f));
    p = v_fma(p, r, v_set1(0.16666521f));
    p = v_fma(p, r, v_set1(0.49999994f));
    p = v_fma(v_mul(p, r), r, r);
    return v_mul(v_add(p, v_set1(1.0f)), v_pow2(n));
}

/* The standard normal distribution function, 0.5 erfc(-x / sqrt 2), within 2e-7 absolute.
 * For x >= 0 the upper tail is e^(-x^2/2) P(1 / (1 + 0.28 x)) (own fit, P of degree 6); working on
 * the tail keeps small values accurate where 1 + erf would cancel. */
AIMO_INLINE vf32 v_normal_cdf(vf32 x)
{
    const vf32 t = v_div(v_set1(1.0f), v_fma(v_abs(x), v_set1(0.28f), v_set1(1.0f)));
    vf32 p = v_set1(-0.107115336f);
    p = v_fma(p, t, v_set1(0.39525455f));
    p = v_fma(p, t, v_set1(-0.2457961f));
    p = v_fma(p, t, v_set1(0.27606276f));
    p = v_fma(p, t, v_set1(0.0646109f));
    p = v_fma(p, t, v_set1(0.11698319f));
    const vf32 tail = v_mul(v_mul(p, t), v_exp(v_mul(v_mul(x, x), v_set1(-0.5f))));
    return v_select_negative(x, tail, v_sub(v_set1(1.0f), tail));
}

/* 1 / (1 + e^-x). */
AIMO_INLINE vf32 v_sigmoid(vf32 x)
{
    const vf32 e = v_exp(v_sub(v_zero(), x));
    return v_div(v_set1(1.0f), v_add(v_set1(1.0f), e));
}

#endif
