/* The CUDA backend under test: compiled for the host, or a real one when AIMO_TEST_CUDA_LIBRARY and
 * AIMO_TEST_CUBLAS name its files. */
#ifndef AIMO_CUDA_FIXTURE_H
#define AIMO_CUDA_FIXTURE_H

#include "backend/cuda_loader.h"
#include "cuda_shim.h"
#include "test.h"

/* Loads it once; false, and a note, when there is no device to run on. */
bool cuda_is_here(void);

/* The shim's faults and counters; NULL when the backend is a real one. */
const cuda_shim_controls *shim_controls(void);

/* What to load. */
const char *cuda_library(void);
const char *cublas_library(void);

/* Rounding to the type, as a distance relative to 1. */
float rounding_of(aimo_dtype dtype);
/* x rounded to the type. */
float rounded_to(aimo_dtype dtype, float x);

#endif
