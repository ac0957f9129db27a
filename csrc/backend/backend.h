/* The operations of an encoder, and nothing more: the interface between the forward pass, which is
 * written once, and the hardware that runs it.
 *
 * Pointers marked "device" are in the backend's memory, which is host memory for "cpu". The tokens
 * of all sequences are stored one after another without padding; `offsets` [batch + 1] says where
 * each sequence begins. Each operation is a whole fused step, so that intermediate rows never leave
 * the cache. Every function pointer is set. Several threads may call one backend; each chunk of a
 * forward pass leases its own workspace, and its operations run in order. Only download, hand_over
 * and workspace_return wait for them.
 *
 * Rows of activations are f32 for "cpu". Another backend may keep them in a format of its own, of
 * row_bytes per row, which only its operations understand. It may also round up their number
 * (pad_chunk): then operations also run over rows after those of the sequences, whose values are
 * never used. A row's values depend only on the rows of its own sequence. */
#ifndef AIMO_BACKEND_BACKEND_H
#define AIMO_BACKEND_BACKEND_H

#include "base/dtype.h"
#include "base/status.h"
#include "gemm/gemm.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct aimo_backend aimo_backend;
/* A packed weight matrix in the format that the backend multiplies with. */
typedef struct aimo_backend_matrix aimo_backend_matrix;

/* A chunk's sequences, and the number of rows that its operations run over, as rounded up by
 * pad_chunk. */
typedef struct {
    const int32_t *ids;    /* host, [offsets[batch]], checked by the caller */
    const size_t *offsets; /* host, [batch + 1] */
    size_t batch;
    size_t token_rows, vector_rows; /* rows of tokens and of pooled vectors */
} aimo_sequences;

/* Enqueues the operations of a chunk, from embed up to, but not including, download. */
typedef aimo_status aimo_forward(void *context, aimo_error *);

/* Calls with the same key, for chunks with the same numbers of rows, run the same operations on a
 * given workspace. */
typedef struct {
    size_t values[4];
} aimo_run_key;

/* The working memory of one chunk; backends append members of their own. */
typedef struct {
    void *memory; /* device, aligned to AIMO_CACHE_LINE */
} aimo_workspace;

/* What rows are used for, which decides how precisely they are stored. */
typedef enum {
    AIMO_ROWS_FULL,    /* pooled vectors: f32 */
    AIMO_ROWS_HIDDEN,  /* layer norm's output, the residual stream: 11 bits of precision at least */
    AIMO_ROWS_OPERAND, /* inputs of products only: may have the 8 bits of bf16 */
    AIMO_ROWS_SUM,     /* a product before its norm: 11 bits at least */
} aimo_rows_kind;

typedef enum {
    AIMO_POOL_MEAN,
    AIMO_POOL_CLS,
    AIMO_POOL_MAX,
    AIMO_POOL_MEAN_SQRT_LEN, /* sum / sqrt(length) */
    AIMO_POOL_WEIGHTED_MEAN, /* weights 1, 2, ..., length, by position in the whole sequence */
    AIMO_POOL_LAST_TOKEN,
} aimo_pooling;
enum { AIMO_POOLING_COUNT = AIMO_POOL_LAST_TOKEN + 1 };

/* y = (x - mean) / sqrt(variance + epsilon) * weight + bias over the last axis */
typedef struct {
    const float *weight, *bias; /* device, [hidden] */
    float epsilon;
} aimo_layer_norm;

/* out[t] = layer_norm(word[ids[t]] + position[t - its sequence's begin + first_position] + type)
 * for the sequences that were uploaded. */
typedef struct {
    aimo_dtype dtype;      /* of the tables, whose rows take aimo_table_row_bytes */
    const void *word;      /* device, [vocabulary, hidden] */
    const void *position;  /* device, [positions, hidden] */
    const void *type;      /* device, [hidden]: the first token type, or NULL */
    const int32_t *ids;    /* host, [tokens], checked by the caller */
    const size_t *offsets; /* host, [batch + 1] */
    size_t batch, hidden, first_position;
    aimo_layer_norm norm;
    float *out; /* device, hidden, [tokens, hidden] */
} aimo_embed_args;

/* y = activation(x @ w^T + bias) and then, with a norm, y = layer_norm(y + residual). A matrix must
 * be used with the same bias and activation in all calls. */
typedef struct {
    const aimo_backend_matrix *w; /* [n, k] */
    const float *bias;            /* device, [n] or NULL */
    const float *x;               /* device, [m, k], not overlapping y */
    aimo_rows_kind x_kind;
    size_t m;
    float *input_peaks; /* host, [k]: raised to the largest |x| of each column; or NULL. On "cpu"
                           only: AIMO_ERR_UNSUPPORTED elsewhere */
    aimo_activation activation;
    const aimo_layer_norm *norm; /* NULL: neither residual nor norm */
    const float *residual;       /* device, hidden, [m, n]; y may be the same memory */
    float *scratch;              /* device, sum, [m, n]; needed with a norm */
    float *y;                    /* device, [m, n] */
    aimo_rows_kind y_kind;       /* hidden with a norm */
} aimo_linear_args;

/* Scaled dot-product self-attention within each sequence; how a sequence is split into blocks
 * depends on its length alone. The offsets must be those that were uploaded. */
typedef struct {
    const float *qkv; /* device, operand, [tokens, 3 * hidden]: queries, keys, values, by head */
    const size_t *offsets; /* host, [batch + 1] */
    size_t batch, heads, head_dim;
    float *out;       /* device, operand, [tokens, heads * head_dim] */
    aimo_dtype dtype; /* of the weights: with bf16 or int8, attention's factors may be rounded like
                         those of the products with weights */
} aimo_attention_args;

/* One vector per sequence: the first `columns` elements of its concatenated pooled vectors. Only
 * the elements that are kept are normalized; an L2 norm below 1e-12 counts as 1e-12. */
typedef struct {
    const float *x;        /* device, [tokens, hidden] */
    aimo_rows_kind x_kind; /* full or hidden */
    const size_t *offsets; /* host, as uploaded; or NULL: every row is a sequence of its own */
    size_t batch, hidden;  /* batch: rows of out, the vector_rows of the sequences */
    const aimo_pooling *poolings; /* host, [ceil(columns / hidden)] */
    size_t skip;                  /* leading tokens to leave out; the last token is always kept */
    size_t columns;
    bool normalize;
    float *out; /* device, full, [batch, columns]; not overlapping x */
} aimo_pool_args;

typedef struct {
    const char *name; /* "cpu", "cuda" */
    /* How many tokens each chunk of a call with total_tokens should hold, when a token takes
     * token_bytes of workspace. */
    size_t (*chunk_tokens)(const aimo_backend *, size_t total_tokens, size_t token_bytes);
    /* Rounds up the numbers of rows that a chunk's operations run over, where that makes them
     * recur, so that operations can be replayed. A row takes token_bytes of workspace. */
    void (*pad_chunk)(const aimo_backend *, size_t token_bytes, size_t *token_rows,
                      size_t *vector_rows);
    /* Bytes of one row of activations. */
    size_t (*row_bytes)(const aimo_backend *, aimo_rows_kind, size_t columns);

    /* *out = a device copy of `bytes` host bytes, or the host memory itself, which must therefore
     * outlive *out. */
    aimo_status (*constant_new)(aimo_backend *, const void *host, size_t bytes, const void **out,
                                aimo_error *);
    void (*constant_free)(aimo_backend *, const void *device);
    /* Panels as packed by gemm.h; they must outlive the matrix. */
    aimo_status (*matrix_new)(aimo_backend *, aimo_dtype, size_t n, size_t k, const void *panels,
                              aimo_backend_matrix **out, aimo_error *);
    void (*matrix_free)(aimo_backend *, aimo_backend_matrix *);
    /* Waits while the maximum number of workspaces is leased. */
    aimo_status (*workspace_lease)(aimo_backend *, size_t bytes, aimo_workspace **out,
                                   aimo_error *);
    void (*workspace_return)(aimo_backend *, aimo_workspace *);

    /* Sets the sequences that the workspace's operations are for. The first operation of a
     * chunk. */
    aimo_status (*upload)(aimo_backend *, aimo_workspace *, const aimo_sequences *, aimo_error *);
    /* Runs forward(context), or replays what an earlier run with this key enqueued. With a NULL key
     * it always runs. */
    aimo_status (*run)(aimo_backend *, aimo_workspace *, aimo_forward *forward, void *context,
                       const aimo_run_key *key, aimo_error *);
    aimo_status (*embed)(aimo_backend *, aimo_workspace *, const aimo_embed_args *, aimo_error *);
    aimo_status (*linear)(aimo_backend *, aimo_workspace *, const aimo_linear_args *, aimo_error *);
    aimo_status (*attention)(aimo_backend *, aimo_workspace *, const aimo_attention_args *,
                             aimo_error *);
    aimo_status (*pool)(aimo_backend *, aimo_workspace *, const aimo_pool_args *, aimo_error *);
    /* host [count, columns] f32 = full rows. Waits for all earlier operations of the workspace. */
    aimo_status (*download)(aimo_backend *, aimo_workspace *, const float *rows, size_t count,
                            size_t columns, float *host, aimo_error *);
    /* device [count, columns] f32 = full rows, likewise. `device` is memory of the backend's
     * device; anybody may use it as soon as the call returns. */
    aimo_status (*hand_over)(aimo_backend *, aimo_workspace *, const float *rows, size_t count,
                             size_t columns, float *device, aimo_error *);
    void (*free)(aimo_backend *);
} aimo_backend_ops;

struct aimo_backend {
    const aimo_backend_ops *ops;
};

enum { AIMO_DEVICE_CPU = -1 };

/* The CPU, with the strongest row of kernels that `features` (aimo_cpu_features) allows. */
AIMO_MUST_CHECK aimo_status aimo_backend_cpu_new(unsigned features, aimo_backend **out,
                                                 aimo_error *err);

/* CUDA device `device`, for a model whose weights are `dtype`: products are computed in that type,
 * or in f16 for int8. AIMO_ERR_UNSUPPORTED when the CUDA library was not loaded (cuda_loader.h),
 * something that it needs is missing or too old on this machine, or head_dim is too large;
 * AIMO_ERR_ARGUMENT when there is no such device; AIMO_ERR_DEVICE after a fork, or when the device
 * fails. */
AIMO_MUST_CHECK aimo_status aimo_backend_cuda_new(int device, aimo_dtype dtype, size_t head_dim,
                                                  aimo_backend **out, aimo_error *err);

#endif
