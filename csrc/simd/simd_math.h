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

#if defined(SIMD_LOOKUP_ENTRIES)
/* Coefficients of rising powers of the distance from the middles of 16 intervals of 3/8, around
 * 3/8 (i + 0.5), in intervals: the Chebyshev interpolation of the normal distribution function less
 * 0.5, which is 0.5 in the last middle. */
static const float normal_half_coefficients[5][SIMD_LOOKUP_ENTRIES] = {
    {0.07436569f, 0.2131123f, 0.32574928f, 0.40532425f, 0.45424637f, 0.48041993f, 0.4926054f,
     0.4975421f, 0.49928245f, 0.49981633f, 0.49995884f, 0.49999192f, 0.49999863f, 0.4999998f,
     0.49999997f, 0.5f},
    {0.14699528f, 0.12771235f, 0.096403174f, 0.063223325f, 0.036023755f, 0.017832965f, 0.007669689f,
     0.002865811f, 9.3031116e-04f, 2.6237007e-04f, 6.428349e-05f, 1.3682856e-05f, 2.530103e-06f,
     4.0642004e-07f, 5.6712366e-08f, 6.8744113e-09f},
    {-0.005167768f, -0.013469542f, -0.016945664f, -0.015558636f, -0.011397988f, -0.006896313f,
     -0.003505351f, -0.0015113577f, -5.5607734e-04f, -1.752955e-04f, -4.7477286e-05f,
     -1.1070318e-05f, -2.2256231e-06f, -3.8624745e-07f, -5.79159e-08f, -7.50868e-09f},
    {-0.003303073f, -0.0020382896f, -2.8099908e-04f, 0.0010566547f, 0.0015488936f, 0.0013559036f,
     8.892915e-04f, 4.6682463e-04f, 2.019254e-04f, 7.310474e-05f, 2.2363061e-05f, 5.816332e-06f,
     1.291749e-06f, 2.4574388e-07f, 4.0141018e-08f, 5.6400995e-09f},
    {1.7825911e-04f, 4.2085128e-04f, 4.1918788e-04f, 2.326944e-04f, 2.1392909e-05f, -1.0021982e-04f,
     -1.20278004e-04f, -8.692349e-05f, -4.681799e-05f, -2.0057283e-05f, -7.0394863e-06f,
     -2.0572338e-06f, -5.056757e-07f, -1.0525226e-07f, -1.8639366e-08f, -2.818381e-09f},
};

/* x Phi(x) = x / 2 + |x| (Phi(|x|) - 0.5), with the second factor within 1.5e-7; exactly 0 below
 * -5.82, x above 5.82. Five lookups in registers and four multiplications cost a third of an
 * exponential. */
AIMO_INLINE vf32 v_gelu(vf32 x)
{
    const vf32 size = v_abs(x);
    const vf32 place = v_fma(size, v_set1(1.0f / 0.375f), v_set1(-0.5f));
    const vf32 inside = v_min(place, v_set1(SIMD_LOOKUP_ENTRIES - 1));
    const vf32 interval = v_round(inside), distance = v_sub(inside, interval);
    vf32 p = v_lookup(normal_half_coefficients[4], interval);
    p = v_fma(p, distance, v_lookup(normal_half_coefficients[3], interval));
    p = v_fma(p, distance, v_lookup(normal_half_coefficients[2], interval));
    p = v_fma(p, distance, v_lookup(normal_half_coefficients[1], interval));
    p = v_fma(p, distance, v_lookup(normal_half_coefficients[0], interval));
    return v_fma(size, p, v_mul(x, v_set1(0.5f)));
}
#else
/* x Phi(x), with the normal distribution function 0.5 erfc(-x / sqrt 2) within 2e-7 absolute.
 * For x >= 0 the upper tail is e^(-x^2/2) P(1 / (1 + 0.28 x)) (own fit, P of degree 6); working on
 * the tail keeps small values accurate where 1 + erf would cancel. */
AIMO_INLINE vf32 v_gelu(vf32 x)
{
    const vf32 t = v_div(v_set1(1.0f), v_fma(v_abs(x), v_set1(0.28f), v_set1(1.0f)));
    vf32 p = v_set1(-0.107115336f);
    p = v_fma(p, t, v_set1(0.39525455f));
    p = v_fma(p, t, v_set1(-0.2457961f));
    p = v_fma(p, t, v_set1(0.27606276f));
    p = v_fma(p, t, v_set1(0.0646109f));
    p = v_fma(p, t, v_set1(0.11698319f));
    const vf32 tail = v_mul(v_mul(p, t), v_exp(v_mul(v_mul(x, x), v_set1(-0.5f))));
    return v_mul(x, v_select_negative(x, tail, v_sub(v_set1(1.0f), tail)));
}
#endif

/* 1 / (1 + e^-x). */
AIMO_INLINE vf32 v_sigmoid(vf32 x)
{
    const vf32 e = v_exp(v_sub(v_zero(), x));
    return v_div(v_set1(1.0f), v_add(v_set1(1.0f), e));
}

#endif
