# The CUDA backend: a library that the core opens at run time, so that a wheel built with it works on
# machines without CUDA. Two ways to build it: with nvcc, and for the host, for tests.
set(AIMO_CUDA_KERNELS
  csrc/backend/cuda/activation.cu csrc/backend/cuda/attention.cu csrc/backend/cuda/attention_f32.cu
  csrc/backend/cuda/backend_cuda.cu
  csrc/backend/cuda/cuda_arrays.cu csrc/backend/cuda/cuda_device.cu csrc/backend/cuda/cuda_graphs.cu
  csrc/backend/cuda/cuda_workspace.cu csrc/backend/cuda/embed.cu
  csrc/backend/cuda/half_conversion.cu csrc/backend/cuda/layer_norm.cu
  csrc/backend/cuda/pooling.cu csrc/backend/cuda/row_screen.cu
  csrc/backend/cuda/row_screen_kernel.cu)
set(AIMO_CUDA_HOST_SOURCES
  csrc/backend/cuda/cublas_lt.c csrc/backend/cuda/cuda_product.c csrc/backend/cuda/cuda_weights.c
  csrc/backend/cuda/screen_rounding.c)

# In a folder of its own: how a source is compiled is a property of the folder.
if(AIMO_BUILD_CUDA_TESTS)
  add_subdirectory(tests/cuda_shim)
endif()

if(AIMO_CUDA STREQUAL "AUTO") # C tests alone do without
  include(CheckLanguage)
  if(SKBUILD)
    check_language(CUDA)
  endif()
  set(AIMO_CUDA_FOUND ${CMAKE_CUDA_COMPILER})
elseif(AIMO_CUDA)
  set(AIMO_CUDA_FOUND ON)
endif()
if(NOT AIMO_CUDA_FOUND)
  return()
endif()

enable_language(CUDA)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.0)
  if(AIMO_CUDA STREQUAL "AUTO")
    message(WARNING "CUDA is left out: nvcc ${CMAKE_CUDA_COMPILER_VERSION} is older than 12.0")
    return()
  endif()
  message(FATAL_ERROR "nvcc ${CMAKE_CUDA_COMPILER_VERSION} is older than 12.0")
endif()
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.8) # which knows neither 100 nor 120
  list(FILTER AIMO_CUDA_ARCHITECTURES EXCLUDE REGEX "^1[0-9][0-9]")
endif()
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_RUNTIME_LIBRARY Static) # which opens the driver when it is first called
add_library(aimo_cuda MODULE ${AIMO_CUDA_KERNELS} ${AIMO_CUDA_HOST_SOURCES})
target_link_libraries(aimo_cuda PRIVATE aimo)
set_target_properties(aimo_cuda PROPERTIES
  CUDA_VISIBILITY_PRESET hidden CUDA_ARCHITECTURES "${AIMO_CUDA_ARCHITECTURES}")
target_link_options(aimo_cuda PRIVATE -Wl,--exclude-libs,ALL -static-libstdc++ -static-libgcc)
if(AIMO_WERROR)
  target_compile_options(aimo_cuda PRIVATE
    $<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings -Xcompiler=-Wall,-Wextra,-Werror>)
endif()
if(SKBUILD)
  install(TARGETS aimo_cuda DESTINATION ai_model_optimizations)
endif()
