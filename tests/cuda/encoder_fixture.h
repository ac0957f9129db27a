/* Encoders under test: small, with random weights that are the same every time. */
#ifndef AIMO_ENCODER_FIXTURE_H
#define AIMO_ENCODER_FIXTURE_H

#include "encoder/encoder.h"

extern const aimo_encoder_config small;
/* The same with two poolings side by side, through two dense layers. */
aimo_encoder_config with_head(void);
enum { MOST_DIMENSION = 96 }; /* of either's vectors */

/* A sealed encoder; *out is NULL after a failure. */
aimo_status new_encoder(const aimo_encoder_config *config, int device, aimo_encoder **out,
                        aimo_error *err);

#endif
