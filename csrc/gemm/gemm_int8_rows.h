/* What all rows of kernels share for rounding x to 8 bits. Include after a simd_<isa>.h. */
#ifndef AIMO_GEMM_INT8_ROWS_H
#define AIMO_GEMM_INT8_ROWS_H

/* How x [k] is rounded; channels where keep [k] is 0 are ignored. */
static aimo_int8_rounding rounding_of(const float *x, const float *keep, size_t k)
{
    vf32 least[2] = {v_zero(), v_zero()}, largest[2] = {v_zero(), v_zero()};
    size_t i = 0;
    for (; i + 2 * VF32_LANES <= k; i += 2 * VF32_LANES)
        AIMO_UNROLL
    for (size_t j = 0; j < 2; j++) {
        const vf32 kept = v_mul(v_load(x + i + j * VF32_LANES), v_load(keep + i + j * VF32_LANES));
        least[j] = v_min(least[j], kept);
        largest[j] = v_max(largest[j], kept);
    }
    for (; i < k; i += VF32_LANES) {
        const size_t n = k - i < VF32_LANES ? k - i : VF32_LANES;
        const vf32 kept = v_mul(v_load_part(x + i, n), v_load_part(keep + i, n));
        least[0] = v_min(least[0], kept);
        largest[0] = v_max(largest[0], kept);
    }
    const vf32 lowered = v_sub(v_zero(), v_min(least[0], least[1]));
    return aimo_int8_rounding_of(-v_reduce_max(lowered),
                                 v_reduce_max(v_max(largest[0], largest[1])));
}

#endif
