/* From token vectors to one vector per sequence: one block for each sequence.
 *
 * A thread sums COUNT columns of every `step`th token; the resulting slices are then added in
 * order. The number of slices depends on the row's size alone. */
#include "backend/cuda/cuda_kernels.h"

namespace
{

constexpr unsigned THREADS = 1024, WARPS = THREADS / WARP;

struct pool_input {
    const void *x;
    const int32_t *offsets; /* or NULL: every token is a sequence */
    void *out;
    aimo_pooling poolings[AIMO_POOLING_COUNT];
    unsigned most_skipped, n, columns;
    bool normalize;
};

struct token_range {
    size_t begin; /* of the sequence */
    unsigned first, end;
};

/* Those of a sequence's tokens [skip, length) that the pooling uses. */
__device__ inline token_range pooled_tokens(aimo_pooling pooling, token_range tokens)
{
    if (pooling == AIMO_POOL_CLS)
        tokens.end = tokens.first + 1;
    if (pooling == AIMO_POOL_LAST_TOKEN)
        tokens.first = tokens.end - 1;
    return tokens;
}

__device__ inline float add_token(aimo_pooling pooling, float sum, float x, unsigned token)
{
    if (pooling == AIMO_POOL_MAX)
        return sum > x ? sum : x;
    return sum + x * (pooling == AIMO_POOL_WEIGHTED_MEAN ? static_cast<float>(token + 1) : 1.0f);
}

/* What the sum over the tokens is divided by. */
__device__ inline float divisor_of(aimo_pooling pooling, token_range tokens)
{
    const float count = static_cast<float>(tokens.end - tokens.first);
    if (pooling == AIMO_POOL_MEAN)
        return count;
    if (pooling == AIMO_POOL_MEAN_SQRT_LEN)
        return sqrtf(count);
    if (pooling == AIMO_POOL_WEIGHTED_MEAN) {
        const size_t first = tokens.first, end = tokens.end;
        return static_cast<float>(end * (end + 1) / 2 - first * (first + 1) / 2);
    }
    return 1.0f;
}

/* sums [COUNT]: columns from `column` on over every `step`th token; ROW reads the tokens' rows. */
template <typename ROW, unsigned COUNT>
__device__ void pool_slice(const pool_input &in, aimo_pooling pooling, token_range tokens,
                           unsigned step, unsigned column, float (&sums)[COUNT])
{
    constexpr unsigned ahead = 4; /* loads that do not wait for each other */
    using part = neighbours<typename ROW::element, COUNT>;
    for (unsigned i = 0; i < COUNT; i++)
        sums[i] = pooling == AIMO_POOL_MAX ? -INFINITY : 0.0f;
    for (unsigned first = tokens.first; first < tokens.end; first += ahead * step) {
        part values[ahead];
        UNROLL
        for (unsigned j = 0; j < ahead; j++)
            if (first + j * step < tokens.end) {
                const ROW row(in.x, tokens.begin + first + j * step, in.n);
                values[j] = *reinterpret_cast<const part *>(row.elements() + column);
            }
        UNROLL
        for (unsigned j = 0; j < ahead; j++)
            for (unsigned i = 0; i < COUNT && first + j * step < tokens.end; i++)
                sums[i] = add_token(pooling, sums[i], to_float(values[j].at[i]), first + j * step);
    }
}

/* How a block's threads are divided into slices of tokens, each with as many neighbouring groups of
 * columns as a row has, or as there are threads. */
template <unsigned COUNT> struct thread_shape {
    unsigned groups, slices;

    __host__ __device__ explicit thread_shape(unsigned n)
        : groups(n / COUNT < THREADS ? n / COUNT : THREADS), slices(THREADS / groups)
    {
    }
    __host__ __device__ unsigned columns() const { return groups * COUNT; }
};

/* The columns [first, first + shape.columns()) of one pooling, to vector[to + column]; columns from
 * `kept` on are left out. Returns the sum of squares of the elements that this thread has set. */
template <typename T, typename ROW, unsigned COUNT>
__device__ float pool_columns(const pool_input &in, aimo_pooling pooling, token_range tokens,
                              unsigned first, unsigned kept, const full_row<T> &vector, unsigned to,
                              float *of_slices)
{
    const thread_shape<COUNT> shape(in.n);
    const unsigned slice = threadIdx.x / shape.groups, column = threadIdx.x % shape.groups * COUNT;
    const token_range all = pooled_tokens(pooling, tokens);
    const unsigned count = all.end - all.first, used = count < shape.slices ? count : shape.slices;
    __syncthreads(); /* no thread still reads the previous columns' slices */
    if (slice < used && first + column < kept) {
        const token_range mine = {all.begin, all.first + slice, all.end};
        float sums[COUNT];
        pool_slice<ROW, COUNT>(in, pooling, mine, shape.slices, first + column, sums);
        for (unsigned i = 0; i < COUNT; i++)
            of_slices[slice * shape.columns() + column + i] = sums[i];
    }
    __syncthreads();
    float squares = 0.0f;
    for (unsigned i = threadIdx.x; i < shape.columns() && first + i < kept; i += THREADS) {
        float sum = of_slices[i];
        for (unsigned s = 1; s < used; s++) {
            const float more = of_slices[s * shape.columns() + i];
            sum = pooling != AIMO_POOL_MAX ? sum + more : sum > more ? sum : more;
        }
        sum /= divisor_of(pooling, all);
        vector.set(to + first + i, sum);
        squares += sum * sum;
    }
    return squares;
}

/* Sum over the threads of a block, in a fixed order; every thread gets it. */
__device__ inline float block_sum(float x, float *of_warps)
{
    const float sum = warp_sum(x);
    if (threadIdx.x % WARP == 0)
        of_warps[threadIdx.x / WARP] = sum;
    __syncthreads();
    float total = 0.0f;
    for (unsigned warp = 0; warp < WARPS; warp++)
        total += of_warps[warp];
    return total;
}

template <typename T, typename ROW, unsigned COUNT>
__global__ void __launch_bounds__(THREADS) pool_kernel(const __grid_constant__ pool_input in)
{
    SHARED_MEMORY(float, shared); /* [WARPS], and then the slices */
    const size_t sequence = blockIdx.x;
    token_range tokens = {sequence, 0, 1};
    if (in.offsets != NULL) {
        tokens.begin = static_cast<size_t>(in.offsets[sequence]);
        tokens.end = static_cast<unsigned>(in.offsets[sequence + 1] - in.offsets[sequence]);
    }
    if (tokens.end == 0)
        return;
    tokens.first = in.most_skipped < tokens.end ? in.most_skipped : tokens.end - 1;
    const full_row<T> vector(in.out, sequence, in.columns);
    float squares = 0.0f;
    for (unsigned done = 0; done < in.columns; done += in.n) {
        const unsigned kept = in.columns - done < in.n ? in.columns - done : in.n;
        for (unsigned first = 0; first < kept; first += thread_shape<COUNT>(in.n).columns())
            squares += pool_columns<T, ROW, COUNT>(in, in.poolings[done / in.n], tokens, first,
                                                   kept, vector, done, shared + WARPS);
    }
    if (!in.normalize)
        return;
    const float norm = sqrtf(block_sum(squares, shared)); /* and all columns are set */
    const float divisor = norm > 1e-12f ? norm : 1e-12f;
    for (unsigned i = threadIdx.x; i < in.columns; i += THREADS)
        vector.set(i, vector.f32[i] / divisor);
}

template <typename T, typename ROW, unsigned COUNT>
aimo_status launch(const pool_input &in, size_t batch, cudaStream_t stream, aimo_error *err)
{
    const thread_shape<COUNT> shape(in.n);
    const size_t floats = WARPS + static_cast<size_t>(shape.slices) * shape.columns();
    return launch_kernel(pool_kernel<T, ROW, COUNT>,
                         {dim3(static_cast<unsigned>(batch)), THREADS, floats * sizeof(float)},
                         stream, err, in);
}

template <typename T, typename ROW>
aimo_status pool_rows(const pool_input &in, size_t batch, cudaStream_t stream, aimo_error *err)
{
    constexpr unsigned at_once = 16 / sizeof(typename ROW::element);
    if (in.n % at_once == 0)
        return launch<T, ROW, at_once>(in, batch, stream, err);
    return launch<T, ROW, 1>(in, batch, stream, err);
}

} // namespace

template <typename T>
aimo_status cuda_pool(const aimo_pool_args &args, const int32_t *offsets, cudaStream_t stream,
                      aimo_error *err)
{
    pool_input in = {};
    in.x = args.x;
    in.offsets = offsets;
    in.out = args.out;
    for (size_t i = 0; i * args.hidden < args.columns; i++)
        in.poolings[i] = args.poolings[i];
    const size_t longest = 1u << 30; /* sequences are shorter */
    in.most_skipped = static_cast<unsigned>(args.skip < longest ? args.skip : longest);
    in.n = static_cast<unsigned>(args.hidden);
    in.columns = static_cast<unsigned>(args.columns);
    in.normalize = args.normalize;
    if (args.x_kind == AIMO_ROWS_HIDDEN)
        return pool_rows<T, hidden_row_reader<T>>(in, args.batch, stream, err);
    return pool_rows<T, full_row_reader<T>>(in, args.batch, stream, err);
}

#define INSTANTIATE(T)                                                                             \
    template aimo_status cuda_pool<T>(const aimo_pool_args &, const int32_t *, cudaStream_t,       \
                                      aimo_error *);
FOR_EACH_OPERAND_TYPE(INSTANTIATE)
