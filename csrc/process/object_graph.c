/* Tarjan's algorithm with its own stack: a linked list of a million Python objects is a path of a
 * million nodes, which recursion would not survive. */
#include "process/object_graph.h"

#include "base/memory.h"

#define UNSEEN UINT32_MAX

typedef struct {
    const aimo_object_graph *graph;
    uint32_t *component; /* [node_count], UNSEEN until the node's component is complete */
    uint32_t *order;     /* [node_count], when a node was first seen */
    uint32_t *low;       /* [node_count], the earliest node that it is known to reach */
    uint32_t *open;      /* [open_count], seen nodes whose component is not complete */
    uint32_t *path;      /* [path_count], from the start to the current node */
    size_t *next_edge;   /* [path_count], the next edge of each */
    uint32_t seen_count, open_count, path_count, component_count;
} search;

static void enter(search *s, uint32_t node)
{
    s->order[node] = s->low[node] = s->seen_count++;
    s->open[s->open_count++] = node;
    s->path[s->path_count] = node;
    s->next_edge[s->path_count++] = s->graph->first_edge[node];
}

/* `node` leads back to nothing earlier, so it and everything opened after it are one component. */
static void complete(search *s, uint32_t node)
{
    uint32_t member;
    do {
        member = s->open[--s->open_count];
        s->component[member] = s->component_count;
    } while (member != node);
    s->component_count++;
}

static void leave(search *s, uint32_t node)
{
    if (s->low[node] == s->order[node])
        complete(s, node);
    s->path_count--;
    if (s->path_count == 0)
        return;
    const uint32_t parent = s->path[s->path_count - 1];
    if (s->low[node] < s->low[parent])
        s->low[parent] = s->low[node];
}

static void search_from(search *s, uint32_t start)
{
    enter(s, start);
    while (s->path_count > 0) {
        const uint32_t node = s->path[s->path_count - 1];
        size_t *edge = &s->next_edge[s->path_count - 1];
        if (*edge == s->graph->first_edge[node + 1]) {
            leave(s, node);
            continue;
        }
        const uint32_t target = s->graph->targets[(*edge)++];
        if (s->order[target] == UNSEEN)
            enter(s, target);
        else if (s->component[target] == UNSEEN && s->order[target] < s->low[node])
            s->low[node] = s->order[target];
    }
}

aimo_status aimo_object_graph_components(const aimo_object_graph *graph, uint32_t *component,
                                         size_t *count, aimo_error *err)
{
    const size_t n = graph->node_count;
    void *numbers = NULL, *edges = NULL;
    AIMO_TRY(aimo_memory_new(&numbers, n, 4 * sizeof(uint32_t), "search for cycles", err));
    const aimo_status status = aimo_memory_new(&edges, n, sizeof(size_t), "search for cycles", err);
    if (status != AIMO_OK) {
        aimo_memory_free(numbers);
        return status;
    }
    uint32_t *block = numbers;
    search s = {.graph = graph,
                .component = component,
                .order = block,
                .low = block + n,
                .open = block + 2 * n,
                .path = block + 3 * n,
                .next_edge = edges};
    for (size_t i = 0; i < n; i++)
        s.order[i] = component[i] = UNSEEN;
    for (size_t i = 0; i < n; i++)
        if (s.order[i] == UNSEEN)
            search_from(&s, (uint32_t)i);
    *count = s.component_count;
    aimo_memory_free(numbers);
    aimo_memory_free(edges);
    return AIMO_OK;
}

aimo_status aimo_object_graph_reach(const aimo_object_graph *graph, uint8_t *reached,
                                    aimo_error *err)
{
    void *block;
    AIMO_TRY(aimo_memory_new(&block, graph->node_count, sizeof(uint32_t), "search for roots", err));
    uint32_t *waiting = block;
    size_t waiting_count = 0;
    for (size_t i = 0; i < graph->node_count; i++)
        if (reached[i])
            waiting[waiting_count++] = (uint32_t)i;
    while (waiting_count > 0) {
        const uint32_t node = waiting[--waiting_count];
        for (size_t e = graph->first_edge[node]; e < graph->first_edge[node + 1]; e++) {
            const uint32_t target = graph->targets[e];
            if (!reached[target]) {
                reached[target] = 1;
                waiting[waiting_count++] = target;
            }
        }
    }
    aimo_memory_free(block);
    return AIMO_OK;
}
