/* PTX wrappers for tensor cores and asynchronous copies: products of a warp with operands in
 * registers, loading those from shared memory, and copies to shared memory that do not wait.
 *
 * A lane's share of a 16 x 8 tile of sums, with g = lane / 4 and t = lane % 4: sums[0] and [1] are
 * row g, columns 2 t and 2 t + 1, sums[2] and [3] the same of row g + 8. Operands are pairs of 16
 * bits, the first one low. A lane's pairs of a 16 x 16 left operand are rows g and g + 8 of columns
 * 2 t, 2 t + 1, then the same of columns 2 t + 8, 2 t + 9; of a 16 x 8 right operand rows 2 t, 2 t
 * + 1 and then 2 t + 8, 2 t + 9 of column g. So two rounded tiles of sums side by side form a left
 * operand. All lanes of the warp must call these functions. */
#ifndef AIMO_CUDA_WARP_MMA_H
#define AIMO_CUDA_WARP_MMA_H

#include "backend/cuda/cuda_rows.h"

#ifndef __CUDACC__
#include "warp_mma_shim.h"
#else

/* Two values rounded to T, to nearest. */
template <typename T> __device__ inline uint32_t pack_pair(float low, float high);
template <> __device__ inline uint32_t pack_pair<__half>(float low, float high)
{
    uint32_t pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}
template <> __device__ inline uint32_t pack_pair<__nv_bfloat16>(float low, float high)
{
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

/* sums [16, 8] += left [16, 16] @ right [16, 8], of which a lane has two pairs */
template <typename T>
__device__ inline void multiply_add(float (&sums)[4], const uint32_t (&left)[4], uint32_t right_0,
                                    uint32_t right_1);
#define AIMO_MULTIPLY_ADD(T, type)                                                                 \
    template <>                                                                                    \
    __device__ inline void multiply_add<T>(float(&sums)[4], const uint32_t(&left)[4],              \
                                           uint32_t right_0, uint32_t right_1)                     \
    {                                                                                              \
        asm("mma.sync.aligned.m16n8k16.row.col.f32." type "." type ".f32 "                         \
            "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                      \
            : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])                           \
            : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right_0), "r"(right_1)); \
    }
AIMO_MULTIPLY_ADD(__half, "f16")
AIMO_MULTIPLY_ADD(__nv_bfloat16, "bf16")
#undef AIMO_MULTIPLY_ADD

__device__ inline uint32_t shared_address(const void *shared)
{
    return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

/* Four 8 x 8 matrices of 16-bit elements from shared memory: lanes 8 i to 8 i + 7 say where the
 * rows of matrix i are, multiples of 16 bytes, and pairs[i] is elements 2 t and 2 t + 1 of its row
 * g. */
__device__ inline void load_matrices(uint32_t (&pairs)[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(pairs[0]), "=r"(pairs[1]), "=r"(pairs[2]), "=r"(pairs[3])
                 : "r"(shared_address(row))
                 : "memory");
}

/* The same, of the matrices' columns instead of rows. */
__device__ inline void load_matrices_transposed(uint32_t (&pairs)[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(pairs[0]), "=r"(pairs[1]), "=r"(pairs[2]), "=r"(pairs[3])
                 : "r"(shared_address(row))
                 : "memory");
}

/* Copies 16 bytes of device memory to shared memory, or zeros unless `inside`; both addresses are
 * multiples of 16. They have arrived after the thread's wait_for_copies. */
__device__ inline void copy_16_bytes(void *shared, const void *global, bool inside)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
                 "l"(__cvta_generic_to_global(global)), "r"(inside ? 16 : 0)
                 : "memory");
}
__device__ inline void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

/* 2^x to 22 bits, in one instruction; results below the normal numbers are 0. */
__device__ inline float exp2_approximate(float x)
{
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
    return power;
}

#endif

#endif
