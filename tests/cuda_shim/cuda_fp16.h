/* Stands in for CUDA's header: __half as far as kernels use it. */
#ifndef AIMO_CUDA_SHIM_FP16_H
#define AIMO_CUDA_SHIM_FP16_H

extern "C" {
#include "half/half_scalar.h"
}

struct __half {
    uint16_t bits;
};

inline float __half2float(__half x) { return aimo_f16_to_f32_one(x.bits); }
inline __half __float2half_rn(float x) { return {aimo_f32_to_f16_one(x)}; }

#endif
