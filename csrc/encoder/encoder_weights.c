/* The encoder's tensors: one table has the name, kind, shape and place of each. */
#include "encoder/encoder_weights.h"

#include "base/memory.h"
#include "gemm/gemm_int8.h"
#include "half/half.h"

#include <assert.h>
#include <math.h>
#include <string.h>

typedef enum { MATRIX, TABLE, VECTOR } kind;

/* Sizes that shapes are made of. */
typedef enum {
    NONE,
    HIDDEN,
    INTERMEDIATE,
    VOCABULARY,
    POSITIONS,
    TOKEN_TYPES,
    DENSE_INPUTS, /* of the first; the others follow */
    DENSE_OUTPUTS = DENSE_INPUTS + AIMO_DENSE_MOST,
    EXTENT_END = DENSE_OUTPUTS + AIMO_DENSE_MOST,
} extent;

typedef struct {
    const char *name;
    kind kind;
    extent rows, columns;
    size_t offset; /* of the aimo_weight in aimo_layer_weights or aimo_model_weights */
    const char *weight;
    bool per_layer;
    size_t part, parts; /* this tensor is block `part` of `parts` equal row blocks of its weight */
} tensor;

#define LAYER(field) offsetof(aimo_layer_weights, field), #field, true
#define MODEL(field) offsetof(aimo_model_weights, field), #field, false
#define DENSE(i) offsetof(aimo_model_weights, dense[i]), "dense_" #i, false
#define DENSE_BIAS(i) offsetof(aimo_model_weights, dense_bias[i]), "dense_" #i "_bias", false
#define DENSE_LAYER(i)                                                                             \
    {"dense_" #i ".weight", MATRIX, DENSE_OUTPUTS + i, DENSE_INPUTS + i, DENSE(i), 0, 1},          \
    {                                                                                              \
        "dense_" #i ".bias", VECTOR, DENSE_OUTPUTS + i, NONE, DENSE_BIAS(i), 0, 1                  \
    }

static const tensor tensors[] = {
    {"word_embeddings", TABLE, VOCABULARY, HIDDEN, MODEL(word), 0, 1},
    {"position_embeddings", TABLE, POSITIONS, HIDDEN, MODEL(position), 0, 1},
    {"token_type_embeddings", TABLE, TOKEN_TYPES, HIDDEN, MODEL(type), 0, 1},
    {"embedding_norm.weight", VECTOR, HIDDEN, NONE, MODEL(norm), 0, 1},
    {"embedding_norm.bias", VECTOR, HIDDEN, NONE, MODEL(norm_bias), 0, 1},
    {"query.weight", MATRIX, HIDDEN, HIDDEN, LAYER(qkv), 0, 3},
    {"key.weight", MATRIX, HIDDEN, HIDDEN, LAYER(qkv), 1, 3},
    {"value.weight", MATRIX, HIDDEN, HIDDEN, LAYER(qkv), 2, 3},
    {"query.bias", VECTOR, HIDDEN, NONE, LAYER(qkv_bias), 0, 3},
    {"key.bias", VECTOR, HIDDEN, NONE, LAYER(qkv_bias), 1, 3},
    {"value.bias", VECTOR, HIDDEN, NONE, LAYER(qkv_bias), 2, 3},
    {"attention_output.weight", MATRIX, HIDDEN, HIDDEN, LAYER(attention), 0, 1},
    {"attention_output.bias", VECTOR, HIDDEN, NONE, LAYER(attention_bias), 0, 1},
    {"attention_norm.weight", VECTOR, HIDDEN, NONE, LAYER(attention_norm), 0, 1},
    {"attention_norm.bias", VECTOR, HIDDEN, NONE, LAYER(attention_norm_bias), 0, 1},
    {"up.weight", MATRIX, INTERMEDIATE, HIDDEN, LAYER(up), 0, 1},
    {"up.bias", VECTOR, INTERMEDIATE, NONE, LAYER(up_bias), 0, 1},
    {"down.weight", MATRIX, HIDDEN, INTERMEDIATE, LAYER(down), 0, 1},
    {"down.bias", VECTOR, HIDDEN, NONE, LAYER(down_bias), 0, 1},
    {"output_norm.weight", VECTOR, HIDDEN, NONE, LAYER(output_norm), 0, 1},
    {"output_norm.bias", VECTOR, HIDDEN, NONE, LAYER(output_norm_bias), 0, 1},
    DENSE_LAYER(0),
    DENSE_LAYER(1),
    DENSE_LAYER(2),
    DENSE_LAYER(3),
};
enum { TENSOR_COUNT = sizeof tensors / sizeof tensors[0] };
_Static_assert(TENSOR_COUNT <= 32, "the sets of tensors are 32-bit masks");

static size_t extent_of(const aimo_encoder_config *c, extent e)
{
    switch (e) {
    case NONE:
        return 0;
    case HIDDEN:
        return c->hidden;
    case INTERMEDIATE:
        return c->intermediate;
    case VOCABULARY:
        return c->vocabulary;
    case POSITIONS:
        return c->positions;
    case TOKEN_TYPES:
        return c->token_types;
    default: /* 0 for a dense layer that the model does not have */
        assert(e < EXTENT_END);
        return e < DENSE_OUTPUTS ? c->dense[e - DENSE_INPUTS].inputs
                                 : c->dense[e - DENSE_OUTPUTS].outputs;
    }
}

static aimo_weight *weight_of(const aimo_encoder *encoder, const tensor *t, size_t layer)
{
    char *base = t->per_layer ? (char *)&encoder->layers[layer] : (char *)&encoder->model;
    return (aimo_weight *)(base + t->offset);
}

/* Calls one(encoder, t, layer, err) once for every weight, where t is the weight's first tensor;
 * stops at a failure. */
static aimo_status for_each_weight(aimo_encoder *encoder,
                                   aimo_status (*one)(aimo_encoder *, const tensor *, aimo_weight *,
                                                      aimo_error *),
                                   aimo_error *err)
{
    for (size_t i = 0; i < TENSOR_COUNT; i++) {
        const tensor *t = &tensors[i];
        const size_t layers = t->per_layer ? encoder->config.layers : 1;
        if (t->part != 0 || extent_of(&encoder->config, t->rows) == 0)
            continue;
        for (size_t layer = 0; layer < layers; layer++)
            AIMO_TRY(one(encoder, t, weight_of(encoder, t, layer), err));
    }
    return AIMO_OK;
}

const char *aimo_encoder_tensor_name(size_t index, bool *per_layer)
{
    if (index >= TENSOR_COUNT)
        return NULL;
    *per_layer = tensors[index].per_layer;
    return tensors[index].name;
}

void aimo_encoder_tensor_shape(const aimo_encoder *encoder, size_t index, size_t *rows,
                               size_t *columns)
{
    *rows = extent_of(&encoder->config, tensors[index].rows);
    *columns = extent_of(&encoder->config, tensors[index].columns);
}

static aimo_status measure(aimo_encoder *encoder, const tensor *t, aimo_weight *w, aimo_error *err)
{
    const aimo_encoder_config *c = &encoder->config;
    const size_t rows = extent_of(c, t->rows) * t->parts, columns = extent_of(c, t->columns);
    if (t->kind == MATRIX) {
        AIMO_TRY(aimo_panels_size(c->dtype, rows, columns, &w->bytes, err));
    } else {
        const size_t row =
            t->kind == VECTOR ? sizeof(float) : aimo_table_row_bytes(c->dtype, columns);
        AIMO_TRY(aimo_size_mul(rows, row, &w->bytes, t->name, err));
    }
    encoder->weight_bytes += w->bytes;
    return AIMO_OK;
}

aimo_status aimo_weights_new(aimo_encoder *encoder, aimo_error *err)
{
    const size_t layers = encoder->config.layers;
    AIMO_TRY(aimo_memory_new_zero((void **)&encoder->layers, layers, sizeof *encoder->layers,
                                  "layers", err));
    AIMO_TRY(aimo_memory_new_zero((void **)&encoder->layers_set, layers,
                                  sizeof *encoder->layers_set, "layers", err));
    return for_each_weight(encoder, measure, err);
}

static aimo_status upload(aimo_encoder *encoder, const tensor *t, aimo_weight *w, aimo_error *err)
{
    const aimo_encoder_config *c = &encoder->config;
    aimo_backend *b = encoder->backend;
    if (t->kind == MATRIX)
        return b->ops->matrix_new(b, c->dtype, extent_of(c, t->rows) * t->parts,
                                  extent_of(c, t->columns), w->data, &w->matrix, err);
    return b->ops->constant_new(b, w->data, w->bytes, &w->device, err);
}

aimo_status aimo_weights_upload(aimo_encoder *encoder, aimo_error *err)
{
    return for_each_weight(encoder, upload, err);
}

static aimo_status release(aimo_encoder *encoder, const tensor *t, aimo_weight *w, aimo_error *err)
{
    (void)t, (void)err;
    aimo_backend *b = encoder->backend;
    if (b != NULL && w->matrix != NULL)
        b->ops->matrix_free(b, w->matrix);
    if (b != NULL && w->device != NULL)
        b->ops->constant_free(b, w->device);
    aimo_memory_free(w->owned);
    return AIMO_OK;
}

void aimo_weights_free(aimo_encoder *encoder)
{
    if (encoder->layers != NULL)
        (void)for_each_weight(encoder, release, NULL);
    aimo_memory_free(encoder->layers);
    aimo_memory_free(encoder->layers_set);
}

aimo_status aimo_weights_check_complete(const aimo_encoder *encoder, aimo_error *err)
{
    for (size_t i = 0; i < TENSOR_COUNT; i++) {
        const tensor *t = &tensors[i];
        if (extent_of(&encoder->config, t->rows) == 0)
            continue;
        if (!t->per_layer && (encoder->model_set >> i & 1) == 0)
            return aimo_fail(err, AIMO_ERR_FORMAT, "missing tensor: %s", t->name);
        for (size_t layer = 0; t->per_layer && layer < encoder->config.layers; layer++)
            if ((encoder->layers_set[layer] >> i & 1) == 0)
                return aimo_fail(err, AIMO_ERR_FORMAT, "missing tensor: %s of layer %zu", t->name,
                                 layer);
    }
    return AIMO_OK;
}

static aimo_status check_tensor(const aimo_encoder *encoder, size_t index, size_t layer,
                                size_t rows, size_t columns, aimo_error *err)
{
    if (index >= TENSOR_COUNT)
        return aimo_fail(err, AIMO_ERR_ARGUMENT, "no tensor has the index %zu", index);
    const tensor *t = &tensors[index];
    if (layer >= (t->per_layer ? encoder->config.layers : 1))
        return aimo_fail(err, AIMO_ERR_ARGUMENT, "%s: there is no layer %zu", t->name, layer);
    const size_t expected_rows = extent_of(&encoder->config, t->rows);
    const size_t expected_columns = extent_of(&encoder->config, t->columns);
    if (expected_rows == 0)
        return aimo_fail(err, AIMO_ERR_ARGUMENT, "%s: the configuration has no such tensor",
                         t->name);
    if (rows != expected_rows || columns != expected_columns)
        return aimo_fail(err, AIMO_ERR_ARGUMENT, "%s: expected shape (%zu, %zu), got (%zu, %zu)",
                         t->name, expected_rows, expected_columns, rows, columns);
    return AIMO_OK;
}

static aimo_status check_values(const aimo_encoder *encoder, const tensor *t, size_t layer,
                                const float *data, size_t count, aimo_error *err)
{
    /* The first f32 that rounds to infinity. Any channel of an int8 matrix may stay in f16. */
    const aimo_dtype dtype = encoder->config.dtype;
    const bool narrow =
        (t->kind != VECTOR && dtype == AIMO_F16) || (t->kind == MATRIX && dtype == AIMO_INT8);
    const float limit = narrow ? 65520.0f : INFINITY;
    for (size_t i = 0; i < count; i++) {
        if (fabsf(data[i]) < limit)
            continue;
        const char *problem = isfinite(data[i]) ? "does not fit f16" : "is not finite";
        return aimo_fail(err, AIMO_ERR_FORMAT, "%s of layer %zu: value %g at index %zu %s", t->name,
                         layer, (double)data[i], i, problem);
    }
    return AIMO_OK;
}

static void row_pack_int8(const float *src, int8_t *row, size_t columns)
{
    float largest = 0.0f;
    for (size_t i = 0; i < columns; i++)
        largest = fmaxf(largest, fabsf(src[i]));
    const float inverse = aimo_int8_inverse_scale(largest), scale = aimo_int8_scale(largest);
    for (size_t i = 0; i < columns; i++)
        row[i] = (int8_t)rintf(src[i] * inverse);
    memcpy(row + columns, &scale, sizeof scale);
}

static void row_unpack_int8(const int8_t *row, float *dst, size_t columns)
{
    float scale;
    memcpy(&scale, row + columns, sizeof scale);
    for (size_t i = 0; i < columns; i++)
        dst[i] = (float)row[i] * scale;
}

static void table_pack(aimo_dtype dtype, const float *src, void *dst, size_t rows, size_t columns)
{
    const size_t n = rows * columns, row_bytes = aimo_table_row_bytes(dtype, columns);
    if (dtype == AIMO_F32)
        memcpy(dst, src, n * sizeof *src);
    else if (dtype == AIMO_F16)
        aimo_f32_to_f16(src, dst, n);
    else if (dtype == AIMO_BF16)
        aimo_f32_to_bf16(src, dst, n);
    else
        for (size_t r = 0; r < rows; r++)
            row_pack_int8(src + r * columns, (int8_t *)dst + r * row_bytes, columns);
}

static void table_unpack(aimo_dtype dtype, const void *src, float *dst, size_t rows, size_t columns)
{
    const size_t n = rows * columns, row_bytes = aimo_table_row_bytes(dtype, columns);
    if (dtype == AIMO_F32)
        memcpy(dst, src, n * sizeof *dst);
    else if (dtype == AIMO_F16)
        aimo_f16_to_f32(src, dst, n);
    else if (dtype == AIMO_BF16)
        aimo_bf16_to_f32(src, dst, n);
    else
        for (size_t r = 0; r < rows; r++)
            row_unpack_int8((const int8_t *)src + r * row_bytes, dst + r * columns, columns);
}

/* Allocates a weight's memory, zeroed because panels are padded with zeros. */
static aimo_status allocate(const tensor *t, aimo_weight *w, aimo_error *err)
{
    if (w->owned != NULL)
        return AIMO_OK;
    if (w->data != NULL)
        return aimo_fail(err, AIMO_ERR_ARGUMENT, "%s: its weight is mapped", t->name);
    AIMO_TRY(aimo_memory_new_zero(&w->owned, w->bytes, 1, t->name, err));
    w->data = w->owned;
    return AIMO_OK;
}

aimo_status aimo_encoder_set_tensor(aimo_encoder *encoder, size_t index, size_t layer,
                                    const float *data, size_t rows, size_t columns, aimo_error *err)
{
    AIMO_TRY(check_tensor(encoder, index, layer, rows, columns, err));
    const tensor *t = &tensors[index];
    if (encoder->backend != NULL)
        return aimo_fail(err, AIMO_ERR_ARGUMENT, "%s: the encoder is sealed", t->name);
    const size_t count = t->kind == VECTOR ? rows : rows * columns;
    AIMO_TRY(check_values(encoder, t, layer, data, count, err));

    const aimo_dtype dtype = encoder->config.dtype;
    aimo_weight *w = weight_of(encoder, t, layer);
    AIMO_TRY(allocate(t, w, err));
    if (t->kind == MATRIX)
        aimo_panels_pack(dtype, rows * t->parts, columns, w->owned, data, rows * t->part, rows);
    else if (t->kind == TABLE)
        table_pack(dtype, data, w->owned, rows, columns);
    else
        memcpy((float *)w->owned + rows * t->part, data, count * sizeof *data);
    *(t->per_layer ? &encoder->layers_set[layer] : &encoder->model_set) |= 1u << index;
    return AIMO_OK;
}

aimo_status aimo_encoder_get_tensor(const aimo_encoder *encoder, size_t index, size_t layer,
                                    float *data, size_t rows, size_t columns, aimo_error *err)
{
    AIMO_TRY(check_tensor(encoder, index, layer, rows, columns, err));
    const tensor *t = &tensors[index];
    const aimo_dtype dtype = encoder->config.dtype;
    const aimo_weight *w = weight_of(encoder, t, layer);
    if (w->data == NULL)
        return aimo_fail(err, AIMO_ERR_ARGUMENT, "%s of layer %zu was not set", t->name, layer);
    if (t->kind == MATRIX)
        aimo_panels_unpack(dtype, rows * t->parts, columns, w->data, data, rows * t->part, rows);
    else if (t->kind == TABLE)
        table_unpack(dtype, w->data, data, rows, columns);
    else
        memcpy(data, (const float *)w->data + rows * t->part, rows * sizeof *data);
    return AIMO_OK;
}

aimo_status aimo_encoder_set_outliers(aimo_encoder *encoder, size_t index, size_t layer,
                                      const int32_t *channels, size_t count, aimo_error *err)
{
    aimo_weight_info info;
    if (!aimo_encoder_weight_info(encoder, index, &info) || tensors[index].kind != MATRIX ||
        info.dtype != AIMO_INT8 || layer >= (info.layers != 0 ? info.layers : 1))
        return aimo_fail(err, AIMO_ERR_ARGUMENT, "tensor %zu of layer %zu begins no int8 matrix",
                         index, layer);
    const tensor *t = &tensors[index];
    aimo_weight *w = weight_of(encoder, t, layer);
    if (w->data != NULL)
        return aimo_fail(err, AIMO_ERR_ARGUMENT, "%s of layer %zu was set already", info.name,
                         layer);
    const size_t k = extent_of(&encoder->config, t->columns);
    for (size_t i = 0; i < count; i++)
        if (count > AIMO_INT8_OUTLIERS || channels[i] < 0 || (size_t)channels[i] >= k)
            return aimo_fail(err, AIMO_ERR_ARGUMENT,
                             "%s: expected at most %d outlier channels below %zu", info.name,
                             AIMO_INT8_OUTLIERS, k);
    AIMO_TRY(allocate(t, w, err));
    aimo_panels_set_outliers(w->owned, channels, count);
    return AIMO_OK;
}

bool aimo_encoder_weight_info(const aimo_encoder *encoder, size_t tensor_index,
                              aimo_weight_info *info)
{
    const aimo_encoder_config *c = &encoder->config;
    if (tensor_index >= TENSOR_COUNT)
        return false;
    const tensor *t = &tensors[tensor_index];
    if (t->part != 0 || extent_of(c, t->rows) == 0)
        return false;
    const size_t rows = extent_of(c, t->rows) * t->parts, columns = extent_of(c, t->columns);
    *info = (aimo_weight_info){
        .name = t->weight,
        .dtype = t->kind == VECTOR ? AIMO_F32 : c->dtype,
        .layers = t->per_layer ? c->layers : 0,
        .bytes = weight_of(encoder, t, 0)->bytes,
    };
    if (t->kind == MATRIX) {
        info->dimensions = aimo_panels_shape(c->dtype, rows, columns, info->shape);
    } else {
        info->dimensions = t->kind == TABLE ? 2 : 1;
        info->shape[0] = rows;
        info->shape[1] = c->dtype == AIMO_INT8 ? aimo_table_row_bytes(c->dtype, columns) : columns;
    }
    return true;
}

const void *aimo_encoder_weight_data(const aimo_encoder *encoder, size_t tensor_index, size_t layer)
{
    return weight_of(encoder, &tensors[tensor_index], layer)->data;
}

aimo_status aimo_encoder_map_weight(aimo_encoder *encoder, size_t index, size_t layer,
                                    const void *data, size_t bytes, aimo_error *err)
{
    aimo_weight_info info;
    if (!aimo_encoder_weight_info(encoder, index, &info))
        return aimo_fail(err, AIMO_ERR_ARGUMENT, "no weight begins with the tensor %zu", index);
    const tensor *t = &tensors[index];
    if (layer >= (t->per_layer ? encoder->config.layers : 1))
        return aimo_fail(err, AIMO_ERR_ARGUMENT, "%s: there is no layer %zu", info.name, layer);
    aimo_weight *w = weight_of(encoder, t, layer);
    if (encoder->backend != NULL || w->data != NULL)
        return aimo_fail(err, AIMO_ERR_ARGUMENT, "%s of layer %zu was set already", info.name,
                         layer);
    if (bytes != w->bytes)
        return aimo_fail(err, AIMO_ERR_FORMAT, "%s of layer %zu: expected %zu bytes, got %zu",
                         info.name, layer, w->bytes, bytes);
    if ((uintptr_t)data % AIMO_CACHE_LINE != 0)
        return aimo_fail(err, AIMO_ERR_FORMAT, "%s of layer %zu is not aligned to %d bytes",
                         info.name, layer, AIMO_CACHE_LINE);
    if (t->kind == VECTOR)
        AIMO_TRY(check_values(encoder, t, layer, data, bytes / sizeof(float), err));
    if (t->kind == MATRIX && info.dtype == AIMO_INT8 &&
        !aimo_panels_outliers_fit(data, extent_of(&encoder->config, t->columns)))
        return aimo_fail(err, AIMO_ERR_FORMAT, "%s of layer %zu: an outlier channel does not exist",
                         info.name, layer);
    w->data = data;
    uint32_t *set = t->per_layer ? &encoder->layers_set[layer] : &encoder->model_set;
    for (size_t part = 0; part < TENSOR_COUNT; part++)
        if (tensors[part].offset == t->offset && tensors[part].per_layer == t->per_layer)
            *set |= 1u << part;
    return AIMO_OK;
}
