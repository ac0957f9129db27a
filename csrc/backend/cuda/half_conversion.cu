/* Conversion to and from the two 16-bit floats on a device, using the code of half_scalar.h so that
 * results are bit-identical to the CPU's: the device's own instructions turn every NaN into the
 * same one. */
#include "backend/cuda/cuda_arrays.h"
#include "backend/cuda/cuda_device.h"

extern "C" {
#include "half/half_scalar.h"
}

namespace
{

constexpr unsigned THREADS = 256;
constexpr unsigned VECTOR =
    8; /* elements per thread, where memory can be accessed 16 bytes at a time */

struct f32_to_f16 {
    using source = float;
    using target = uint16_t;
    static __device__ target convert(source x) { return aimo_f32_to_f16_one(x); }
};
struct f16_to_f32 {
    using source = uint16_t;
    using target = float;
    static __device__ target convert(source x) { return aimo_f16_to_f32_one(x); }
};
struct f32_to_bf16 {
    using source = float;
    using target = uint16_t;
    static __device__ target convert(source x) { return aimo_f32_to_bf16_one(x); }
};
struct bf16_to_f32 {
    using source = uint16_t;
    using target = float;
    static __device__ target convert(source x) { return aimo_bf16_to_f32_one(x); }
};
struct f64_to_f16 {
    using source = double;
    using target = uint16_t;
    static __device__ target convert(source x) { return aimo_f64_to_f16_one(x); }
};

struct alignas(16) sixteen_bytes {
    uint32_t words[4];
};

template <typename T> union vector_of {
    sixteen_bytes parts[VECTOR * sizeof(T) / sizeof(sixteen_bytes)];
    T elements[VECTOR];
};

/* One run of elements, both ends of which begin at a multiple of 16 bytes. */
template <typename C>
__global__ void convert_run(const typename C::source *src, typename C::target *dst, size_t n)
{
    using source = vector_of<typename C::source>;
    using target = vector_of<typename C::target>;
    const size_t at = (static_cast<size_t>(blockIdx.x) * THREADS + threadIdx.x) * VECTOR;
    if (at + VECTOR > n) {
        for (size_t i = at; i < n; i++)
            dst[i] = C::convert(src[i]);
        return;
    }
    const sixteen_bytes *from = reinterpret_cast<const sixteen_bytes *>(src + at);
    sixteen_bytes *to = reinterpret_cast<sixteen_bytes *>(dst + at);
    source x;
    target y;
    for (unsigned i = 0; i < sizeof x / sizeof *from; i++)
        x.parts[i] = from[i];
    for (unsigned i = 0; i < VECTOR; i++)
        y.elements[i] = C::convert(x.elements[i]);
    for (unsigned i = 0; i < sizeof y / sizeof *to; i++)
        to[i] = y.parts[i];
}

/* Arrays of any strides, one element per thread. Index is a type that can hold the number of
 * elements: 64-bit divisions take a device three times as long as 32-bit ones. */
template <typename C, typename Index>
__global__ void convert_elements(aimo_half_arrays arrays, Index n)
{
    Index at = static_cast<Index>(blockIdx.x) * THREADS + threadIdx.x;
    if (at >= n)
        return;
    ptrdiff_t from = 0, to = 0;
    for (size_t axis = arrays.ndim; axis-- > 0;) {
        const Index length = static_cast<Index>(arrays.shape[axis]);
        const ptrdiff_t i = static_cast<ptrdiff_t>(at % length);
        from += i * arrays.src_stride[axis];
        to += i * arrays.dst_stride[axis];
        at /= length;
    }
    const char *src = static_cast<const char *>(arrays.src) + from;
    char *dst = static_cast<char *>(arrays.dst) + to;
    *reinterpret_cast<typename C::target *>(dst) =
        C::convert(*reinterpret_cast<const typename C::source *>(src));
}

bool is_run(const aimo_half_arrays &a)
{
    const uintptr_t places =
        reinterpret_cast<uintptr_t>(a.src) | reinterpret_cast<uintptr_t>(a.dst);
    return a.ndim == 1 && places % sizeof(sixteen_bytes) == 0 &&
           a.src_stride[0] == static_cast<ptrdiff_t>(aimo_half_src_size(a.conversion)) &&
           a.dst_stride[0] == static_cast<ptrdiff_t>(aimo_half_dst_size(a.conversion));
}

/* A grid has up to 2^31 - 1 blocks, which is more elements than any device has room for. */
launch_shape shape_of(size_t n, size_t elements_per_block)
{
    const size_t blocks = (n + elements_per_block - 1) / elements_per_block;
    return {dim3(static_cast<unsigned>(blocks)), THREADS, 0};
}

template <typename C> aimo_status launch(const aimo_half_arrays &a, size_t n, aimo_error *err)
{
    if (is_run(a))
        return launch_kernel(convert_run<C>, shape_of(n, THREADS * VECTOR), NULL, err,
                             static_cast<const typename C::source *>(a.src),
                             static_cast<typename C::target *>(a.dst), n);
    if (n <= UINT32_MAX - THREADS)
        return launch_kernel(convert_elements<C, uint32_t>, shape_of(n, THREADS), NULL, err, a, n);
    return launch_kernel(convert_elements<C, uint64_t>, shape_of(n, THREADS), NULL, err, a, n);
}

aimo_status launch_conversion(const aimo_half_arrays &a, size_t n, aimo_error *err)
{
    switch (a.conversion) {
    case AIMO_F32_TO_F16:
        return launch<f32_to_f16>(a, n, err);
    case AIMO_F16_TO_F32:
        return launch<f16_to_f32>(a, n, err);
    case AIMO_F32_TO_BF16:
        return launch<f32_to_bf16>(a, n, err);
    case AIMO_BF16_TO_F32:
        return launch<bf16_to_f32>(a, n, err);
    default:
        return launch<f64_to_f16>(a, n, err);
    }
}

} // namespace

aimo_status cuda_half_convert(int device, const aimo_half_arrays *arrays, size_t n, aimo_error *err)
{
    AIMO_TRY(cuda_check_process(err));
    AIMO_TRY(cuda_check_device(device, err));
    const device_scope scope(device, err);
    AIMO_TRY(scope.status);
    AIMO_TRY(launch_conversion(*arrays, n, err));
    AIMO_TRY_CUDA(cudaStreamSynchronize(NULL), err);
    return AIMO_OK;
}
