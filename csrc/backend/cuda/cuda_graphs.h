/* CUDA graphs of a workspace: the launches of a small chunk are recorded once, and from then on
 * enqueued by a single call. A short text takes about a hundred launches, each of which costs the
 * host more time than the device. */
#ifndef AIMO_CUDA_GRAPHS_H
#define AIMO_CUDA_GRAPHS_H

#include "backend/cuda/cuda_common.h"

extern "C" {
#include "backend/backend.h"
}

/* How many graphs a workspace keeps; beyond that, the least recently used one is replaced. */
constexpr unsigned GRAPHS_MOST = 32;

/* Everything that the launches depend on, except for the addresses of the workspace. */
struct cuda_graph_key {
    aimo_run_key run;
    size_t token_rows, vector_rows;
};

struct cuda_graph {
    cuda_graph_key key;
    unsigned runs;        /* 0: the place is free */
    bool plain;           /* recording failed and is not tried again */
    cudaGraphExec_t exec; /* NULL: not recorded */
    uint64_t last_run;
};

struct cuda_graphs {
    cuda_graph all[GRAPHS_MOST];
    uint64_t runs;
};

/* Enqueues on the stream what `forward` enqueues. The first time that a key is seen, `forward` runs
 * directly: rare keys then do not pay for recording, and everything that must not happen during
 * stream capture, such as choosing algorithms and loading kernels, has been done. After that it
 * runs from the key's graph. Failing to make a graph is not an error. */
aimo_status cuda_graphs_run(cuda_graphs *graphs, const cuda_graph_key &key, cudaStream_t stream,
                            aimo_forward *forward, void *context, aimo_error *err);

/* No graph may be running. */
void cuda_graphs_clear(cuda_graphs *graphs);

#endif
