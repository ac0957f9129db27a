/* Matrix products with NEON: a 6 x 16 tile in 24 of 32 registers. */
#include "gemm/gemm_kernels.h"
#include "simd/intrinsics.h"

#if AIMO_AARCH64
#include "simd/simd_neon.h"

#include "gemm/gemm_body.h"

void aimo_gemm_f32_neon(const aimo_gemm_args *args) { gemm(args, AIMO_F32); }

void aimo_gemm_f16_neon(const aimo_gemm_args *args) { gemm(args, AIMO_F16); }

void aimo_gemm_bf16_neon(const aimo_gemm_args *args) { gemm(args, AIMO_BF16); }

#endif
