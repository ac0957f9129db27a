/* Bias and activation, in place, after a product that could not fuse them: in f32, for activations
 * that cuBLASLt lacks, and for the vectors of a model's dense layers. */
#include "backend/cuda/cuda_kernels.h"

namespace
{

constexpr unsigned THREADS = 256;

__device__ inline float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

__device__ inline float activate(aimo_activation activation, float x)
{
    switch (activation) {
    case AIMO_ACT_GELU: /* erfc keeps small values accurate on the negative side, where 1 + erf
                           cancels */
        return 0.5f * x * erfcf(-0.70710678f * x);
    case AIMO_ACT_GELU_TANH: /* 0.5 (1 + tanh u) = sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3)
                              */
        return x * sigmoid(1.59576912f * x * (1.0f + 0.044715f * x * x));
    case AIMO_ACT_QUICK_GELU:
        return x * sigmoid(1.702f * x);
    case AIMO_ACT_RELU:
        return x < 0.0f ? 0.0f : x; /* NaN stays */
    case AIMO_ACT_SILU:
        return x * sigmoid(x);
    case AIMO_ACT_TANH:
        return tanhf(x);
    default:
        return x;
    }
}

template <typename T, unsigned COUNT>
__global__ void operand_rows_kernel(T *y, const float *bias, aimo_activation activation,
                                    size_t elements, unsigned n)
{
    const size_t i = (static_cast<size_t>(blockIdx.x) * THREADS + threadIdx.x) * COUNT;
    if (i >= elements)
        return;
    const unsigned column = static_cast<unsigned>(i % n);
    auto *at = reinterpret_cast<neighbours<T, COUNT> *>(y + i);
    neighbours<T, COUNT> values = *at;
    for (unsigned j = 0; j < COUNT; j++) {
        const float x = to_float(values.at[j]) + (bias != NULL ? bias[column + j] : 0.0f);
        values.at[j] = from_float<T>(activate(activation, x));
    }
    *at = values;
}

template <typename T>
__global__ void full_rows_kernel(void *y, const float *bias, aimo_activation activation,
                                 size_t elements, unsigned n)
{
    const size_t i = static_cast<size_t>(blockIdx.x) * THREADS + threadIdx.x;
    if (i >= elements)
        return;
    const unsigned column = static_cast<unsigned>(i % n);
    const full_row<T> row(y, i / n, n);
    row.set(column, activate(activation, row.f32[column] + (bias != NULL ? bias[column] : 0.0f)));
}

launch_shape shape_of(size_t threads)
{
    return {dim3(static_cast<unsigned>((threads + THREADS - 1) / THREADS)), THREADS, 0};
}

} // namespace

template <typename T>
aimo_status cuda_bias_activation(void *y, aimo_rows_kind kind, const float *bias,
                                 aimo_activation activation, size_t m, size_t n,
                                 cudaStream_t stream, aimo_error *err)
{
    constexpr unsigned at_once = 16 / sizeof(T);
    const size_t elements = m * n;
    const unsigned columns = static_cast<unsigned>(n);
    if (kind == AIMO_ROWS_FULL)
        return launch_kernel(full_rows_kernel<T>, shape_of(elements), stream, err, y, bias,
                             activation, elements, columns);
    if (bias == NULL && activation == AIMO_ACT_NONE)
        return AIMO_OK;
    if (n % at_once == 0)
        return launch_kernel(operand_rows_kernel<T, at_once>, shape_of(elements / at_once), stream,
                             err, static_cast<T *>(y), bias, activation, elements, columns);
    return launch_kernel(operand_rows_kernel<T, 1>, shape_of(elements), stream, err,
                         static_cast<T *>(y), bias, activation, elements, columns);
}

#define INSTANTIATE(T)                                                                             \
    template aimo_status cuda_bias_activation<T>(void *, aimo_rows_kind, const float *,            \
                                                 aimo_activation, size_t, size_t, cudaStream_t,    \
                                                 aimo_error *);
FOR_EACH_OPERAND_TYPE(INSTANTIATE)
