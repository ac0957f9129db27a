/* Matrix products with AVX2 and FMA: a 6 x 16 tile in 12 of 16 registers. */
#include "gemm/gemm_kernels.h"
#include "simd/intrinsics.h"

#if AIMO_X86_64
AIMO_TARGET_BEGIN("avx2,fma,f16c")
#include "simd/simd_avx2.h"

#include "gemm/gemm_body.h"

void aimo_gemm_f32_avx2(const aimo_gemm_args *args) { gemm(args, AIMO_F32); }

void aimo_gemm_f16_avx2(const aimo_gemm_args *args) { gemm(args, AIMO_F16); }

void aimo_gemm_bf16_avx2(const aimo_gemm_args *args) { gemm(args, AIMO_BF16); }

AIMO_TARGET_END
#endif
