/* Reads the collector's own lists. gc.get_objects would make a list of everything: megabytes, a
 * reference to each object, and perhaps a collection, with finalizers, on the monitor's thread.
 * PyUnstable_GC_VisitObjects (3.12) leaves out frozen objects, which after gc.freeze in the parent
 * of forked workers are most of the heap.
 *
 * The layouts are those of the headers that this file is compiled with; it supports the versions
 * that the tests ran on. On any other, aimo_heap_missing says so. */
#define Py_BUILD_CORE 1 /* the collector's lists, the size of a dict */
#include "binding/heap_walk.h"

#if defined(Py_GIL_DISABLED) || PY_VERSION_HEX < 0x030a0000 || PY_VERSION_HEX >= 0x030e0000

const char *const aimo_heap_missing = "the heap can be walked on CPython 3.10 to 3.13 with the GIL";

void aimo_heap_walk(aimo_heap_visitor visit, void *context)
{
    (void)visit;
    (void)context;
}

size_t aimo_heap_dict_bytes(PyObject *dict)
{
    (void)dict;
    return 0;
}

#else

#include <internal/pycore_interp.h>
#if PY_VERSION_HEX >= 0x030d0000
#include <internal/pycore_dict.h>
#endif

const char *const aimo_heap_missing = NULL;

enum {
    BATCH = 64,
    NEARBY = 1024, /* bytes */
    PATTERN = 12,  /* objects; 12 has many divisors */
};

/* The objects that a walk from one end of a list saw last. */
typedef struct {
    uintptr_t recent[PATTERN]; /* a ring */
    size_t oldest;
    intptr_t nearby; /* NEARBY in the direction of the walk */
} trail;

/* Only a hint: any address is allowed. */
static void fetch(uintptr_t address) { __builtin_prefetch((const void *)address); }

/* Prefetches what the walk will probably need soon. Objects made by a loop lie at regular
 * distances, one distance for each kind of object. If the period of that pattern divides PATTERN,
 * the object PATTERN places further on is as far ahead as the one PATTERN places back is behind.
 * Memory pools that were used before are filled out of order; there, any nearby address is as good
 * a guess. */
static void fetch_ahead(trail *t, uintptr_t object)
{
    fetch(object + (uintptr_t)t->nearby);
    fetch(object + (object - t->recent[t->oldest]));
    t->recent[t->oldest] = object;
    t->oldest = (t->oldest + 1) % PATTERN;
}

/* The next object is known only once this one has been loaded, so walking a list is mostly waiting
 * for memory. Walking it from both ends until they meet makes two chains of loads that wait at the
 * same time.
 *
 * Both links are right whenever Python code can call: the collector, which keeps counts in one of
 * them, has mended it before it runs any. */
static void walk_generation(struct gc_generation *generation, aimo_heap_visitor visit,
                            void *context)
{
    PyGC_Head *const head = &generation->head;
    PyGC_Head *front = _PyGCHead_NEXT(head), *back = _PyGCHead_PREV(head);
    trail front_trail = {.nearby = NEARBY}, back_trail = {.nearby = -NEARBY};
    PyObject *objects[BATCH + 2];
    size_t count = 0;
    while (front != back) {
        objects[count++] = (PyObject *)(front + 1);
        fetch_ahead(&front_trail, (uintptr_t)front);
        front = _PyGCHead_NEXT(front);
        if (front == back)
            break;
        objects[count++] = (PyObject *)(back + 1);
        fetch_ahead(&back_trail, (uintptr_t)back);
        back = _PyGCHead_PREV(back);
        if (count >= BATCH) {
            visit(objects, count, context);
            count = 0;
        }
    }
    if (front != head)
        objects[count++] = (PyObject *)(front + 1);
    visit(objects, count, context);
}

void aimo_heap_walk(aimo_heap_visitor visit, void *context)
{
    struct _gc_runtime_state *gc = &PyInterpreterState_Get()->gc;
    for (int i = 0; i < NUM_GENERATIONS; i++)
        walk_generation(&gc->generations[i], visit, context);
    walk_generation(&gc->permanent_generation, visit, context);
}

size_t aimo_heap_dict_bytes(PyObject *dict) { return (size_t)_PyDict_SizeOf((PyDictObject *)dict); }

#endif
