/* Layer norm of rows, each by one warp or half of one. As cpu/layer_norm_body.h, the variance is
 * that of the differences from the mean.
 *
 * The row waits in registers for the usual multiples of 128 columns, where every lane has octets of
 * neighbours: 16 bytes of f16 to load and store at once. It waits in shared memory otherwise. */
#ifndef AIMO_CUDA_LAYER_NORM_ROW_H
#define AIMO_CUDA_LAYER_NORM_ROW_H

#include "backend/cuda/cuda_rows.h"

/* A warp has rows of its own, so that nothing waits for other warps. */
constexpr unsigned WARPS_PER_BLOCK = 4;

/* A row of LANES * OCTETS * 8 columns, of which each of LANES threads has OCTETS times eight
 * neighbours. Half a warp has 384 columns without a remainder. */
template <unsigned LANES_, unsigned OCTETS> struct register_row {
    static constexpr unsigned LANES = LANES_, AT_ONCE = 8;
    float octets[OCTETS][AT_ONCE];

    __device__ register_row(float *, unsigned) {}
    /* work(column, values) for all neighbours that the lane has. */
    template <typename F> __device__ void for_each(unsigned lane, const F &work)
    {
        UNROLL
        for (unsigned i = 0; i < OCTETS; i++)
            work((i * LANES + lane) * AT_ONCE, octets[i]);
    }
};

/* A row of any n columns; a lane has every 32nd. */
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

/* The row that a thread works on. As all lanes of a warp take part in sums, those behind the last
 * row, but in its warp, work on it as well, and do not write. */
template <typename ROW> struct row_place {
    unsigned lane; /* of those that share the row */
    size_t row;
    bool has_none; /* nor has any lane of the warp */
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
    if (place.writes) /* apart, as loads do not pass stores, which might be to the same place */
        row.for_each(place.lane,
                     [&](unsigned column, const float(&x)[at_once]) { out.set(column, x); });
}

template <typename ROW> struct row_form {
    using type = ROW;
};

/* launch(row_form, shape) with the form that rows of n columns wait in. */
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
