/* Bias, residual sum and layer norm behind a product: one warp for each row. */
#include "backend/cuda/cuda_kernels.h"
#include "backend/cuda/layer_norm_row.h"

namespace
{

template <typename T, typename ROW>
__global__ void residual_layer_norm_kernel(const float *x, const float *bias, const void *residual,
                                           aimo_layer_norm norm, void *y, size_t m, unsigned n)
{
    SHARED_MEMORY(float, rows);
    constexpr unsigned at_once = ROW::AT_ONCE;
    const unsigned lane = threadIdx.x % WARP;
    const size_t r = static_cast<size_t>(blockIdx.x) * ROWS_PER_BLOCK + threadIdx.x / WARP;
    if (r >= m)
        return;
    const hidden_row_reader<T> other(residual, r, n);
    ROW row(rows, n);
    row.for_each(lane, [&](unsigned column, float(&sum)[at_once]) {
        float before[at_once], constant[at_once] = {};
        load_neighbours(x + r * n + column, sum);
        other.get(column, before);
        if (bias != NULL)
            load_neighbours(bias + column, constant);
        for (unsigned j = 0; j < at_once; j++)
            sum[j] += before[j] + constant[j];
    });
    layer_norm_row<T>(row, norm, hidden_row<T>(y, r, n), lane);
}

} // namespace

template <typename T>
aimo_status cuda_residual_layer_norm(const float *x, const float *bias, const void *residual,
                                     const aimo_layer_norm &norm, void *y, size_t m, size_t n,
                                     cudaStream_t stream, aimo_error *err)
{
    return launch_rows(m, n, [&](auto form, const launch_shape &shape) {
        using row = typename decltype(form)::type;
        return launch_kernel(residual_layer_norm_kernel<T, row>, shape, stream, err, x, bias,
                             residual, norm, y, m, static_cast<unsigned>(n));
    });
}

#define INSTANTIATE(T)                                                                             \
    template aimo_status cuda_residual_layer_norm<T>(const float *, const float *, const void *,   \
                                                     const aimo_layer_norm &, void *, size_t,      \
                                                     size_t, cudaStream_t, aimo_error *);
FOR_EACH_OPERAND_TYPE(INSTANTIATE)
