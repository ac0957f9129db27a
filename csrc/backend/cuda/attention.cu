/* Attention inside each sequence, on tensor cores, for 16-bit types.
 *
 * Keys and values pass through shared memory, one part of them on its way while the one before is
 * worked on, with a running maximum and sum, so the memory does not depend on the length. A warp
 * has 16 queries; it keeps them, their scores and its output in registers, where scores become the
 * left operand of the product with the values. Parts are 64 keys that four warps share, or 16 of
 * one warp's short sequence. The head's size is padded with zeros to DIM, so that every size up to
 * 128 works. */
#include "backend/cuda/attention_tiles.h"
#include "backend/cuda/warp_mma.h"

namespace
{

constexpr unsigned TILE = 16; /* the products' rows and depth */
static_assert(ATTENTION_QUERIES == TILE, "a warp's queries are the rows of its products");

/* Rows are 16 bytes longer than they need be, so that eight of them lie in different banks. */
template <typename T, unsigned DIM> struct attention_part {
    static constexpr unsigned ROWS = ATTENTION_WARPS * TILE, LD = DIM + 8;
    alignas(128) T keys[ROWS * LD];
    alignas(128) T values[ROWS * LD];
};

/* tile [WARPS * TILE][LD], of a group of as many warps, = `count` rows of src, ld apart, at most as
 * many as it has; zeros beyond them and beyond head_dim. ALIGNED: head_dim is a multiple of 8, and
 * so is ld, three times the heads together. */
template <typename T, unsigned DIM, bool ALIGNED, unsigned WARPS>
__device__ void load_tile(T *tile, const T *src, unsigned ld, unsigned count, unsigned head_dim)
{
    constexpr unsigned LD = attention_part<T, DIM>::LD, threads = WARPS * WARP;
    constexpr unsigned rows = WARPS * TILE, at_once = ALIGNED ? 8 : 1;
    const unsigned thread = threadIdx.x % threads * at_once;
    if constexpr (ALIGNED) {
        constexpr unsigned rows_at_once = threads * at_once / DIM;
        const unsigned first = thread / DIM, column = thread % DIM;
        const T *from = src + first * ld + column;
        UNROLL
        for (unsigned i = 0; i < rows; i += rows_at_once) {
            const bool inside = first + i < count && column < head_dim;
            copy_16_bytes(tile + (first + i) * LD + column, inside ? from : src, inside);
            from += rows_at_once * ld;
        }
    } else {
        for (unsigned i = thread; i < rows * DIM; i += threads) {
            const unsigned row = i / DIM, column = i % DIM;
            const size_t from = static_cast<size_t>(row) * ld + column;
            tile[row * LD + column] =
                row < count && column < head_dim ? src[from] : from_float<T>(0.0f);
        }
    }
}

/* What a warp keeps of its 16 queries; a lane has columns of queries lane / 4 and that + 8, as
 * warp_mma.h says. */
template <unsigned DIM> struct warp_state {
    uint32_t queries[DIM / TILE][4];
    float out[DIM / 8][4];
    float maximum[2], sum[2]; /* sum: of the lane's own columns of the scores */
};

/* Where the lane's row of load_matrices begins in a tile of 16 x 16 at `tile`: with the upper rows
 * before the right columns, as a left operand has its pairs, ... */
template <typename T> __device__ const T *down_then_right(const T *tile, unsigned ld)
{
    const unsigned lane = threadIdx.x % WARP;
    return tile + lane % 16 * ld + lane / 16 * 8;
}

/* ... or with the right columns before the lower rows. */
template <typename T> __device__ const T *right_then_down(const T *tile, unsigned ld)
{
    const unsigned lane = threadIdx.x % WARP;
    return tile + (lane / 16 * 8 + lane % 8) * ld + lane / 8 % 2 * 8;
}

/* scores [2 * TILES][4] = queries @ keys^T; -INFINITY beyond `count` keys, which end in the last
 * tile. */
template <typename T, unsigned DIM, unsigned TILES>
__device__ void multiply_keys(const warp_state<DIM> &w, const T *keys, unsigned count,
                              float (&scores)[2 * TILES][4])
{
    constexpr unsigned LD = attention_part<T, DIM>::LD;
    const T *row = right_then_down(keys, LD);
    UNROLL
    for (unsigned tile = 0; tile < TILES; tile++) {
        float(&left)[4] = scores[2 * tile], (&right)[4] = scores[2 * tile + 1];
        UNROLL
        for (unsigned i = 0; i < 4; i++)
            left[i] = right[i] = 0.0f;
        UNROLL
        for (unsigned k = 0; k < DIM / TILE; k++) {
            uint32_t pairs[4];
            load_matrices(pairs, row + tile * TILE * LD + k * TILE);
            multiply_add<T>(left, w.queries[k], pairs[0], pairs[1]);
            multiply_add<T>(right, w.queries[k], pairs[2], pairs[3]);
        }
    }
    UNROLL
    for (unsigned i = 0; i < 8; i++) {
        const unsigned column = (TILES - 1) * TILE + i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2;
        if (column >= count)
            scores[2 * (TILES - 1) + i / 4][i % 4] = -INFINITY;
    }
}

/* Scores become probabilities, not yet divided by their sum; the output so far shrinks to the new
 * maximum. */
template <unsigned DIM, unsigned TILES>
__device__ void exponentiate(warp_state<DIM> *w, float scale, float (&scores)[2 * TILES][4])
{
    UNROLL
    for (unsigned row = 0; row < 2; row++) {
        float maximum = w->maximum[row], sum = 0.0f;
        UNROLL
        for (unsigned i = 0; i < 4 * TILES; i++)
            maximum = fmaxf(maximum, scores[i / 2][2 * row + i % 2]);
        maximum = fmaxf(maximum, __shfl_xor_sync(0xffffffffu, maximum, 1));
        maximum = fmaxf(maximum, __shfl_xor_sync(0xffffffffu, maximum, 2));
        const float scaled = maximum * scale;
        UNROLL
        for (unsigned i = 0; i < 4 * TILES; i++) {
            float &score = scores[i / 2][2 * row + i % 2];
            score = exp2_approximate(score * scale - scaled);
            sum += score;
        }
        const float shrink = exp2_approximate(w->maximum[row] * scale - scaled);
        w->sum[row] = w->sum[row] * shrink + sum;
        w->maximum[row] = maximum;
        UNROLL
        for (unsigned i = 0; i < DIM / 4; i++)
            w->out[i / 2][2 * row + i % 2] *= shrink;
    }
}

/* out += probabilities @ values */
template <typename T, unsigned DIM, unsigned TILES>
__device__ void add_values(warp_state<DIM> *w, const T *values,
                           const float (&probabilities)[2 * TILES][4])
{
    constexpr unsigned LD = attention_part<T, DIM>::LD;
    const T *row = down_then_right(values, LD);
    UNROLL
    for (unsigned tile = 0; tile < TILES; tile++) {
        const float(&p)[4] = probabilities[2 * tile], (&q)[4] = probabilities[2 * tile + 1];
        const uint32_t left[4] = {pack_pair<T>(p[0], p[1]), pack_pair<T>(p[2], p[3]),
                                  pack_pair<T>(q[0], q[1]), pack_pair<T>(q[2], q[3])};
        UNROLL
        for (unsigned k = 0; k < DIM / TILE; k++) {
            uint32_t pairs[4];
            load_matrices_transposed(pairs, row + tile * TILE * LD + k * TILE);
            multiply_add<T>(w->out[2 * k], left, pairs[0], pairs[1]);
            multiply_add<T>(w->out[2 * k + 1], left, pairs[2], pairs[3]);
        }
    }
}

/* One part of the keys and values, of which `count` are the sequence's: as many tiles of 16, up to
 * TILES, as have any. */
template <typename T, unsigned DIM, unsigned TILES>
__device__ void attend_part(warp_state<DIM> *w, const T *keys, const T *values, unsigned count,
                            float scale)
{
    if constexpr (TILES > 1)
        if (count <= (TILES - 1) * TILE)
            return attend_part<T, DIM, TILES - 1>(w, keys, values, count, scale);
    float scores[2 * TILES][4];
    multiply_keys<T, DIM, TILES>(*w, keys, count, scores);
    exponentiate<DIM, TILES>(w, scale, scores);
    add_values<T, DIM, TILES>(w, values, scores);
}

/* The output by its sums, as T, to rows of dst, `hidden` apart; through the warp's own rows of
 * shared memory, `tile`, so that neighbours are stored together. */
template <typename T, unsigned DIM, bool ALIGNED>
__device__ void store_out(const warp_state<DIM> &w, T *tile, T *dst, unsigned hidden,
                          unsigned count, unsigned head_dim)
{
    constexpr unsigned LD = attention_part<T, DIM>::LD, at_once = ALIGNED ? 8 : 1;
    using part = neighbours<T, at_once>;
    const unsigned lane = threadIdx.x % WARP;
    UNROLL
    for (unsigned row = 0; row < 2; row++) {
        float sum = w.sum[row] + __shfl_xor_sync(0xffffffffu, w.sum[row], 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        const float inverse = 1.0f / sum;
        T *at = tile + (lane / 4 + row * 8) * LD + lane % 4 * 2;
        UNROLL
        for (unsigned i = 0; i < DIM / 8; i++)
            *reinterpret_cast<neighbours<T, 2> *>(at + i * 8) = {
                {from_float<T>(w.out[i][2 * row] * inverse),
                 from_float<T>(w.out[i][2 * row + 1] * inverse)}};
    }
    __syncwarp();
    for (unsigned i = lane * at_once; i < TILE * DIM; i += WARP * at_once) {
        const unsigned row = i / DIM, column = i % DIM;
        if (row < count && column < head_dim)
            *reinterpret_cast<part *>(dst + static_cast<size_t>(row) * hidden + column) =
                *reinterpret_cast<const part *>(tile + row * LD + column);
    }
}

/* What the thread copied is there for its whole group, which is done with what was there before. */
template <unsigned WARPS> __device__ void exchange_copies()
{
    wait_for_copies();
    if (WARPS == 1)
        __syncwarp();
    else
        __syncthreads();
}

/* All keys, by the group of WARPS warps that share a sequence. */
template <typename T, unsigned DIM, bool ALIGNED, unsigned WARPS>
__device__ void attend(const attention_input &in, const attention_place &at,
                       attention_part<T, DIM> *parts)
{
    constexpr unsigned LD = attention_part<T, DIM>::LD, KEYS = WARPS * TILE;
    const unsigned warp_row = threadIdx.x / WARP % WARPS * TILE, ld = 3 * in.hidden;
    const unsigned group = threadIdx.x / (WARPS * WARP) * KEYS * LD; /* where its tiles begin */
    const auto load_part = [&](attention_part<T, DIM> *part, unsigned key) {
        const T *keys = query_of<T>(in, at, key) + in.hidden;
        load_tile<T, DIM, ALIGNED, WARPS>(part->keys + group, keys, ld, at.length - key,
                                          in.head_dim);
        load_tile<T, DIM, ALIGNED, WARPS>(part->values + group, keys + in.hidden, ld,
                                          at.length - key, in.head_dim);
    };
    warp_state<DIM> w = {{}, {}, {-INFINITY, -INFINITY}, {0.0f, 0.0f}};
    load_part(&parts[0], 0);
    load_tile<T, DIM, ALIGNED, WARPS>(parts[1].keys + group,
                                      query_of<T>(in, at, at.first - warp_row), ld,
                                      at.length - (at.first - warp_row), in.head_dim);
    exchange_copies<WARPS>();
    const T *queries = down_then_right(parts[1].keys + group + warp_row * LD, LD);
    UNROLL
    for (unsigned k = 0; k < DIM / TILE; k++)
        load_matrices(w.queries[k], queries + k * TILE);
    unsigned part = 0; /* the one that is there */
    for (unsigned key = 0; key < at.length; key += KEYS, part ^= 1) {
        const unsigned count = at.length - key;
        const T *keys = parts[part].keys + group, *values = parts[part].values + group;
        exchange_copies<WARPS>();
        if (count > KEYS)
            load_part(&parts[part ^ 1], key + KEYS);
        if (at.first < at.length) /* a warp without queries only helps to load */
            attend_part<T, DIM, WARPS>(&w, keys, values, count, in.scale);
    }
    if (at.first < at.length) /* nobody reads the other part any more */
        store_out<T, DIM, ALIGNED>(w, parts[part].keys + group + warp_row * LD,
                                   out_of<T>(in, at, at.first), in.hidden, at.length - at.first,
                                   in.head_dim);
}

/* Blocks that a multiprocessor's registers are to hold: as many as go without spilling. */
constexpr unsigned blocks_at_once(unsigned dim, bool aligned)
{
    return dim <= 32 ? 5 : dim <= 64 ? 4 : aligned ? 3 : 2;
}

template <typename T, unsigned DIM, bool ALIGNED>
__global__ void __launch_bounds__(ATTENTION_THREADS, blocks_at_once(DIM, ALIGNED))
    attention_kernel(const __grid_constant__ attention_input in)
{
    using part = attention_part<T, DIM>;
    SHARED_MEMORY(part, parts);
    const attention_place place = find_place(in);
    if (place.length == 0)
        return;
    if (place.length > ATTENTION_SHORT)
        attend<T, DIM, ALIGNED, ATTENTION_WARPS>(in, place, parts);
    else
        attend<T, DIM, ALIGNED, 1>(in, place, parts);
}

} // namespace

template <typename T>
aimo_status cuda_attention(const aimo_attention_args &args, const cuda_sequences &sequences,
                           cudaStream_t stream, aimo_error *err)
{
    constexpr unsigned most = ATTENTION_HEAD_DIM_MOST;
    const attention_input in = attention_input_of(args, sequences);
    const auto run = [&](void (*kernel)(attention_input), size_t part) {
        return launch_kernel(kernel, attention_shape(in, sequences, 2 * part), stream, err, in);
    };
    if (args.head_dim % 8 != 0)
        return run(attention_kernel<T, most, false>, sizeof(attention_part<T, most>));
    if (args.head_dim <= 32)
        return run(attention_kernel<T, 32, true>, sizeof(attention_part<T, 32>));
    if (args.head_dim <= 64)
        return run(attention_kernel<T, 64, true>, sizeof(attention_part<T, 64>));
    return run(attention_kernel<T, most, true>, sizeof(attention_part<T, most>));
}

#define INSTANTIATE(T)                                                                             \
    template aimo_status cuda_attention<T>(const aimo_attention_args &, const cuda_sequences &,    \
                                           cudaStream_t, aimo_error *);
INSTANTIATE(__half)
INSTANTIATE(__nv_bfloat16)
