/* A transformer encoder: packed weights and the forward pass.
 *
 * Life: aimo_encoder_new, aimo_encoder_set_tensor for every tensor or aimo_encoder_map_weight for
 * every weight, aimo_encoder_seal, then aimo_encoder_encode from any number of threads. A sealed
 * encoder is immutable. */
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

/* What distinguishes one model from another. So far: learned absolute positions, norm after the
 * residual sum, one feed-forward path; BERT and its relatives. */
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
    aimo_dense dense[AIMO_DENSE_MOST]; /* one after another, on the pooled vector */
    size_t dense_count;
} aimo_encoder_config;

/* What one call may choose. */
typedef struct {
    size_t skip;        /* leading tokens of every sequence that pooling leaves out */
    size_t columns;     /* leading elements of the vectors that are kept; 0: all */
    bool normalize;     /* to unit L2 norm, after the cut */
    bool out_on_device; /* out is memory of the encoder's device, and not the host's */
} aimo_encode_options;

/* AIMO_ERR_ARGUMENT names the first field that makes no sense. */
AIMO_MUST_CHECK aimo_status aimo_encoder_new(const aimo_encoder_config *config, aimo_encoder **out,
                                             aimo_error *err);
/* NULL is ignored. No thread may be encoding. */
void aimo_encoder_free(aimo_encoder *encoder);

/* The tensors of an encoder, by index: their names, and whether there is one for each layer.
 * NULL after the last. */
const char *aimo_encoder_tensor_name(size_t tensor, bool *per_layer);

/* Shape of a tensor in this encoder: columns is 0 for a vector; rows is 0 when the configuration
 * has no such tensor. */
void aimo_encoder_tensor_shape(const aimo_encoder *encoder, size_t tensor, size_t *rows,
                               size_t *columns);

/* Copies data [rows, columns] (or [rows]) f32 into its packed place, rounding to nearest even.
 * AIMO_ERR_ARGUMENT: no such tensor or layer, another shape, or the encoder is sealed.
 * AIMO_ERR_FORMAT: a value is not finite or too large for the dtype. The text names the tensor.
 * AIMO_ERR_MEMORY: a weight is allocated with the first tensor of it. */
AIMO_MUST_CHECK aimo_status aimo_encoder_set_tensor(aimo_encoder *encoder, size_t tensor,
                                                    size_t layer, const float *data, size_t rows,
                                                    size_t columns, aimo_error *err);

/* data [rows, columns] f32 = the tensor as stored; exact. The shape must match and the tensor must
 * have been set. */
AIMO_MUST_CHECK aimo_status aimo_encoder_get_tensor(const aimo_encoder *encoder, size_t tensor,
                                                    size_t layer, float *data, size_t rows,
                                                    size_t columns, aimo_error *err);

/* A packed weight as it lies in memory, and so in files: panels of a matrix, rows of a table, or a
 * vector. Several tensors may share one. Weights go by the index of the first tensor in them. */
typedef struct {
    const char *name;
    aimo_dtype dtype;
    size_t layers; /* one weight for each; 0: one in all */
    size_t dimensions, shape[AIMO_PANELS_DIMENSIONS];
    size_t bytes; /* of one */
} aimo_weight_info;

/* False when no weight begins with this tensor, or the configuration has no such tensor. */
bool aimo_encoder_weight_info(const aimo_encoder *encoder, size_t tensor, aimo_weight_info *info);

/* The weight's bytes, which live as long as the encoder; NULL when it was not set. */
const void *aimo_encoder_weight_data(const aimo_encoder *encoder, size_t tensor, size_t layer);

/* Takes a packed weight where it lies, without a copy: a mapped file. `data`, aligned to
 * AIMO_CACHE_LINE, must outlive the encoder and is never written. Only vectors are looked at now.
 * AIMO_ERR_ARGUMENT: no such weight or layer, or it is set already. AIMO_ERR_FORMAT: another size,
 * another alignment, or a vector with a value that is not finite. */
AIMO_MUST_CHECK aimo_status aimo_encoder_map_weight(aimo_encoder *encoder, size_t tensor,
                                                    size_t layer, const void *data, size_t bytes,
                                                    aimo_error *err);

/* For an int8 matrix, by the first tensor in it and before any of them is set: the input channels
 * that are kept in 16 bits, at most AIMO_INT8_OUTLIERS. AIMO_ERR_ARGUMENT: no such matrix, it is
 * set already, or no such channel. */
AIMO_MUST_CHECK aimo_status aimo_encoder_set_outliers(aimo_encoder *encoder, size_t tensor,
                                                      size_t layer, const int32_t *channels,
                                                      size_t count, aimo_error *err);

/* The matrices of a layer in the order of their use, for aimo_encoder_input_peaks. */
enum { AIMO_LAYER_MATRICES = 4 }; /* qkv, attention, up, down */

/* peaks [layers][AIMO_LAYER_MATRICES][max(hidden, intermediate)] f32 = the largest magnitude that
 * each input channel of each matrix takes while the batch is encoded; 0 behind a matrix's inputs.
 * Arguments and errors as aimo_encoder_encode. */
AIMO_MUST_CHECK aimo_status aimo_encoder_input_peaks(const aimo_encoder *encoder,
                                                     const int32_t *token_ids,
                                                     const int64_t *offsets, size_t batch,
                                                     float *peaks, aimo_error *err);

/* What a forward pass consists of. Each product includes what is done to its result: the activation
 * of `up`; residual and layer norm after `attention_output` and `down`. */
typedef enum {
    AIMO_OP_EMBED,
    AIMO_OP_QKV,
    AIMO_OP_ATTENTION,
    AIMO_OP_ATTENTION_OUTPUT,
    AIMO_OP_UP,
    AIMO_OP_DOWN,
    AIMO_OP_POOL, /* with the dense layers behind it */
} aimo_operation;
enum { AIMO_OPERATION_COUNT = AIMO_OP_POOL + 1 };

/* seconds = how long each operation took, over all layers, while the batch was encoded; its chunks
 * run one after another. On a device that is how long it took to launch them, but for the last one,
 * which waits for all. Arguments and errors as aimo_encoder_encode. */
AIMO_MUST_CHECK aimo_status aimo_encoder_operation_seconds(const aimo_encoder *encoder,
                                                           const int32_t *token_ids,
                                                           const int64_t *offsets, size_t batch,
                                                           double seconds[AIMO_OPERATION_COUNT],
                                                           aimo_error *err);

/* Checks that every tensor was set and makes the encoder ready on a device: AIMO_DEVICE_CPU, or the
 * number of a CUDA device, to which the weights are copied. AIMO_ERR_FORMAT names the first tensor
 * that is missing; other errors are those of aimo_backend_cuda_new. */
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

/* out [offsets[batch], hidden] f32 = the last layer's vector of every token, before pooling; the
 * rest as aimo_encoder_encode. */
AIMO_MUST_CHECK aimo_status aimo_encoder_encode_tokens(const aimo_encoder *encoder,
                                                       const int32_t *token_ids,
                                                       const int64_t *offsets, size_t batch,
                                                       float *out, aimo_error *err);

const aimo_encoder_config *aimo_encoder_config_of(const aimo_encoder *encoder);
/* Tokens of the longest sequence: positions - first_position. */
size_t aimo_encoder_max_length(const aimo_encoder *encoder);
/* Elements of a vector. */
size_t aimo_encoder_dimension(const aimo_encoder *encoder);
/* Bytes of weights held. */
size_t aimo_encoder_weight_bytes(const aimo_encoder *encoder);

#endif
