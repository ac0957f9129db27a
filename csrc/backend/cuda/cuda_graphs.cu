/* CUDA graphs of a workspace. When anything about a graph fails, the chunk runs without one: that
 * reports what is wrong with the device, if anything is. */
#include "backend/cuda/cuda_graphs.h"

#include <string.h>

namespace
{

void forget(cuda_graph *graph)
{
    if (graph->exec != NULL)
        (void)cudaGraphExecDestroy(graph->exec);
    *graph = {};
}

/* The key's graph, or a place for it: a free one, else the least recently run one. */
cuda_graph *place_of(cuda_graphs *graphs, const cuda_graph_key &key)
{
    cuda_graph *oldest = &graphs->all[0];
    for (cuda_graph &graph : graphs->all) {
        if (graph.runs != 0 && memcmp(&graph.key, &key, sizeof key) == 0)
            return &graph;
        if (graph.last_run < oldest->last_run)
            oldest = &graph;
    }
    forget(oldest);
    oldest->key = key;
    return oldest;
}

/* *out = a graph of what `forward` enqueues. Other threads may allocate and synchronize
 * meanwhile. */
bool record(cudaGraphExec_t *out, cudaStream_t stream, aimo_forward *forward, void *context)
{
    aimo_error ignored;
    cudaGraph_t graph = NULL;
    *out = NULL;
    if (cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal) != cudaSuccess)
        return false;
    const aimo_status status = forward(context, &ignored);
    const bool captured = cudaStreamEndCapture(stream, &graph) == cudaSuccess && status == AIMO_OK;
    const bool recorded = captured && cudaGraphInstantiate(out, graph, 0) == cudaSuccess;
    if (graph != NULL)
        (void)cudaGraphDestroy(graph);
    return recorded;
}

/* False: nothing was enqueued. */
bool launch(cuda_graph *graph, cudaStream_t stream, aimo_forward *forward, void *context)
{
    if (graph->exec == NULL && !record(&graph->exec, stream, forward, context))
        return false;
    return cudaGraphLaunch(graph->exec, stream) == cudaSuccess;
}

} // namespace

aimo_status cuda_graphs_run(cuda_graphs *graphs, const cuda_graph_key &key, cudaStream_t stream,
                            aimo_forward *forward, void *context, aimo_error *err)
{
    cuda_graph *graph = place_of(graphs, key);
    graph->last_run = ++graphs->runs;
    if (graph->runs++ == 0 || graph->plain)
        return forward(context, err);
    if (launch(graph, stream, forward, context))
        return AIMO_OK;
    (void)cudaGetLastError(); /* clears the runtime's last error, unless it is fatal */
    if (graph->exec != NULL)
        (void)cudaGraphExecDestroy(graph->exec);
    graph->exec = NULL;
    graph->plain = true;
    return forward(context, err);
}

void cuda_graphs_clear(cuda_graphs *graphs)
{
    for (cuda_graph &graph : graphs->all)
        forget(&graph);
}
