/* Who refers to whom on Python's heap, found by walks that run no Python code.
 *
 * An object is only asked for its type, its reference count, the fields of exact builtins that say
 * how large they are, and, through tp_traverse as the collector does, for what it refers to. The
 * caller holds the GIL and keeps it until the graph is cleared, and the collector is off meanwhile:
 * nothing that was seen can die, change or be finalized. */
#ifndef AIMO_BINDING_HEAP_GRAPH_H
#define AIMO_BINDING_HEAP_GRAPH_H

#include "binding/binding.h"

#include "process/object_graph.h"
#include "process/pointer_index.h"

#include <stdbool.h>

typedef struct {
    aimo_pointer_index objects; /* what the collector tracks, then what else was found; borrowed */
    bool collects;              /* whether the collector was on before */
} aimo_heap_graph;

/* All objects that the collector tracks; it is off until the clear. On failure an exception is set
 * and nothing is held. */
int aimo_heap_graph_init(aimo_heap_graph *heap);
void aimo_heap_graph_clear(aimo_heap_graph *heap);

/* Adds everything that those objects lead to: strings, bytes, numbers, arrays. */
int aimo_heap_graph_extend(aimo_heap_graph *heap);

/* References between the objects found; the caller frees it with aimo_heap_references_clear.
 */
int aimo_heap_graph_references(const aimo_heap_graph *heap, aimo_object_graph *graph);
void aimo_heap_references_clear(aimo_object_graph *graph);

/* Bytes of the object itself: for exact list, dict, set, str, bytearray with their tables, for
 * anything else what its type and its size field say. */
size_t aimo_heap_object_size(PyObject *object);

/* "module.qualname" of a type as far as that stands in exact strings; a new str. */
PyObject *aimo_heap_type_name(PyTypeObject *type);

#endif
