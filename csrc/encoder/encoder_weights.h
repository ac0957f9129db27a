/* Where an encoder keeps its tensors. Private to csrc/encoder. */
#ifndef AIMO_ENCODER_WEIGHTS_H
#define AIMO_ENCODER_WEIGHTS_H

#include "encoder/encoder.h"

/* One block of memory: a matrix in panels, a table of rows, or an f32 vector. Several tensors may
 * share one (query, key and value are one matrix). */
typedef struct {
    const void *data; /* NULL until a tensor is set or the weight is mapped */
    void *owned;      /* equals data when it was allocated here; NULL when mapped */
    size_t bytes;
    const void *device;          /* tables and vectors, after sealing */
    aimo_backend_matrix *matrix; /* matrices, after sealing */
} aimo_weight;

typedef struct {
    aimo_weight qkv, qkv_bias;                       /* [3 * hidden, hidden], [3 * hidden] */
    aimo_weight attention, attention_bias;           /* [hidden, hidden], [hidden] */
    aimo_weight attention_norm, attention_norm_bias; /* [hidden] */
    aimo_weight up, up_bias;                         /* [intermediate, hidden], [intermediate] */
    aimo_weight down, down_bias;                     /* [hidden, intermediate], [hidden] */
    aimo_weight output_norm, output_norm_bias;       /* [hidden] */
} aimo_layer_weights;

typedef struct {
    aimo_weight word, position, type; /* [vocabulary | positions | token_types, hidden] */
    aimo_weight norm, norm_bias;      /* [hidden] */
    /* After pooling: [outputs, inputs], [outputs] */
    aimo_weight dense[AIMO_DENSE_MOST], dense_bias[AIMO_DENSE_MOST];
} aimo_model_weights;

struct aimo_encoder {
    aimo_encoder_config config;
    aimo_model_weights model;
    aimo_layer_weights *layers; /* [config.layers] */
    uint32_t model_set;         /* bit i: tensor i was set */
    uint32_t *layers_set;       /* [config.layers] */
    size_t weight_bytes;
    aimo_backend *backend; /* NULL until sealing begins */
    bool sealed;
};

/* Computes every weight's size; memory is allocated when a tensor of it is set. */
AIMO_MUST_CHECK aimo_status aimo_weights_new(aimo_encoder *encoder, aimo_error *err);
/* AIMO_ERR_FORMAT names the first tensor that was not set. */
AIMO_MUST_CHECK aimo_status aimo_weights_check_complete(const aimo_encoder *encoder,
                                                        aimo_error *err);
/* Hands every weight to encoder->backend. */
AIMO_MUST_CHECK aimo_status aimo_weights_upload(aimo_encoder *encoder, aimo_error *err);
void aimo_weights_free(aimo_encoder *encoder);

#endif
