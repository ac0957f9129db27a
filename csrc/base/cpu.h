/* Which instructions this machine has, and which row of kernels the library uses.
 *
 * A row is named after the weakest instruction set that it needs; a kernel table lists its rows
 * weakest first and takes the last one whose `required` bits are all present. */
#ifndef AIMO_BASE_CPU_H
#define AIMO_BASE_CPU_H

#include "base/status.h"

typedef enum {
    AIMO_CPU_SCALAR = 0,           /* the reference: plain C */
    AIMO_CPU_AVX2 = 1 << 0,        /* AVX2 + FMA + F16C */
    AIMO_CPU_AVX512 = 1 << 1,      /* AVX-512 F + BW + DQ + VL */
    AIMO_CPU_AVX512_VNNI = 1 << 2, /* AVX512 row + VNNI */
    AIMO_CPU_AMX = 1 << 3,         /* AVX512_VNNI row + AMX tiles, when Linux grants them */
    AIMO_CPU_NEON = 1 << 4,        /* every aarch64 */
    AIMO_CPU_AVX512_BF16 = 1 << 5, /* AVX512_VNNI row + VDPBF16PS where it outruns f32 FMA */
} aimo_cpu_features;

/* Reads CPUID, XCR0 and the environment variable AIMO_CPU, which names a weaker row to use instead
 * (see aimo_cpu_row_name). Call once, before any other function of the library. Fails with
 * AIMO_ERR_ARGUMENT when AIMO_CPU names no row, with AIMO_ERR_UNSUPPORTED when the machine lacks
 * that row. */
AIMO_MUST_CHECK aimo_status aimo_cpu_init(aimo_error *err);

/* The features that kernels may use: those of the selected row. */
unsigned aimo_cpu_enabled(void);
/* The features that the machine has. */
unsigned aimo_cpu_available(void);
/* The selected row's name. */
const char *aimo_cpu_row(void);

/* Row names, weakest first; NULL after the last. */
const char *aimo_cpu_row_name(size_t index);
/* The features that a row implies, including those of all weaker rows of its family. */
unsigned aimo_cpu_row_features(size_t index);

#endif
