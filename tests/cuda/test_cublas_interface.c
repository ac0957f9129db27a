/* cublas: what is declared of cuBLASLt is what its own header says, where there is one. */
#include "test.h"

#include "backend/cuda/cublas_lt.h"

#if defined(__has_include)
#if __has_include(<cublasLt.h>)
#include <cublasLt.h>
#define HAS_HEADER 1
#endif
#endif

#ifdef HAS_HEADER
#define SAME(ours, theirs) _Static_assert((int)(ours) == (int)(theirs), #theirs)
SAME(sizeof(cublas_heuristic), sizeof(cublasLtMatmulHeuristicResult_t));
SAME(offsetof(cublas_heuristic, workspace_bytes),
     offsetof(cublasLtMatmulHeuristicResult_t, workspaceSize));
SAME(offsetof(cublas_heuristic, status), offsetof(cublasLtMatmulHeuristicResult_t, state));
SAME(CUBLAS_SUCCESS, CUBLAS_STATUS_SUCCESS);
SAME(CUBLAS_ALLOC_FAILED, CUBLAS_STATUS_ALLOC_FAILED);
SAME(CUBLAS_R_32F, CUDA_R_32F);
SAME(CUBLAS_R_16F, CUDA_R_16F);
SAME(CUBLAS_R_16BF, CUDA_R_16BF);
SAME(CUBLAS_COMPUTE_F32, CUBLAS_COMPUTE_32F);
SAME(CUBLAS_TRANSPOSED, CUBLAS_OP_T);
SAME(CUBLAS_DESCRIPTION_TRANS_A, CUBLASLT_MATMUL_DESC_TRANSA);
SAME(CUBLAS_PREFERENCE_WORKSPACE_BYTES, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES);
SAME(CUBLAS_PREFERENCE_REDUCTION_SCHEMES, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK);
SAME(CUBLAS_PREFERENCE_ALIGNMENT_A, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES);
SAME(CUBLAS_PREFERENCE_ALIGNMENT_B, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES);
SAME(CUBLAS_PREFERENCE_ALIGNMENT_C, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES);
SAME(CUBLAS_PREFERENCE_ALIGNMENT_D, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES);
#endif

TEST(cublas_interface_is_the_one_of_its_header)
{
#ifndef HAS_HEADER
    test_skip("cublasLt.h is not here; compiled with it, this file compares");
#endif
    CHECK(sizeof(cublas_algorithm) == 64);
}
