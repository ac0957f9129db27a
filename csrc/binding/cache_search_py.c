/* EmbeddingIndex: its lookups. */
#include "binding/cache_py.h"

#include <stdbool.h>

enum { MOST_FOUND = 64 };

/* Searches for `n` queries; the results have shape (n, k), or (hits,) for a single query. */
static PyObject *search(PyObject *self, PyArrayObject *queries, const int64_t *contexts, npy_intp n,
                        double threshold, Py_ssize_t k, bool one)
{
    npy_intp shape[2] = {n, k};
    PyArrayObject *slots = (PyArrayObject *)PyArray_SimpleNew(2 - one, shape + one, NPY_INT64);
    PyArrayObject *scores = (PyArrayObject *)PyArray_SimpleNew(2 - one, shape + one, NPY_FLOAT64);
    if (slots == NULL || scores == NULL)
        goto fail;
    aimo_cache *cache = aimo_py_index_cache(self);
    const float *data = PyArray_DATA(queries);
    int64_t *out_slots = PyArray_DATA(slots);
    double *out_scores = PyArray_DATA(scores);
    aimo_error err;
    aimo_status status;
    Py_BEGIN_ALLOW_THREADS;
    status = aimo_cache_search(cache, data, contexts, (size_t)n, threshold, (size_t)k, out_slots,
                               out_scores, &err);
    Py_END_ALLOW_THREADS;
    if (status != AIMO_OK) {
        aimo_py_index_raise(self, status, &err);
        goto fail;
    }
    return Py_BuildValue("(NN)", slots, scores);
fail:
    Py_XDECREF(slots);
    Py_XDECREF(scores);
    return NULL;
}

static int check_k(Py_ssize_t k)
{
    if (k > 0)
        return 0;
    PyErr_Format(PyExc_ValueError, "k: expected at least 1, got %zd", k);
    return -1;
}

/* Trims the results of a single query to its hits. */
static PyObject *cut(PyObject *found, Py_ssize_t k)
{
    if (found == NULL)
        return NULL;
    const int64_t *slots = PyArray_DATA((PyArrayObject *)PyTuple_GET_ITEM(found, 0));
    Py_ssize_t hits = 0;
    while (hits < k && slots[hits] >= 0)
        hits++;
    if (hits == k)
        return found;
    PyObject *cut_slots = PySequence_GetSlice(PyTuple_GET_ITEM(found, 0), 0, hits);
    PyObject *cut_scores = PySequence_GetSlice(PyTuple_GET_ITEM(found, 1), 0, hits);
    Py_DECREF(found);
    if (cut_slots == NULL || cut_scores == NULL) {
        Py_XDECREF(cut_slots);
        Py_XDECREF(cut_scores);
        return NULL;
    }
    return Py_BuildValue("(NN)", cut_slots, cut_scores);
}

/* search(query: ndarray[float32], context: int, threshold: float, k: int, /)
 *     -> (ndarray[int64], ndarray[float64]) */
PyObject *aimo_py_index_search(PyObject *self, PyObject *args)
{
    PyObject *argument;
    long long context;
    double threshold;
    Py_ssize_t k;
    if (!PyArg_ParseTuple(args, "OLdn:search", &argument, &context, &threshold, &k) ||
        check_k(k) != 0)
        return NULL;
    PyArrayObject *query = aimo_py_index_vectors(self, argument, NULL);
    if (query == NULL)
        return NULL;
    const int64_t where = context;
    PyObject *found = search(self, query, &where, 1, threshold, k, true);
    Py_DECREF(query);
    return cut(found, k);
}

/* The hits as a list of (slot, score). */
static PyObject *list_of_hits(const int64_t *slots, const double *scores, Py_ssize_t k)
{
    Py_ssize_t hits = 0;
    while (hits < k && slots[hits] >= 0)
        hits++;
    PyObject *list = PyList_New(hits);
    for (Py_ssize_t i = 0; list != NULL && i < hits; i++) {
        PyObject *pair = Py_BuildValue("(Ld)", (long long)slots[i], scores[i]);
        if (pair == NULL)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, i, pair);
    }
    return list;
}

/* find(query: ndarray[float32], context: int, threshold: float, k: int, /)
 *     -> list[tuple[int, float]]
 * For a cache of a thousand rows, parsing and making arrays would take as long as the search. */
PyObject *aimo_py_index_find(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    if (count != 4)
        return PyErr_Format(PyExc_TypeError, "find expected 4 arguments, got %zd", count);
    const int64_t context = PyLong_AsLongLong(args[1]);
    const double threshold = PyFloat_AsDouble(args[2]);
    const Py_ssize_t k = PyLong_AsSsize_t(args[3]);
    if (PyErr_Occurred() || check_k(k) != 0)
        return NULL;
    if (k > MOST_FOUND)
        return PyErr_Format(PyExc_ValueError, "k: expected at most %d, got %zd", MOST_FOUND, k);
    PyArrayObject *query = aimo_py_index_vectors(self, args[0], NULL);
    if (query == NULL)
        return NULL;
    aimo_cache *cache = aimo_py_index_cache(self);
    const float *data = PyArray_DATA(query);
    int64_t slots[MOST_FOUND];
    double scores[MOST_FOUND];
    aimo_error err;
    aimo_status status;
    Py_BEGIN_ALLOW_THREADS;
    status = aimo_cache_search(cache, data, &context, 1, threshold, (size_t)k, slots, scores, &err);
    Py_END_ALLOW_THREADS;
    Py_DECREF(query);
    return status == AIMO_OK ? list_of_hits(slots, scores, k)
                             : aimo_py_index_raise(self, status, &err);
}

/* search_many(queries: ndarray[float32], contexts: ndarray[int64], threshold: float, k: int, /)
 *     -> (ndarray[int64], ndarray[float64]) */
PyObject *aimo_py_index_search_many(PyObject *self, PyObject *args)
{
    PyObject *argument, *context_argument, *found = NULL;
    double threshold;
    Py_ssize_t k;
    npy_intp n;
    if (!PyArg_ParseTuple(args, "OOdn:search_many", &argument, &context_argument, &threshold, &k) ||
        check_k(k) != 0)
        return NULL;
    PyArrayObject *contexts = NULL, *queries = aimo_py_index_vectors(self, argument, &n);
    if (queries != NULL &&
        (contexts = aimo_py_index_integers(context_argument, n, "contexts")) != NULL)
        found = search(self, queries, PyArray_DATA(contexts), n, threshold, k, false);
    Py_XDECREF(queries);
    Py_XDECREF(contexts);
    return found;
}
