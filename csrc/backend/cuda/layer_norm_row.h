/* Layer norm of one row by one warp; the row waits in shared memory. As cpu/layer_norm_body.h, the
 * variance is that of the differences from the mean. */
#ifndef AIMO_CUDA_LAYER_NORM_ROW_H
#define AIMO_CUDA_LAYER_NORM_ROW_H

#include "backend/cuda/cuda_rows.h"

/* Each warp of a block has a row of its own, so that nothing waits for other warps. */
constexpr unsigned ROWS_PER_BLOCK = 4;

inline launch_shape shape_of_rows(size_t rows, size_t columns)
{
    const unsigned blocks = static_cast<unsigned>((rows + ROWS_PER_BLOCK - 1) / ROWS_PER_BLOCK);
    return {dim3(blocks), ROWS_PER_BLOCK * WARP, ROWS_PER_BLOCK * columns * sizeof(float)};
}

/* out = layer_norm(row [n]); each lane has put its own columns (lane, lane + WARP, ...) there. */
template <typename T>
__device__ inline void layer_norm_row(const float *row, const aimo_layer_norm &norm,
                                      const hidden_row<T> &out, unsigned lane)
{
    const unsigned n = static_cast<unsigned>(out.columns);
    float sum = 0.0f, squares = 0.0f;
    for (unsigned i = lane; i < n; i += WARP)
        sum += row[i];
    const float mean = warp_sum(sum) / static_cast<float>(n);
    for (unsigned i = lane; i < n; i += WARP)
        squares += (row[i] - mean) * (row[i] - mean);
    const float variance = warp_sum(squares) / static_cast<float>(n);
    const float scale = 1.0f / sqrtf(variance + norm.epsilon);
    for (unsigned i = lane; i < n; i += WARP)
        out.set(i, (row[i] - mean) * scale * norm.weight[i] + norm.bias[i]);
}

#endif
