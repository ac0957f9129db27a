/* Attention inside each sequence: one block for 64 queries of one head of one sequence.
 *
 * Keys and values pass through shared memory 64 at a time with a running maximum and sum, so the
 * memory does not depend on the length, and what a block computes depends on its own sequence
 * alone. Each warp has 16 queries; warps without any only help to load. The head's size is padded
 * with zeros to DIM, so that every size up to 128 works. */
#include "backend/cuda/cuda_kernels.h"
#include "backend/cuda/warp_product.h"

namespace
{

constexpr unsigned THREADS = ATTENTION_QUERIES / TILE * WARP, KEYS = 64;

struct attention_input {
    const void *qkv; /* T [tokens, 3 * hidden] */
    void *out;       /* T [tokens, hidden] */
    const int32_t *offsets, *blocks;
    unsigned hidden, head_dim;
    float scale; /* of scores, for powers of 2 */
};

/* The block's shared memory. Rows are longer than they need be, by 16 bytes, so that the rows of a
 * tile begin in different banks. */
template <typename T, unsigned DIM> struct attention_tiles {
    static constexpr unsigned LD = DIM + 16 / sizeof(T), LD_SCORES = KEYS + 4, LD_OUT = DIM + 4;
    /* A row of probabilities lies where its row of scores was. */
    static constexpr unsigned LD_PROBABILITIES = LD_SCORES * sizeof(float) / sizeof(T);
    static_assert(LD_PROBABILITIES >= KEYS, "a row of probabilities must fit its row of scores");
    alignas(128) T queries[ATTENTION_QUERIES * LD];
    alignas(128) T keys[KEYS * LD]; /* and then the values */
    alignas(128) float scores[ATTENTION_QUERIES * LD_SCORES];
    alignas(128) float out[ATTENTION_QUERIES * LD_OUT];
};

/* tile [rows][LD] = rows of src, which lie ld apart; zeros beyond count and head_dim. COUNT
 * elements at once: it divides ld and head_dim. */
template <typename T, unsigned DIM, unsigned COUNT>
__device__ void load_neighbours(T *tile, unsigned rows, const T *src, size_t ld, unsigned count,
                                unsigned head_dim)
{
    using part = neighbours<T, COUNT>;
    for (unsigned i = threadIdx.x * COUNT; i < rows * DIM; i += THREADS * COUNT) {
        const unsigned row = i / DIM, column = i % DIM;
        part values;
        for (unsigned j = 0; j < COUNT; j++)
            values.at[j] = from_float<T>(0.0f);
        if (row < count && column < head_dim)
            values = *reinterpret_cast<const part *>(src + row * ld + column);
        *reinterpret_cast<part *>(tile + row * attention_tiles<T, DIM>::LD + column) = values;
    }
}

template <typename T, unsigned DIM>
__device__ void load_tile(T *tile, unsigned rows, const T *src, size_t ld, unsigned count,
                          unsigned head_dim)
{
    constexpr unsigned at_once = 16 / sizeof(T);
    if (head_dim % at_once == 0) /* and so is ld, three times the heads together */
        load_neighbours<T, DIM, at_once>(tile, rows, src, ld, count, head_dim);
    else
        load_neighbours<T, DIM, 1>(tile, rows, src, ld, count, head_dim);
}

/* What a lane knows of its query: lanes l and l + 16 share query l, half of the columns each. */
struct running_softmax {
    float maximum, sum;
};

/* The warp's scores [16][KEYS] become probabilities of type T, in place; out [16][DIM] shrinks
 * along with the sum. Keys from count on get 0. */
template <typename T, unsigned DIM>
__device__ void softmax_tile(running_softmax *state, float *scores, float *out, unsigned count,
                             float scale, bool first)
{
    using tiles = attention_tiles<T, DIM>;
    constexpr unsigned MINE = KEYS / 2;
    const unsigned lane = threadIdx.x % WARP, query = lane % TILE, half = lane / TILE;
    float mine[MINE];
    float maximum = first ? -INFINITY : state->maximum;
    for (unsigned i = 0; i < MINE; i++) {
        const bool inside = half * MINE + i < count;
        mine[i] = inside ? scores[query * tiles::LD_SCORES + half * MINE + i] * scale : -INFINITY;
        maximum = fmaxf(maximum, mine[i]);
    }
    maximum = fmaxf(maximum, __shfl_xor_sync(0xffffffffu, maximum, TILE)); /* and all have read */
    T *probabilities = reinterpret_cast<T *>(scores) + query * tiles::LD_PROBABILITIES;
    float sum = 0.0f;
    for (unsigned i = 0; i < MINE; i++) {
        const float e = half * MINE + i < count ? exp2f(mine[i] - maximum) : 0.0f;
        const T rounded = from_float<T>(e);
        probabilities[half * MINE + i] = rounded;
        sum += to_float(rounded);
    }
    sum += __shfl_xor_sync(0xffffffffu, sum, TILE);
    const float shrink = first ? 0.0f : exp2f(state->maximum - maximum);
    for (unsigned i = half; i < DIM; i += 2) {
        float *at = &out[query * tiles::LD_OUT + i];
        *at = first ? 0.0f : *at * shrink;
    }
    state->sum = first ? sum : state->sum * shrink + sum;
    state->maximum = maximum;
    __syncwarp();
}

/* The warp's rows of out, divided by their sums, to device memory; one row after another, so that
 * neighbours are stored together. `sums` [16] is working memory. */
template <typename T, unsigned DIM>
__device__ void store_out(const running_softmax &state, const float *out, float *sums, T *dst,
                          unsigned hidden, unsigned count, unsigned head_dim)
{
    const unsigned lane = threadIdx.x % WARP;
    if (lane < TILE)
        sums[lane] = state.sum;
    __syncwarp();
    for (unsigned i = lane; i < TILE * DIM; i += WARP) {
        const unsigned query = i / DIM, column = i % DIM;
        if (query < count && column < head_dim)
            dst[static_cast<size_t>(query) * hidden + column] =
                from_float<T>(out[query * attention_tiles<T, DIM>::LD_OUT + column] / sums[query]);
    }
}

template <typename T, unsigned DIM> __global__ void attention_kernel(attention_input in)
{
    using tiles = attention_tiles<T, DIM>;
    SHARED_MEMORY(tiles, shared);
    const int32_t sequence = in.blocks[2 * blockIdx.x];
    if (sequence < 0)
        return;
    const unsigned first = static_cast<unsigned>(in.blocks[2 * blockIdx.x + 1]);
    const unsigned begin = static_cast<unsigned>(in.offsets[sequence]);
    const unsigned length = static_cast<unsigned>(in.offsets[sequence + 1]) - begin;
    const unsigned warp = threadIdx.x / WARP, row = warp * TILE, column = blockIdx.y * in.head_dim;
    const size_t ld = 3 * static_cast<size_t>(in.hidden);
    const T *head = static_cast<const T *>(in.qkv) + begin * ld + column;
    const bool active = first + row < length;
    float *scores = shared->scores + row * tiles::LD_SCORES,
          *out = shared->out + row * tiles::LD_OUT;
    running_softmax state = {0.0f, 0.0f};
    load_tile<T, DIM>(shared->queries, ATTENTION_QUERIES, head + first * ld, ld, length - first,
                      in.head_dim);
    for (unsigned key = 0; key < length; key += KEYS) {
        const unsigned left = length - key, count = left < KEYS ? left : KEYS;
        const unsigned padded = (count + TILE - 1) / TILE * TILE;
        const T *keys = head + in.hidden + key * ld, *values = keys + in.hidden;
        __syncthreads(); /* nobody reads the last values any more */
        load_tile<T, DIM>(shared->keys, padded, keys, ld, count, in.head_dim);
        __syncthreads();
        for (unsigned k = 0; active && k < padded; k += TILE)
            warp_product<T, B_ROWS_ARE_COLUMNS>::run(shared->queries + row * tiles::LD, tiles::LD,
                                                     shared->keys + k * tiles::LD, tiles::LD, DIM,
                                                     scores + k, tiles::LD_SCORES, false);
        __syncthreads();
        load_tile<T, DIM>(shared->keys, padded, values, ld, count, in.head_dim);
        if (active)
            softmax_tile<T, DIM>(&state, scores, out, count, in.scale, key == 0);
        __syncthreads();
        for (unsigned d = 0; active && d < DIM; d += TILE)
            warp_product<T, B_ROWS_ARE_ROWS>::run(reinterpret_cast<const T *>(scores),
                                                  tiles::LD_PROBABILITIES, shared->keys + d,
                                                  tiles::LD, padded, out + d, tiles::LD_OUT, true);
    }
    if (active)
        store_out<T, DIM>(state, out, scores,
                          static_cast<T *>(in.out) +
                              (begin + first + row) * static_cast<size_t>(in.hidden) + column,
                          in.hidden, length - first - row, in.head_dim);
}

template <typename T, unsigned DIM>
aimo_status launch(const attention_input &in, unsigned blocks, unsigned heads, cudaStream_t stream,
                   aimo_error *err)
{
    const launch_shape shape = {dim3(blocks, heads), THREADS, sizeof(attention_tiles<T, DIM>)};
    return launch_kernel(attention_kernel<T, DIM>, shape, stream, err, in);
}

} // namespace

template <typename T>
aimo_status cuda_attention(const aimo_attention_args &args, const cuda_sequences &sequences,
                           cudaStream_t stream, aimo_error *err)
{
    const float log2_e = 1.44269504f;
    const attention_input in = {
        args.qkv,
        args.out,
        sequences.offsets,
        sequences.blocks,
        static_cast<unsigned>(args.heads * args.head_dim),
        static_cast<unsigned>(args.head_dim),
        log2_e / sqrtf(static_cast<float>(args.head_dim)),
    };
    const unsigned blocks = static_cast<unsigned>(sequences.block_count);
    const unsigned heads = static_cast<unsigned>(args.heads);
    if (args.head_dim <= 32)
        return launch<T, 32>(in, blocks, heads, stream, err);
    if (args.head_dim <= 64)
        return launch<T, 64>(in, blocks, heads, stream, err);
    return launch<T, ATTENTION_HEAD_DIM_MOST>(in, blocks, heads, stream, err);
}

#define INSTANTIATE(T)                                                                             \
    template aimo_status cuda_attention<T>(const aimo_attention_args &, const cuda_sequences &,    \
                                           cudaStream_t, aimo_error *);
FOR_EACH_OPERAND_TYPE(INSTANTIATE)
