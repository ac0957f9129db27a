/* The collector's own lists are read. gc.get_objects would make a list of everything: megabytes, a
 * reference to each object, and perhaps a collection, with finalizers, on the monitor's thread.
 * PyUnstable_GC_VisitObjects (3.12) leaves out frozen objects, and after gc.freeze in the parent of
 * forked workers those are most of the heap.
 *
 * The layouts are those of the headers this file is compiled with, and the versions are those whose
 * tests ran; on any other aimo_heap_missing says so. */
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

/* One end of a list, and the objects that a walk from it saw last. */
typedef struct {
    uintptr_t recent[PATTERN]; /* a ring */
    size_t oldest;
    intptr_t nearby; /* NEARBY in the direction of the walk */
} trail;

/* A hint: no address is wrong for it. */
static void fetch(uintptr_t address) { __builtin_prefetch((const void *)address); }

/* Guesses what the walk will need soon. A loop that made objects left them at regular distances,
 * one for each kind of object: when the pattern's length divides PATTERN, the object that many
 * further lies as far ahead as the one that many before lies behind. Pools that were used before
 * are filled out of order; there, what lies nearby is as good a guess as any. */
static void fetch_ahead(trail *t, uintptr_t object)
{
    fetch(object + (uintptr_t)t->nearby);
    fetch(object + (object - t->recent[t->oldest]));
    t->recent[t->oldest] = object;
    t->oldest = (t->oldest + 1) % PATTERN;
}

/* The next object is known only when this one has come from memory, so a walk along the list mostly
 * waits. Two chains wait half as long: it is taken from both ends until they meet.
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
