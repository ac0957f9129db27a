/* process: allocator figures, open files, and walks over the heap for the memory monitor. */
#include "binding/binding.h"

#include "base/memory.h"
#include "binding/heap_graph.h"
#include "process/process.h"

#include <string.h>

/* interpreter_state() -> dict that lives as long as the interpreter, whatever is reloaded */
static PyObject *interpreter_state(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused))
{
    PyObject *shared = PyInterpreterState_GetDict(PyInterpreterState_Get());
    if (shared == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "this interpreter offers no place for process state");
        return NULL;
    }
    PyObject *key = PyUnicode_FromString("ai_model_optimizations");
    if (key == NULL)
        return NULL;
    PyObject *fresh = PyDict_New();
    PyObject *state = fresh != NULL ? PyDict_SetDefault(shared, key, fresh) : NULL;
    Py_XINCREF(state);
    Py_XDECREF(fresh);
    Py_DECREF(key);
    return state;
}

/* allocator_info() -> {"name": str, "known": bool, "live": int, "retained": int, "mapped": int,
 * "can_trim": bool} */
static PyObject *allocator_info(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused))
{
    aimo_allocator_info info;
    Py_BEGIN_ALLOW_THREADS;
    aimo_allocator_read(&info);
    Py_END_ALLOW_THREADS;
    return Py_BuildValue("{s:s,s:N,s:n,s:n,s:n,s:N}", "name", info.name, "known",
                         PyBool_FromLong(info.known), "live", (Py_ssize_t)info.live, "retained",
                         (Py_ssize_t)info.retained, "mapped", (Py_ssize_t)info.mapped, "can_trim",
                         PyBool_FromLong(info.can_trim));
}

/* allocator_trim() -> bool */
static PyObject *allocator_trim(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused))
{
    bool trimmed;
    Py_BEGIN_ALLOW_THREADS;
    trimmed = aimo_allocator_trim();
    Py_END_ALLOW_THREADS;
    return PyBool_FromLong(trimmed);
}

/* open_files() -> (open, connected) or None where the system does not list them */
static PyObject *open_files(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused))
{
    size_t open, connected;
    bool known;
    Py_BEGIN_ALLOW_THREADS;
    known = aimo_process_count_files(&open, &connected);
    Py_END_ALLOW_THREADS;
    if (!known)
        Py_RETURN_NONE;
    return Py_BuildValue("(nn)", (Py_ssize_t)open, (Py_ssize_t)connected);
}

/* ---- heap_summary ---- */

typedef struct {
    PyObject *types;  /* tuple of exact types whose instances are returned */
    Py_ssize_t large; /* objects of at least this size are listed */
    size_t python_bytes, array_bytes, array_count;
    PyObject *list, *instances;
} summary;

static int append_new(PyObject *list, PyObject *item)
{
    if (item == NULL)
        return -1;
    const int failed = PyList_Append(list, item);
    Py_DECREF(item);
    return failed;
}

static bool is_instance_of_one(PyObject *object, PyObject *types)
{
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(types); i++)
        if ((PyObject *)Py_TYPE(object) == PyTuple_GET_ITEM(types, i))
            return true;
    return false;
}

static int summarize(summary *s, PyObject *object)
{
    const size_t own = aimo_heap_object_size(object);
    size_t data = 0;
    if (PyArray_Check(object) && PyArray_CHKFLAGS((PyArrayObject *)object, NPY_ARRAY_OWNDATA)) {
        data = (size_t)PyArray_NBYTES((PyArrayObject *)object);
        s->array_count++;
    }
    s->python_bytes += own;
    s->array_bytes += data;
    if (own + data >= (size_t)s->large &&
        append_new(s->list, Py_BuildValue("(Nn)", aimo_heap_type_name(Py_TYPE(object)),
                                          (Py_ssize_t)(own + data))) != 0)
        return -1;
    if (is_instance_of_one(object, s->types))
        return PyList_Append(s->instances, object);
    return 0;
}

/* heap_summary(types: tuple[type, ...], large: int, /) ->
 * (object count, python bytes, array count, array bytes, [(type name, bytes)], [instances]) */
static PyObject *heap_summary(PyObject *Py_UNUSED(module), PyObject *args)
{
    summary s = {.large = 0};
    if (!PyArg_ParseTuple(args, "O!n:heap_summary", &PyTuple_Type, &s.types, &s.large))
        return NULL;
    PyObject *result = NULL;
    s.list = PyList_New(0);
    s.instances = PyList_New(0);
    aimo_heap_graph heap;
    if (s.list == NULL || s.instances == NULL || aimo_heap_graph_init(&heap) != 0)
        goto done;
    int failed = aimo_heap_graph_extend(&heap);
    for (size_t i = 0; i < heap.objects.count && !failed; i++)
        failed = summarize(&s, (PyObject *)heap.objects.items[i]);
    if (!failed)
        result = Py_BuildValue("(nnnnOO)", (Py_ssize_t)heap.objects.count,
                               (Py_ssize_t)s.python_bytes, (Py_ssize_t)s.array_count,
                               (Py_ssize_t)s.array_bytes, s.list, s.instances);
    aimo_heap_graph_clear(&heap);
done:
    Py_XDECREF(s.list);
    Py_XDECREF(s.instances);
    return result;
}

/* ---- heap_cycles ---- */

typedef struct {
    const aimo_heap_graph *heap;
    aimo_object_graph graph;
    uint32_t *component; /* [node_count] */
    size_t component_count;
    uint32_t *members;    /* [node_count], nodes sorted by component */
    size_t *first_member; /* [component_count + 1] */
    uint8_t *reached;     /* [node_count], 1: alive */
} cycle_search;

/* A node is a root when some of its references come from outside the heap. */
static void find_roots(cycle_search *s)
{
    const size_t n = s->graph.node_count;
    uint32_t *inner = s->members; /* free until the members are sorted */
    memset(inner, 0, n * sizeof *inner);
    for (size_t e = 0; e < s->graph.first_edge[n]; e++)
        inner[s->graph.targets[e]]++;
    for (size_t i = 0; i < n; i++)
        s->reached[i] = Py_REFCNT((PyObject *)s->heap->objects.items[i]) > (Py_ssize_t)inner[i];
}

static void sort_members(cycle_search *s)
{
    const size_t n = s->graph.node_count;
    memset(s->first_member, 0, (s->component_count + 1) * sizeof *s->first_member);
    for (size_t i = 0; i < n; i++)
        s->first_member[s->component[i] + 1]++;
    for (size_t c = 0; c < s->component_count; c++)
        s->first_member[c + 1] += s->first_member[c];
    for (size_t i = n; i-- > 0;) /* going downwards moves each component's end to its start */
        s->members[--s->first_member[s->component[i] + 1]] = (uint32_t)i;
    memmove(s->first_member, s->first_member + 1, s->component_count * sizeof *s->first_member);
    s->first_member[s->component_count] = n;
}

static aimo_status search_cycles(cycle_search *s)
{
    const size_t n = s->graph.node_count;
    void *block;
    AIMO_TRY(aimo_memory_new(&block, n, sizeof *s->component, "cycles", NULL));
    s->component = block;
    AIMO_TRY(aimo_memory_new(&block, n, sizeof *s->members, "cycles", NULL));
    s->members = block;
    AIMO_TRY(aimo_memory_new(&block, n, sizeof *s->reached, "cycles", NULL));
    s->reached = block;
    find_roots(s);
    AIMO_TRY(aimo_object_graph_reach(&s->graph, s->reached, NULL));
    AIMO_TRY(aimo_object_graph_components(&s->graph, s->component, &s->component_count, NULL));
    AIMO_TRY(
        aimo_memory_new(&block, s->component_count + 1, sizeof *s->first_member, "cycles", NULL));
    s->first_member = block;
    sort_members(s);
    return AIMO_OK;
}

static void clear_search(cycle_search *s)
{
    aimo_memory_free(s->component);
    aimo_memory_free(s->members);
    aimo_memory_free(s->reached);
    aimo_memory_free(s->first_member);
    aimo_heap_references_clear(&s->graph);
}

static bool refers_to_itself(const cycle_search *s, uint32_t node)
{
    for (size_t e = s->graph.first_edge[node]; e < s->graph.first_edge[node + 1]; e++)
        if (s->graph.targets[e] == node)
            return true;
    return false;
}

static PyObject *object_of(const cycle_search *s, uint32_t node)
{
    return (PyObject *)s->heap->objects.items[node];
}

/* Classes and modules are cycles by construction and are meant to stay. */
static bool is_machinery(PyObject *object)
{
    return PyType_Check(object) || PyModule_Check(object);
}

static bool is_reported(const cycle_search *s, size_t c)
{
    const uint32_t *first = s->members + s->first_member[c];
    const size_t count = s->first_member[c + 1] - s->first_member[c];
    if (count == 1 && !refers_to_itself(s, *first))
        return false;
    if (!s->reached[*first])
        return true;
    for (size_t i = 0; i < count; i++)
        if (is_machinery(object_of(s, first[i])))
            return false;
    return true;
}

/* (alive, bytes, {id of type: count}) */
static PyObject *describe(const cycle_search *s, size_t c, PyObject *names)
{
    PyObject *counts = PyDict_New();
    if (counts == NULL)
        return NULL;
    size_t bytes = 0;
    for (size_t i = s->first_member[c]; i < s->first_member[c + 1]; i++) {
        PyObject *object = object_of(s, s->members[i]);
        bytes += aimo_heap_object_size(object);
        PyObject *key = PyLong_FromVoidPtr(Py_TYPE(object));
        PyObject *before = key != NULL ? PyDict_GetItemWithError(counts, key) : NULL;
        PyObject *count = PyLong_FromSize_t(before != NULL ? PyLong_AsSize_t(before) + 1 : 1);
        int failed = key == NULL || count == NULL || PyDict_SetItem(counts, key, count) != 0;
        if (!failed && PyDict_GetItemWithError(names, key) == NULL) {
            PyObject *name = aimo_heap_type_name(Py_TYPE(object));
            failed = name == NULL || PyDict_SetItem(names, key, name) != 0;
            Py_XDECREF(name);
        }
        Py_XDECREF(key);
        Py_XDECREF(count);
        if (failed) {
            Py_DECREF(counts);
            return NULL;
        }
    }
    const bool alive = s->reached[s->members[s->first_member[c]]];
    return Py_BuildValue("(NnN)", PyBool_FromLong(alive), (Py_ssize_t)bytes, counts);
}

static PyObject *describe_all(const cycle_search *s)
{
    size_t unreached = 0;
    for (size_t i = 0; i < s->graph.node_count; i++)
        unreached += !s->reached[i];
    PyObject *names = PyDict_New();
    PyObject *cycles = PyList_New(0);
    int failed = names == NULL || cycles == NULL;
    for (size_t c = 0; c < s->component_count && !failed; c++)
        if (is_reported(s, c))
            failed = append_new(cycles, describe(s, c, names));
    PyObject *result = failed ? NULL : Py_BuildValue("(nOO)", (Py_ssize_t)unreached, names, cycles);
    Py_XDECREF(names);
    Py_XDECREF(cycles);
    return result;
}

/* heap_cycles() -> (unreachable objects, {type id: name}, [(alive, bytes, {type id: count})])
 */
static PyObject *heap_cycles(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused))
{
    aimo_heap_graph heap;
    if (aimo_heap_graph_init(&heap) != 0)
        return NULL;
    cycle_search s = {.heap = &heap};
    PyObject *result = NULL;
    if (aimo_heap_graph_references(&heap, &s.graph) == 0) {
        if (search_cycles(&s) == AIMO_OK)
            result = describe_all(&s);
        else
            PyErr_SetString(PyExc_MemoryError, "no memory for the search for cycles");
    }
    clear_search(&s);
    aimo_heap_graph_clear(&heap);
    return result;
}

static PyMethodDef methods[] = {
    {"interpreter_state", interpreter_state, METH_NOARGS,
     "interpreter_state()\n--\n\nA dict that survives reloads."},
    {"allocator_info", allocator_info, METH_NOARGS,
     "allocator_info()\n--\n\nThe C allocator's live and retained bytes."},
    {"allocator_trim", allocator_trim, METH_NOARGS,
     "allocator_trim()\n--\n\nGive free pages back to the system."},
    {"open_files", open_files, METH_NOARGS,
     "open_files()\n--\n\nOpen descriptors and connected internet sockets."},
    {"heap_summary", heap_summary, METH_VARARGS,
     "heap_summary(types, large, /)\n--\n\nSizes of all reachable objects."},
    {"heap_cycles", heap_cycles, METH_NOARGS, "heap_cycles()\n--\n\nReference cycles."},
    {NULL, NULL, 0, NULL},
};

int aimo_py_add_process(PyObject *module) { return PyModule_AddFunctions(module, methods); }
