/* Encoders under test. */
#include "encoder_fixture.h"

#include "test.h"

#include <stdlib.h>

const aimo_encoder_config small = {
    .dtype = AIMO_F16,
    .layers = 2,
    .hidden = 48,
    .heads = 3,
    .intermediate = 56,
    .vocabulary = 40,
    .positions = 90,
    .token_types = 2,
    .layer_norm_epsilon = 1e-12f,
    .activation = AIMO_ACT_GELU,
    .poolings = {AIMO_POOL_MEAN},
    .pooling_count = 1,
};

aimo_encoder_config with_head(void)
{
    aimo_encoder_config config = small;
    config.poolings[1] = AIMO_POOL_MAX;
    config.pooling_count = 2;
    config.dense[0] = (aimo_dense){96, 40, AIMO_ACT_TANH};
    config.dense[1] = (aimo_dense){40, 21, AIMO_ACT_NONE};
    config.dense_count = 2;
    return config;
}

static aimo_status set_tensors(aimo_encoder *encoder, aimo_error *err)
{
    uint64_t random = 17;
    bool per_layer;
    for (size_t i = 0; aimo_encoder_tensor_name(i, &per_layer) != NULL; i++) {
        size_t rows, columns;
        aimo_encoder_tensor_shape(encoder, i, &rows, &columns);
        if (rows == 0)
            continue;
        const size_t count = rows * (columns != 0 ? columns : 1);
        const size_t layers = per_layer ? aimo_encoder_config_of(encoder)->layers : 1;
        for (size_t layer = 0; layer < layers; layer++) {
            float *data = malloc(count * sizeof *data);
            for (size_t j = 0; j < count; j++)
                data[j] = 0.2f * test_random_normal(&random) + (columns == 0 ? 0.5f : 0.0f);
            const aimo_status status =
                aimo_encoder_set_tensor(encoder, i, layer, data, rows, columns, err);
            free(data);
            AIMO_TRY(status);
        }
    }
    return AIMO_OK;
}

aimo_status new_encoder(const aimo_encoder_config *config, int device, aimo_encoder **out,
                        aimo_error *err)
{
    *out = NULL;
    AIMO_TRY(aimo_encoder_new(config, out, err));
    aimo_status status = set_tensors(*out, err);
    if (status == AIMO_OK)
        status = aimo_encoder_seal(*out, device, err);
    if (status != AIMO_OK) {
        aimo_encoder_free(*out);
        *out = NULL;
    }
    return status;
}
