/* A directed graph of numbered objects: which of them form cycles, and which are reachable from
 * roots. It knows nothing of Python; binding/heap_graph.c fills it in. */
#ifndef AIMO_PROCESS_OBJECT_GRAPH_H
#define AIMO_PROCESS_OBJECT_GRAPH_H

#include "base/status.h"

#include <stdint.h>

typedef struct {
    size_t node_count;  /* below 2^31 */
    size_t *first_edge; /* [node_count + 1], rising; edges of node i are [first_edge[i], [i + 1]) */
    uint32_t *targets;  /* [first_edge[node_count]], each below node_count */
} aimo_object_graph;

/* component[i] = the strongly connected component of node i, numbered from 0; *count = how many. */
AIMO_MUST_CHECK aimo_status aimo_object_graph_components(const aimo_object_graph *graph,
                                                         uint32_t *component, size_t *count,
                                                         aimo_error *err);

/* On entry reached[i] is 1 for the roots and 0 otherwise; on return it is 1 for every node
 * reachable from them. */
AIMO_MUST_CHECK aimo_status aimo_object_graph_reach(const aimo_object_graph *graph,
                                                    uint8_t *reached, aimo_error *err);

#endif
