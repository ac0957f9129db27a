/* Attention within each sequence, on tensor cores, for 16-bit types.
 *
 * Keys and values pass through shared memory in parts, one being loaded while the previous one is
 * processed, with a running reference and sum, so the memory does not depend on the length. A warp
 * has HEIGHT tiles of 16 queries, which share the keys and values that it reads; it keeps the
 * queries, their scores and its output in registers, where scores become the left operand of the
 * product with the values. A part is 64 keys shared by four warps, or 16 keys of one warp's short
 * sequence. The head's size is padded with zeros to DIM, so that every size up to 128 works.
 *
 * A sequence may be computed by either of two kernels, one of which also handles longer sequences.
 * Where the compiler might fuse a multiplication with an addition, the code says explicitly whether
 * to, so that both kernels give the same bits. */
#include "backend/cuda/attention_tiles.h"
#include "backend/cuda/warp_mma.h"

namespace
{

constexpr unsigned TILE = 16; /* the products' rows and depth */
static_assert(ATTENTION_QUERIES == TILE, "a warp's queries are rows of its products");

/* How much a score may exceed its row's reference before the reference is moved, as an exponent of
 * 2: powers up to 2^8 are as exact as those up to 1, and far from f16's limit. */
constexpr float MOST_ABOVE_REFERENCE = 8.0f;

/* Keys, followed by values. Rows are padded by 16 bytes, so that eight of them are in different
 * banks. */
template <typename T, unsigned DIM> struct attention_part {
    static constexpr unsigned ROWS = ATTENTION_WARPS * TILE, LD = DIM + 8, VALUES = ROWS * LD;
    alignas(128) T rows[2 * ROWS * LD];
};

/* tile [ROWS][LD], loaded by a group of WARPS warps, = the first min(count, ROWS) rows of src, ld
 * apart; zeros beyond them and beyond head_dim. ALIGNED: head_dim is a multiple of 8, and so is ld,
 * three times the heads together. */
template <typename T, unsigned DIM, bool ALIGNED, unsigned WARPS, unsigned ROWS>
__device__ void load_tile(T *tile, const T *src, unsigned ld, unsigned count, unsigned head_dim)
{
    constexpr unsigned LD = attention_part<T, DIM>::LD, threads = WARPS * WARP;
    constexpr unsigned at_once = ALIGNED ? 8 : 1;
    const unsigned thread = threadIdx.x % threads * at_once;
    if constexpr (ALIGNED) {
        constexpr unsigned rows_at_once = threads * at_once / DIM;
        const unsigned first = thread / DIM, column = thread % DIM;
        const T *from = src + first * ld + column;
        UNROLL
        for (unsigned i = 0; i < ROWS; i += rows_at_once) {
            copy_16_bytes(tile + (first + i) * LD + column, from,
                          first + i < count && column < head_dim);
            from += rows_at_once * ld;
        }
    } else {
        for (unsigned i = thread; i < ROWS * DIM; i += threads) {
            const unsigned row = i / DIM, column = i % DIM;
            const size_t from = static_cast<size_t>(row) * ld + column;
            tile[row * LD + column] =
                row < count && column < head_dim ? src[from] : from_float<T>(0.0f);
        }
    }
}

/* A warp's state for its queries; a lane has columns of rows lane / 4 and lane / 4 + 8 of each
 * tile, as warp_mma.h says. */
template <unsigned DIM, unsigned HEIGHT> struct warp_state {
    uint32_t queries[HEIGHT][DIM / TILE][4];
    float out[HEIGHT][DIM / 8][4];
    float reference[HEIGHT][2]; /* what is subtracted from a row's scores, in exponents of 2 */
    float sum[HEIGHT][2];       /* sums of the powers in the lane's own columns */
};

template <unsigned HEIGHT, unsigned TILES> using score_tiles = float[HEIGHT][2 * TILES][4];

/* The address that the lane passes to load_matrices for the 16 x 16 tile at `tile`: in the order of
 * a left operand's pairs, lower rows before right columns, ... */
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

/* scores = queries @ keys^T */
template <typename T, unsigned DIM, unsigned HEIGHT, unsigned TILES>
__device__ void multiply_keys(const warp_state<DIM, HEIGHT> &w, const T *keys,
                              score_tiles<HEIGHT, TILES> &scores)
{
    constexpr unsigned LD = attention_part<T, DIM>::LD;
    const T *row = right_then_down(keys, LD);
    UNROLL
    for (unsigned tile = 0; tile < TILES; tile++) {
        UNROLL
        for (unsigned i = 0; i < 8 * HEIGHT; i++)
            scores[i / 8][2 * tile + i / 4 % 2][i % 4] = 0.0f;
        UNROLL
        for (unsigned k = 0; k < DIM / TILE; k++) {
            uint32_t pairs[4];
            load_matrices(pairs, row + tile * TILE * LD + k * TILE);
            UNROLL
            for (unsigned i = 0; i < HEIGHT; i++) {
                multiply_add<T>(scores[i][2 * tile], w.queries[i][k], pairs[0], pairs[1]);
                multiply_add<T>(scores[i][2 * tile + 1], w.queries[i][k], pairs[2], pairs[3]);
            }
        }
    }
}

/* -INFINITY beyond `count` keys, which end in the last tile. */
template <unsigned HEIGHT, unsigned TILES>
__device__ void mask_scores(unsigned count, score_tiles<HEIGHT, TILES> &scores)
{
    UNROLL
    for (unsigned i = 0; i < 8; i++) {
        const unsigned column = (TILES - 1) * TILE + i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2;
        UNROLL
        for (unsigned tile = 0; tile < HEIGHT; tile++)
            if (column >= count)
                scores[tile][2 * (TILES - 1) + i / 4][i % 4] = -INFINITY;
    }
}

/* Moves the references to the maxima, of which `highest` has the lane's own share, and rescales the
 * sums so far accordingly. */
template <unsigned DIM, unsigned HEIGHT>
__device__ void move_references(warp_state<DIM, HEIGHT> *w, float scale,
                                const float (&highest)[HEIGHT][2])
{
    UNROLL
    for (unsigned i = 0; i < 2 * HEIGHT; i++) {
        const unsigned tile = i / 2, row = i % 2;
        float maximum = fmaxf(w->reference[tile][row], highest[tile][row] * scale);
        maximum = fmaxf(maximum, __shfl_xor_sync(0xffffffffu, maximum, 1));
        maximum = fmaxf(maximum, __shfl_xor_sync(0xffffffffu, maximum, 2));
        const float shrink = exp2_approximate(w->reference[tile][row] - maximum);
        w->reference[tile][row] = maximum;
        w->sum[tile][row] = __fmul_rn(w->sum[tile][row], shrink);
        UNROLL
        for (unsigned k = 0; k < DIM / 4; k++)
            w->out[tile][k / 2][2 * row + k % 2] *= shrink;
    }
}

/* Turns scores into probabilities, not yet divided by their sum. All references of the warp move
 * when any score is far above its own, which is rare after the first part. */
template <unsigned DIM, unsigned HEIGHT, unsigned TILES>
__device__ void exponentiate(warp_state<DIM, HEIGHT> *w, float scale,
                             score_tiles<HEIGHT, TILES> &scores)
{
    float highest[HEIGHT][2];
    bool is_far = false;
    UNROLL
    for (unsigned i = 0; i < 2 * HEIGHT; i++) {
        const unsigned tile = i / 2, row = i % 2;
        float maximum = scores[tile][0][2 * row];
        UNROLL
        for (unsigned k = 1; k < 4 * TILES; k++)
            maximum = fmaxf(maximum, scores[tile][k / 2][2 * row + k % 2]);
        highest[tile][row] = maximum;
        is_far |= fmaf(maximum, scale, -w->reference[tile][row]) > MOST_ABOVE_REFERENCE;
    }
    if (__any_sync(0xffffffffu, is_far))
        move_references(w, scale, highest);
    UNROLL
    for (unsigned k = 0; k < 2 * TILES; k++)
        UNROLL
    for (unsigned i = 0; i < 4 * HEIGHT; i++) {
        const unsigned tile = i / 4, row = i % 4 / 2;
        float &score = scores[tile][k][i % 4];
        score = exp2_approximate(fmaf(score, scale, -w->reference[tile][row]));
        w->sum[tile][row] += score;
    }
}

/* out += probabilities @ values */
template <typename T, unsigned DIM, unsigned HEIGHT, unsigned TILES>
__device__ void add_values(warp_state<DIM, HEIGHT> *w, const T *values,
                           const score_tiles<HEIGHT, TILES> &probabilities)
{
    constexpr unsigned LD = attention_part<T, DIM>::LD;
    const T *row = down_then_right(values, LD);
    UNROLL
    for (unsigned tile = 0; tile < TILES; tile++) {
        uint32_t left[HEIGHT][4];
        UNROLL
        for (unsigned i = 0; i < 4 * HEIGHT; i++) {
            const float(&p)[4] = probabilities[i / 4][2 * tile + i % 4 / 2];
            left[i / 4][i % 4] = pack_pair<T>(p[i % 2 * 2], p[i % 2 * 2 + 1]);
        }
        UNROLL
        for (unsigned k = 0; k < DIM / TILE; k++) {
            uint32_t pairs[4];
            load_matrices_transposed(pairs, row + tile * TILE * LD + k * TILE);
            UNROLL
            for (unsigned i = 0; i < HEIGHT; i++) {
                multiply_add<T>(w->out[i][2 * k], left[i], pairs[0], pairs[1]);
                multiply_add<T>(w->out[i][2 * k + 1], left[i], pairs[2], pairs[3]);
            }
        }
    }
}

/* Processes TILES tiles of 16 keys and values, of which the first `count` rows belong to the
 * sequence; every tile has some. */
template <typename T, unsigned DIM, unsigned HEIGHT, unsigned TILES, bool ALL>
__device__ void attend_tiles(warp_state<DIM, HEIGHT> *w, const T *keys, const T *values,
                             unsigned count, float scale)
{
    if constexpr (!ALL && TILES > 1)
        if (count <= (TILES - 1) * TILE)
            return attend_tiles<T, DIM, HEIGHT, TILES - 1, false>(w, keys, values, count, scale);
    score_tiles<HEIGHT, TILES> scores;
    multiply_keys<T, DIM, HEIGHT, TILES>(*w, keys, scores);
    if constexpr (!ALL)
        mask_scores<HEIGHT, TILES>(count, scores);
    exponentiate<DIM, HEIGHT, TILES>(w, scale, scores);
    add_values<T, DIM, HEIGHT, TILES>(w, values, scores);
}

/* Processes one part of the keys and values, of TILES tiles, taking as many at once as there are
 * registers for their scores; the first `count` rows belong to the sequence. */
template <typename T, unsigned DIM, unsigned HEIGHT, unsigned TILES>
__device__ void attend_part(warp_state<DIM, HEIGHT> *w, const T *rows, unsigned count, float scale)
{
    using part = attention_part<T, DIM>;
    constexpr unsigned at_once = DIM >= 64 && TILES > 2 ? 2 : TILES, KEYS = at_once * TILE;
    UNROLL
    for (unsigned key = 0; key < TILES * TILE && key < count; key += KEYS) {
        const T *keys = rows + key * part::LD, *values = keys + part::VALUES;
        if (count - key >= KEYS)
            attend_tiles<T, DIM, HEIGHT, at_once, true>(w, keys, values, KEYS, scale);
        else
            attend_tiles<T, DIM, HEIGHT, at_once, false>(w, keys, values, count - key, scale);
    }
}

/* Stores the output, divided by its sums, as T to rows of dst, `hidden` apart. It goes through the
 * warp's own rows of shared memory, `tile`, so that neighbours are stored together. */
template <typename T, unsigned DIM, bool ALIGNED, unsigned HEIGHT>
__device__ void store_out(const warp_state<DIM, HEIGHT> &w, T *tile, T *dst, unsigned hidden,
                          unsigned count, unsigned head_dim)
{
    constexpr unsigned LD = attention_part<T, DIM>::LD, at_once = ALIGNED ? 8 : 1;
    using part = neighbours<T, at_once>;
    const unsigned lane = threadIdx.x % WARP;
    UNROLL
    for (unsigned i = 0; i < 2 * HEIGHT; i++) {
        const float(&out)[DIM / 8][4] = w.out[i / 2];
        const float mine = w.sum[i / 2][i % 2];
        float sum = mine + __shfl_xor_sync(0xffffffffu, mine, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        const float inverse = 1.0f / sum;
        T *at = tile + (lane / 4 + i * 8) * LD + lane % 4 * 2;
        UNROLL
        for (unsigned k = 0; k < DIM / 8; k++)
            *reinterpret_cast<neighbours<T, 2> *>(at + k * 8) = {
                {from_float<T>(out[k][i % 2 * 2] * inverse),
                 from_float<T>(out[k][i % 2 * 2 + 1] * inverse)}};
    }
    __syncwarp();
    for (unsigned i = lane * at_once; i < HEIGHT * TILE * DIM; i += WARP * at_once) {
        const unsigned row = i / DIM, column = i % DIM;
        if (row < count && column < head_dim)
            *reinterpret_cast<part *>(dst + static_cast<size_t>(row) * hidden + column) =
                *reinterpret_cast<const part *>(tile + row * LD + column);
    }
}

/* Waits until the thread's copies are visible to its whole group, and the group is done with what
 * was there before. */
template <unsigned WARPS> __device__ void exchange_copies()
{
    wait_for_copies();
    if (WARPS == 1)
        __syncwarp();
    else
        __syncthreads();
}

/* Processes all keys, by the group of WARPS warps that share a sequence; `at` has the warp's first
 * query. */
template <typename T, unsigned DIM, bool ALIGNED, unsigned WARPS, unsigned HEIGHT>
__device__ void attend(const attention_input &in, const attention_place &at,
                       attention_part<T, DIM> *parts)
{
    using part = attention_part<T, DIM>;
    constexpr unsigned KEYS = WARPS * TILE, QUERIES = KEYS * HEIGHT, LD = part::LD;
    static_assert(HEIGHT == 1 || (HEIGHT == 2 && WARPS == ATTENTION_WARPS), "a part's rows");
    const unsigned warp_row = threadIdx.x / WARP % WARPS * HEIGHT * TILE, ld = 3 * in.hidden;
    const unsigned group = threadIdx.x / (WARPS * WARP) * KEYS * LD; /* where its tiles begin */
    const auto load_part = [&](part *to, unsigned key) {
        const T *keys = query_of<T>(in, at, key) + in.hidden;
        load_tile<T, DIM, ALIGNED, WARPS, KEYS>(to->rows + group, keys, ld, at.length - key,
                                                in.head_dim);
        load_tile<T, DIM, ALIGNED, WARPS, KEYS>(to->rows + part::VALUES + group, keys + in.hidden,
                                                ld, at.length - key, in.head_dim);
    };
    warp_state<DIM, HEIGHT> w = {};
    UNROLL
    for (unsigned i = 0; i < 2 * HEIGHT; i++)
        w.reference[i / 2][i % 2] = -INFINITY;
    load_part(&parts[0], 0);
    load_tile<T, DIM, ALIGNED, WARPS, QUERIES>(parts[1].rows + group,
                                               query_of<T>(in, at, at.first - warp_row), ld,
                                               at.length - (at.first - warp_row), in.head_dim);
    exchange_copies<WARPS>();
    const T *queries = down_then_right(parts[1].rows + group + warp_row * LD, LD);
    UNROLL
    for (unsigned k = 0; k < HEIGHT * DIM / TILE; k++)
        load_matrices(w.queries[k % HEIGHT][k / HEIGHT],
                      queries + k % HEIGHT * TILE * LD + k / HEIGHT * TILE);
    unsigned here = 0; /* the part that is there */
    for (unsigned key = 0; key < at.length; key += KEYS, here ^= 1) {
        const unsigned count = at.length - key;
        exchange_copies<WARPS>();
        if (count > KEYS)
            load_part(&parts[here ^ 1], key + KEYS);
        if (at.first < at.length) /* a warp without queries only helps to load */
            attend_part<T, DIM, HEIGHT, WARPS>(&w, parts[here].rows + group, count, in.scale);
    }
    if (at.first < at.length) /* no warp still reads the other part */
        store_out<T, DIM, ALIGNED, HEIGHT>(w, parts[here].rows + group + warp_row * LD,
                                           out_of<T>(in, at, at.first), in.hidden,
                                           at.length - at.first, in.head_dim);
}

/* How many blocks a multiprocessor's registers should hold: as many as possible without
 * spilling. */
constexpr unsigned blocks_at_once(unsigned dim, bool aligned, unsigned height)
{
    return height == 2 ? 3 : dim <= 32 ? 5 : dim <= 64 ? 4 : aligned ? 3 : 2;
}

/* HEIGHT is that of the warps of long sequences. With 1, all that larger heads leave registers for,
 * long sequences have two blocks, one for each half of the queries. */
template <typename T, unsigned DIM, bool ALIGNED, unsigned HEIGHT>
__global__ void __launch_bounds__(ATTENTION_THREADS, blocks_at_once(DIM, ALIGNED, HEIGHT))
    attention_kernel(const __grid_constant__ attention_input in)
{
    using part = attention_part<T, DIM>;
    SHARED_MEMORY(part, parts);
    attention_place place = find_place(in);
    const bool is_long = place.length > ATTENTION_MEDIUM;
    if (place.length == 0 || (blockIdx.y > 0 && !is_long))
        return;
    if (place.length <= ATTENTION_SHORT)
        return attend<T, DIM, ALIGNED, 1, 1>(in, place, parts);
    if constexpr (HEIGHT > 1)
        if (is_long)
            return attend<T, DIM, ALIGNED, ATTENTION_WARPS, HEIGHT>(in, place, parts);
    if (is_long) {
        const unsigned warp_row = threadIdx.x / WARP * TILE;
        place.first += blockIdx.y * ATTENTION_WARPS * TILE - warp_row;
        if (place.first - warp_row >= place.length) /* none for the block */
            return;
    }
    attend<T, DIM, ALIGNED, ATTENTION_WARPS, 1>(in, place, parts);
}

} // namespace

/* When no sequence is long, more blocks fit, because registers for long ones are not needed. */
template <typename T>
aimo_status cuda_attention(const aimo_attention_args &args, const cuda_sequences &sequences,
                           cudaStream_t stream, aimo_error *err)
{
    constexpr unsigned most = ATTENTION_HEAD_DIM_MOST;
    const bool has_long = sequences.longest > ATTENTION_MEDIUM;
    const attention_input in = attention_input_of(args, sequences);
    const auto run = [&](void (*kernel)(attention_input), size_t part, unsigned halves) {
        return launch_kernel(kernel, attention_shape(in, sequences, halves, 2 * part), stream, err,
                             in);
    };
    const unsigned halves = attention_halves(sequences);
    if (args.head_dim % 8 != 0)
        return run(attention_kernel<T, most, false, 1>, sizeof(attention_part<T, most>), halves);
    if (args.head_dim <= 32)
        return run(has_long ? attention_kernel<T, 32, true, 2> : attention_kernel<T, 32, true, 1>,
                   sizeof(attention_part<T, 32>), 1);
    if (args.head_dim <= 64)
        return run(has_long ? attention_kernel<T, 64, true, 2> : attention_kernel<T, 64, true, 1>,
                   sizeof(attention_part<T, 64>), 1);
    return run(attention_kernel<T, most, true, 1>, sizeof(attention_part<T, most>), halves);
}

#define INSTANTIATE(T)                                                                             \
    template aimo_status cuda_attention<T>(const aimo_attention_args &, const cuda_sequences &,    \
                                           cudaStream_t, aimo_error *);
INSTANTIATE(__half)
INSTANTIATE(__nv_bfloat16)
