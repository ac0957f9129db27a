/* From token vectors to one vector per sequence: one block for each sequence. */
#include "backend/cuda/cuda_kernels.h"

namespace
{

constexpr unsigned THREADS = 256, WARPS = THREADS / WARP;

struct pooling_list {
    aimo_pooling at[AIMO_POOLING_COUNT];
};

/* The pooled value of a column over the tokens [skip, length) of a sequence, whose rows ROW reads.
 */
template <typename ROW>
__device__ inline float pool_column(const void *x, size_t begin, unsigned skip, unsigned length,
                                    unsigned n, unsigned column, aimo_pooling pooling)
{
    if (pooling == AIMO_POOL_LAST_TOKEN)
        return ROW(x, begin + length - 1, n).at(column);
    float sum = ROW(x, begin + skip, n).at(column);
    if (pooling == AIMO_POOL_CLS)
        return sum;
    const bool weighted = pooling == AIMO_POOL_WEIGHTED_MEAN;
    if (weighted)
        sum *= static_cast<float>(skip + 1);
    for (unsigned t = skip + 1; t < length; t++) {
        const float token = ROW(x, begin + t, n).at(column);
        if (pooling == AIMO_POOL_MAX)
            sum = sum > token ? sum : token;
        else
            sum += token * (weighted ? static_cast<float>(t + 1) : 1.0f);
    }
    const float count = static_cast<float>(length - skip);
    if (pooling == AIMO_POOL_MEAN)
        return sum / count;
    if (pooling == AIMO_POOL_MEAN_SQRT_LEN)
        return sum / sqrtf(count);
    if (weighted) {
        const size_t all = static_cast<size_t>(length) * (length + 1) / 2;
        return sum / static_cast<float>(all - static_cast<size_t>(skip) * (skip + 1) / 2);
    }
    return sum;
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

template <typename T, typename ROW>
__global__ void pool_kernel(const void *x, const int32_t *offsets, pooling_list poolings,
                            unsigned most_skipped, unsigned n, unsigned columns, bool normalize,
                            void *out)
{
    SHARED_MEMORY(float, of_warps);
    const size_t sequence = blockIdx.x;
    const size_t begin = offsets != NULL ? static_cast<size_t>(offsets[sequence]) : sequence;
    const unsigned length =
        offsets != NULL ? static_cast<unsigned>(offsets[sequence + 1] - offsets[sequence]) : 1;
    if (length == 0)
        return;
    const unsigned skip = most_skipped < length ? most_skipped : length - 1;
    const full_row<T> vector(out, sequence, columns);
    float squares = 0.0f;
    for (unsigned i = threadIdx.x; i < columns; i += THREADS) {
        const float pooled = pool_column<ROW>(x, begin, skip, length, n, i % n, poolings.at[i / n]);
        vector.set(i, pooled);
        squares += pooled * pooled;
    }
    if (!normalize)
        return;
    const float norm = sqrtf(block_sum(squares, of_warps));
    const float divisor = norm > 1e-12f ? norm : 1e-12f;
    for (unsigned i = threadIdx.x; i < columns; i += THREADS)
        vector.set(i, vector.f32[i] / divisor);
}

} // namespace

template <typename T>
aimo_status cuda_pool(const aimo_pool_args &args, const int32_t *offsets, cudaStream_t stream,
                      aimo_error *err)
{
    pooling_list poolings = {};
    for (size_t i = 0; i * args.hidden < args.columns; i++)
        poolings.at[i] = args.poolings[i];
    const size_t longest = 1u << 30; /* sequences are shorter */
    const size_t skip = args.skip < longest ? args.skip : longest;
    const launch_shape shape = {dim3(static_cast<unsigned>(args.batch)), THREADS,
                                WARPS * sizeof(float)};
    const auto kernel = args.x_kind == AIMO_ROWS_HIDDEN ? pool_kernel<T, hidden_row_reader<T>>
                                                        : pool_kernel<T, full_row_reader<T>>;
    return launch_kernel(kernel, shape, stream, err, static_cast<const void *>(args.x), offsets,
                         poolings, static_cast<unsigned>(skip), static_cast<unsigned>(args.hidden),
                         static_cast<unsigned>(args.columns), args.normalize,
                         static_cast<void *>(args.out));
}

#define INSTANTIATE(T)                                                                             \
    template aimo_status cuda_pool<T>(const aimo_pool_args &, const int32_t *, cudaStream_t,       \
                                      aimo_error *);
FOR_EACH_OPERAND_TYPE(INSTANTIATE)
