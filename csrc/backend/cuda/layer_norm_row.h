/* Layer norm of one row by one warp. As cpu/layer_norm_body.h, the variance is that of the
 * differences from the mean.
 *
 * The row waits in registers for the usual multiples of 128 columns, where every lane has quads of
 * neighbours, which it loads and stores at once; otherwise in shared memory. */
#ifndef AIMO_CUDA_LAYER_NORM_ROW_H
#define AIMO_CUDA_LAYER_NORM_ROW_H

#include "backend/cuda/cuda_rows.h"

/* Each warp of a block has a row of its own, so that nothing waits for other warps. */
constexpr unsigned ROWS_PER_BLOCK = 4;

/* A row of 128 * QUADS columns, of which each lane has QUADS times four neighbours. */
template <unsigned QUADS> struct register_row {
    static constexpr unsigned AT_ONCE = 4;
    float quads[QUADS][AT_ONCE];

    __device__ register_row(float *, unsigned) {}
    /* work(column, values) for all neighbours that the lane has. */
    template <typename F> __device__ void for_each(unsigned lane, const F &work)
    {
        for (unsigned q = 0; q < QUADS; q++)
            work((q * WARP + lane) * AT_ONCE, quads[q]);
    }
};

/* A row of any n columns; a lane has every 32nd. */
struct shared_row {
    static constexpr unsigned AT_ONCE = 1;
    float *columns;
    unsigned n;

    __device__ shared_row(float *rows, unsigned n_) : columns(rows + threadIdx.x / WARP * n_), n(n_)
    {
    }
    template <typename F> __device__ void for_each(unsigned lane, const F &work)
    {
        for (unsigned i = lane; i < n; i += WARP)
            work(i, *reinterpret_cast<float(*)[AT_ONCE]>(columns + i));
    }
};

/* out = layer_norm(row) */
template <typename T, typename ROW>
__device__ inline void layer_norm_row(ROW &row, const aimo_layer_norm &norm,
                                      const hidden_row<T> &out, unsigned lane)
{
    constexpr unsigned at_once = ROW::AT_ONCE;
    const float n = static_cast<float>(out.columns);
    float sum = 0.0f, squares = 0.0f;
    row.for_each(lane, [&](unsigned, const float(&x)[at_once]) {
        for (unsigned j = 0; j < at_once; j++)
            sum += x[j];
    });
    const float mean = warp_sum(sum) / n;
    row.for_each(lane, [&](unsigned, const float(&x)[at_once]) {
        for (unsigned j = 0; j < at_once; j++)
            squares += (x[j] - mean) * (x[j] - mean);
    });
    const float scale = 1.0f / sqrtf(warp_sum(squares) / n + norm.epsilon);
    row.for_each(lane, [&](unsigned column, float(&x)[at_once]) {
        float weight[at_once], bias[at_once];
        load_neighbours(norm.weight + column, weight);
        load_neighbours(norm.bias + column, bias);
        for (unsigned j = 0; j < at_once; j++)
            x[j] = (x[j] - mean) * scale * weight[j] + bias[j];
        out.set(column, x);
    });
}

template <typename ROW> struct row_form {
    using type = ROW;
};

/* launch(row_form, shape) with the form that rows of n columns wait in. */
template <typename F> aimo_status launch_rows(size_t rows, size_t n, const F &launch)
{
    const unsigned blocks = static_cast<unsigned>((rows + ROWS_PER_BLOCK - 1) / ROWS_PER_BLOCK);
    launch_shape shape = {dim3(blocks), ROWS_PER_BLOCK * WARP, 0};
    switch (n) {
    case 128:
        return launch(row_form<register_row<1>>(), shape);
    case 256:
        return launch(row_form<register_row<2>>(), shape);
    case 384:
        return launch(row_form<register_row<3>>(), shape);
    case 512:
        return launch(row_form<register_row<4>>(), shape);
    case 768:
        return launch(row_form<register_row<6>>(), shape);
    case 1024:
        return launch(row_form<register_row<8>>(), shape);
    default:
        shape.shared = ROWS_PER_BLOCK * n * sizeof(float);
        return launch(row_form<shared_row>(), shape);
    }
}

#endif
