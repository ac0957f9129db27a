/* census: counts and sizes of live objects by type, without touching the objects.
 *
 * Of an object only its type pointer is read and, for exact list, tuple, dict, set and frozenset,
 * the field that holds the size. No method, comparison or attribute is used: an object whose every
 * method raises is counted like any other. Names are made after the walk, from the types' own
 * slots. */
#include "binding/binding.h"

#include "base/memory.h"
#include "binding/heap_walk.h"

#include <stdbool.h>
#include <string.h>

typedef enum { SIZE_FIXED, SIZE_TUPLE, SIZE_LIST, SIZE_DICT, SIZE_SET } size_rule;

typedef struct {
    PyTypeObject *type; /* NULL: free slot */
    size_t count;
    size_t more_bytes;  /* of all instances together, beyond fixed_bytes each */
    size_t fixed_bytes; /* of one object, headers included */
    size_rule rule;
} type_entry;

typedef struct {
    type_entry *slots; /* [capacity], a power of two, at most half full */
    size_t capacity, used;
    aimo_status status;
    aimo_error err;
} census;

/* Types */

static size_rule rule_of(const PyTypeObject *type)
{
    if (type == &PyTuple_Type)
        return SIZE_TUPLE;
    if (type == &PyList_Type)
        return SIZE_LIST;
    if (type == &PyDict_Type)
        return SIZE_DICT;
    if (type == &PySet_Type || type == &PyFrozenSet_Type)
        return SIZE_SET;
    return SIZE_FIXED;
}

/* The collector's header, and from 3.11 on the two pointers before objects with a dict or weak
 * references that the interpreter manages. */
static size_t header_bytes(const PyTypeObject *type)
{
    unsigned long managed = 0;
#ifdef Py_TPFLAGS_MANAGED_DICT
    managed |= Py_TPFLAGS_MANAGED_DICT;
#endif
#ifdef Py_TPFLAGS_MANAGED_WEAKREF
    managed |= Py_TPFLAGS_MANAGED_WEAKREF;
#endif
    const size_t pair = 2 * sizeof(void *);
    return pair + ((type->tp_flags & managed) != 0 ? pair : 0);
}

/* An object's bytes beyond its type's fixed size. */
static size_t more_bytes(PyObject *object, size_rule rule)
{
    switch (rule) {
    case SIZE_TUPLE:
        return (size_t)Py_SIZE(object) * sizeof(PyObject *);
    case SIZE_LIST:
        return (size_t)((PyListObject *)object)->allocated * sizeof(PyObject *);
    case SIZE_DICT:
        return aimo_heap_dict_bytes(object);
    case SIZE_SET: {
        const PySetObject *set = (PySetObject *)object;
        const size_t table = set->table != set->smalltable ? (size_t)set->mask + 1 : 0;
        return table * sizeof(setentry);
    }
    case SIZE_FIXED:
        break;
    }
    return 0;
}

static type_entry *find(type_entry *slots, size_t capacity, const PyTypeObject *type)
{
    size_t i = (size_t)(((uint64_t)(uintptr_t)type >> 4) * 0x9e3779b97f4a7c15u >> 40);
    while (slots[i & (capacity - 1)].type != NULL && slots[i & (capacity - 1)].type != type)
        i++;
    return &slots[i & (capacity - 1)];
}

static aimo_status grow(census *c)
{
    const size_t capacity = c->capacity != 0 ? 2 * c->capacity : 4096;
    void *block;
    AIMO_TRY(aimo_memory_new_zero(&block, capacity, sizeof(type_entry), "object census", &c->err));
    type_entry *slots = block;
    for (size_t i = 0; i < c->capacity; i++)
        if (c->slots[i].type != NULL)
            *find(slots, capacity, c->slots[i].type) = c->slots[i];
    aimo_memory_free(c->slots);
    c->slots = slots;
    c->capacity = capacity;
    return AIMO_OK;
}

/* An exact dict's size, except for its headers, is found along with its table's. */
static size_t fixed_bytes(const PyTypeObject *type)
{
    return header_bytes(type) + (type != &PyDict_Type ? (size_t)type->tp_basicsize : 0);
}

/* NULL when memory runs out. */
static type_entry *new_entry(census *c, PyTypeObject *type)
{
    if (c->status == AIMO_OK && 2 * (c->used + 1) > c->capacity)
        c->status = grow(c);
    if (c->status != AIMO_OK)
        return NULL;
    c->used++;
    type_entry *entry = find(c->slots, c->capacity, type);
    *entry = (type_entry){.type = type, .rule = rule_of(type), .fixed_bytes = fixed_bytes(type)};
    return entry;
}

static void count_object(PyObject *object, census *c)
{
    type_entry *entry = find(c->slots, c->capacity, Py_TYPE(object));
    if (entry->type == NULL && (entry = new_entry(c, Py_TYPE(object))) == NULL)
        return;
    entry->count++;
    if (entry->rule != SIZE_FIXED)
        entry->more_bytes += more_bytes(object, entry->rule);
}

/* The sizes of dicts are in their tables, which are prefetched for a whole batch before the first
 * is read. */
static void count_objects(PyObject *const *objects, size_t count, void *context)
{
    for (size_t i = 0; i < count; i++)
        if (PyDict_CheckExact(objects[i]))
            __builtin_prefetch(((PyDictObject *)objects[i])->ma_keys);
    for (size_t i = 0; i < count; i++)
        count_object(objects[i], context);
}

/* Names */

/* The exact str under "__module__" in a class's own namespace; borrowed, NULL when there is none.
 * Found by iteration, not by lookup: a namespace may hold keys whose comparison runs arbitrary
 * code. */
static PyObject *module_of(const PyTypeObject *type)
{
    Py_ssize_t position = 0;
    PyObject *key, *value;
    if (type->tp_dict == NULL)
        return NULL;
    while (PyDict_Next(type->tp_dict, &position, &key, &value))
        if (PyUnicode_CheckExact(key) && PyUnicode_CompareWithASCIIString(key, "__module__") == 0)
            return PyUnicode_CheckExact(value) ? value : NULL;
    return NULL;
}

/* "module.qualified.name", or the bare name for builtins. */
static PyObject *type_name(PyTypeObject *type)
{
    if ((type->tp_flags & Py_TPFLAGS_HEAPTYPE) == 0)
        return PyUnicode_FromString(type->tp_name);
    PyObject *name = ((PyHeapTypeObject *)type)->ht_qualname, *module = module_of(type);
    if (module == NULL || PyUnicode_CompareWithASCIIString(module, "builtins") == 0)
        return Py_NewRef(name);
    return PyUnicode_FromFormat("%U.%U", module, name);
}

/* The first of `classes` that `type` is or derives from; -1 when none. */
static Py_ssize_t class_of(PyTypeObject *type, PyObject *classes)
{
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(classes); i++)
        if (PyType_IsSubtype(type, (PyTypeObject *)PyTuple_GET_ITEM(classes, i)))
            return i;
    return -1;
}

static PyObject *list_entries(const census *c, PyObject *classes)
{
    PyObject *list = PyList_New(0);
    for (size_t i = 0; i < c->capacity && list != NULL; i++) {
        const type_entry *e = &c->slots[i];
        if (e->type == NULL)
            continue;
        const size_t bytes = e->count * e->fixed_bytes + e->more_bytes;
        PyObject *name = type_name(e->type);
        PyObject *item = name == NULL
                             ? NULL
                             : Py_BuildValue("(Nnnn)", name, (Py_ssize_t)e->count,
                                             (Py_ssize_t)bytes, class_of(e->type, classes));
        if (item == NULL || PyList_Append(list, item) != 0)
            Py_CLEAR(list);
        Py_XDECREF(item);
    }
    return list;
}

static int check_classes(PyObject *classes)
{
    bool right = PyTuple_Check(classes);
    for (Py_ssize_t i = 0; right && i < PyTuple_GET_SIZE(classes); i++)
        right = PyType_Check(PyTuple_GET_ITEM(classes, i));
    if (!right)
        PyErr_SetString(PyExc_TypeError, "classes: expected a tuple of types");
    return right ? 0 : -1;
}

static int check_supported(PyObject *module)
{
    if (aimo_heap_missing == NULL)
        return 0;
    aimo_error err;
    aimo_fail(&err, AIMO_ERR_UNSUPPORTED, "object census: %s", aimo_heap_missing);
    aimo_py_raise(aimo_py_state_of(module), AIMO_ERR_UNSUPPORTED, &err);
    return -1;
}

/* census_types(classes: tuple[type, ...], /) -> [(name, count, bytes, index in classes or -1)] */
static PyObject *census_types(PyObject *module, PyObject *classes)
{
    if (check_supported(module) != 0 || check_classes(classes) != 0)
        return NULL;
    census c = {0};
    PyObject *result = NULL;
    c.status = grow(&c);
    if (c.status == AIMO_OK)
        aimo_heap_walk(count_objects, &c);
    if (c.status != AIMO_OK) {
        aimo_py_raise(aimo_py_state_of(module), c.status, &c.err);
        goto done;
    }
    /* Making the names may run a collection, and a type may die in it. */
    for (size_t i = 0; i < c.capacity; i++)
        Py_XINCREF((PyObject *)c.slots[i].type);
    result = list_entries(&c, classes);
    for (size_t i = 0; i < c.capacity; i++)
        Py_XDECREF((PyObject *)c.slots[i].type);
done:
    aimo_memory_free(c.slots);
    return result;
}

/* A set of objects by address, with a reference to each. */
typedef struct {
    PyObject **slots; /* [capacity], a power of two, at most half full */
    size_t capacity, used;
    PyObject *types; /* collected are objects of exactly these types */
    aimo_status status;
    aimo_error err;
} object_set;

static PyObject **find_object(PyObject **slots, size_t capacity, const PyObject *object)
{
    size_t i = (size_t)(((uint64_t)(uintptr_t)object >> 4) * 0x9e3779b97f4a7c15u >> 32);
    while (slots[i & (capacity - 1)] != NULL && slots[i & (capacity - 1)] != object)
        i++;
    return &slots[i & (capacity - 1)];
}

static aimo_status grow_set(object_set *set)
{
    const size_t capacity = set->capacity != 0 ? 2 * set->capacity : 1024;
    void *block;
    AIMO_TRY(aimo_memory_new_zero(&block, capacity, sizeof(PyObject *), "object set", &set->err));
    PyObject **slots = block;
    for (size_t i = 0; i < set->capacity; i++)
        if (set->slots[i] != NULL)
            *find_object(slots, capacity, set->slots[i]) = set->slots[i];
    aimo_memory_free(set->slots);
    set->slots = slots;
    set->capacity = capacity;
    return AIMO_OK;
}

static bool has_wanted_type(const object_set *set, const PyObject *object)
{
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(set->types); i++)
        if (PyTuple_GET_ITEM(set->types, i) == (PyObject *)Py_TYPE(object))
            return true;
    return false;
}

static void collect_object(PyObject *object, void *context)
{
    object_set *set = context;
    if (set->status != AIMO_OK || !has_wanted_type(set, object))
        return;
    if (2 * (set->used + 1) > set->capacity && (set->status = grow_set(set)) != AIMO_OK)
        return;
    PyObject **slot = find_object(set->slots, set->capacity, object);
    if (*slot != NULL)
        return;
    *slot = Py_NewRef(object);
    set->used++;
}

static int collect_referent(PyObject *object, void *context)
{
    collect_object(object, context);
    return 0;
}

/* Objects that the collector does not track are found the way the collector finds them: by
 * tp_traverse. */
static void collect_referents(PyObject *const *objects, size_t count, void *context)
{
    for (size_t i = 0; i < count; i++) {
        collect_object(objects[i], context);
        const traverseproc traverse = Py_TYPE(objects[i])->tp_traverse;
        if (traverse != NULL)
            (void)traverse(objects[i], collect_referent, context);
    }
}

static PyObject *list_objects(const object_set *set)
{
    PyObject *list = PyList_New(0);
    for (size_t i = 0; i < set->capacity && list != NULL; i++)
        if (set->slots[i] != NULL && PyList_Append(list, set->slots[i]) != 0)
            Py_CLEAR(list);
    return list;
}

/* census_instances(types: tuple[type, ...], /) -> list of the objects of exactly these types that
 * are tracked or that a tracked object refers to */
static PyObject *census_instances(PyObject *module, PyObject *types)
{
    if (check_supported(module) != 0 || check_classes(types) != 0)
        return NULL;
    object_set set = {.types = types};
    PyObject *list = NULL;
    set.status = grow_set(&set);
    if (set.status == AIMO_OK)
        aimo_heap_walk(collect_referents, &set);
    if (set.status != AIMO_OK)
        aimo_py_raise(aimo_py_state_of(module), set.status, &set.err);
    else
        list = list_objects(&set);
    for (size_t i = 0; i < set.capacity; i++)
        Py_XDECREF(set.slots[i]);
    aimo_memory_free(set.slots);
    return list;
}

static PyMethodDef methods[] = {
    {"census_types", census_types, METH_O,
     "census_types(classes, /)\n--\n\nCount and shallow bytes of tracked objects by type."},
    {"census_instances", census_instances, METH_O,
     "census_instances(types, /)\n--\n\nThe objects of exactly these types that can be found."},
    {NULL, NULL, 0, NULL},
};

int aimo_py_add_census(PyObject *module) { return PyModule_AddFunctions(module, methods); }
