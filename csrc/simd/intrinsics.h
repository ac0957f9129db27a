/* The processor's intrinsics; in the emulation build those of AVX-512 and AMX are replaced by plain
 * ones. */
#ifndef AIMO_SIMD_INTRINSICS_H
#define AIMO_SIMD_INTRINSICS_H

#include "base/platform.h"

#include <stdint.h>
#include <string.h>

#if AIMO_X86_64
#include <immintrin.h>
#elif AIMO_AARCH64
#include <arm_neon.h>
#endif

#if defined(AIMO_EMULATE_ISA)
#include "emulated_amx.h"
#include "emulated_avx512.h"
#endif

#endif
