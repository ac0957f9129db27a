/* The references between objects on Python's heap, found by walks that run no Python code.
 *
 * Of an object, only these are read: its type, its reference count, the size fields of exact
 * builtins, and, through tp_traverse like the collector, its references. The caller must hold the
 * GIL until the graph is cleared, and the collector is off meanwhile, so nothing that was seen can
 * die, change or be finalized. */
#ifndef AIMO_BINDING_HEAP_GRAPH_H
#define AIMO_BINDING_HEAP_GRAPH_H

#include "binding/binding.h"

#include "process/object_graph.h"
#include "process/pointer_index.h"

#include <stdbool.h>

typedef struct {
    aimo_pointer_index objects; /* tracked objects, then others that they lead to; borrowed */
    bool collects;              /* whether the collector was on before */
} aimo_heap_graph;

/* Finds all objects that the collector tracks, and switches the collector off until
 * aimo_heap_graph_clear. On failure an exception is set and nothing is held. */
int aimo_heap_graph_init(aimo_heap_graph *heap);
void aimo_heap_graph_clear(aimo_heap_graph *heap);

/* Adds everything reachable from those objects: strings, bytes, numbers, arrays. */
int aimo_heap_graph_extend(aimo_heap_graph *heap);

/* References between the objects found; the caller frees it with aimo_heap_references_clear.
 */
int aimo_heap_graph_references(const aimo_heap_graph *heap, aimo_object_graph *graph);
void aimo_heap_references_clear(aimo_object_graph *graph);

/* Bytes of the object itself: exact list, dict, set, str and bytearray include their tables; the
 * size of anything else follows from its type and its size field. */
size_t aimo_heap_object_size(PyObject *object);

/* "module.qualname" of a type, as far as these are exact strings; a new str. */
PyObject *aimo_heap_type_name(PyTypeObject *type);

#endif
