/* How activations lie in device memory.
 *
 * T is the type that products take: __half, __nv_bfloat16 or float. An operand row is T[columns],
 * rows without a gap. A full row is float[columns] and then, unless T is float, the same values as
 * T[columns], so that one write serves the sums that go on in f32 and the product that comes next;
 * the T of a row lie in the row itself, so they are found without knowing how many rows there are.
 */
#ifndef AIMO_CUDA_ROWS_H
#define AIMO_CUDA_ROWS_H

#include "backend/cuda/cuda_common.h"

#include <type_traits>

__host__ __device__ inline float to_float(float x) { return x; }
__host__ __device__ inline float to_float(__half x) { return __half2float(x); }
__host__ __device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

/* To nearest, ties to even. */
template <typename T> __host__ __device__ inline T from_float(float x);
template <> __host__ __device__ inline float from_float(float x) { return x; }
template <> __host__ __device__ inline __half from_float(float x) { return __float2half_rn(x); }
template <> __host__ __device__ inline __nv_bfloat16 from_float(float x)
{
    return __float2bfloat16_rn(x);
}

template <typename T> constexpr bool is_float = std::is_same<T, float>::value;

/* From one full row to the next; products want 16 bytes. */
template <typename T> __host__ __device__ inline size_t full_row_bytes(size_t columns)
{
    const size_t bytes = columns * (sizeof(float) + (is_float<T> ? 0 : sizeof(T)));
    return (bytes + 15) / 16 * 16;
}

template <typename T> struct full_row {
    float *f32;
    size_t columns;

    __host__ __device__ full_row(void *rows, size_t row, size_t columns_)
        : f32(reinterpret_cast<float *>(static_cast<char *>(rows) +
                                        row * full_row_bytes<T>(columns_))),
          columns(columns_)
    {
    }
    /* What products read. */
    __host__ __device__ T *operand() const
    {
        return reinterpret_cast<T *>(is_float<T> ? f32 : f32 + columns);
    }
    __host__ __device__ void set(size_t column, float x) const
    {
        f32[column] = x;
        if (!is_float<T>)
            operand()[column] = from_float<T>(x);
    }
};

template <typename T> struct full_row_reader {
    const float *f32;

    __host__ __device__ full_row_reader(const void *rows, size_t row, size_t columns)
        : f32(reinterpret_cast<const float *>(static_cast<const char *>(rows) +
                                              row * full_row_bytes<T>(columns)))
    {
    }
};

/* COUNT neighbours that are loaded and stored at once, from an address that they divide. */
template <typename T, unsigned COUNT> struct alignas(sizeof(T) * COUNT) neighbours {
    T at[COUNT];
};

/* Sum over the lanes of a warp; every lane gets it. The order is fixed. */
__device__ inline float warp_sum(float x)
{
    for (int distance = WARP / 2; distance > 0; distance /= 2)
        x += __shfl_xor_sync(0xffffffffu, x, distance);
    return x;
}

#endif
