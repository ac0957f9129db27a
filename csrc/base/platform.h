/* What differs between compilers and processors, and nothing else. */
#ifndef AIMO_BASE_PLATFORM_H
#define AIMO_BASE_PLATFORM_H

#if defined(__x86_64__) || defined(_M_X64)
#define AIMO_X86_64 1
#else
#define AIMO_X86_64 0
#endif

#if defined(__aarch64__)
#define AIMO_AARCH64 1
#else
#define AIMO_AARCH64 0
#endif

/* Everything between BEGIN and END may use the instructions of `isa`; the rest of the file, like
 * the rest of the library, is compiled for the baseline. Include headers first: a header function
 * compiled inside the region could be kept by the linker for machines that lack the
 * instructions. */
#define AIMO_PRAGMA(text) _Pragma(#text)
#if defined(AIMO_EMULATE_ISA) /* tests/emulation: AVX-512 and AMX rows on AVX2 */
#define AIMO_TARGET_BEGIN(isa)                                                                     \
    AIMO_PRAGMA(GCC push_options) AIMO_PRAGMA(GCC target("avx2,fma,f16c"))
#define AIMO_TARGET_END AIMO_PRAGMA(GCC pop_options)
#elif defined(__clang__)
#define AIMO_TARGET_BEGIN(isa)                                                                     \
    AIMO_PRAGMA(clang attribute push(__attribute__((target(isa))), apply_to = function))
#define AIMO_TARGET_END AIMO_PRAGMA(clang attribute pop)
#elif defined(__GNUC__)
#define AIMO_TARGET_BEGIN(isa) AIMO_PRAGMA(GCC push_options) AIMO_PRAGMA(GCC target(isa))
#define AIMO_TARGET_END AIMO_PRAGMA(GCC pop_options)
#else
#error "this compiler needs a way to name a target region"
#endif

#define AIMO_MUST_CHECK __attribute__((warn_unused_result))
#define AIMO_PRINTF(format_index, first_argument)                                                  \
    __attribute__((format(printf, format_index, first_argument)))
#if defined(__CUDACC__) /* for kernels as well */
#define AIMO_INLINE static __forceinline__ __host__ __device__
#define AIMO_UNROLL
#elif defined(AIMO_PLAIN_LOOPS) /* unrolling bloats emulated and instrumented code */
#define AIMO_INLINE static inline __attribute__((unused))
#define AIMO_UNROLL
#else
#define AIMO_INLINE static inline __attribute__((always_inline, unused))
#define AIMO_UNROLL AIMO_PRAGMA(GCC unroll 16) /* the next loop, whose bounds are constants */
#endif

/* Hides the value of x from the optimizer, so that the compiler forms addresses from it with the
 * machine's addressing modes instead of keeping a pointer for each multiple of it. */
#define AIMO_OPAQUE(x) __asm__("" : "+r"(x))

#define AIMO_CACHE_LINE 64

#endif
