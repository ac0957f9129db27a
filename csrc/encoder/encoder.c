/* An encoder's lifecycle and its properties. */
#include "encoder/encoder.h"

#include "base/cpu.h"
#include "base/memory.h"
#include "encoder/encoder_config.h"
#include "encoder/encoder_weights.h"

aimo_status aimo_encoder_new(const aimo_encoder_config *config, aimo_encoder **out, aimo_error *err)
{
    AIMO_TRY(aimo_encoder_config_check(config, err));
    aimo_encoder *encoder;
    AIMO_TRY(aimo_memory_new_zero((void **)&encoder, 1, sizeof *encoder, "encoder", err));
    encoder->config = *config;
    const aimo_status status = aimo_weights_new(encoder, err);
    if (status != AIMO_OK) {
        aimo_encoder_free(encoder);
        return status;
    }
    *out = encoder;
    return AIMO_OK;
}

aimo_status aimo_encoder_seal(aimo_encoder *encoder, int device, aimo_error *err)
{
    const aimo_encoder_config *c = &encoder->config;
    if (encoder->backend != NULL)
        return aimo_fail(err, AIMO_ERR_ARGUMENT, "the encoder is sealed already");
    AIMO_TRY(aimo_weights_check_complete(encoder, err));
    if (device == AIMO_DEVICE_CPU)
        AIMO_TRY(aimo_backend_cpu_new(aimo_cpu_enabled(), &encoder->backend, err));
    else
        AIMO_TRY(
            aimo_backend_cuda_new(device, c->dtype, c->hidden / c->heads, &encoder->backend, err));
    AIMO_TRY(aimo_weights_upload(encoder, err));
    encoder->sealed = true;
    return AIMO_OK;
}

void aimo_encoder_free(aimo_encoder *encoder)
{
    if (encoder == NULL)
        return;
    aimo_weights_free(encoder);
    if (encoder->backend != NULL)
        encoder->backend->ops->free(encoder->backend);
    aimo_memory_free(encoder);
}

const aimo_encoder_config *aimo_encoder_config_of(const aimo_encoder *encoder)
{
    return &encoder->config;
}

size_t aimo_encoder_max_length(const aimo_encoder *encoder)
{
    return encoder->config.positions - encoder->config.first_position;
}

size_t aimo_encoder_dimension(const aimo_encoder *encoder)
{
    const aimo_encoder_config *c = &encoder->config;
    return c->dense_count == 0 ? aimo_encoder_pooled_width(c)
                               : c->dense[c->dense_count - 1].outputs;
}

size_t aimo_encoder_weight_bytes(const aimo_encoder *encoder) { return encoder->weight_bytes; }
