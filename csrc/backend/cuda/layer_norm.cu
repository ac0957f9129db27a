/* Bias, residual sum and layer norm after a product.
 *
 * Most of the input is still in the L2 cache, since the chunk's product has just written it. There
 * are no eviction hints for data that is not needed again: the next product overwrites the same
 * memory, and lines evicted before that would have been written back for nothing. */
#include "backend/cuda/cuda_kernels.h"
#include "backend/cuda/layer_norm_row.h"

namespace
{

template <typename T, typename ROW>
__global__ void residual_layer_norm_kernel(const sum_type<T> *x, const float *bias,
                                           const void *residual, aimo_layer_norm norm, void *y,
                                           size_t m, unsigned n)
{
    SHARED_MEMORY(float, rows);
    constexpr unsigned at_once = ROW::AT_ONCE;
    const row_place<ROW> place(m);
    if (place.has_none)
        return;
    const hidden_row_reader<T> other(residual, place.row, n);
    ROW row(rows, n);
    row.for_each(place.lane, [&](unsigned column, float(&sum)[at_once]) {
        float before[at_once];
        load_sums(x + place.row * n + column, sum);
        other.get(column, before);
        for (unsigned j = 0; j < at_once; j++)
            sum[j] += before[j];
    });
    if (bias != NULL) /* after all loads from device memory */
        row.for_each(place.lane, [&](unsigned column, float(&sum)[at_once]) {
            float constant[at_once];
            load_neighbours(bias + column, constant);
            for (unsigned j = 0; j < at_once; j++)
                sum[j] += constant[j];
        });
    layer_norm_row<T>(row, norm, hidden_row<T>(y, place.row, n), place);
}

} // namespace

template <typename T>
aimo_status cuda_residual_layer_norm(const void *x, const float *bias, const void *residual,
                                     const aimo_layer_norm &norm, void *y, size_t m, size_t n,
                                     cudaStream_t stream, aimo_error *err)
{
    return launch_rows(m, n, [&](auto form, const launch_shape &shape) {
        using row = typename decltype(form)::type;
        return launch_kernel(residual_layer_norm_kernel<T, row>, shape, stream, err,
                             static_cast<const sum_type<T> *>(x), bias, residual, norm, y, m,
                             static_cast<unsigned>(n));
    });
}

#define INSTANTIATE(T)                                                                             \
    template aimo_status cuda_residual_layer_norm<T>(const void *, const float *, const void *,    \
                                                     const aimo_layer_norm &, void *, size_t,      \
                                                     size_t, cudaStream_t, aimo_error *);
FOR_EACH_OPERAND_TYPE(INSTANTIATE)
