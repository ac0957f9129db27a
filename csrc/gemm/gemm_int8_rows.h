/* What all rows of kernels share when they round x to 8 bits. Include after a simd_<isa>.h. */
#ifndef AIMO_GEMM_INT8_ROWS_H
#define AIMO_GEMM_INT8_ROWS_H

/* The largest magnitude of x [k] where keep [k] is 1. */
static float largest_kept(const float *x, const float *keep, size_t k)
{
    vf32 largest = v_zero(), other = v_zero();
    size_t i = 0;
    for (; i + 2 * VF32_LANES <= k; i += 2 * VF32_LANES) {
        largest = v_max(largest, v_abs(v_mul(v_load(x + i), v_load(keep + i))));
        other =
            v_max(other, v_abs(v_mul(v_load(x + i + VF32_LANES), v_load(keep + i + VF32_LANES))));
    }
    for (; i < k; i += VF32_LANES) {
        const size_t n = k - i < VF32_LANES ? k - i : VF32_LANES;
        largest = v_max(largest, v_abs(v_mul(v_load_part(x + i, n), v_load_part(keep + i, n))));
    }
    return v_reduce_max(v_max(largest, other));
}

#endif
