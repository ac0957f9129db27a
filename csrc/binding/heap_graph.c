#include "binding/heap_graph.h"

#include "base/memory.h"
#include "binding/heap_walk.h"

#include <string.h>

/* The collector keeps two words in front of every object that it can track. */
enum { GC_HEAD_BYTES = 2 * sizeof(void *) };

/* ---- sizes ---- */

#if PY_VERSION_HEX >= 0x030c0000
static size_t digits_of(PyObject *object)
{
    return ((PyLongObject *)object)->long_value.lv_tag >> 3;
}
#else
static size_t digits_of(PyObject *object) { return (size_t)Py_ABS(Py_SIZE(object)); }
#endif

static size_t size_of_str(PyObject *object)
{
    const PyASCIIObject *head = (PyASCIIObject *)object;
    const size_t length = (size_t)head->length;
    if (head->state.compact && head->state.ascii)
        return sizeof(PyASCIIObject) + length + 1;
    return sizeof(PyCompactUnicodeObject) + head->state.kind * (length + 1);
}

static size_t size_of_set_table(PyObject *object)
{
    const PySetObject *set = (PySetObject *)object;
    return set->table == set->smalltable ? 0 : ((size_t)set->mask + 1) * sizeof(setentry);
}

/* The bytes that an exact builtin holds outside of its own block. */
static size_t size_of_table(PyObject *object)
{
    if (PyList_CheckExact(object))
        return (size_t)((PyListObject *)object)->allocated * sizeof(PyObject *);
    if (PyAnySet_CheckExact(object))
        return size_of_set_table(object);
    if (PyByteArray_CheckExact(object))
        return (size_t)((PyByteArrayObject *)object)->ob_alloc;
    return 0;
}

static size_t size_before(PyObject *object, const PyTypeObject *type)
{
    size_t size = PyObject_IS_GC(object) ? GC_HEAD_BYTES : 0;
#if defined(Py_TPFLAGS_MANAGED_DICT)
    if (type->tp_flags & Py_TPFLAGS_MANAGED_DICT)
        size += 2 * sizeof(void *);
#else
    (void)type;
#endif
    return size;
}

/* Bytes of items after the fixed part, only for types where ob_size is known to count them: frames
 * and generators of 3.11 also have an item size, but something else in that field. */
static size_t item_count(PyObject *object)
{
    const unsigned long flags = Py_TYPE(object)->tp_flags;
    if (flags & Py_TPFLAGS_LONG_SUBCLASS)
        return digits_of(object);
    if ((flags & (Py_TPFLAGS_TUPLE_SUBCLASS | Py_TPFLAGS_BYTES_SUBCLASS)) || PyCode_Check(object))
        return (size_t)Py_ABS(((PyVarObject *)object)->ob_size);
    return 0;
}

size_t aimo_heap_object_size(PyObject *object)
{
    const PyTypeObject *type = Py_TYPE(object);
    if (PyUnicode_CheckExact(object))
        return size_of_str(object);
    if (PyDict_CheckExact(object))
        return GC_HEAD_BYTES + aimo_heap_dict_bytes(object);
    return size_before(object, type) + (size_t)type->tp_basicsize +
           item_count(object) * (size_t)type->tp_itemsize + size_of_table(object);
}

/* ---- names ---- */

/* The class's own __module__ when that is an exact str; borrowed, or NULL. The dict is iterated
 * instead of looked up, because a lookup may run the comparison of a foreign key. */
static PyObject *module_name_of(PyTypeObject *type)
{
    PyObject *key, *value;
    Py_ssize_t position = 0;
    while (PyDict_Next(type->tp_dict, &position, &key, &value))
        if (PyUnicode_CheckExact(key) && PyUnicode_CompareWithASCIIString(key, "__module__") == 0)
            return PyUnicode_CheckExact(value) ? value : NULL;
    return NULL;
}

PyObject *aimo_heap_type_name(PyTypeObject *type)
{
    if (!(type->tp_flags & Py_TPFLAGS_HEAPTYPE)) /* static: tp_name is all there is */
        return PyUnicode_DecodeUTF8(type->tp_name, (Py_ssize_t)strlen(type->tp_name), "replace");
    PyObject *name = ((PyHeapTypeObject *)type)->ht_qualname;
    if (name == NULL || !PyUnicode_CheckExact(name))
        return PyUnicode_DecodeUTF8(type->tp_name, (Py_ssize_t)strlen(type->tp_name), "replace");
    PyObject *module = type->tp_dict != NULL ? module_name_of(type) : NULL;
    if (module == NULL || PyUnicode_CompareWithASCIIString(module, "builtins") == 0)
        return Py_NewRef(name);
    return PyUnicode_FromFormat("%U.%U", module, name);
}

/* ---- walking ---- */

static int no_memory(void)
{
    PyErr_SetString(PyExc_MemoryError, "no memory for the walk over the heap");
    return -1;
}

typedef struct {
    aimo_pointer_index *objects;
    aimo_status status;
} finding;

static void find_objects(PyObject *const *objects, size_t count, void *context)
{
    finding *f = context;
    for (size_t i = 0; i < count && f->status == AIMO_OK; i++)
        f->status = aimo_pointer_index_add(f->objects, objects[i], NULL);
}

int aimo_heap_graph_init(aimo_heap_graph *heap)
{
#if defined(Py_GIL_DISABLED)
    PyErr_SetString(PyExc_NotImplementedError,
                    "a walk over the heap needs the GIL: without it objects die meanwhile");
    return -1;
#endif
    if (aimo_pointer_index_init(&heap->objects, 0, NULL) != AIMO_OK)
        return no_memory();
    heap->collects = PyGC_Disable() != 0;
    finding f = {.objects = &heap->objects};
    aimo_heap_walk(find_objects, &f);
    if (f.status == AIMO_OK)
        return 0;
    aimo_heap_graph_clear(heap);
    return no_memory();
}

void aimo_heap_graph_clear(aimo_heap_graph *heap)
{
    aimo_pointer_index_clear(&heap->objects);
    if (heap->collects)
        PyGC_Enable();
}

/* Visits the references of `object` as the collector would. Static types have tp_traverse but abort
 * the process when it is called; PyObject_IS_GC tells them apart. */
static int visit_referents(PyObject *object, visitproc visit, void *argument)
{
    const traverseproc traverse = Py_TYPE(object)->tp_traverse;
    if (traverse == NULL || !PyObject_IS_GC(object))
        return 0;
    return traverse(object, visit, argument);
}

static int add_referent(PyObject *referent, void *argument)
{
    return aimo_pointer_index_add(argument, referent, NULL) == AIMO_OK ? 0 : -1;
}

int aimo_heap_graph_extend(aimo_heap_graph *heap)
{
    for (size_t i = 0; i < heap->objects.count; i++)
        if (visit_referents((PyObject *)heap->objects.items[i], add_referent, &heap->objects) != 0)
            return no_memory();
    return 0;
}

/* ---- references ---- */

typedef struct {
    const aimo_pointer_index *objects;
    uint32_t *targets; /* [capacity]; NULL while the edges are only counted */
    size_t count, capacity;
} edge_list;

/* The references that an object reports may change although no Python code runs: torch reports a
 * tensor's gradient function and hooks depending on whether others, possibly C++ threads, own the
 * tensor. References that were not there when edges were counted are left out. */
static int add_edge(PyObject *referent, void *argument)
{
    edge_list *edges = argument;
    uint32_t number;
    if (!aimo_pointer_index_find(edges->objects, referent, &number))
        return 0;
    if (edges->targets != NULL) {
        if (edges->count == edges->capacity)
            return 0;
        edges->targets[edges->count] = number;
    }
    edges->count++;
    return 0;
}

static void visit_edges(const aimo_heap_graph *heap, edge_list *edges, size_t *first_edge)
{
    edges->count = 0;
    for (size_t i = 0; i < heap->objects.count; i++) {
        first_edge[i] = edges->count;
        visit_referents((PyObject *)heap->objects.items[i], add_edge, edges);
    }
    first_edge[heap->objects.count] = edges->count;
}

int aimo_heap_graph_references(const aimo_heap_graph *heap, aimo_object_graph *graph)
{
    *graph = (aimo_object_graph){.node_count = heap->objects.count};
    void *block;
    if (aimo_memory_new(&block, graph->node_count + 1, sizeof *graph->first_edge, "edges", NULL) !=
        AIMO_OK)
        return no_memory();
    graph->first_edge = block;
    edge_list edges = {.objects = &heap->objects};
    visit_edges(heap, &edges, graph->first_edge);
    if (aimo_memory_new(&block, edges.count, sizeof *graph->targets, "edges", NULL) != AIMO_OK) {
        aimo_heap_references_clear(graph);
        return no_memory();
    }
    edges.targets = graph->targets = block;
    edges.capacity = edges.count;
    visit_edges(heap, &edges, graph->first_edge);
    return 0;
}

void aimo_heap_references_clear(aimo_object_graph *graph)
{
    aimo_memory_free(graph->first_edge);
    aimo_memory_free(graph->targets);
    *graph = (aimo_object_graph){0};
}
