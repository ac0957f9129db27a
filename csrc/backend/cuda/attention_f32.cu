/* Attention in f32 throughout, without tensor cores: each warp works independently on 16 queries,
 * half of its share of a long sequence. For the scores, a lane has one of 32 keys and all queries;
 * for the softmax, half of a query's scores; for the output, columns of all queries. */
#include "backend/cuda/attention_tiles.h"

namespace
{

constexpr unsigned QUERIES = ATTENTION_QUERIES;

/* A warp's shared memory; all lanes read the same row at a time. */
template <unsigned COLUMNS> struct warp_memory {
    float queries[COLUMNS * WARP][QUERIES];
    float scores[WARP][QUERIES]; /* by key; later their powers */
    float factors[QUERIES];
};

struct running_softmax {
    float maximum, sum; /* sum: of the lane's keys */
};

/* The scores of up to 32 keys, from `key` on. */
template <unsigned COLUMNS>
__device__ void multiply_keys(const attention_input &in, const attention_place &at, unsigned key,
                              warp_memory<COLUMNS> *memory)
{
    const unsigned lane = threadIdx.x % WARP, mine = key + lane;
    float scores[QUERIES] = {};
    const float *row = query_of<float>(in, at, mine) + in.hidden;
    for (unsigned column = 0; mine < at.length && column < in.head_dim; column++) {
        const float x = row[column];
        UNROLL
        for (unsigned i = 0; i < QUERIES; i++)
            scores[i] += memory->queries[column][i] * x;
    }
    UNROLL
    for (unsigned i = 0; i < QUERIES; i++)
        memory->scores[lane][i] = mine < at.length ? scores[i] * in.scale : -INFINITY;
    __syncwarp();
}

/* Turns scores into powers; `factors` become the factors by which the output so far must shrink. */
template <unsigned COLUMNS>
__device__ void exponentiate(running_softmax *state, warp_memory<COLUMNS> *memory)
{
    const unsigned lane = threadIdx.x % WARP, query = lane % QUERIES;
    const unsigned first = lane / QUERIES * (WARP / 2);
    float maximum = state->maximum, sum = 0.0f;
    for (unsigned i = first; i < first + WARP / 2; i++)
        maximum = fmaxf(maximum, memory->scores[i][query]);
    maximum = fmaxf(maximum, __shfl_xor_sync(0xffffffffu, maximum, QUERIES));
    for (unsigned i = first; i < first + WARP / 2; i++)
        sum += memory->scores[i][query] = exp2f(memory->scores[i][query] - maximum);
    const float shrink = exp2f(state->maximum - maximum);
    *state = {maximum, state->sum * shrink + sum};
    if (lane < QUERIES)
        memory->factors[query] = shrink;
    __syncwarp();
}

/* out = out * factors + powers @ values; a lane has columns lane, lane + 32, ... */
template <unsigned COLUMNS>
__device__ void add_values(const attention_input &in, const attention_place &at, unsigned key,
                           const warp_memory<COLUMNS> &memory, float (&out)[COLUMNS][QUERIES])
{
    const unsigned left = at.length - key, count = left < WARP ? left : WARP;
    UNROLL
    for (unsigned c = 0; c < COLUMNS; c++) {
        const unsigned column = threadIdx.x % WARP + c * WARP;
        UNROLL
        for (unsigned i = 0; i < QUERIES; i++)
            out[c][i] *= memory.factors[i];
        for (unsigned k = 0; column < in.head_dim && k < count; k++) {
            const float x = (query_of<float>(in, at, key + k) + 2 * in.hidden)[column];
            UNROLL
            for (unsigned i = 0; i < QUERIES; i++)
                out[c][i] += memory.scores[k][i] * x;
        }
    }
    __syncwarp();
}

template <unsigned COLUMNS>
__global__ void __launch_bounds__(ATTENTION_THREADS)
    attention_kernel(const __grid_constant__ attention_input in)
{
    SHARED_MEMORY(warp_memory<COLUMNS>, shared);
    attention_place at = find_place(in);
    at.first += blockIdx.y * QUERIES;
    if (at.first >= at.length || (blockIdx.y > 0 && at.length <= ATTENTION_MEDIUM))
        return;
    const unsigned lane = threadIdx.x % WARP, left = at.length - at.first;
    const unsigned count = left < QUERIES ? left : QUERIES;
    warp_memory<COLUMNS> *memory = shared + threadIdx.x / WARP;
    for (unsigned query = 0; query < QUERIES; query++)
        for (unsigned column = lane; column < in.head_dim; column += WARP)
            memory->queries[column][query] =
                query < count ? query_of<float>(in, at, at.first + query)[column] : 0.0f;
    __syncwarp();
    running_softmax state = {-INFINITY, 0.0f};
    float out[COLUMNS][QUERIES] = {};
    for (unsigned key = 0; key < at.length; key += WARP) {
        multiply_keys(in, at, key, memory);
        exponentiate(&state, memory);
        add_values(in, at, key, *memory, out);
    }
    const float sum = state.sum + __shfl_xor_sync(0xffffffffu, state.sum, QUERIES);
    if (lane < QUERIES)
        memory->factors[lane] = sum;
    __syncwarp();
    UNROLL
    for (unsigned i = 0; i < QUERIES; i++)
        for (unsigned c = 0; c < COLUMNS; c++)
            if (i < count && lane + c * WARP < in.head_dim)
                out_of<float>(in, at, at.first + i)[lane + c * WARP] =
                    out[c][i] / memory->factors[i];
}

} // namespace

template <>
aimo_status cuda_attention<float>(const aimo_attention_args &args, const cuda_sequences &sequences,
                                  cudaStream_t stream, aimo_error *err)
{
    constexpr unsigned most = ATTENTION_HEAD_DIM_MOST / WARP;
    const unsigned halves = attention_halves(sequences);
    const attention_input in = attention_input_of(args, sequences);
    const auto run = [&](void (*kernel)(attention_input), size_t memory) {
        return launch_kernel(kernel,
                             attention_shape(in, sequences, halves, ATTENTION_WARPS * memory),
                             stream, err, in);
    };
    if (args.head_dim <= WARP)
        return run(attention_kernel<1>, sizeof(warp_memory<1>));
    if (args.head_dim <= 2 * WARP)
        return run(attention_kernel<2>, sizeof(warp_memory<2>));
    return run(attention_kernel<most>, sizeof(warp_memory<most>));
}
