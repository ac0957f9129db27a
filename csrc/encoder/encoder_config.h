/* Checks of an encoder's configuration, and the widths derived from it. Private to csrc/encoder. */
#ifndef AIMO_ENCODER_ENCODER_CONFIG_H
#define AIMO_ENCODER_ENCODER_CONFIG_H

#include "encoder/encoder.h"

/* AIMO_ERR_ARGUMENT names the first invalid field. */
AIMO_MUST_CHECK aimo_status aimo_encoder_config_check(const aimo_encoder_config *config,
                                                      aimo_error *err);
/* The largest number of inputs of any matrix of a layer. */
size_t aimo_encoder_widest_input(const aimo_encoder_config *config);
/* Elements of the pooled vector, before any dense layer. */
size_t aimo_encoder_pooled_width(const aimo_encoder_config *config);
/* Elements of the longest vector from pooling to the last dense layer. */
size_t aimo_encoder_widest_vector(const aimo_encoder_config *config);

#endif
