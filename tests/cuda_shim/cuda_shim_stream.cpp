/* Streams, events and graphs. What is enqueued runs at once, or is kept by the stream's capture,
 * its arguments by value, and runs whenever the graph is launched. */
#include "cuda_shim_internal.h"

extern "C" {
#include "cuda_shim.h"
}

#include <utility>
#include <vector>

using namespace cuda_shim;

namespace
{

using operations = std::vector<std::function<void()>>;

int enqueue_bytes(cuda_shim_queue *queue, void (*work)(const void *), const void *arguments,
                  size_t bytes);

} // namespace

struct cuda_shim_stream {
    cuda_shim_queue queue; /* first: what other stand-ins see of a stream */
    int device;
    bool capturing, spoilt; /* spoilt: the capture can only fail */
    operations captured;

    explicit cuda_shim_stream(int device_)
        : queue{enqueue_bytes}, device(device_), capturing(false), spoilt(false)
    {
    }
};
struct cuda_shim_event {
    bool asked; /* since it was recorded */

    explicit cuda_shim_event(int) : asked(false) {}
};
struct cuda_shim_graph {
    operations work;

    explicit cuda_shim_graph(int) {}
};
struct cuda_shim_graph_exec {
    int device;
    operations work;

    explicit cuda_shim_graph_exec(int device_) : device(device_) {}
};

std::atomic<size_t> cuda_shim::replays;

namespace
{

thread_local cudaStream_t captured_here; /* the stream that this thread captures, or NULL */

/* Calls on a stream need the stream's device to be the thread's. */
cudaError_t call_on(cudaStream_t stream)
{
    if (stream != nullptr && stream->device != current_device)
        return note(cudaErrorInvalidResourceHandle);
    return call();
}

cudaError_t enqueue(cudaStream_t stream, std::function<void()> work)
{
    const cudaError_t error = call_on(stream);
    if (stream == nullptr || !stream->capturing) {
        if (error == cudaSuccess)
            work();
        return error;
    }
    stream->spoilt |= error != cudaSuccess;
    if (stream->spoilt)
        return error != cudaSuccess ? error : note(cudaErrorStreamCaptureInvalidated);
    stream->captured.push_back(std::move(work));
    return cudaSuccess;
}

int enqueue_bytes(cuda_shim_queue *queue, void (*work)(const void *), const void *arguments,
                  size_t bytes)
{
    const char *begin = static_cast<const char *>(arguments);
    const std::vector<char> kept(begin, begin + bytes);
    return enqueue(reinterpret_cast<cudaStream_t>(queue), [=] { work(kept.data()); }) ==
           cudaSuccess;
}

} // namespace

bool cuda_shim::is_capturing() { return captured_here != nullptr; }

cudaError_t cuda_shim::call_outside_capture()
{
    if (captured_here == nullptr)
        return call();
    captured_here->spoilt = true;
    return note(cudaErrorStreamCaptureUnsupported);
}

void cuda_shim_launch(dim3 grid, unsigned threads, size_t shared, cudaStream_t stream,
                      std::function<void()> kernel)
{
    (void)enqueue(stream, [=] { cuda_shim_run(grid, threads, shared, kernel); });
}

cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t bytes, cudaMemcpyKind,
                            cudaStream_t stream)
{
    return enqueue(stream, [=] { memcpy(dst, src, bytes); });
}

cudaError_t cudaMemcpy2DAsync(void *dst, size_t dst_pitch, const void *src, size_t src_pitch,
                              size_t width, size_t height, cudaMemcpyKind, cudaStream_t stream)
{
    return enqueue(stream, [=] {
        for (size_t row = 0; row < height; row++)
            memcpy(static_cast<char *>(dst) + row * dst_pitch,
                   static_cast<const char *>(src) + row * src_pitch, width);
    });
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *out, unsigned) { return create(out); }
cudaError_t cudaStreamDestroy(cudaStream_t stream) { return destroy(stream); }

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    const cudaError_t error = call_outside_capture();
    return error != cudaSuccess || stream == nullptr || stream->device == current_device
               ? error
               : note(cudaErrorInvalidResourceHandle);
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *out, unsigned) { return create(out); }
cudaError_t cudaEventDestroy(cudaEvent_t event) { return destroy(event); }

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    event->asked = false;
    return stream != nullptr && stream->capturing ? call_outside_capture() : call_on(stream);
}

cudaError_t cudaEventSynchronize(cudaEvent_t) { return call_outside_capture(); }

/* The first answer is that it takes longer. */
cudaError_t cudaEventQuery(cudaEvent_t event)
{
    const cudaError_t error = call_outside_capture();
    if (error != cudaSuccess || event->asked)
        return error;
    event->asked = true;
    return note(cudaErrorNotReady);
}

// --- Graphs --------------------------------------------------------------------------------------

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode)
{
    const cudaError_t error = call_outside_capture();
    if (error != cudaSuccess)
        return error;
    if (stream == nullptr || stream->capturing)
        return note(cudaErrorStreamCaptureUnsupported);
    stream->capturing = true;
    stream->spoilt = false;
    captured_here = stream;
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *out)
{
    *out = nullptr;
    if (stream == nullptr || stream != captured_here)
        return note(cudaErrorStreamCaptureUnsupported);
    operations work = std::move(stream->captured);
    const bool spoilt = stream->spoilt;
    stream->captured.clear();
    stream->capturing = false;
    captured_here = nullptr;
    const cudaError_t error = call();
    if (error != cudaSuccess || spoilt)
        return error != cudaSuccess ? error : note(cudaErrorStreamCaptureInvalidated);
    *out = new cuda_shim_graph(0);
    (*out)->work = std::move(work);
    objects++;
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *out, cudaGraph_t graph, unsigned long long)
{
    *out = nullptr;
    cudaError_t error = allocation();
    if (error == cudaSuccess)
        error = create(out);
    if (error == cudaSuccess)
        (*out)->work = graph->work;
    return error;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream)
{
    const cudaError_t error = call_outside_capture();
    if (error != cudaSuccess)
        return error;
    if (stream->device != current_device || exec->device != current_device)
        return note(cudaErrorInvalidResourceHandle);
    for (const auto &work : exec->work)
        work();
    replays++;
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return destroy(graph); }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) { return destroy(exec); }
