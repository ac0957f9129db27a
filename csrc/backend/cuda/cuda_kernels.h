/* The kernels' launchers. Each enqueues on a stream and returns at once; all pointers are to device
 * memory. T is the operand type of products, see cuda_rows.h; every launcher exists for all
 * three. */
#ifndef AIMO_CUDA_KERNELS_H
#define AIMO_CUDA_KERNELS_H

#include "backend/cuda/cuda_rows.h"

constexpr unsigned ATTENTION_HEAD_DIM_MOST = 128, ATTENTION_WARPS = 4;

/* What one warp of attention works on, see attention_tiles.h: where a sequence begins, its length
 * (0: nothing to do), and the first of the warp's queries, which may be beyond the end. Aligned, so
 * that it takes one load. */
struct alignas(16) attention_tile {
    uint32_t begin, length, first;
};

/* The sequences of a chunk. Small chunks are padded: then the last sequences of the batch are
 * empty, and the padding tokens form one more sequence, which is not pooled. */
struct cuda_sequences {
    const int32_t *ids;          /* [tokens] */
    const int32_t *places;       /* [tokens], of each token within its sequence */
    const int32_t *offsets;      /* [batch + 2] */
    const attention_tile *tiles; /* [blocks][ATTENTION_WARPS] */
    size_t tokens, batch, block_count;
    size_t longest; /* no sequence has more tokens */
};

/* out, hidden rows [tokens, hidden]: see aimo_embed_args. */
template <typename T>
aimo_status cuda_embed(const aimo_embed_args &args, const cuda_sequences &sequences,
                       cudaStream_t stream, aimo_error *err);

/* y, hidden rows [m, n] = layer_norm(x + bias + residual); x sum rows, residual hidden rows that
 * may be y, bias [n] or NULL. */
template <typename T>
aimo_status cuda_residual_layer_norm(const void *x, const float *bias, const void *residual,
                                     const aimo_layer_norm &norm, void *y, size_t m, size_t n,
                                     cudaStream_t stream, aimo_error *err);

/* y = activation(y + bias) in place; operand rows [m, n], or full rows of which only the f32 part
 * is set. bias [n] or NULL. */
template <typename T>
aimo_status cuda_bias_activation(void *y, aimo_rows_kind kind, const float *bias,
                                 aimo_activation activation, size_t m, size_t n,
                                 cudaStream_t stream, aimo_error *err);

/* See aimo_attention_args; head_dim is at most ATTENTION_HEAD_DIM_MOST. */
template <typename T>
aimo_status cuda_attention(const aimo_attention_args &args, const cuda_sequences &sequences,
                           cudaStream_t stream, aimo_error *err);
template <>
aimo_status cuda_attention<float>(const aimo_attention_args &args, const cuda_sequences &sequences,
                                  cudaStream_t stream, aimo_error *err);

/* See aimo_pool_args; offsets [batch + 1] or NULL. Vectors of empty sequences are not written. */
template <typename T>
aimo_status cuda_pool(const aimo_pool_args &args, const int32_t *offsets, cudaStream_t stream,
                      aimo_error *err);

/* Instantiates a launcher for all operand types. */
#define FOR_EACH_OPERAND_TYPE(instantiate)                                                         \
    instantiate(float) instantiate(__half) instantiate(__nv_bfloat16)

#endif
