/* Every object the garbage collector tracks, without asking the objects anything. */
#ifndef AIMO_BINDING_HEAP_WALK_H
#define AIMO_BINDING_HEAP_WALK_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* Called with the GIL held; must neither allocate Python memory, nor drop a reference, nor release
 * the GIL. Objects come in batches so that a visitor which follows their pointers can fetch those
 * of the whole batch first: one miss of the cache after another is what a walk spends its time on.
 */
typedef void (*aimo_heap_visitor)(PyObject *const *objects, size_t count, void *context);

/* Why the heap cannot be walked on the CPython this was built for; NULL when it can. */
extern const char *const aimo_heap_missing;

/* Visits all tracked objects of the running interpreter, frozen ones (gc.freeze) included. No
 * Python code runs and nothing is allocated. Objects may be half built: their type can be relied
 * on, their contents only as far as a collection relies on them. */
void aimo_heap_walk(aimo_heap_visitor visit, void *context);

/* Bytes of an exact dict and its table, shared keys left out; arithmetic over its size fields. */
size_t aimo_heap_dict_bytes(PyObject *dict);

#endif
