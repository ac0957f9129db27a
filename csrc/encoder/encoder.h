/* A transformer encoder: packed weights and the forward pass.
 *
 * Lifecycle: aimo_encoder_new, then aimo_encoder_set_tensor for every tensor or
 * aimo_encoder_map_weight for every weight, aimo_encoder_seal, then aimo_encoder_encode from any
 * number of threads. A sealed encoder is immutable. */
#ifndef AIMO_ENCODER_ENCODER_H
#define AIMO_ENCODER_ENCODER_H

#include "backend/backend.h"
#include "base/dtype.h"
#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct aimo_encoder aimo_encoder;

/* A linear layer after pooling: y = activation(w x + bias). */
typedef struct {
    size_t inputs, outputs;
    aimo_activation activation;
} aimo_dense;

enum { AIMO_POOLINGS_MOST = AIMO_POOLING_COUNT, AIMO_DENSE_MOST = 4 };

/* What distinguishes one model from another. The architecture is that of BERT and its relatives:
 * learned absolute positions, norm after the residual sum, one feed-forward path. */
typedef struct {
    aimo_dtype dtype; /* of matrices and tables; biases and norms are f32 */
    size_t layers, hidden, heads, intermediate;
    size_t vocabulary, positions;
    size_t token_types;    /* rows of the token type table; 0: the model has none */
    size_t first_position; /* the position of a sequence's first token (RoBERTa: 2) */
    float layer_norm_epsilon;
    aimo_activation activation;
    aimo_pooling poolings[AIMO_POOLINGS_MOST]; /* several are concatenated */
    size_t pooling_count;
    aimo_dense dense[AIMO_DENSE_MOST]; /* applied in this order to the pooled vector */
    size_t dense_count;
} aimo_encoder_config;

/* Options of one call. */
typedef struct {
    size_t skip;        /* leading tokens of every sequence that pooling leaves out */
    size_t columns;     /* keep only this many leading elements of each vector; 0: all */
    bool normalize;     /* to unit L2 norm, after the cut */
    bool out_on_device; /* out is in the encoder's device memory, not the host's */
} aimo_encode_options;

/* AIMO_ERR_ARGUMENT names the first invalid field. */
AIMO_MUST_CHECK aimo_status aimo_encoder_new(const aimo_encoder_config *config, aimo_encoder **out,
                                             aimo_error *err);
/* NULL is ignored. No thread may be encoding. */
void aimo_encoder_free(aimo_encoder *encoder);

/* The name of the tensor with this index, and whether there is one for each layer. NULL after the
 * last. */
const char *aimo_encoder_tensor_name(size_t tensor, bool *per_layer);

/* Shape of a tensor in this encoder: columns is 0 for a vector; rows is 0 when the configuration
 * has no such tensor. */
void aimo_encoder_tensor_shape(const aimo_encoder *encoder, size_t tensor, size_t *rows,
                               size_t *columns);

/* Copies data [rows, columns] (or [rows]) f32 into its packed place, rounding to nearest even.
 * AIMO_ERR_ARGUMENT: no such tensor or layer, a wrong shape, or the encoder is sealed.
 * AIMO_ERR_FORMAT: a value is not finite or too large for the dtype; the message names the tensor.
 * AIMO_ERR_MEMORY: the weight, which is allocated when its first tensor is set, does not fit. */
AIMO_MUST_CHECK aimo_status aimo_encoder_set_tensor(aimo_encoder *encoder, size_t tensor,
                                                    size_t layer, const float *data, size_t rows,
                                                    size_t columns, aimo_error *err);

/* data [rows, columns] f32 = the tensor as stored; exact. The shape must match and the tensor must
 * have been set. */
AIMO_MUST_CHECK aimo_status aimo_encoder_get_tensor(const aimo_encoder *encoder, size_t tensor,
                                                    size_t layer, float *data, size_t rows,
                                                    size_t columns, aimo_error *err);

/* A packed weight, laid out in memory as in files: panels of a matrix, rows of a table, or a
 * vector. Several tensors may share one. A weight is identified by the index of the first tensor in
 * it. */
typedef struct {
    const char *name;
    aimo_dtype dtype;
    size_t layers; /* the number of layers that have one each; 0: there is just one */
    size_t dimensions, shape[AIMO_PANELS_DIMENSIONS];
    size_t bytes; /* of one */
} aimo_weight_info;

/* False when no weight begins with this tensor, or the configuration has no such tensor. */
bool aimo_encoder_weight_info(const aimo_encoder *encoder, size_t tensor, aimo_weight_info *info);

/* The weight's bytes, valid as long as the encoder; NULL when it was not set. */
const void *aimo_encoder_weight_data(const aimo_encoder *encoder, size_t tensor, size_t layer);

/* Uses a packed weight in place, without a copy, as from a mapped file. `data`, aligned to
 * AIMO_CACHE_LINE, must outlive the encoder and is never written. Only vectors, and the outlier
 * channels of int8 matrices, are checked here. AIMO_ERR_ARGUMENT: no such weight or layer, or it is
 * set already. AIMO_ERR_FORMAT: wrong size or alignment, a vector with a value that is not finite,
 * or an outlier channel that does not exist. */
AIMO_MUST_CHECK aimo_status aimo_encoder_map_weight(aimo_encoder *encoder, size_t tensor,
                                                    size_t layer, const void *data, size_t bytes,
                                                    aimo_error *err);

/* Sets the input channels of an int8 matrix that are kept in 16 bits, at most AIMO_INT8_OUTLIERS.
 * The matrix is identified by the first tensor in it; call before any of its tensors is set.
 * AIMO_ERR_ARGUMENT: no such matrix, it is set already, or no such channel. */
AIMO_MUST_CHECK aimo_status aimo_encoder_set_outliers(aimo_encoder *encoder, size_t tensor,
                                                      size_t layer, const int32_t *channels,
                                                      size_t count, aimo_error *err);

/* The matrices of a layer in order of use, for aimo_encoder_input_peaks. */
enum { AIMO_LAYER_MATRICES = 4 }; /* qkv, attention, up, down */

/* peaks [layers][AIMO_LAYER_MATRICES][max(hidden, intermediate)] f32 = the largest magnitude that
 * each input channel of each matrix takes while the batch is encoded; 0 past a matrix's inputs.
 * Arguments and errors as for aimo_encoder_encode. */
AIMO_MUST_CHECK aimo_status aimo_encoder_input_peaks(const aimo_encoder *encoder,
                                                     const int32_t *token_ids,
                                                     const int64_t *offsets, size_t batch,
                                                     float *peaks, aimo_error *err);

/* The operations of a forward pass. Each product includes what is fused with it: the activation of
 * `up`; residual sum and layer norm after `attention_output` and `down`. */
typedef enum {
    AIMO_OP_EMBED,
    AIMO_OP_QKV,
    AIMO_OP_ATTENTION,
    AIMO_OP_ATTENTION_OUTPUT,
    AIMO_OP_UP,
    AIMO_OP_DOWN,
    AIMO_OP_POOL, /* with the dense layers after it */
} aimo_operation;
enum { AIMO_OPERATION_COUNT = AIMO_OP_POOL + 1 };

/* seconds = how long each operation took, over all layers, while the batch was encoded; its chunks
 * run one after another. On a device this is the time to launch them, except for the last one,
 * which waits for all. Arguments and errors as for aimo_encoder_encode. */
AIMO_MUST_CHECK aimo_status aimo_encoder_operation_seconds(const aimo_encoder *encoder,
                                                           const int32_t *token_ids,
                                                           const int64_t *offsets, size_t batch,
                                                           double seconds[AIMO_OPERATION_COUNT],
                                                           aimo_error *err);

/* Checks that every tensor was set and prepares the encoder for a device: AIMO_DEVICE_CPU, or the
 * number of a CUDA device, to which the weights are copied. AIMO_ERR_FORMAT names the first missing
 * tensor; other errors are those of aimo_backend_cuda_new. */
AIMO_MUST_CHECK aimo_status aimo_encoder_seal(aimo_encoder *encoder, int device, aimo_error *err);

/* out [batch, columns] f32 = one vector per sequence.
 *
 *   token_ids [offsets[batch]]   sequence i is token_ids[offsets[i]] ... token_ids[offsets[i + 1] -
 * 1] offsets   [batch + 1]        rising from 0, no sequence empty or longer than
 * aimo_encoder_max_length
 *
 * A vector depends on its own sequence alone, bit for bit. AIMO_ERR_ARGUMENT says which offset or
 * token id is wrong, before any work; AIMO_ERR_MEMORY and AIMO_ERR_DEVICE leave out undefined. */
AIMO_MUST_CHECK aimo_status aimo_encoder_encode(const aimo_encoder *encoder,
                                                const int32_t *token_ids, const int64_t *offsets,
                                                size_t batch, const aimo_encode_options *options,
                                                float *out, aimo_error *err);

/* out [offsets[batch], hidden] f32 = the last layer's vector of every token, before pooling;
 * otherwise as aimo_encoder_encode. */
AIMO_MUST_CHECK aimo_status aimo_encoder_encode_tokens(const aimo_encoder *encoder,
                                                       const int32_t *token_ids,
                                                       const int64_t *offsets, size_t batch,
                                                       float *out, aimo_error *err);

const aimo_encoder_config *aimo_encoder_config_of(const aimo_encoder *encoder);
/* Tokens of the longest sequence: positions - first_position. */
size_t aimo_encoder_max_length(const aimo_encoder *encoder);
/* Elements of a vector. */
size_t aimo_encoder_dimension(const aimo_encoder *encoder);
/* Bytes of all weights. */
size_t aimo_encoder_weight_bytes(const aimo_encoder *encoder);

#endif
