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
/* Coefficients of rising powers of the distance from the middles of 32 intervals of 3/8, around
 * 3/8 (i - 15.5), in intervals: the Chebyshev interpolation of the function below, 0 and 1 in the
 * outermost middles. */
static const float normal_cdf_coefficients[5][SIMD_LOOKUP_ENTRIES] = {
    {0.0f,           2.7016675e-08f, 2.0689703e-07f, 1.3828135e-06f,
     8.0709442e-06f, 4.1167466e-05f, 0.00018366995f, 0.00071754231f,
     0.0024579011f,  0.0073946072f,  0.019580079f,   0.045753624f,
     0.094675742f,   0.17425071f,    0.28688771f,    0.42563432f,
     0.57436568f,    0.71311229f,    0.82574928f,    0.90532428f,
     0.9542464f,     0.98041993f,    0.99260539f,    0.99754208f,
     0.99928248f,    0.99981636f,    0.99995881f,    0.99999195f,
     0.99999863f,    0.99999982f,    1.0f,           1.0f},
    {6.8744113e-09f, 5.6712366e-08f, 4.0642004e-07f, 2.5301031e-06f, 1.3682856e-05f, 6.4283493e-05f,
     0.00026237007f, 0.00093031116f, 0.0028658111f,  0.0076696891f,  0.017832965f,   0.036023755f,
     0.063223325f,   0.096403174f,   0.12771235f,    0.14699528f,    0.14699528f,    0.12771235f,
     0.096403174f,   0.063223325f,   0.036023755f,   0.017832965f,   0.0076696891f,  0.0028658111f,
     0.00093031116f, 0.00026237007f, 6.4283493e-05f, 1.3682856e-05f, 2.5301031e-06f, 4.0642004e-07f,
     5.6712366e-08f, 6.8744113e-09f},
    {7.5086852e-09f,  5.7915905e-08f,  3.8624745e-07f,  2.2256231e-06f,  1.1070318e-05f,
     4.7477286e-05f,  0.0001752955f,   0.00055607734f,  0.0015113577f,   0.003505351f,
     0.0068963128f,   0.011397988f,    0.015558636f,    0.016945664f,    0.013469542f,
     0.0051677679f,   -0.0051677679f,  -0.013469542f,   -0.016945664f,   -0.015558636f,
     -0.011397988f,   -0.0068963128f,  -0.003505351f,   -0.0015113577f,  -0.00055607734f,
     -0.0001752955f,  -4.7477286e-05f, -1.1070318e-05f, -2.2256231e-06f, -3.8624745e-07f,
     -5.7915905e-08f, -7.5086817e-09f},
    {5.6400999e-09f, 4.0141021e-08f, 2.4574388e-07f, 1.291749e-06f,   5.8163318e-06f,
     2.2363061e-05f, 7.310474e-05f,  0.0002019254f,  0.00046682463f,  0.00088929152f,
     0.0013559036f,  0.0015488936f,  0.0010566547f,  -0.00028099908f, -0.0020382896f,
     -0.0033030731f, -0.0033030731f, -0.0020382896f, -0.00028099908f, 0.0010566547f,
     0.0015488936f,  0.0013559036f,  0.00088929152f, 0.00046682463f,  0.0002019254f,
     7.310474e-05f,  2.2363061e-05f, 5.8163318e-06f, 1.291749e-06f,   2.4574388e-07f,
     4.0141018e-08f, 5.6400937e-09f},
    {2.8183582e-09f,  1.8639344e-08f,  1.0525224e-07f,  5.056757e-07f,   2.0572338e-06f,
     7.0394863e-06f,  2.0057283e-05f,  4.681799e-05f,   8.6923486e-05f,  0.000120278f,
     0.00010021982f,  -2.1392909e-05f, -0.00023269439f, -0.00041918788f, -0.00042085128f,
     -0.00017825911f, 0.00017825911f,  0.00042085128f,  0.00041918788f,  0.00023269439f,
     2.1392909e-05f,  -0.00010021982f, -0.000120278f,   -8.6923486e-05f, -4.681799e-05f,
     -2.0057283e-05f, -7.0394863e-06f, -2.0572338e-06f, -5.056757e-07f,  -1.0525223e-07f,
     -1.863933e-08f,  -2.8183702e-09f},
};

/* The standard normal distribution function, within 3.5e-7 absolute; exactly 0 below -5.82, 1 above
 * 5.82. Five look-ups in registers and four multiplications cost a third of an exponential. */
AIMO_INLINE vf32 v_normal_cdf(vf32 x)
{
    const vf32 place = v_fma(x, v_set1(1.0f / 0.375f), v_set1(15.5f));
    const vf32 inside = v_min(v_max(place, v_zero()), v_set1(SIMD_LOOKUP_ENTRIES - 1));
    const vf32 interval = v_round(inside), distance = v_sub(inside, interval);
    vf32 p = v_lookup(normal_cdf_coefficients[4], interval);
    p = v_fma(p, distance, v_lookup(normal_cdf_coefficients[3], interval));
    p = v_fma(p, distance, v_lookup(normal_cdf_coefficients[2], interval));
    p = v_fma(p, distance, v_lookup(normal_cdf_coefficients[1], interval));
    return v_fma(p, distance, v_lookup(normal_cdf_coefficients[0], interval));
}
#else
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
#endif

/* 1 / (1 + e^-x). */
AIMO_INLINE vf32 v_sigmoid(vf32 x)
{
    const vf32 e = v_exp(v_sub(v_zero(), x));
    return v_div(v_set1(1.0f), v_add(v_set1(1.0f), e));
}

#endif
