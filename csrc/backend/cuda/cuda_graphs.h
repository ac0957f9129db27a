/* CUDA graphs of a workspace: the launches of a small chunk, recorded once and enqueued by one call
 * from then on. A short text has about a hundred launches, each of which costs the host more than
 * it costs the device. */
#ifndef AIMO_CUDA_GRAPHS_H
#define AIMO_CUDA_GRAPHS_H

#include "backend/cuda/cuda_common.h"

extern "C" {
#include "backend/backend.h"
}

/* Forms of calls that a workspace keeps; beyond them, the one that was not seen for longest goes.
 */
constexpr unsigned GRAPHS_MOST = 32;

/* What the launches depend on, but for the addresses of the workspace. */
struct cuda_graph_key {
    aimo_run_key run;
    size_t token_rows, vector_rows;
};

struct cuda_graph {
    cuda_graph_key key;
    unsigned runs;        /* 0: the place is free */
    bool plain;           /* recording failed, and is not tried again */
    cudaGraphExec_t exec; /* NULL: not recorded */
    uint64_t last_run;
};

struct cuda_graphs {
    cuda_graph all[GRAPHS_MOST];
    uint64_t runs;
};

/* Enqueues on the stream what `forward` enqueues: by itself the first time that a key is seen, so
 * that rare ones do not pay for recording and everything is chosen and loaded that must not be
 * while a stream is captured; then from its graph. A graph that cannot be had is no error. */
aimo_status cuda_graphs_run(cuda_graphs *graphs, const cuda_graph_key &key, cudaStream_t stream,
                            aimo_forward *forward, void *context, aimo_error *err);

/* Nothing may be under way. */
void cuda_graphs_clear(cuda_graphs *graphs);

#endif
