/* Stands in for CUDA's header: __nv_bfloat16 as far as kernels use it. */
#ifndef AIMO_CUDA_SHIM_BF16_H
#define AIMO_CUDA_SHIM_BF16_H

extern "C" {
#include "half/half_scalar.h"
}

struct __nv_bfloat16 {
    uint16_t bits;
};

inline float __bfloat162float(__nv_bfloat16 x) { return aimo_bf16_to_f32_one(x.bits); }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return {aimo_f32_to_bf16_one(x)}; }

#endif
