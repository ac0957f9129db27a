/* process: allocator figures, open files, the pointer index, cycles and reachability. */
#include "test.h"

#include "base/memory.h"
#include "process/object_graph.h"
#include "process/pointer_index.h"
#include "process/process.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

TEST(process_counts_open_files)
{
    size_t before, connected, after;
    if (!aimo_process_count_files(&before, &connected)) {
        test_skip("no /proc");
        return;
    }
    const int fd = open("/dev/null", O_RDONLY);
    CHECK(fd >= 0);
    CHECK(aimo_process_count_files(&after, &connected));
    close(fd);
    CHECK(after == before + 1);
}

TEST(process_allocator_sees_what_is_live)
{
    aimo_allocator_info before, after;
    aimo_allocator_read(&before);
    if (!before.known) {
        test_skip("the allocator gives no figures");
        return;
    }
    const size_t size = (size_t)64 << 20;
    char *volatile block = malloc(size);
    CHECK(block != NULL);
    aimo_allocator_read(&after);
    free(block);
    /* A sanitizer's malloc hides the one that is queried. */
    if (after.live == before.live) {
        test_skip("malloc is replaced");
        return;
    }
    CHECK(after.live >= before.live + size);
    aimo_allocator_read(&after);
    CHECK(after.live < before.live + size);
}

TEST(process_pointer_index_numbers_in_order_and_grows)
{
    enum { COUNT = 5000 };
    static char objects[COUNT * 16];
    const size_t live = aimo_memory_live_bytes();
    aimo_pointer_index index;
    CHECK(aimo_pointer_index_init(&index, 0, NULL) == AIMO_OK);
    for (int round = 0; round < 2; round++) /* a second time changes nothing */
        for (size_t i = 0; i < COUNT; i++)
            CHECK(aimo_pointer_index_add(&index, &objects[i * 16], NULL) == AIMO_OK);
    CHECK(index.count == COUNT);
    uint32_t number;
    for (size_t i = 0; i < COUNT; i++) {
        CHECK(index.items[i] == &objects[i * 16]);
        CHECK(aimo_pointer_index_find(&index, &objects[i * 16], &number) && number == i);
    }
    CHECK(!aimo_pointer_index_find(&index, &objects[8], &number));
    aimo_pointer_index_clear(&index);
    CHECK(aimo_memory_live_bytes() == live);
}

TEST(process_pointer_index_survives_a_failed_growth)
{
    static char objects[64 * 16 + 16];
    aimo_pointer_index index;
    CHECK(aimo_pointer_index_init(&index, 64, NULL) == AIMO_OK);
    for (size_t i = 0; i < 64; i++)
        CHECK(aimo_pointer_index_add(&index, &objects[i * 16], NULL) == AIMO_OK);
    for (long allowed = 0; allowed < 2; allowed++) {
        aimo_memory_fail_after(allowed);
        const aimo_status status = aimo_pointer_index_add(&index, &objects[64 * 16], NULL);
        aimo_memory_fail_after(-1);
        CHECK(status == AIMO_ERR_MEMORY && index.count == 64);
    }
    CHECK(aimo_pointer_index_add(&index, &objects[64 * 16], NULL) == AIMO_OK);
    uint32_t number;
    CHECK(aimo_pointer_index_find(&index, &objects[63 * 16], &number) && number == 63);
    aimo_pointer_index_clear(&index);
}

/* Edges as a matrix, for graphs of at most MOST nodes. */
enum { MOST = 12 };

typedef struct {
    bool edge[MOST][MOST];
    size_t first_edge[MOST + 1];
    uint32_t targets[MOST * MOST];
    aimo_object_graph graph;
} small_graph;

static void pack(small_graph *g, size_t nodes)
{
    size_t count = 0;
    for (size_t i = 0; i < nodes; i++) {
        g->first_edge[i] = count;
        for (size_t j = 0; j < nodes; j++)
            if (g->edge[i][j])
                g->targets[count++] = (uint32_t)j;
    }
    g->first_edge[nodes] = count;
    g->graph = (aimo_object_graph){nodes, g->first_edge, g->targets};
}

/* leads[i][j]: there is a path from i to j; Warshall's definition, for comparison. */
static void find_paths(const small_graph *g, size_t nodes, bool leads[MOST][MOST])
{
    memcpy(leads, g->edge, sizeof g->edge);
    for (size_t i = 0; i < nodes; i++)
        leads[i][i] = true;
    for (size_t k = 0; k < nodes; k++)
        for (size_t i = 0; i < nodes; i++)
            for (size_t j = 0; j < nodes; j++)
                leads[i][j] = leads[i][j] || (leads[i][k] && leads[k][j]);
}

TEST(process_components_and_reach_are_those_of_the_definition)
{
    uint64_t state = 11;
    for (int round = 0; round < 2000; round++) {
        const size_t nodes = 1 + test_random(&state) % MOST;
        const uint64_t density = 1 + test_random(&state) % 8;
        small_graph g = {0};
        for (size_t i = 0; i < nodes; i++)
            for (size_t j = 0; j < nodes; j++)
                g.edge[i][j] = test_random(&state) % 16 < density;
        pack(&g, nodes);
        bool leads[MOST][MOST];
        find_paths(&g, nodes, leads);

        uint32_t component[MOST];
        size_t count;
        CHECK(aimo_object_graph_components(&g.graph, component, &count, NULL) == AIMO_OK);
        for (size_t i = 0; i < nodes; i++) {
            CHECK(component[i] < count);
            for (size_t j = 0; j < nodes; j++)
                CHECK((component[i] == component[j]) == (leads[i][j] && leads[j][i]));
        }

        uint8_t reached[MOST] = {0};
        const size_t root = test_random(&state) % nodes;
        reached[root] = 1;
        CHECK(aimo_object_graph_reach(&g.graph, reached, NULL) == AIMO_OK);
        for (size_t i = 0; i < nodes; i++)
            CHECK(reached[i] == leads[root][i]);
    }
}

TEST(process_components_of_a_long_path_need_no_stack)
{
    enum { LENGTH = 1 << 20 };
    size_t *first_edge = malloc((LENGTH + 1) * sizeof *first_edge);
    uint32_t *targets = malloc(LENGTH * sizeof *targets);
    uint32_t *component = malloc(LENGTH * sizeof *component);
    for (size_t i = 0; i < LENGTH; i++) {
        first_edge[i] = i;
        targets[i] = (uint32_t)((i + 1) % LENGTH); /* a ring */
    }
    first_edge[LENGTH] = LENGTH;
    const aimo_object_graph graph = {LENGTH, first_edge, targets};
    size_t count;
    const aimo_status status = aimo_object_graph_components(&graph, component, &count, NULL);
    free(first_edge);
    free(targets);
    free(component);
    CHECK(status == AIMO_OK && count == 1);
}

TEST(process_graph_functions_fail_cleanly_without_memory)
{
    small_graph g = {0};
    g.edge[0][1] = g.edge[1][0] = true;
    pack(&g, 3);
    const size_t live = aimo_memory_live_bytes();
    uint32_t component[MOST];
    uint8_t reached[MOST] = {1};
    size_t count;
    aimo_memory_fail_after(0);
    const aimo_status first = aimo_object_graph_components(&g.graph, component, &count, NULL);
    const aimo_status second = aimo_object_graph_reach(&g.graph, reached, NULL);
    aimo_memory_fail_after(1);
    const aimo_status third = aimo_object_graph_components(&g.graph, component, &count, NULL);
    aimo_memory_fail_after(-1);
    CHECK(first == AIMO_ERR_MEMORY && second == AIMO_ERR_MEMORY && third == AIMO_ERR_MEMORY);
    CHECK(aimo_memory_live_bytes() == live);
}
