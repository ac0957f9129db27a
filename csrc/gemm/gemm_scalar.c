/* Matrix products in plain C: the reference. */
#include "gemm/gemm_kernels.h"
#include "simd/simd_scalar.h"

#include "gemm/gemm_body.h"

void aimo_gemm_f32_scalar(const aimo_gemm_args *args) { gemm(args, AIMO_F32); }

void aimo_gemm_f16_scalar(const aimo_gemm_args *args) { gemm(args, AIMO_F16); }

void aimo_gemm_bf16_scalar(const aimo_gemm_args *args) { gemm(args, AIMO_BF16); }
