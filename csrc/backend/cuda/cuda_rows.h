/* The layout of activations in device memory.
 *
 * T is the operand type of products: __half, __nv_bfloat16 or float. An operand row is T[columns],
 * with no gap between rows. Hidden and full rows serve both the residual sums and the next product,
 * which reads its operands from the row itself; so they are found without knowing how many rows
 * there are.
 *
 * A full row is float[columns] and then, unless T is float, the same values as T[columns]. A hidden
 * row is kept in f32 when T is float and in f16 otherwise, and, when T is __nv_bfloat16, is
 * followed by the same values as T: 8 bits are enough for a factor, but too few for the residual
 * stream.
 *
 * A sum row is what a product leaves for the layer norm after it, with no gap between rows. It is
 * f16 when T is __half, as precise as what it is added to and half as much for the norm to read;
 * otherwise f32. */
#ifndef AIMO_CUDA_ROWS_H
#define AIMO_CUDA_ROWS_H

#include "backend/cuda/cuda_common.h"

#include <type_traits>

__host__ __device__ inline float to_float(float x) { return x; }
__host__ __device__ inline float to_float(signed char x) { return static_cast<float>(x); }
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

/* COUNT neighbouring elements, loaded and stored at once from an address that is a multiple of
 * their size. */
template <typename T, unsigned COUNT> struct alignas(sizeof(T) * COUNT) neighbours {
    T at[COUNT];
};

/* How many of COUNT elements fit into one access of BYTES. */
template <typename T, unsigned COUNT, unsigned BYTES>
constexpr unsigned per_access = COUNT * sizeof(T) < BYTES ? COUNT : BYTES / sizeof(T);

/* COUNT neighbouring elements, BYTES at a time, from an address that is a multiple of BYTES; a
 * thread can access at most 16 bytes at once. */
template <unsigned BYTES = 16, typename T, unsigned COUNT>
__device__ inline void load_neighbours(const T *from, float (&x)[COUNT])
{
    constexpr unsigned part = per_access<T, COUNT, BYTES>;
    UNROLL
    for (unsigned i = 0; i < COUNT; i += part) {
        const auto values = *reinterpret_cast<const neighbours<T, part> *>(from + i);
        for (unsigned j = 0; j < part; j++)
            x[i + j] = to_float(values.at[j]);
    }
}

template <typename T, unsigned COUNT>
__device__ inline void store_neighbours(const T (&x)[COUNT], T *to)
{
    constexpr unsigned part = per_access<T, COUNT, 16>;
    UNROLL
    for (unsigned i = 0; i < COUNT; i += part) {
        neighbours<T, part> values;
        for (unsigned j = 0; j < part; j++)
            values.at[j] = x[i + j];
        *reinterpret_cast<neighbours<T, part> *>(to + i) = values;
    }
}

/* Products want row strides that are multiples of 16 bytes. */
__host__ __device__ inline size_t align_row(size_t bytes) { return (bytes + 15) / 16 * 16; }

/* From one full row to the next. */
template <typename T> __host__ __device__ inline size_t full_row_bytes(size_t columns)
{
    return align_row(columns * (sizeof(float) + (is_float<T> ? 0 : sizeof(T))));
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
    using element = float;
    const float *f32;

    __host__ __device__ full_row_reader(const void *rows, size_t row, size_t columns)
        : f32(reinterpret_cast<const float *>(static_cast<const char *>(rows) +
                                              row * full_row_bytes<T>(columns)))
    {
    }
    __host__ __device__ const element *elements() const { return f32; }
};

/* The type that a hidden row is stored in. */
template <typename T> using kept_type = std::conditional_t<is_float<T>, float, __half>;
template <typename T> constexpr bool is_kept = std::is_same<T, kept_type<T>>::value;

/* The offset from a hidden row's stored values to the operands of products, when these differ. */
template <typename T> __host__ __device__ inline size_t kept_bytes(size_t columns)
{
    return align_row(columns * sizeof(kept_type<T>));
}

/* From one hidden row to the next. */
template <typename T> __host__ __device__ inline size_t hidden_row_bytes(size_t columns)
{
    return kept_bytes<T>(columns) + (is_kept<T> ? 0 : align_row(columns * sizeof(T)));
}

/* x clamped to f16's largest finite values. NaN stays NaN. */
__host__ __device__ inline float limit_to_f16(float x)
{
    constexpr float most = 65504.0f;
    return fabsf(x) > most ? copysignf(most, x) : x;
}

/* x as stored. With bf16 operands the stored f16 saturates at its largest value: layer norm's
 * outputs are at most sqrt(n) |weight| + |bias|, which is far below that for any trained
 * weights. */
template <typename T> __host__ __device__ inline kept_type<T> keep(float x)
{
    return from_float<kept_type<T>>(is_kept<T> ? x : limit_to_f16(x));
}

template <typename T> struct hidden_row {
    kept_type<T> *kept;
    size_t columns;

    __host__ __device__ hidden_row(void *rows, size_t row, size_t columns_)
        : kept(reinterpret_cast<kept_type<T> *>(static_cast<char *>(rows) +
                                                row * hidden_row_bytes<T>(columns_))),
          columns(columns_)
    {
    }
    /* What products read. */
    __host__ __device__ T *operand() const
    {
        char *const begin = reinterpret_cast<char *>(kept);
        return reinterpret_cast<T *>(is_kept<T> ? begin : begin + kept_bytes<T>(columns));
    }
    template <unsigned COUNT>
    __host__ __device__ void set(size_t column, const float (&x)[COUNT]) const
    {
        kept_type<T> values[COUNT];
        T factors[COUNT];
        for (unsigned j = 0; j < COUNT; j++) {
            values[j] = keep<T>(x[j]);
            factors[j] = from_float<T>(x[j]);
        }
        store_neighbours(values, kept + column);
        if (!is_kept<T>)
            store_neighbours(factors, operand() + column);
    }
};

template <typename T> struct hidden_row_reader {
    using element = kept_type<T>;
    const element *kept;

    __host__ __device__ hidden_row_reader(const void *rows, size_t row, size_t columns)
        : kept(reinterpret_cast<const kept_type<T> *>(static_cast<const char *>(rows) +
                                                      row * hidden_row_bytes<T>(columns)))
    {
    }
    __host__ __device__ const element *elements() const { return kept; }
    template <unsigned COUNT> __host__ __device__ void get(size_t column, float (&x)[COUNT]) const
    {
        load_neighbours(kept + column, x);
    }
};

template <typename T>
using sum_type = std::conditional_t<std::is_same<T, __half>::value, __half, float>;

/* COUNT neighbouring elements of a sum row. Where the product overflowed to infinity, f16's largest
 * value is used, because an infinity would turn the whole row into NaN. */
template <typename S, unsigned COUNT>
__host__ __device__ inline void load_sums(const S *from, float (&x)[COUNT])
{
    load_neighbours(from, x);
    for (unsigned j = 0; j < COUNT && !is_float<S>; j++)
        x[j] = limit_to_f16(x[j]);
}

/* Sum over LANES neighbours of a warp, all of whose lanes take part; every lane gets its own sum.
 * The order is fixed. */
template <unsigned LANES = WARP> __device__ inline float warp_sum(float x)
{
    for (unsigned distance = LANES / 2; distance > 0; distance /= 2)
        x += __shfl_xor_sync(0xffffffffu, x, distance);
    return x;
}

#endif
