/* How attention distributes queries: each warp takes 16 or 32, of one head of one sequence.
 *
 * A sequence of more than ATTENTION_SHORT tokens gets blocks of its own, whose warps share keys and
 * values; with more than ATTENTION_MEDIUM tokens, each warp takes 32 queries. For shorter
 * sequences, a block has four independent warps of 16 queries each. Which case applies, and so the
 * order of every sum, depends on the sequence's length alone. */
#ifndef AIMO_CUDA_ATTENTION_TILES_H
#define AIMO_CUDA_ATTENTION_TILES_H

#include "backend/cuda/cuda_kernels.h"

constexpr unsigned ATTENTION_QUERIES = 16, ATTENTION_SHORT = 32, ATTENTION_MEDIUM = 64;
constexpr unsigned ATTENTION_THREADS = ATTENTION_WARPS * WARP;

/* How many of a sequence's queries a warp takes. */
__host__ __device__ inline unsigned attention_queries(size_t length)
{
    return length > ATTENTION_MEDIUM ? 2 * ATTENTION_QUERIES : ATTENTION_QUERIES;
}

// --- The list of tiles, on the host --------------------------------------------------------------

/* The number of tiles that the sequence adds to the list of short sequences, or to that of the
 * others. */
inline size_t attention_tile_count(size_t length, bool list_is_short)
{
    const size_t warps = list_is_short ? 1 : ATTENTION_WARPS;
    const size_t queries = warps * attention_queries(length);
    return (length <= ATTENTION_SHORT) == list_is_short ? (length + queries - 1) / queries * warps
                                                        : 0;
}

inline size_t attention_block_count(const size_t *offsets, size_t batch)
{
    size_t tiles = 0;
    for (size_t i = 0; i < batch; i++)
        for (const bool list_is_short : {false, true})
            tiles += attention_tile_count(offsets[i + 1] - offsets[i], list_is_short);
    return (tiles + ATTENTION_WARPS - 1) / ATTENTION_WARPS;
}

/* An upper bound for all batches with that many sequences and tokens: besides full blocks, one
 * partly filled block per sequence; a short sequence has at most two tiles. */
inline size_t attention_blocks_most(size_t batch, size_t tokens)
{
    return batch + tokens / (ATTENTION_WARPS * ATTENTION_QUERIES);
}

/* out [blocks][ATTENTION_WARPS]: short sequences come after the others, followed by tiles without
 * queries. */
inline void attention_list_tiles(const int32_t *offsets, size_t batch, size_t blocks,
                                 attention_tile *out)
{
    size_t count = 0;
    for (const bool list_is_short : {false, true})
        for (size_t i = 0; i < batch; i++) {
            const size_t length = static_cast<size_t>(offsets[i + 1] - offsets[i]);
            const size_t mine = attention_tile_count(length, list_is_short);
            for (size_t tile = 0; tile < mine; tile++)
                out[count++] = {static_cast<uint32_t>(offsets[i]), static_cast<uint32_t>(length),
                                static_cast<uint32_t>(tile * attention_queries(length))};
        }
    for (; count < blocks * ATTENTION_WARPS; count++)
        out[count] = {0, 0, 0};
}

// --- What the kernels are given ------------------------------------------------------------------

struct attention_input {
    const void *qkv;             /* T [tokens, 3 * hidden] */
    void *out;                   /* T [tokens, hidden] */
    const attention_tile *tiles; /* [blocks][ATTENTION_WARPS] */
    unsigned heads, head_dim, hidden;
    float scale; /* of scores, including log2(e) so that exponentials are powers of 2 */
};

inline attention_input attention_input_of(const aimo_attention_args &args,
                                          const cuda_sequences &sequences)
{
    const float log2_e = 1.44269504f;
    return {args.qkv,
            args.out,
            sequences.tiles,
            static_cast<unsigned>(args.heads),
            static_cast<unsigned>(args.head_dim),
            static_cast<unsigned>(args.heads * args.head_dim),
            log2_e / sqrtf(static_cast<float>(args.head_dim))};
}

/* Into how many parts, along y, a block of the list is divided when warps work on 16 queries at a
 * time. */
inline unsigned attention_halves(const cuda_sequences &sequences)
{
    return sequences.longest > ATTENTION_MEDIUM ? 2 : 1;
}

/* One block per head and block of the list, times `halves` along y, one for each half of a warp's
 * queries. Heads vary fastest, because together they read whole rows. */
inline launch_shape attention_shape(const attention_input &in, const cuda_sequences &sequences,
                                    unsigned halves, size_t shared)
{
    return {dim3(static_cast<unsigned>(sequences.block_count) * in.heads, halves),
            ATTENTION_THREADS, shared};
}

/* A warp's tile, and the first column of its head. */
struct attention_place {
    unsigned begin, length, first, column;
};

__device__ inline attention_place find_place(const attention_input &in)
{
    const unsigned block = blockIdx.x / in.heads, head = blockIdx.x % in.heads;
    const attention_tile tile = in.tiles[block * ATTENTION_WARPS + threadIdx.x / WARP];
    return {tile.begin, tile.length, tile.first, head * in.head_dim};
}

/* The head's part of a token's query; the key follows at `hidden` elements, the value at twice
 * that. */
template <typename T>
__device__ inline const T *query_of(const attention_input &in, const attention_place &at,
                                    unsigned token)
{
    return static_cast<const T *>(in.qkv) +
           static_cast<size_t>(at.begin + token) * (3 * in.hidden) + at.column;
}

template <typename T>
__device__ inline T *out_of(const attention_input &in, const attention_place &at, unsigned token)
{
    return static_cast<T *>(in.out) + static_cast<size_t>(at.begin + token) * in.hidden + at.column;
}

#endif
