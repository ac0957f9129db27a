/* The operations of an encoder, and nothing more: the seam between the forward pass, which is
 * written once, and the machines that can run it.
 *
 * Pointers called "device" belong to the backend: host memory for "cpu". Tokens of all sequences
 * lie one after another without padding; `offsets` [batch + 1] says where each begins. A slot is
 * the size of a fused step, so that intermediate rows never leave the cache. Every slot is filled.
 * Calls on one backend may come from several threads; each chunk of a forward pass leases its own
 * workspace, and its operations run in order. Nothing but download and hand_over waits for them.
 *
 * Rows of activations are f32 for "cpu". Elsewhere the backend may keep them in another form, of
 * row_bytes each, and only its operations know what lies in them. It may also round up how many
 * there are (pad_chunk): then operations run over rows behind those of the sequences, about which
 * nobody asks. A row's values depend on no other rows but those of its sequence. */
#ifndef AIMO_BACKEND_BACKEND_H
#define AIMO_BACKEND_BACKEND_H

#include "base/dtype.h"
#include "base/status.h"
#include "gemm/gemm.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct aimo_backend aimo_backend;
/* A packed weight matrix in the form that the backend multiplies with. */
typedef struct aimo_backend_matrix aimo_backend_matrix;

/* A chunk's sequences, and the rows that its operations run over, as pad_chunk left them. */
typedef struct {
    const int32_t *ids;    /* host, [offsets[batch]], checked by the caller */
    const size_t *offsets; /* host, [batch + 1] */
    size_t batch;
    size_t token_rows, vector_rows; /* of tokens, and of what is pooled of each sequence */
} aimo_sequences;

/* Operations of a chunk, from embed to before download. */
typedef aimo_status aimo_forward(void *context, aimo_error *);

/* Calls with the same key, of chunks with the same rows, do the same operations on one workspace.
 */
typedef struct {
    size_t values[4];
} aimo_run_key;

/* What one chunk works with; backends put what is theirs behind it. */
typedef struct {
    void *memory; /* device, aligned to AIMO_CACHE_LINE */
} aimo_workspace;

/* What is done with rows says how precisely they are kept. */
typedef enum {
    AIMO_ROWS_FULL,    /* vectors: f32 */
    AIMO_ROWS_HIDDEN,  /* layer norm's output, the residual stream: 11 bits of precision at least */
    AIMO_ROWS_OPERAND, /* only multiplied: may have the 8 bits of bf16 */
    AIMO_ROWS_SUM,     /* a product in front of its norm: 11 bits at least */
} aimo_rows_kind;

typedef enum {
    AIMO_POOL_MEAN,
    AIMO_POOL_CLS,
    AIMO_POOL_MAX,
    AIMO_POOL_MEAN_SQRT_LEN, /* sum / sqrt(length) */
    AIMO_POOL_WEIGHTED_MEAN, /* weights 1, 2, ..., length, by place in the whole sequence */
    AIMO_POOL_LAST_TOKEN,
} aimo_pooling;
enum { AIMO_POOLING_COUNT = AIMO_POOL_LAST_TOKEN + 1 };

/* y = (x - mean) / sqrt(variance + epsilon) * weight + bias over the last axis */
typedef struct {
    const float *weight, *bias; /* device, [hidden] */
    float epsilon;
} aimo_layer_norm;

/* out[t] = layer_norm(word[ids[t]] + position[t - its sequence's begin + first_position] + type)
 * of the sequences that were uploaded. */
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

/* y = activation(x @ w^T + bias), and then, with a norm, y = layer_norm(y + residual). A matrix has
 * the same bias and activation in all calls. */
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

/* Scaled dot-product self-attention inside each sequence; blocked by the sequence's length alone.
 * The offsets are those that were uploaded. */
typedef struct {
    const float *qkv; /* device, operand, [tokens, 3 * hidden]: queries, keys, values, by head */
    const size_t *offsets; /* host, [batch + 1] */
    size_t batch, heads, head_dim;
    float *out;       /* device, operand, [tokens, heads * head_dim] */
    aimo_dtype dtype; /* of the weights: where it is bf16 or int8 the products' factors may be
                       * rounded, as those of the weights' products are */
} aimo_attention_args;

/* One vector per sequence: the first `columns` elements of its pooled vectors, one after another.
 * Normalizing is over what is kept; an L2 norm below 1e-12 divides by 1e-12 instead. */
typedef struct {
    const float *x;        /* device, [tokens, hidden] */
    aimo_rows_kind x_kind; /* full or hidden */
    const size_t *offsets; /* host, those that were uploaded; or NULL: every row is a sequence */
    size_t batch, hidden;  /* batch: rows of out, the vector_rows of the sequences */
    const aimo_pooling *poolings; /* host, [ceil(columns / hidden)] */
    size_t skip;                  /* leading tokens that are left out; the last one never is */
    size_t columns;
    bool normalize;
    float *out; /* device, full, [batch, columns]; not overlapping x */
} aimo_pool_args;

typedef struct {
    const char *name; /* "cpu", "cuda" */
    /* Tokens that one chunk should hold, of a call with total_tokens, when each takes so many bytes
     * of workspace. */
    size_t (*chunk_tokens)(const aimo_backend *, size_t total_tokens, size_t token_bytes);
    /* Rounds up the rows that a chunk's operations run over, which have token_bytes of workspace
     * each, to numbers that recur, where that helps to replay operations. */
    void (*pad_chunk)(const aimo_backend *, size_t token_bytes, size_t *token_rows,
                      size_t *vector_rows);
    /* Bytes of one row of activations. */
    size_t (*row_bytes)(const aimo_backend *, aimo_rows_kind, size_t columns);

    /* *out = a device copy of `bytes` host bytes, or the host memory itself, which must then
     * outlive it. */
    aimo_status (*constant_new)(aimo_backend *, const void *host, size_t bytes, const void **out,
                                aimo_error *);
    void (*constant_free)(aimo_backend *, const void *device);
    /* Panels as packed by gemm.h; they must outlive the matrix. */
    aimo_status (*matrix_new)(aimo_backend *, aimo_dtype, size_t n, size_t k, const void *panels,
                              aimo_backend_matrix **out, aimo_error *);
    void (*matrix_free)(aimo_backend *, aimo_backend_matrix *);
    /* Waits while the most workspaces that may be out are out. */
    aimo_status (*workspace_lease)(aimo_backend *, size_t bytes, aimo_workspace **out,
                                   aimo_error *);
    void (*workspace_return)(aimo_backend *, aimo_workspace *);

    /* Says which sequences the workspace holds. The first operation of a chunk. */
    aimo_status (*upload)(aimo_backend *, aimo_workspace *, const aimo_sequences *, aimo_error *);
    /* Runs forward(context), or replays what an earlier run of its kind did; NULL key: always runs.
     */
    aimo_status (*run)(aimo_backend *, aimo_workspace *, aimo_forward *forward, void *context,
                       const aimo_run_key *key, aimo_error *);
    aimo_status (*embed)(aimo_backend *, aimo_workspace *, const aimo_embed_args *, aimo_error *);
    aimo_status (*linear)(aimo_backend *, aimo_workspace *, const aimo_linear_args *, aimo_error *);
    aimo_status (*attention)(aimo_backend *, aimo_workspace *, const aimo_attention_args *,
                             aimo_error *);
    aimo_status (*pool)(aimo_backend *, aimo_workspace *, const aimo_pool_args *, aimo_error *);
    /* host [count, columns] f32 = full rows, when everything before is done. */
    aimo_status (*download)(aimo_backend *, aimo_workspace *, const float *rows, size_t count,
                            size_t columns, float *host, aimo_error *);
    /* device [count, columns] f32 = full rows, likewise: memory of the backend's that may be used
     * by anybody when the call returns. */
    aimo_status (*hand_over)(aimo_backend *, aimo_workspace *, const float *rows, size_t count,
                             size_t columns, float *device, aimo_error *);
    void (*free)(aimo_backend *);
} aimo_backend_ops;

struct aimo_backend {
    const aimo_backend_ops *ops;
};

enum { AIMO_DEVICE_CPU = -1 };

/* The processor, with the strongest row of kernels that `features` (aimo_cpu_features) allows. */
AIMO_MUST_CHECK aimo_status aimo_backend_cpu_new(unsigned features, aimo_backend **out,
                                                 aimo_error *err);

/* CUDA device `device`, for a model whose weights are `dtype`: products are in that type, in f16
 * for int8. AIMO_ERR_UNSUPPORTED when the library for CUDA was not loaded (cuda_loader.h) or
 * lacks something on this machine, or head_dim is beyond it; AIMO_ERR_ARGUMENT when there is no
 * such device; AIMO_ERR_DEVICE after a fork, or when the device fails. */
AIMO_MUST_CHECK aimo_status aimo_backend_cuda_new(int device, aimo_dtype dtype, size_t head_dim,
                                                  aimo_backend **out, aimo_error *err);

#endif
