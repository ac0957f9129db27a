/* Status codes and error text. A function that can fail returns aimo_status and takes an optional
 * aimo_error, always last, that lives on the caller's stack. */
#ifndef AIMO_BASE_STATUS_H
#define AIMO_BASE_STATUS_H

#include "base/platform.h"

#include <stddef.h>

typedef enum {
    AIMO_OK = 0,
    AIMO_ERR_ARGUMENT,    /* a shape, dtype or range the caller passed */
    AIMO_ERR_MEMORY,      /* host or device allocation failed */
    AIMO_ERR_UNSUPPORTED, /* not built in, or this machine lacks it */
    AIMO_ERR_FORMAT,      /* a file or buffer that is not what it says */
    AIMO_ERR_DEVICE,      /* the CUDA runtime or cuBLAS reported a failure */
} aimo_status;

/* NULL is accepted wherever a pointer to one is taken. */
typedef struct {
    char message[256];
} aimo_error;

/* Writes the message (cut at 255 bytes) and returns `status`, so that a check is one line. */
aimo_status aimo_fail(aimo_error *err, aimo_status status, const char *format, ...)
    AIMO_PRINTF(3, 4);

/* Forwards a failure to the caller. */
#define AIMO_TRY(call)                                                                             \
    do {                                                                                           \
        const aimo_status try_status_ = (call);                                                    \
        if (try_status_ != AIMO_OK)                                                                \
            return try_status_;                                                                    \
    } while (0)

/* *product = a * b, or AIMO_ERR_ARGUMENT when it does not fit a size_t; `what` names the size. */
AIMO_MUST_CHECK aimo_status aimo_size_mul(size_t a, size_t b, size_t *product, const char *what,
                                          aimo_error *err);

#endif
