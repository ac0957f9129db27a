/* matrix: the type _core.PackedMatrix, a view of panels in an array of the caller's. */
#include "binding/binding.h"

#include "base/cpu.h"
#include "gemm/gemm_parallel.h"

#include <stdbool.h>

typedef struct {
    PyObject_HEAD aimo_matrix matrix;
    PyArrayObject *panels; /* owns the memory; NULL when __init__ did not succeed */
} matrix_object;

static bool is_ready(matrix_object *self)
{
    if (self->panels != NULL)
        return true;
    PyErr_SetString(PyExc_RuntimeError, "PackedMatrix was not initialised");
    return false;
}

/* The size of the panels; -1 with an exception. */
static int size_of(const aimo_py_state *state, const char *dtype, Py_ssize_t n, Py_ssize_t k,
                   int *dtype_index, size_t *bytes)
{
    *dtype_index = aimo_py_find_dtype(dtype);
    if (*dtype_index < 0)
        return -1;
    aimo_error err;
    const aimo_status status = aimo_panels_size((aimo_dtype)*dtype_index, n < 0 ? 0 : (size_t)n,
                                                k < 0 ? 0 : (size_t)k, bytes, &err);
    if (status == AIMO_OK)
        return 0;
    aimo_py_raise(state, status, &err);
    return -1;
}

/* packed_size(dtype: str, n: int, k: int, /) -> int */
static PyObject *packed_size(PyObject *module, PyObject *args)
{
    const char *dtype;
    Py_ssize_t n, k;
    int dtype_index;
    size_t bytes;
    if (!PyArg_ParseTuple(args, "snn", &dtype, &n, &k) ||
        size_of(aimo_py_state_of(module), dtype, n, k, &dtype_index, &bytes) != 0)
        return NULL;
    return PyLong_FromSize_t(bytes);
}

static int matrix_init(matrix_object *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"", "", "", "", NULL};
    const char *dtype;
    Py_ssize_t n, k;
    PyArrayObject *panels;
    int dtype_index;
    size_t bytes;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "snnO!", names, &dtype, &n, &k, &PyArray_Type,
                                     &panels))
        return -1;
    if (size_of(aimo_py_state_of_type(Py_TYPE(self)), dtype, n, k, &dtype_index, &bytes) != 0)
        return -1;
    if (self->panels != NULL) {
        PyErr_SetString(PyExc_RuntimeError, "PackedMatrix.__init__ was called twice");
        return -1;
    }
    if (PyArray_TYPE(panels) != NPY_UINT8 || !PyArray_IS_C_CONTIGUOUS(panels) ||
        (size_t)PyArray_NBYTES(panels) != bytes) {
        PyErr_Format(PyExc_ValueError, "panels: expected %zu bytes, contiguous", bytes);
        return -1;
    }
    if ((uintptr_t)PyArray_DATA(panels) % AIMO_CACHE_LINE != 0) {
        PyErr_Format(PyExc_ValueError, "panels: expected memory aligned to %d bytes",
                     AIMO_CACHE_LINE);
        return -1;
    }
    if (dtype_index == AIMO_INT8 && !aimo_panels_outliers_fit(PyArray_DATA(panels), (size_t)k)) {
        PyErr_SetString(PyExc_ValueError, "panels: an outlier channel that is not below k");
        return -1;
    }
    self->matrix = aimo_matrix_of((aimo_dtype)dtype_index, (size_t)n, (size_t)k,
                                  PyArray_DATA(panels), aimo_cpu_enabled());
    self->panels = (PyArrayObject *)Py_NewRef((PyObject *)panels);
    return 0;
}

static void matrix_dealloc(matrix_object *self)
{
    PyTypeObject *type = Py_TYPE(self);
    Py_XDECREF(self->panels);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

/* Whether rows [first, first + count) exist; false with a ValueError. */
static bool check_rows(const matrix_object *self, Py_ssize_t first, Py_ssize_t count)
{
    const Py_ssize_t n = (Py_ssize_t)self->matrix.n;
    if (first >= 0 && count >= 0 && first <= n && count <= n - first)
        return true;
    PyErr_Format(PyExc_ValueError, "rows: %zd from %zd on, but the matrix has %zd", count, first,
                 n);
    return false;
}

/* pack(first: int, rows: ndarray[float32] of shape (count, k), /) -> None */
static PyObject *pack(matrix_object *self, PyObject *args)
{
    Py_ssize_t first;
    PyObject *rows;
    if (!is_ready(self) || !PyArg_ParseTuple(args, "nO", &first, &rows))
        return NULL;
    if (!PyArray_ISWRITEABLE(self->panels)) {
        PyErr_SetString(PyExc_ValueError, "panels: the memory is read-only");
        return NULL;
    }
    PyArrayObject *array =
        (PyArrayObject *)PyArray_FROMANY(rows, NPY_FLOAT32, 2, 2, NPY_ARRAY_IN_ARRAY);
    if (array == NULL)
        return NULL;
    const aimo_matrix w = self->matrix;
    const npy_intp count = PyArray_DIM(array, 0);
    if ((size_t)PyArray_DIM(array, 1) != w.k) {
        PyErr_Format(PyExc_ValueError, "rows: expected %zu columns, got %zd", w.k,
                     (Py_ssize_t)PyArray_DIM(array, 1));
        Py_CLEAR(array);
    } else if (!check_rows(self, first, count)) {
        Py_CLEAR(array);
    }
    if (array == NULL)
        return NULL;
    const float *src = PyArray_DATA(array);
    void *panels = PyArray_DATA(self->panels);
    Py_BEGIN_ALLOW_THREADS;
    aimo_panels_pack_parallel(w.dtype, w.n, w.k, panels, src, (size_t)first, (size_t)count);
    Py_END_ALLOW_THREADS;
    Py_DECREF(array);
    Py_RETURN_NONE;
}

/* set_outliers(channels: ndarray[int32] of shape (count,), /) -> None */
static PyObject *set_outliers(matrix_object *self, PyObject *arg)
{
    if (!is_ready(self))
        return NULL;
    if (self->matrix.dtype != AIMO_INT8 || !PyArray_ISWRITEABLE(self->panels)) {
        PyErr_SetString(PyExc_ValueError, "panels: expected writable int8 panels");
        return NULL;
    }
    PyArrayObject *array =
        (PyArrayObject *)PyArray_FROMANY(arg, NPY_INT32, 1, 1, NPY_ARRAY_IN_ARRAY);
    if (array == NULL)
        return NULL;
    const int32_t *channels = PyArray_DATA(array);
    const npy_intp count = PyArray_SIZE(array);
    bool valid = count <= AIMO_INT8_OUTLIERS;
    for (npy_intp i = 0; valid && i < count; i++)
        valid = channels[i] >= 0 && (size_t)channels[i] < self->matrix.k;
    if (valid)
        aimo_panels_set_outliers(PyArray_DATA(self->panels), channels, (size_t)count);
    else
        PyErr_Format(PyExc_ValueError, "channels: expected at most %d, each below %zu",
                     AIMO_INT8_OUTLIERS, self->matrix.k);
    Py_DECREF(array);
    return valid ? Py_NewRef(Py_None) : NULL;
}

/* unpack(first: int, count: int, /) -> ndarray[float32] of shape (count, k), as stored */
static PyObject *unpack(matrix_object *self, PyObject *args)
{
    Py_ssize_t first, count;
    if (!is_ready(self) || !PyArg_ParseTuple(args, "nn", &first, &count) ||
        !check_rows(self, first, count))
        return NULL;
    const aimo_matrix w = self->matrix;
    const npy_intp shape[2] = {count, (npy_intp)w.k};
    PyObject *result = PyArray_SimpleNew(2, shape, NPY_FLOAT32);
    if (result == NULL)
        return NULL;
    float *out = PyArray_DATA((PyArrayObject *)result);
    Py_BEGIN_ALLOW_THREADS;
    aimo_panels_unpack(w.dtype, w.n, w.k, w.panels, out, (size_t)first, (size_t)count);
    Py_END_ALLOW_THREADS;
    return result;
}

/* rows(indices: ndarray[int64] of shape (count,), /) -> ndarray[float32] of shape (count, k) */
static PyObject *look_up_rows(matrix_object *self, PyObject *arg)
{
    if (!is_ready(self))
        return NULL;
    PyArrayObject *indices =
        (PyArrayObject *)PyArray_FROMANY(arg, NPY_INT64, 1, 1, NPY_ARRAY_IN_ARRAY);
    if (indices == NULL)
        return NULL;
    const npy_intp shape[2] = {PyArray_SIZE(indices), (npy_intp)self->matrix.k};
    PyObject *result = PyArray_SimpleNew(2, shape, NPY_FLOAT32);
    if (result != NULL) {
        const int64_t *wanted = PyArray_DATA(indices);
        float *out = PyArray_DATA((PyArrayObject *)result);
        aimo_error err;
        aimo_status status;
        Py_BEGIN_ALLOW_THREADS;
        status = aimo_panels_rows(&self->matrix, wanted, (size_t)shape[0], out, &err);
        Py_END_ALLOW_THREADS;
        if (status != AIMO_OK) {
            Py_CLEAR(result);
            aimo_py_raise(aimo_py_state_of_type(Py_TYPE(self)), status, &err);
        }
    }
    Py_DECREF(indices);
    return result;
}

/* Whether `array` is C-contiguous f32 of shape (rows, columns), or (columns) when rows is -1. */
static bool check_floats(const char *name, PyArrayObject *array, Py_ssize_t rows, size_t columns)
{
    const int ndim = rows < 0 ? 1 : 2;
    if (PyArray_TYPE(array) == NPY_FLOAT32 && PyArray_ISCARRAY_RO(array) &&
        PyArray_NDIM(array) == ndim && (ndim == 1 || PyArray_DIM(array, 0) == rows) &&
        (size_t)PyArray_DIM(array, ndim - 1) == columns)
        return true;
    PyErr_Format(PyExc_ValueError, "%s: expected a C-contiguous float32 array with %zu columns",
                 name, columns);
    return false;
}

/* matmul(x: ndarray[float32] (m, k), bias: ndarray[float32] (n,) | None, activation: str,
 *        out: ndarray[float32] (m, n), /) -> None; nothing is copied or converted */
static PyObject *matmul(matrix_object *self, PyObject *args)
{
    PyArrayObject *x, *out;
    PyObject *bias_arg;
    const char *activation;
    if (!is_ready(self) || !PyArg_ParseTuple(args, "O!OsO!", &PyArray_Type, &x, &bias_arg,
                                             &activation, &PyArray_Type, &out))
        return NULL;
    const int act = aimo_py_find_activation(activation);
    if (act < 0)
        return NULL;
    const aimo_matrix *w = &self->matrix;
    PyArrayObject *bias = bias_arg == Py_None ? NULL : (PyArrayObject *)bias_arg;
    if (bias != NULL && !PyArray_Check(bias_arg)) {
        PyErr_SetString(PyExc_TypeError, "bias: expected an array or None");
        return NULL;
    }
    const npy_intp m = PyArray_NDIM(x) == 2 ? PyArray_DIM(x, 0) : 0;
    if (!check_floats("x", x, m, w->k) || !check_floats("out", out, m, w->n) ||
        (bias != NULL && !check_floats("bias", bias, -1, w->n)))
        return NULL;
    if (!PyArray_ISWRITEABLE(out)) {
        PyErr_SetString(PyExc_ValueError, "out: the array is read-only");
        return NULL;
    }
    const float *in = PyArray_DATA(x), *b = bias != NULL ? PyArray_DATA(bias) : NULL;
    float *y = PyArray_DATA(out);
    Py_BEGIN_ALLOW_THREADS;
    aimo_gemm_parallel(w, in, (size_t)m, b, (aimo_activation)act, y);
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

static PyMethodDef matrix_methods[] = {
    {"pack", (PyCFunction)pack, METH_VARARGS,
     "pack($self, first, rows, /)\n--\n\nRound rows into zeroed panels; no thread may be reading."},
    {"set_outliers", (PyCFunction)set_outliers, METH_O,
     "set_outliers($self, channels, /)\n--\n\nInputs of int8 kept in 16 bits; before pack."},
    {"unpack", (PyCFunction)unpack, METH_VARARGS,
     "unpack($self, first, count, /)\n--\n\nRows as stored, widened to float32."},
    {"rows", (PyCFunction)look_up_rows, METH_O,
     "rows($self, indices, /)\n--\n\nThe rows at these indices, widened to float32."},
    {"matmul", (PyCFunction)matmul, METH_VARARGS,
     "matmul($self, x, bias, activation, out, /)\n--\n\nout = activation(x @ w.T + bias)."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot matrix_slots[] = {
    {Py_tp_doc, "A weight matrix in packed panels. Private."},
    {Py_tp_init, matrix_init},
    {Py_tp_new, PyType_GenericNew},
    {Py_tp_dealloc, matrix_dealloc},
    {Py_tp_methods, matrix_methods},
    {0, NULL},
};

static PyType_Spec matrix_spec = {
    .name = "ai_model_optimizations._core.PackedMatrix",
    .basicsize = sizeof(matrix_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = matrix_slots,
};

static PyMethodDef functions[] = {
    {"packed_size", packed_size, METH_VARARGS,
     "packed_size(dtype, n, k, /)\n--\n\nBytes of the panels of an (n, k) matrix."},
    {NULL, NULL, 0, NULL},
};

int aimo_py_add_matrix(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &matrix_spec, NULL);
    if (type == NULL)
        return -1;
    const int added = PyModule_AddType(module, (PyTypeObject *)type);
    Py_DECREF(type);
    return added == 0 ? PyModule_AddFunctions(module, functions) : -1;
}
