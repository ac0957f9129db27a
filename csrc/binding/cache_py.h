/* The type _core.EmbeddingIndex, for the files that define its methods. */
#ifndef AIMO_BINDING_CACHE_PY_H
#define AIMO_BINDING_CACHE_PY_H

#include "binding/binding.h"

#include "cache/cache.h"

typedef struct {
    PyObject_HEAD aimo_cache *cache;
} index_object;

static inline aimo_cache *aimo_py_index_cache(PyObject *self)
{
    return ((index_object *)self)->cache;
}

/* Raises the exception for `status`; returns NULL. */
PyObject *aimo_py_index_raise(PyObject *self, aimo_status status, const aimo_error *err);

/* `argument` as a C-contiguous array of shape (rows, dim), or (dim,) when rows is NULL. NULL with
 * an exception. */
PyArrayObject *aimo_py_index_vectors(PyObject *self, PyObject *argument, npy_intp *rows);
/* `argument` as a C-contiguous array of `rows` int64. NULL with an exception. */
PyArrayObject *aimo_py_index_integers(PyObject *argument, npy_intp rows, const char *what);

/* Methods defined in cache_search_py.c, where their Python signatures are. */
PyObject *aimo_py_index_search(PyObject *self, PyObject *args);
PyObject *aimo_py_index_find(PyObject *self, PyObject *const *args, Py_ssize_t count);
PyObject *aimo_py_index_search_many(PyObject *self, PyObject *args);

#endif
