/* Status codes and error text. */
#include "base/status.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>

aimo_status aimo_fail(aimo_error *err, aimo_status status, const char *format, ...)
{
    if (err != NULL) {
        va_list arguments;
        va_start(arguments, format);
        vsnprintf(err->message, sizeof err->message, format, arguments);
        va_end(arguments);
    }
    return status;
}

aimo_status aimo_size_mul(size_t a, size_t b, size_t *product, const char *what, aimo_error *err)
{
    if (a != 0 && b > SIZE_MAX / a)
        return aimo_fail(err, AIMO_ERR_ARGUMENT, "%s: %zu x %zu does not fit in memory", what, a,
                         b);
    *product = a * b;
    return AIMO_OK;
}
