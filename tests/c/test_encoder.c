/* encoder: a sequence's vector does not depend on its batch; weights come back as stored; every
 * failure is reported and leaks nothing. (Right values: tests/embedding compares with
 * transformers.) */
#include "test.h"

#include "base/memory.h"
#include "base/scratch.h"
#include "base/threads.h"
#include "encoder/encoder.h"

#include <stdlib.h>
#include <string.h>

static const aimo_encoder_config small = {
    .dtype = AIMO_F16,
    .layers = 2,
    .hidden = 36,
    .heads = 3,
    .intermediate = 50,
    .vocabulary = 40,
    .positions = 64,
    .token_types = 2,
    .layer_norm_epsilon = 1e-12f,
    .activation = AIMO_ACT_GELU,
    .poolings = {AIMO_POOL_MEAN},
    .pooling_count = 1,
};

static const aimo_encode_options unit = {.normalize = true};

/* Sets every tensor but `left_out` to random values. */
static aimo_status set_tensors(aimo_encoder *encoder, const char *left_out, aimo_error *err)
{
    uint64_t random = 17;
    const char *name;
    bool per_layer;
    for (size_t i = 0; (name = aimo_encoder_tensor_name(i, &per_layer)) != NULL; i++) {
        size_t rows, columns;
        aimo_encoder_tensor_shape(encoder, i, &rows, &columns);
        if (rows == 0 || strcmp(name, left_out) == 0)
            continue;
        const size_t count = rows * (columns != 0 ? columns : 1);
        const size_t layers = per_layer ? aimo_encoder_config_of(encoder)->layers : 1;
        for (size_t layer = 0; layer < layers; layer++) {
            float *data = malloc(count * sizeof *data);
            for (size_t j = 0; j < count; j++)
                data[j] = 0.3f * test_random_normal(&random) + (columns == 0 ? 0.5f : 0.0f);
            const aimo_status status =
                aimo_encoder_set_tensor(encoder, i, layer, data, rows, columns, err);
            free(data);
            AIMO_TRY(status);
        }
    }
    return AIMO_OK;
}

static aimo_status new_encoder(aimo_encoder_config config, aimo_encoder **out, aimo_error *err)
{
    AIMO_TRY(aimo_encoder_new(&config, out, err));
    aimo_status status = set_tensors(*out, "", err);
    if (status == AIMO_OK)
        status = aimo_encoder_seal(*out, AIMO_DEVICE_CPU, err);
    if (status != AIMO_OK)
        aimo_encoder_free(*out);
    return status;
}

enum { BATCH = 70, MOST_TOKENS = BATCH * 64 };

typedef struct {
    int32_t ids[MOST_TOKENS];
    int64_t offsets[BATCH + 1];
} batch;

static void fill_batch(batch *b)
{
    uint64_t random = 23;
    b->offsets[0] = 0;
    for (size_t i = 0; i < BATCH; i++) {
        const int64_t length = i == 3 ? 64 : 1 + (int64_t)(test_random(&random) % 50);
        b->offsets[i + 1] = b->offsets[i] + length;
    }
    for (int64_t t = 0; t < b->offsets[BATCH]; t++)
        b->ids[t] = (int32_t)(test_random(&random) % 40);
}

TEST(encoder_vector_does_not_depend_on_batch_or_threads)
{
    static batch b;
    fill_batch(&b);
    for (int dtype = 0; dtype < AIMO_DTYPE_COUNT; dtype++) {
        aimo_encoder_config config = small;
        config.dtype = (aimo_dtype)dtype;
        aimo_encoder *encoder;
        aimo_error err;
        CHECK_MSG(new_encoder(config, &encoder, &err) == AIMO_OK, "%s", err.message);
        bool same = true;
        float all[BATCH * 36], one[36];
        for (size_t threads = 1; threads <= 3; threads++) {
            CHECK(aimo_thread_count_set(threads, NULL) == AIMO_OK);
            same &=
                aimo_encoder_encode(encoder, b.ids, b.offsets, BATCH, &unit, all, &err) == AIMO_OK;
            for (size_t i = 0; i < BATCH; i++) {
                const int64_t offsets[] = {0, b.offsets[i + 1] - b.offsets[i]};
                same &= aimo_encoder_encode(encoder, b.ids + b.offsets[i], offsets, 1, &unit, one,
                                            &err) == AIMO_OK;
                same &= memcmp(one, all + i * 36, sizeof one) == 0;
            }
        }
        CHECK(aimo_thread_count_set(0, NULL) == AIMO_OK);
        aimo_encoder_free(encoder);
        CHECK_MSG(same, "%s", aimo_dtype_name((aimo_dtype)dtype));
    }
}

TEST(encoder_vector_is_what_pooling_makes_of_the_tokens)
{
    static batch b;
    static float tokens[MOST_TOKENS * 36];
    fill_batch(&b);
    aimo_encoder_config config = small;
    config.poolings[0] = AIMO_POOL_CLS;
    aimo_encoder *encoder;
    aimo_error err;
    CHECK_MSG(new_encoder(config, &encoder, &err) == AIMO_OK, "%s", err.message);
    const aimo_encode_options options = {0};
    float pooled[BATCH * 36];
    bool same =
        aimo_encoder_encode(encoder, b.ids, b.offsets, BATCH, &options, pooled, &err) == AIMO_OK &&
        aimo_encoder_encode_tokens(encoder, b.ids, b.offsets, BATCH, tokens, &err) == AIMO_OK;
    for (size_t i = 0; i < BATCH; i++)
        same &= memcmp(pooled + i * 36, tokens + b.offsets[i] * 36, 36 * sizeof(float)) == 0;
    const int64_t bad[] = {0, 65};
    same &= aimo_encoder_encode_tokens(encoder, b.ids, bad, 1, tokens, &err) == AIMO_ERR_ARGUMENT;
    aimo_encoder_free(encoder);
    CHECK(same);
}

/* Two poolings side by side, through two dense layers. */
static aimo_encoder_config with_head(void)
{
    aimo_encoder_config config = small;
    config.poolings[1] = AIMO_POOL_MAX;
    config.pooling_count = 2;
    config.dense[0] = (aimo_dense){72, 200, AIMO_ACT_TANH};
    config.dense[1] = (aimo_dense){200, 21, AIMO_ACT_NONE};
    config.dense_count = 2;
    return config;
}

TEST(encoder_vector_after_dense_layers_does_not_depend_on_batch_either)
{
    static batch b;
    fill_batch(&b);
    aimo_encoder *encoder;
    aimo_error err;
    CHECK_MSG(new_encoder(with_head(), &encoder, &err) == AIMO_OK, "%s", err.message);
    const bool dimension = aimo_encoder_dimension(encoder) == 21;
    const aimo_encode_options options = {.skip = 2, .columns = 17, .normalize = true};
    aimo_encode_options alone = options;
    alone.out_on_device = true; /* the host's memory is the device's here */
    bool same = true;
    float all[BATCH * 17], one[17];
    for (size_t threads = 1; threads <= 3; threads++) {
        CHECK(aimo_thread_count_set(threads, NULL) == AIMO_OK);
        same &= aimo_encoder_encode(encoder, b.ids, b.offsets, BATCH, &options, all, &err) == 0;
        for (size_t i = 0; i < BATCH; i++) {
            const int64_t offsets[] = {0, b.offsets[i + 1] - b.offsets[i]};
            same &= aimo_encoder_encode(encoder, b.ids + b.offsets[i], offsets, 1, &alone, one,
                                        &err) == AIMO_OK;
            same &= memcmp(one, all + i * 17, sizeof one) == 0;
        }
    }
    CHECK(aimo_thread_count_set(0, NULL) == AIMO_OK);
    const aimo_encode_options wide = {.columns = 22};
    const aimo_status refused = aimo_encoder_encode(encoder, b.ids, b.offsets, 1, &wide, all, &err);
    aimo_encoder_free(encoder);
    CHECK(dimension && same);
    CHECK(refused == AIMO_ERR_ARGUMENT);
}

TEST(encoder_gives_weights_back_as_stored)
{
    aimo_encoder_config config = with_head();
    config.dtype = AIMO_F32;
    aimo_encoder *encoder;
    aimo_error err;
    CHECK(aimo_encoder_new(&config, &encoder, &err) == AIMO_OK);
    bool same = true, per_layer;
    uint64_t random = 29;
    for (size_t i = 0; aimo_encoder_tensor_name(i, &per_layer) != NULL; i++) {
        size_t rows, columns;
        aimo_encoder_tensor_shape(encoder, i, &rows, &columns);
        if (rows == 0)
            continue;
        const size_t count = rows * (columns != 0 ? columns : 1);
        float *data = malloc(count * sizeof *data), *back = malloc(count * sizeof *back);
        for (size_t j = 0; j < count; j++)
            data[j] = test_random_float(&random);
        same &= aimo_encoder_set_tensor(encoder, i, 0, data, rows, columns, &err) == AIMO_OK;
        same &= aimo_encoder_get_tensor(encoder, i, 0, back, rows, columns, &err) == AIMO_OK;
        same &= memcmp(data, back, count * sizeof *data) == 0;
        free(data);
        free(back);
    }
    aimo_encoder_free(encoder);
    CHECK(same);
}

/* Maps every weight of `from` into `to`. */
static aimo_status map_all(const aimo_encoder *from, aimo_encoder *to, aimo_error *err)
{
    bool per_layer;
    aimo_weight_info info;
    for (size_t i = 0; aimo_encoder_tensor_name(i, &per_layer) != NULL; i++) {
        if (!aimo_encoder_weight_info(from, i, &info))
            continue;
        for (size_t layer = 0; layer < (info.layers != 0 ? info.layers : 1); layer++)
            AIMO_TRY(aimo_encoder_map_weight(to, i, layer, aimo_encoder_weight_data(from, i, layer),
                                             info.bytes, err));
    }
    return aimo_encoder_seal(to, AIMO_DEVICE_CPU, err);
}

TEST(encoder_over_mapped_weights_gives_the_same_vectors)
{
    static const int32_t ids[] = {1, 2, 3, 39, 7};
    const int64_t offsets[] = {0, 2, 5};
    for (int dtype = 0; dtype < AIMO_DTYPE_COUNT; dtype++) {
        aimo_encoder_config config = small;
        config.dtype = (aimo_dtype)dtype;
        aimo_encoder *owner, *mapped;
        aimo_error err;
        CHECK(new_encoder(config, &owner, &err) == AIMO_OK);
        CHECK(aimo_encoder_new(&config, &mapped, &err) == AIMO_OK);
        const size_t live = aimo_memory_live_bytes();
        const aimo_status status = map_all(owner, mapped, &err);
        const size_t added = aimo_memory_live_bytes() - live;
        float expected[2 * 36], got[2 * 36];
        bool same = status == AIMO_OK;
        same =
            same && aimo_encoder_encode(owner, ids, offsets, 2, &unit, expected, &err) == AIMO_OK;
        same = same && aimo_encoder_encode(mapped, ids, offsets, 2, &unit, got, &err) == AIMO_OK;
        same = same && memcmp(expected, got, sizeof got) == 0;
        aimo_encoder_free(mapped);
        aimo_encoder_free(owner);
        CHECK_MSG(same, "%s: %s", aimo_dtype_name((aimo_dtype)dtype), err.message);
        CHECK(added < 2048); /* views of matrices, no weight */
    }
}

TEST(encoder_maps_only_what_is_a_whole_weight)
{
    enum { NORM = 3, KEY = 6 };
    _Alignas(64) float values[36 + 16] = {0.0f};
    const size_t bytes = 36 * sizeof(float);
    aimo_encoder *encoder;
    aimo_error err;
    CHECK(aimo_encoder_new(&small, &encoder, &err) == AIMO_OK);
    const aimo_status part = aimo_encoder_map_weight(encoder, KEY, 0, values, bytes, &err);
    const aimo_status layer = aimo_encoder_map_weight(encoder, NORM, 1, values, bytes, &err);
    const aimo_status shorter = aimo_encoder_map_weight(encoder, NORM, 0, values, bytes - 4, &err);
    const bool size_named = strstr(err.message, "expected 144 bytes, got 140") != NULL;
    const aimo_status odd = aimo_encoder_map_weight(encoder, NORM, 0, values + 1, bytes, &err);
    values[35] = INFINITY;
    const aimo_status infinite = aimo_encoder_map_weight(encoder, NORM, 0, values, bytes, &err);
    values[35] = 0.0f;
    const aimo_status unset = aimo_encoder_get_tensor(encoder, NORM, 0, values + 16, 36, 0, &err);
    const aimo_status mapped = aimo_encoder_map_weight(encoder, NORM, 0, values, bytes, &err);
    const aimo_status twice = aimo_encoder_map_weight(encoder, NORM, 0, values, bytes, &err);
    const aimo_status set = aimo_encoder_set_tensor(encoder, NORM, 0, values, 36, 0, &err);
    aimo_encoder_free(encoder);
    CHECK(part == AIMO_ERR_ARGUMENT && layer == AIMO_ERR_ARGUMENT);
    CHECK(shorter == AIMO_ERR_FORMAT && size_named);
    CHECK(odd == AIMO_ERR_FORMAT && infinite == AIMO_ERR_FORMAT);
    CHECK(unset == AIMO_ERR_ARGUMENT);
    CHECK(mapped == AIMO_OK);
    CHECK(twice == AIMO_ERR_ARGUMENT && set == AIMO_ERR_ARGUMENT);
}

TEST(encoder_names_what_is_wrong_with_a_tensor)
{
    aimo_encoder *encoder;
    aimo_error err;
    CHECK(aimo_encoder_new(&small, &encoder, &err) == AIMO_OK);
    float row[36] = {0.0f}, large[36 * 36] = {0.0f};
    const aimo_status shape = aimo_encoder_set_tensor(encoder, 3, 0, row, 35, 0, &err);
    const bool shape_named = strstr(err.message, "embedding_norm.weight") != NULL;
    const aimo_status layer = aimo_encoder_set_tensor(encoder, 5, 2, large, 36, 36, &err);
    row[7] = NAN;
    const aimo_status nan = aimo_encoder_set_tensor(encoder, 3, 0, row, 36, 0, &err);
    large[40] = 70000.0f;
    const aimo_status overflow = aimo_encoder_set_tensor(encoder, 5, 1, large, 36, 36, &err);
    const bool overflow_named = strstr(err.message, "query.weight of layer 1") != NULL;
    const aimo_status sealed = aimo_encoder_seal(encoder, AIMO_DEVICE_CPU, &err);
    const bool missing_named = strstr(err.message, "missing tensor: word_embeddings") != NULL;
    aimo_encoder_free(encoder);
    CHECK(shape == AIMO_ERR_ARGUMENT && shape_named);
    CHECK(layer == AIMO_ERR_ARGUMENT);
    CHECK(nan == AIMO_ERR_FORMAT);
    CHECK(overflow == AIMO_ERR_FORMAT && overflow_named);
    CHECK(sealed == AIMO_ERR_FORMAT && missing_named);
}

TEST(encoder_finds_a_tensor_that_is_missing_in_one_layer)
{
    aimo_encoder *encoder;
    aimo_error err;
    CHECK(aimo_encoder_new(&small, &encoder, &err) == AIMO_OK);
    const aimo_status set = set_tensors(encoder, "down.bias", &err);
    const aimo_status sealed = aimo_encoder_seal(encoder, AIMO_DEVICE_CPU, &err);
    aimo_encoder_free(encoder);
    CHECK(set == AIMO_OK && sealed == AIMO_ERR_FORMAT);
    CHECK_MSG(strstr(err.message, "down.bias of layer 0") != NULL, "%s", err.message);
}

TEST(encoder_refuses_bad_batches_before_any_work)
{
    aimo_encoder *encoder;
    aimo_error err;
    CHECK(new_encoder(small, &encoder, &err) == AIMO_OK);
    float out[2 * 36];
    static const int32_t ids[70] = {1, 2, 40, -1};
    static const struct {
        int64_t offsets[3];
        size_t first_id;
    } wrong[] = {{{1, 2, 3}, 0},  {{0, 0, 2}, 0}, {{0, 2, 1}, 0},
                 {{0, 1, 66}, 0}, {{0, 1, 2}, 1}, {{0, 1, 2}, 2}};
    bool refused = true;
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++)
        refused &= aimo_encoder_encode(encoder, ids + wrong[i].first_id, wrong[i].offsets, 2, &unit,
                                       out, &err) == AIMO_ERR_ARGUMENT;
    const int64_t none[] = {0};
    const aimo_status empty = aimo_encoder_encode(encoder, ids, none, 0, &unit, out, &err);
    aimo_encoder_free(encoder);
    CHECK(refused);
    CHECK(empty == AIMO_OK);
}

TEST(encoder_refuses_configurations_that_make_no_sense)
{
    aimo_encoder *encoder;
    aimo_error err;
    aimo_encoder_config config = small;
    config.heads = 5;
    CHECK(aimo_encoder_new(&config, &encoder, &err) == AIMO_ERR_ARGUMENT);
    config = small;
    config.layers = 0;
    CHECK(aimo_encoder_new(&config, &encoder, &err) == AIMO_ERR_ARGUMENT);
    config = small;
    config.first_position = 64;
    CHECK(aimo_encoder_new(&config, &encoder, &err) == AIMO_ERR_ARGUMENT);
    config = small;
    config.layer_norm_epsilon = NAN;
    CHECK(aimo_encoder_new(&config, &encoder, &err) == AIMO_ERR_ARGUMENT);
    config = small;
    config.pooling_count = 0;
    CHECK(aimo_encoder_new(&config, &encoder, &err) == AIMO_ERR_ARGUMENT);
    config = with_head();
    config.dense[1].inputs = 201;
    CHECK(aimo_encoder_new(&config, &encoder, &err) == AIMO_ERR_ARGUMENT);
    config = with_head();
    config.dense[1].outputs = 0;
    CHECK(aimo_encoder_new(&config, &encoder, &err) == AIMO_ERR_ARGUMENT);
}

TEST(encoder_reports_every_failed_allocation_and_leaks_nothing)
{
    const int64_t offsets[] = {0, 3};
    static const int32_t ids[] = {1, 2, 3};
    float out[36];
    for (long allocations = 0;; allocations++) {
        aimo_encoder *encoder;
        aimo_error err;
        aimo_scratch_trim();
        aimo_memory_fail_after(allocations);
        aimo_status status = new_encoder(with_head(), &encoder, &err);
        if (status == AIMO_OK) {
            status = aimo_encoder_encode(encoder, ids, offsets, 1, &unit, out, &err);
            aimo_encoder_free(encoder);
        }
        aimo_memory_fail_after(-1);
        CHECK(status == AIMO_OK || status == AIMO_ERR_MEMORY);
        if (status == AIMO_OK)
            return;
        CHECK(allocations < 1000);
    }
}
