/* EmbeddingIndex: stored embeddings and exact lookup over numpy arrays. Python decides which
 * contexts there are, how many rows they keep, and what belongs to a row. cache_search_py.c has the
 * lookups. */
#include "binding/cache_py.h"

#include "backend/row_screen.h"

#include <string.h>

PyObject *aimo_py_index_raise(PyObject *self, aimo_status status, const aimo_error *err)
{
    return aimo_py_raise(aimo_py_state_of_type(Py_TYPE(self)), status, err);
}

PyArrayObject *aimo_py_index_vectors(PyObject *self, PyObject *argument, npy_intp *rows)
{
    const int dimensions = rows != NULL ? 2 : 1;
    PyArrayObject *array =
        (PyArrayObject *)PyArray_FROM_OTF(argument, NPY_FLOAT32, NPY_ARRAY_IN_ARRAY);
    if (array == NULL)
        return NULL;
    const npy_intp dim = (npy_intp)aimo_cache_dim(aimo_py_index_cache(self));
    if (PyArray_NDIM(array) == dimensions && PyArray_DIM(array, dimensions - 1) == dim) {
        if (rows != NULL)
            *rows = PyArray_DIM(array, 0);
        return array;
    }
    PyObject *shape = PyObject_GetAttrString((PyObject *)array, "shape");
    if (shape != NULL)
        PyErr_Format(PyExc_ValueError, "embedding%s must have shape (%s%zd%s), got %R",
                     rows != NULL ? "s" : "", rows != NULL ? "n, " : "", (Py_ssize_t)dim,
                     rows != NULL ? "" : ",", shape);
    Py_XDECREF(shape);
    Py_DECREF(array);
    return NULL;
}

PyArrayObject *aimo_py_index_integers(PyObject *argument, npy_intp rows, const char *what)
{
    PyArrayObject *array =
        (PyArrayObject *)PyArray_FROM_OTF(argument, NPY_INT64, NPY_ARRAY_IN_ARRAY);
    if (array == NULL || (PyArray_NDIM(array) == 1 && PyArray_DIM(array, 0) == rows))
        return array;
    PyErr_Format(PyExc_ValueError, "%s: expected an array of shape (%zd,)", what, (Py_ssize_t)rows);
    Py_DECREF(array);
    return NULL;
}

/* ---- life ---------------------------------------------------------------------------------- */

static int parse_row_type(const char *name, aimo_row_type *type)
{
    *type = AIMO_ROWS_F16;
    if (name == NULL || strcmp(name, "f16") == 0)
        return 0;
    *type = AIMO_ROWS_INT8;
    if (strcmp(name, "int8") == 0)
        return 0;
    PyErr_Format(PyExc_ValueError, "row_dtype: expected 'f16' or 'int8', got '%s'", name);
    return -1;
}

/* Creates a cache that uses this CUDA device; a negative number means none. */
static aimo_status cache_new(aimo_cache **out, Py_ssize_t dim, aimo_row_type row_type, int device,
                             aimo_error *err)
{
    AIMO_TRY(aimo_cache_new(out, dim < 0 ? 0 : (size_t)dim, row_type, err));
    if (device < 0)
        return AIMO_OK;
    aimo_row_screen *screen;
    const aimo_status status = aimo_row_screen_cuda_new(device, (size_t)dim, &screen, err);
    if (status == AIMO_OK)
        aimo_cache_use_device(*out, screen);
    else
        aimo_cache_free(*out);
    return status;
}

/* EmbeddingIndex(dim: int, /, *, row_dtype: str = "f16", device: int = -1) */
static PyObject *index_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"", "row_dtype", "device", NULL};
    Py_ssize_t dim;
    const char *row_dtype = NULL;
    int device = -1;
    aimo_row_type row_type;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "n|$si:EmbeddingIndex", names, &dim, &row_dtype,
                                     &device) ||
        parse_row_type(row_dtype, &row_type) != 0)
        return NULL;
    aimo_cache *cache;
    aimo_error err;
    const aimo_status status = cache_new(&cache, dim, row_type, device, &err);
    if (status != AIMO_OK)
        return aimo_py_raise(aimo_py_state_of_type(type), status, &err);
    PyObject *self = type->tp_alloc(type, 0);
    if (self == NULL) {
        aimo_cache_free(cache);
        return NULL;
    }
    ((index_object *)self)->cache = cache;
    return self;
}

static void index_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    aimo_cache_free(aimo_py_index_cache(self));
    type->tp_free(self);
    Py_DECREF(type);
}

static Py_ssize_t index_length(PyObject *self)
{
    return (Py_ssize_t)aimo_cache_count(aimo_py_index_cache(self));
}

/* ---- rows ---------------------------------------------------------------------------------- */

/* add(vector: ndarray[float32], context: int, /) -> int */
static PyObject *index_add(PyObject *self, PyObject *args)
{
    PyObject *argument;
    long long context;
    if (!PyArg_ParseTuple(args, "OL:add", &argument, &context))
        return NULL;
    PyArrayObject *vector = aimo_py_index_vectors(self, argument, NULL);
    if (vector == NULL)
        return NULL;
    aimo_cache *cache = aimo_py_index_cache(self);
    const float *data = PyArray_DATA(vector);
    const int64_t where = context;
    int64_t slot;
    aimo_error err;
    aimo_status status;
    Py_BEGIN_ALLOW_THREADS;
    status = aimo_cache_add(cache, data, &where, 1, &slot, &err);
    Py_END_ALLOW_THREADS;
    Py_DECREF(vector);
    return status == AIMO_OK ? PyLong_FromLongLong(slot) : aimo_py_index_raise(self, status, &err);
}

/* add_many(vectors: ndarray[float32], contexts: ndarray[int64], /) -> ndarray[int64] */
static PyObject *index_add_many(PyObject *self, PyObject *args)
{
    PyObject *argument, *context_argument;
    npy_intp n;
    if (!PyArg_ParseTuple(args, "OO:add_many", &argument, &context_argument))
        return NULL;
    PyArrayObject *contexts = NULL, *slots = NULL,
                  *vectors = aimo_py_index_vectors(self, argument, &n);
    if (vectors == NULL ||
        (contexts = aimo_py_index_integers(context_argument, n, "contexts")) == NULL ||
        (slots = (PyArrayObject *)PyArray_SimpleNew(1, &n, NPY_INT64)) == NULL)
        goto done;
    aimo_cache *cache = aimo_py_index_cache(self);
    const float *data = PyArray_DATA(vectors);
    const int64_t *where = PyArray_DATA(contexts);
    int64_t *out = PyArray_DATA(slots);
    aimo_error err;
    aimo_status status;
    Py_BEGIN_ALLOW_THREADS;
    status = aimo_cache_add(cache, data, where, (size_t)n, out, &err);
    Py_END_ALLOW_THREADS;
    if (status != AIMO_OK) {
        Py_CLEAR(slots);
        aimo_py_index_raise(self, status, &err);
    }
done:
    Py_XDECREF(vectors);
    Py_XDECREF(contexts);
    return (PyObject *)slots;
}

/* remove(slot: int, /) -> None */
static PyObject *index_remove(PyObject *self, PyObject *argument)
{
    const long long slot = PyLong_AsLongLong(argument);
    if (slot == -1 && PyErr_Occurred())
        return NULL;
    aimo_cache *cache = aimo_py_index_cache(self);
    aimo_error err;
    aimo_status status;
    Py_BEGIN_ALLOW_THREADS;
    status = aimo_cache_remove(cache, slot, &err);
    Py_END_ALLOW_THREADS;
    if (status != AIMO_OK)
        return aimo_py_index_raise(self, status, &err);
    Py_RETURN_NONE;
}

/* optimize() -> None */
static PyObject *index_optimize(PyObject *self, PyObject *Py_UNUSED(unused))
{
    aimo_cache *cache = aimo_py_index_cache(self);
    aimo_error err;
    aimo_status status;
    Py_BEGIN_ALLOW_THREADS;
    status = aimo_cache_optimize(cache, &err);
    Py_END_ALLOW_THREADS;
    if (status != AIMO_OK)
        return aimo_py_index_raise(self, status, &err);
    Py_RETURN_NONE;
}

/* vector(slot: int, /) -> ndarray[float32] */
static PyObject *index_vector(PyObject *self, PyObject *argument)
{
    const long long slot = PyLong_AsLongLong(argument);
    if (slot == -1 && PyErr_Occurred())
        return NULL;
    npy_intp dim = (npy_intp)aimo_cache_dim(aimo_py_index_cache(self));
    PyArrayObject *vector = (PyArrayObject *)PyArray_SimpleNew(1, &dim, NPY_FLOAT32);
    if (vector == NULL)
        return NULL;
    aimo_error err;
    aimo_cache *cache = aimo_py_index_cache(self);
    float *out = PyArray_DATA(vector);
    aimo_status status;
    Py_BEGIN_ALLOW_THREADS;
    status = aimo_cache_vector(cache, slot, out, &err);
    Py_END_ALLOW_THREADS;
    if (status == AIMO_OK)
        return (PyObject *)vector;
    Py_DECREF(vector);
    return aimo_py_index_raise(self, status, &err);
}

/* ---- saving -------------------------------------------------------------------------------- */

static int row_typenum(PyObject *self)
{
    return aimo_cache_row_type(aimo_py_index_cache(self)) == AIMO_ROWS_F16 ? NPY_UINT16 : NPY_INT8;
}

/* export() -> (rows: ndarray[uint16 | int8], slots: ndarray[int64], contexts: ndarray[int64]) */
static PyObject *index_export(PyObject *self, PyObject *Py_UNUSED(unused))
{
    aimo_cache *cache = aimo_py_index_cache(self);
    aimo_cache_snapshot *snapshot;
    aimo_error err;
    aimo_status status;
    Py_BEGIN_ALLOW_THREADS;
    status = aimo_cache_snapshot_open(cache, &snapshot, &err);
    Py_END_ALLOW_THREADS;
    if (status != AIMO_OK)
        return aimo_py_index_raise(self, status, &err);
    npy_intp shape[2] = {(npy_intp)aimo_cache_snapshot_count(snapshot),
                         (npy_intp)aimo_cache_dim(cache)};
    PyArrayObject *rows = (PyArrayObject *)PyArray_SimpleNew(2, shape, row_typenum(self));
    PyArrayObject *slots = (PyArrayObject *)PyArray_SimpleNew(1, shape, NPY_INT64);
    PyArrayObject *contexts = (PyArrayObject *)PyArray_SimpleNew(1, shape, NPY_INT64);
    PyObject *result = NULL;
    if (rows != NULL && slots != NULL && contexts != NULL) {
        void *row_data = PyArray_DATA(rows);
        int64_t *slot_data = PyArray_DATA(slots), *context_data = PyArray_DATA(contexts);
        Py_BEGIN_ALLOW_THREADS;
        aimo_cache_snapshot_read(snapshot, row_data, slot_data, context_data);
        Py_END_ALLOW_THREADS;
        result = PyTuple_Pack(3, rows, slots, contexts);
    }
    aimo_cache_snapshot_close(snapshot);
    Py_XDECREF(rows);
    Py_XDECREF(slots);
    Py_XDECREF(contexts);
    return result;
}

static aimo_status restore_arrays(PyObject *self, PyArrayObject *rows, PyArrayObject *slots,
                                  PyArrayObject *contexts, aimo_error *err)
{
    aimo_cache *cache = aimo_py_index_cache(self);
    const void *row_data = PyArray_DATA(rows);
    const int64_t *slot_data = PyArray_DATA(slots), *context_data = PyArray_DATA(contexts);
    const size_t n = (size_t)PyArray_DIM(rows, 0);
    aimo_status status;
    Py_BEGIN_ALLOW_THREADS;
    status = aimo_cache_restore(cache, row_data, slot_data, context_data, n, err);
    Py_END_ALLOW_THREADS;
    return status;
}

/* restore(rows: ndarray[uint16 | int8], slots: ndarray[int64], contexts: ndarray[int64], /)
 *     -> None */
static PyObject *index_restore(PyObject *self, PyObject *args)
{
    PyObject *row_argument, *slot_argument, *context_argument, *result = NULL;
    if (!PyArg_ParseTuple(args, "OOO:restore", &row_argument, &slot_argument, &context_argument))
        return NULL;
    PyArrayObject *slots = NULL, *contexts = NULL;
    PyArrayObject *rows =
        (PyArrayObject *)PyArray_FROM_OTF(row_argument, row_typenum(self), NPY_ARRAY_IN_ARRAY);
    if (rows == NULL)
        return NULL;
    if (PyArray_NDIM(rows) != 2 ||
        PyArray_DIM(rows, 1) != (npy_intp)aimo_cache_dim(aimo_py_index_cache(self))) {
        PyErr_Format(PyExc_ValueError, "rows: expected an array of shape (n, %zu)",
                     aimo_cache_dim(aimo_py_index_cache(self)));
        goto done;
    }
    const npy_intp n = PyArray_DIM(rows, 0);
    if ((slots = aimo_py_index_integers(slot_argument, n, "slots")) == NULL ||
        (contexts = aimo_py_index_integers(context_argument, n, "contexts")) == NULL)
        goto done;
    aimo_error err;
    const aimo_status status = restore_arrays(self, rows, slots, contexts, &err);
    result = status == AIMO_OK ? Py_NewRef(Py_None) : aimo_py_index_raise(self, status, &err);
done:
    Py_DECREF(rows);
    Py_XDECREF(slots);
    Py_XDECREF(contexts);
    return result;
}

/* ---- attributes ---------------------------------------------------------------------------- */

static PyObject *get_dim(PyObject *self, void *Py_UNUSED(closure))
{
    return PyLong_FromSize_t(aimo_cache_dim(aimo_py_index_cache(self)));
}

static PyObject *get_row_dtype(PyObject *self, void *Py_UNUSED(closure))
{
    return PyUnicode_FromString(
        aimo_cache_row_type(aimo_py_index_cache(self)) == AIMO_ROWS_F16 ? "f16" : "int8");
}

static PyObject *get_memory_bytes(PyObject *self, void *Py_UNUSED(closure))
{
    return PyLong_FromSize_t(aimo_cache_bytes(aimo_py_index_cache(self)));
}

/* {"device": int, "rows": int, "searches": int, "failures": int, "lost": bool, "error": str} */
static PyObject *get_device_state(PyObject *self, void *Py_UNUSED(closure))
{
    aimo_cache_device d;
    aimo_cache_get_device(aimo_py_index_cache(self), &d);
    return Py_BuildValue("{s:i,s:n,s:n,s:n,s:O,s:s}", "device", d.device, "rows",
                         (Py_ssize_t)d.rows, "searches", (Py_ssize_t)d.searches, "failures",
                         (Py_ssize_t)d.failures, "lost", d.lost ? Py_True : Py_False, "error",
                         d.error.message);
}

static PyGetSetDef attributes[] = {
    {"dim", get_dim, NULL, "Elements of a vector.", NULL},
    {"row_dtype", get_row_dtype, NULL, "How rows are stored: 'f16' or 'int8'.", NULL},
    {"memory_bytes", get_memory_bytes, NULL, "Bytes held.", NULL},
    {"device_state", get_device_state, NULL, "What a device does for searches.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef methods[] = {
    {"add", index_add, METH_VARARGS, "add(vector, context, /)\n--\n\nStore a vector."},
    {"add_many", index_add_many, METH_VARARGS,
     "add_many(vectors, contexts, /)\n--\n\nStore vectors, all or none."},
    {"remove", index_remove, METH_O, "remove(slot, /)\n--\n\nForget a row."},
    {"search", aimo_py_index_search, METH_VARARGS,
     "search(query, context, threshold, k, /)\n--\n\nThe best rows, exactly."},
    {"find", (PyCFunction)(void (*)(void))aimo_py_index_find, METH_FASTCALL,
     "find(query, context, threshold, k, /)\n--\n\nThe same as a list, k at most 64."},
    {"search_many", aimo_py_index_search_many, METH_VARARGS,
     "search_many(queries, contexts, threshold, k, /)\n--\n\nThe same for many queries."},
    {"vector", index_vector, METH_O, "vector(slot, /)\n--\n\nThe stored row."},
    {"optimize", index_optimize, METH_NOARGS,
     "optimize()\n--\n\nLearn the rows' directions; changes no answer."},
    {"export", index_export, METH_NOARGS, "export()\n--\n\nAll rows, oldest first."},
    {"restore", index_restore, METH_VARARGS,
     "restore(rows, slots, contexts, /)\n--\n\nThe inverse of export, into an unused index."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot type_slots[] = {
    {Py_tp_doc, "EmbeddingIndex(dim, /, *, row_dtype='f16', device=-1)\n--\n\n"
                "Stored embeddings and exact lookup by cosine similarity."},
    {Py_tp_new, index_new},
    {Py_tp_dealloc, index_dealloc},
    {Py_sq_length, index_length},
    {Py_tp_methods, methods},
    {Py_tp_getset, attributes},
    {0, NULL},
};

static PyType_Spec type_spec = {
    .name = "ai_model_optimizations._core.EmbeddingIndex",
    .basicsize = sizeof(index_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = type_slots,
};

int aimo_py_add_cache(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &type_spec, NULL);
    if (type == NULL)
        return -1;
    const int status = PyModule_AddType(module, (PyTypeObject *)type);
    Py_DECREF(type);
    return status;
}
