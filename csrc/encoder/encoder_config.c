/* An encoder's configuration: its checks and its widths. */
#include "encoder/encoder_config.h"

static aimo_status check_layers(const aimo_encoder_config *c, aimo_error *err)
{
    const struct {
        const char *name;
        size_t value;
    } positive[] = {{"layers", c->layers},         {"hidden", c->hidden},
                    {"heads", c->heads},           {"intermediate", c->intermediate},
                    {"vocabulary", c->vocabulary}, {"positions", c->positions}};
    for (size_t i = 0; i < sizeof positive / sizeof positive[0]; i++)
        if (positive[i].value == 0 || positive[i].value > INT32_MAX)
            return aimo_fail(err, AIMO_ERR_ARGUMENT, "%s: expected 1 to %d, got %zu",
                             positive[i].name, INT32_MAX, positive[i].value);
    if (c->hidden % c->heads != 0)
        return aimo_fail(err, AIMO_ERR_ARGUMENT, "heads: %zu does not divide the hidden size %zu",
                         c->heads, c->hidden);
    if (c->first_position >= c->positions)
        return aimo_fail(err, AIMO_ERR_ARGUMENT, "first_position: %zu leaves none of %zu positions",
                         c->first_position, c->positions);
    if (!(c->layer_norm_epsilon > 0.0f && c->layer_norm_epsilon < 1.0f))
        return aimo_fail(err, AIMO_ERR_ARGUMENT, "layer_norm_epsilon: expected 0 to 1, got %g",
                         (double)c->layer_norm_epsilon);
    return AIMO_OK;
}

static aimo_status check_head(const aimo_encoder_config *c, aimo_error *err)
{
    if (c->pooling_count == 0 || c->pooling_count > AIMO_POOLINGS_MOST)
        return aimo_fail(err, AIMO_ERR_ARGUMENT, "poolings: expected 1 to %d, got %zu",
                         AIMO_POOLINGS_MOST, c->pooling_count);
    if (c->dense_count > AIMO_DENSE_MOST)
        return aimo_fail(err, AIMO_ERR_ARGUMENT, "dense: expected at most %d, got %zu",
                         AIMO_DENSE_MOST, c->dense_count);
    size_t width = aimo_encoder_pooled_width(c);
    for (size_t i = 0; i < c->dense_count; i++) {
        if (c->dense[i].inputs != width)
            return aimo_fail(err, AIMO_ERR_ARGUMENT, "dense %zu: takes %zu inputs, expected %zu", i,
                             c->dense[i].inputs, width);
        width = c->dense[i].outputs;
        if (width == 0 || width > INT32_MAX)
            return aimo_fail(err, AIMO_ERR_ARGUMENT, "dense %zu: expected 1 to %d outputs, got %zu",
                             i, INT32_MAX, width);
    }
    return AIMO_OK;
}

aimo_status aimo_encoder_config_check(const aimo_encoder_config *config, aimo_error *err)
{
    AIMO_TRY(check_layers(config, err));
    return check_head(config, err);
}

size_t aimo_encoder_widest_input(const aimo_encoder_config *config)
{
    return config->intermediate > config->hidden ? config->intermediate : config->hidden;
}

size_t aimo_encoder_pooled_width(const aimo_encoder_config *config)
{
    return config->pooling_count * config->hidden;
}

size_t aimo_encoder_widest_vector(const aimo_encoder_config *config)
{
    size_t widest = aimo_encoder_pooled_width(config);
    for (size_t i = 0; i < config->dense_count; i++)
        if (config->dense[i].outputs > widest)
            widest = config->dense[i].outputs;
    return widest;
}
