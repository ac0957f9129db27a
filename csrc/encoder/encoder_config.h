/* What follows from an encoder's configuration: whether it makes sense, and how wide things are.
 * Private to csrc/encoder. */
#ifndef AIMO_ENCODER_ENCODER_CONFIG_H
#define AIMO_ENCODER_ENCODER_CONFIG_H

#include "encoder/encoder.h"

/* AIMO_ERR_ARGUMENT names the first field that makes no sense. */
AIMO_MUST_CHECK aimo_status aimo_encoder_config_check(const aimo_encoder_config *config,
                                                      aimo_error *err);
/* The most inputs that a matrix of a layer has. */
size_t aimo_encoder_widest_input(const aimo_encoder_config *config);
/* Elements of the pooled vector, before any dense layer. */
size_t aimo_encoder_pooled_width(const aimo_encoder_config *config);
/* Elements of the longest vector from pooling to the last dense layer. */
size_t aimo_encoder_widest_vector(const aimo_encoder_config *config);

#endif
