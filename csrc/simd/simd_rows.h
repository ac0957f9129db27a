/* Walking over a row whose length need not be a multiple of the vector's. Include after a
 * simd_<isa>.h. */
#ifndef AIMO_SIMD_ROWS_H
#define AIMO_SIMD_ROWS_H

/* for i = 0, VF32_LANES, ... below n, with `lanes` the number of elements left for this step. */
#define V_FOR_EACH(i, lanes, n)                                                                    \
    for (size_t i = 0, lanes = (n) < VF32_LANES ? (n) : VF32_LANES; i < (n);                       \
         i += VF32_LANES, lanes = (n)-i < VF32_LANES ? (n)-i : VF32_LANES)

AIMO_INLINE vf32 v_load_part_or_full(const float *p, size_t lanes)
{
    return lanes == VF32_LANES ? v_load(p) : v_load_part(p, lanes);
}

AIMO_INLINE void v_store_part_or_full(float *p, vf32 x, size_t lanes)
{
    if (lanes == VF32_LANES)
        v_store(p, x);
    else
        v_store_part(p, x, lanes);
}

/* x with zeros in the lanes from `lanes` on. */
AIMO_INLINE vf32 v_keep(vf32 x, size_t lanes)
{
    if (lanes == VF32_LANES)
        return x;
    float row[VF32_LANES];
    v_store(row, x);
    return v_load_part(row, lanes);
}

#endif
