/* Matrix products with AVX-512: a 12 x 32 tile in 24 of 32 registers. */
#include "gemm/gemm_kernels.h"
#include "simd/intrinsics.h"

#if AIMO_X86_64
AIMO_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl")
#include "simd/simd_avx512.h"

#include "gemm/gemm_body.h"

void aimo_gemm_f32_avx512(const aimo_gemm_args *args) { gemm(args, AIMO_F32); }

void aimo_gemm_f16_avx512(const aimo_gemm_args *args) { gemm(args, AIMO_F16); }

void aimo_gemm_bf16_avx512(const aimo_gemm_args *args) { gemm(args, AIMO_BF16); }

void aimo_gemm_int8_avx512(const aimo_gemm_args *args) { aimo_gemm_int8_avx2(args); }

AIMO_TARGET_END
#endif
