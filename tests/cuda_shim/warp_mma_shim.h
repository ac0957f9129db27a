/* Stands in for the PTX of backend/cuda/warp_mma.h, lane by lane as the PTX manual gives the
 * layouts of ldmatrix and of mma.m16n8k16. */
#ifndef AIMO_CUDA_SHIM_WARP_MMA_H
#define AIMO_CUDA_SHIM_WARP_MMA_H

#include "backend/cuda/cuda_rows.h"

#include <stdlib.h>

template <typename T> uint32_t pack_pair(float low, float high)
{
    return from_float<T>(low).bits | static_cast<uint32_t>(from_float<T>(high).bits) << 16;
}

template <typename T> float element_of_pair(uint32_t pair, unsigned which)
{
    return to_float(T{static_cast<uint16_t>(pair >> 16 * which)});
}

/* What a lane brings to a product. */
struct cuda_shim_operands {
    uint32_t left[4], right[2];
};

/* Element (row, k) of the left operand: which lane has it, in which of its registers. */
template <typename T> float left_element(const void *const *lanes, unsigned row, unsigned k)
{
    const unsigned lane = row % 8 * 4 + k % 8 / 2, pair = row / 8 + k / 8 * 2;
    return element_of_pair<T>(static_cast<const cuda_shim_operands *>(lanes[lane])->left[pair],
                              k % 2);
}

template <typename T> float right_element(const void *const *lanes, unsigned k, unsigned column)
{
    const unsigned lane = column * 4 + k % 8 / 2, pair = k / 8;
    return element_of_pair<T>(static_cast<const cuda_shim_operands *>(lanes[lane])->right[pair],
                              k % 2);
}

template <typename T>
void multiply_add(float (&sums)[4], const uint32_t (&left)[4], uint32_t right_0, uint32_t right_1)
{
    const cuda_shim_operands mine = {{left[0], left[1], left[2], left[3]}, {right_0, right_1}};
    const void *const *lanes;
    cuda_shim_exchange(&mine, &lanes);
    const unsigned lane = threadIdx.x % 32;
    for (unsigned i = 0; i < 4; i++) {
        const unsigned row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        for (unsigned k = 0; k < 16; k++)
            sums[i] += left_element<T>(lanes, row, k) * right_element<T>(lanes, k, column);
    }
    __syncwarp();
}

/* As on a device, where a row elsewhere is a fault. */
inline void check_16_bytes(const void *at)
{
    if (reinterpret_cast<uintptr_t>(at) % 16 != 0)
        abort();
}

inline void cuda_shim_load_matrices(uint32_t (&pairs)[4], const void *row, bool transposed)
{
    const void *const *rows;
    check_16_bytes(row);
    cuda_shim_exchange(row, &rows);
    const unsigned group = threadIdx.x % 32 / 4, first = threadIdx.x % 4 * 2;
    for (unsigned matrix = 0; matrix < 4; matrix++) {
        uint16_t element[2];
        for (unsigned i = 0; i < 2; i++) {
            const unsigned line = transposed ? first + i : group;
            const unsigned column = transposed ? group : first + i;
            memcpy(&element[i], static_cast<const char *>(rows[8 * matrix + line]) + 2 * column, 2);
        }
        pairs[matrix] = element[0] | static_cast<uint32_t>(element[1]) << 16;
    }
    __syncwarp();
}

inline void load_matrices(uint32_t (&pairs)[4], const void *row)
{
    cuda_shim_load_matrices(pairs, row, false);
}

inline void load_matrices_transposed(uint32_t (&pairs)[4], const void *row)
{
    cuda_shim_load_matrices(pairs, row, true);
}

/* Nothing arrives before the thread has waited for it. */
inline void copy_16_bytes(void *shared, const void *global, bool inside)
{
    check_16_bytes(shared);
    check_16_bytes(global);
    cuda_shim_copy_later(shared, inside ? global : nullptr, 16);
}
inline void wait_for_copies() { cuda_shim_finish_copies(); }

inline int __any_sync(unsigned mask, int mine)
{
    float votes = mine != 0 ? 1.0f : 0.0f;
    for (unsigned distance = 1; distance < WARP; distance *= 2)
        votes += __shfl_xor_sync(mask, votes, distance);
    return votes != 0.0f;
}

inline float __fmul_rn(float x, float y) { return x * y; }

inline float exp2_approximate(float x) { return exp2f(x); }

#endif
