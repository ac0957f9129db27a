/* Layer norm of rows, each by one warp or half of one. As in cpu/layer_norm_body.h, the variance is
 * computed from the differences from the mean.
 *
 * For the usual multiples of 128 columns the row is kept in registers, where every lane has octets
 * of neighbouring elements: 16 bytes of f16 to load and store at once. Otherwise it is kept in
 * shared memory. */
#ifndef AIMO_CUDA_LAYER_NORM_ROW_H
#define AIMO_CUDA_LAYER_NORM_ROW_H

#include "backend/cuda/cuda_rows.h"

/* Every warp has rows of its own and never waits for other warps. */
constexpr unsigned WARPS_PER_BLOCK = 4;

/* A row of LANES * OCTETS * 8 columns, of which each of LANES threads has OCTETS times eight
 * neighbours. Half a warp divides 384 columns evenly. */
template <unsigned LANES_, unsigned OCTETS> struct register_row {
    static constexpr unsigned LANES = LANES_, AT_ONCE = 8;
    float octets[OCTETS][AT_ONCE];

    __device__ register_row(float *, unsigned) {}
    /* Calls work(column, values) for all of the lane's octets. */
    template <typename F> __device__ void for_each(unsigned lane, const F &work)
    {
        UNROLL
        for (unsigned i = 0; i < OCTETS; i++)
            work((i * LANES + lane) * AT_ONCE, octets[i]);
    }
};

/* A row of any number n of columns; a lane has every 32nd. */
struct shared_row {
    static constexpr unsigned LANES = WARP, AT_ONCE = 1;
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

template <typename ROW> constexpr unsigned rows_per_block = WARPS_PER_BLOCK *WARP / ROW::LANES;

/* The row that a thread works on. All lanes of a warp must take part in sums, so in the last row's
 * warp the lanes beyond it also work on the last row, but do not write. */
template <typename ROW> struct row_place {
    unsigned lane; /* of those that share the row */
    size_t row;
    bool has_none; /* no lane of the warp has a row */
    bool writes;

    __device__ explicit row_place(size_t rows) : lane(threadIdx.x % ROW::LANES)
    {
        const size_t first = static_cast<size_t>(blockIdx.x) * rows_per_block<ROW> +
                             threadIdx.x / WARP * (WARP / ROW::LANES);
        const size_t mine = first + threadIdx.x % WARP / ROW::LANES;
        has_none = first >= rows;
        writes = mine < rows;
        row = writes ? mine : rows - 1;
    }
};

/* out = layer_norm(row) */
template <typename T, typename ROW>
__device__ inline void layer_norm_row(ROW &row, const aimo_layer_norm &norm,
                                      const hidden_row<T> &out, const row_place<ROW> &place)
{
    constexpr unsigned at_once = ROW::AT_ONCE;
    const float n = static_cast<float>(out.columns);
    float sum = 0.0f, squares = 0.0f;
    row.for_each(place.lane, [&](unsigned, const float(&x)[at_once]) {
        for (unsigned j = 0; j < at_once; j++)
            sum += x[j];
    });
    const float mean = warp_sum<ROW::LANES>(sum) / n;
    row.for_each(place.lane, [&](unsigned, const float(&x)[at_once]) {
        for (unsigned j = 0; j < at_once; j++)
            squares += (x[j] - mean) * (x[j] - mean);
    });
    const float scale = 1.0f / sqrtf(warp_sum<ROW::LANES>(squares) / n + norm.epsilon);
    row.for_each(place.lane, [&](unsigned column, float(&x)[at_once]) {
        float weight[at_once], bias[at_once];
        load_neighbours(norm.weight + column, weight);
        load_neighbours(norm.bias + column, bias);
        for (unsigned j = 0; j < at_once; j++)
            x[j] = (x[j] - mean) * scale * weight[j] + bias[j];
    });
    if (place.writes) /* a separate loop, because loads are not moved ahead of stores that might
                         alias them */
        row.for_each(place.lane,
                     [&](unsigned column, const float(&x)[at_once]) { out.set(column, x); });
}

template <typename ROW> struct row_form {
    using type = ROW;
};

/* Calls launch(row_form, shape) with the form in which rows of n columns are kept. */
template <typename F> aimo_status launch_rows(size_t rows, size_t n, const F &launch)
{
    const auto launch_as = [&](auto form, size_t shared) {
        constexpr unsigned at_once = rows_per_block<typename decltype(form)::type>;
        const unsigned blocks = static_cast<unsigned>((rows + at_once - 1) / at_once);
        return launch(form, launch_shape{dim3(blocks), WARPS_PER_BLOCK * WARP, shared});
    };
    switch (n) {
    case 128:
        return launch_as(row_form<register_row<16, 1>>(), 0);
    case 256:
        return launch_as(row_form<register_row<32, 1>>(), 0);
    case 384:
        return launch_as(row_form<register_row<16, 3>>(), 0);
    case 512:
        return launch_as(row_form<register_row<32, 2>>(), 0);
    case 768:
        return launch_as(row_form<register_row<32, 3>>(), 0);
    case 1024:
        return launch_as(row_form<register_row<32, 4>>(), 0);
    default:
        return launch_as(row_form<shared_row>(), WARPS_PER_BLOCK * n * sizeof(float));
    }
}

#endif
