/* encoder: tensors and packed weights of a _core.Encoder. */
#include "binding/encoder_py.h"

#include <string.h>

/* The tensor called `name`; -1 with a ValueError. */
static Py_ssize_t find_tensor(const char *name)
{
    bool per_layer;
    const char *candidate;
    for (size_t i = 0; (candidate = aimo_encoder_tensor_name(i, &per_layer)) != NULL; i++)
        if (strcmp(candidate, name) == 0)
            return (Py_ssize_t)i;
    PyErr_Format(PyExc_ValueError, "unknown tensor '%s'", name);
    return -1;
}

/* set_tensor(name: str, layer: int, data: ndarray[float32], /) -> None */
PyObject *aimo_py_encoder_set_tensor(encoder_object *self, PyObject *args)
{
    const char *name;
    Py_ssize_t layer;
    PyObject *data;
    if (!aimo_py_encoder_is_ready(self) || !PyArg_ParseTuple(args, "snO", &name, &layer, &data))
        return NULL;
    const Py_ssize_t index = find_tensor(name);
    if (index < 0)
        return NULL;
    PyArrayObject *array =
        (PyArrayObject *)PyArray_FROMANY(data, NPY_FLOAT32, 1, 2, NPY_ARRAY_IN_ARRAY);
    if (array == NULL)
        return NULL;
    const size_t rows = (size_t)PyArray_DIM(array, 0);
    const size_t columns = PyArray_NDIM(array) == 2 ? (size_t)PyArray_DIM(array, 1) : 0;
    const float *values = PyArray_DATA(array);
    aimo_error err;
    aimo_status status;
    Py_BEGIN_ALLOW_THREADS;
    status = aimo_encoder_set_tensor(self->encoder, (size_t)index, (size_t)layer, values, rows,
                                     columns, &err);
    Py_END_ALLOW_THREADS;
    Py_DECREF(array);
    if (status != AIMO_OK)
        return aimo_py_encoder_fail(self, status, &err);
    Py_RETURN_NONE;
}

/* tensor(name: str, layer: int, /) -> ndarray[float32], as stored */
PyObject *aimo_py_encoder_get_tensor(encoder_object *self, PyObject *args)
{
    const char *name;
    Py_ssize_t layer;
    if (!aimo_py_encoder_is_ready(self) || !PyArg_ParseTuple(args, "sn", &name, &layer))
        return NULL;
    const Py_ssize_t index = find_tensor(name);
    if (index < 0)
        return NULL;
    size_t rows, columns;
    aimo_encoder_tensor_shape(self->encoder, (size_t)index, &rows, &columns);
    const npy_intp shape[2] = {(npy_intp)rows, (npy_intp)columns};
    PyArrayObject *array =
        (PyArrayObject *)PyArray_SimpleNew(columns != 0 ? 2 : 1, shape, NPY_FLOAT32);
    if (array == NULL)
        return NULL;
    aimo_error err;
    const aimo_status status = aimo_encoder_get_tensor(self->encoder, (size_t)index, (size_t)layer,
                                                       PyArray_DATA(array), rows, columns, &err);
    if (status != AIMO_OK) {
        Py_DECREF(array);
        return aimo_py_encoder_fail(self, status, &err);
    }
    return (PyObject *)array;
}

/* tensor_shape(name: str, /) -> tuple[int, ...], empty of a tensor that the model does not have */
PyObject *aimo_py_encoder_tensor_shape(encoder_object *self, PyObject *name)
{
    const char *text = PyUnicode_AsUTF8(name);
    const Py_ssize_t index =
        text != NULL && aimo_py_encoder_is_ready(self) ? find_tensor(text) : -1;
    if (index < 0)
        return NULL;
    size_t rows, columns;
    aimo_encoder_tensor_shape(self->encoder, (size_t)index, &rows, &columns);
    if (rows == 0)
        return PyTuple_New(0);
    return columns != 0 ? Py_BuildValue("(nn)", (Py_ssize_t)rows, (Py_ssize_t)columns)
                        : Py_BuildValue("(n)", (Py_ssize_t)rows);
}

/* The tensor that begins the weight called `name`; -1 with a ValueError. */
static Py_ssize_t find_weight(const encoder_object *self, const char *name, aimo_weight_info *info)
{
    bool per_layer;
    for (size_t i = 0; aimo_encoder_tensor_name(i, &per_layer) != NULL; i++)
        if (aimo_encoder_weight_info(self->encoder, i, info) && strcmp(info->name, name) == 0)
            return (Py_ssize_t)i;
    PyErr_Format(PyExc_ValueError, "unknown weight '%s'", name);
    return -1;
}

/* weights() -> list[tuple[str, int, str, tuple[int, ...], int]]:
 * name, layers (0: one in all), dtype, shape, bytes of one */
PyObject *aimo_py_encoder_weights(encoder_object *self, PyObject *Py_UNUSED(unused))
{
    if (!aimo_py_encoder_is_ready(self))
        return NULL;
    PyObject *list = PyList_New(0);
    aimo_weight_info info;
    bool per_layer;
    for (size_t i = 0; list && aimo_encoder_tensor_name(i, &per_layer) != NULL; i++) {
        if (!aimo_encoder_weight_info(self->encoder, i, &info))
            continue;
        PyObject *shape = PyTuple_New((Py_ssize_t)info.dimensions);
        for (size_t d = 0; shape && d < info.dimensions; d++)
            PyTuple_SET_ITEM(shape, (Py_ssize_t)d, PyLong_FromSize_t(info.shape[d]));
        PyObject *item =
            shape ? Py_BuildValue("(snsNn)", info.name, (Py_ssize_t)info.layers,
                                  aimo_dtype_name(info.dtype), shape, (Py_ssize_t)info.bytes)
                  : NULL;
        if (item == NULL || PyList_Append(list, item) != 0)
            Py_CLEAR(list);
        Py_XDECREF(item);
    }
    return list;
}

/* weight(name: str, layer: int, /) -> ndarray[uint8] of shape (bytes,), a read-only view */
PyObject *aimo_py_encoder_get_weight(encoder_object *self, PyObject *args)
{
    const char *name;
    Py_ssize_t layer;
    aimo_weight_info info;
    if (!aimo_py_encoder_is_ready(self) || !PyArg_ParseTuple(args, "sn", &name, &layer))
        return NULL;
    const Py_ssize_t index = find_weight(self, name, &info);
    if (index < 0)
        return NULL;
    const bool exists = layer >= 0 && (size_t)layer < (info.layers != 0 ? info.layers : 1);
    const void *data =
        exists ? aimo_encoder_weight_data(self->encoder, (size_t)index, (size_t)layer) : NULL;
    if (data == NULL)
        return PyErr_Format(PyExc_ValueError, "%s of layer %zd was not set", name, layer);
    const npy_intp bytes = (npy_intp)info.bytes;
    PyObject *array = PyArray_SimpleNewFromData(1, &bytes, NPY_UINT8, (void *)(uintptr_t)data);
    if (array == NULL)
        return NULL;
    PyArray_CLEARFLAGS((PyArrayObject *)array, NPY_ARRAY_WRITEABLE);
    Py_INCREF(self);
    if (PyArray_SetBaseObject((PyArrayObject *)array, (PyObject *)self) != 0)
        Py_CLEAR(array);
    return array;
}

/* map_weight(name: str, layer: int, data: ndarray[uint8], /) -> None */
PyObject *aimo_py_encoder_map_weight(encoder_object *self, PyObject *args)
{
    const char *name;
    Py_ssize_t layer;
    PyObject *data;
    aimo_weight_info info;
    if (!aimo_py_encoder_is_ready(self) || !PyArg_ParseTuple(args, "snO", &name, &layer, &data))
        return NULL;
    const Py_ssize_t index = find_weight(self, name, &info);
    if (index < 0 || (self->mapped == NULL && (self->mapped = PyList_New(0)) == NULL))
        return NULL;
    PyObject *view = PyMemoryView_FromObject(data);
    if (view == NULL)
        return NULL;
    const Py_buffer *buffer = PyMemoryView_GET_BUFFER(view);
    if (!PyBuffer_IsContiguous(buffer, 'C')) {
        Py_DECREF(view);
        return PyErr_Format(PyExc_ValueError, "%s: expected contiguous memory", name);
    }
    /* Kept alive before it is used, so that no failure leaves the encoder with dangling memory. */
    const int kept = PyList_Append(self->mapped, view);
    Py_DECREF(view);
    if (kept != 0)
        return NULL;
    aimo_error err;
    const aimo_status status = aimo_encoder_map_weight(self->encoder, (size_t)index, (size_t)layer,
                                                       buffer->buf, (size_t)buffer->len, &err);
    if (status != AIMO_OK)
        return aimo_py_encoder_fail(self, status, &err);
    Py_RETURN_NONE;
}

/* set_outliers(name: str, layer: int, channels: ndarray[int32], /) -> None */
PyObject *aimo_py_encoder_set_outliers(encoder_object *self, PyObject *args)
{
    const char *name;
    Py_ssize_t layer;
    PyObject *channels;
    if (!aimo_py_encoder_is_ready(self) || !PyArg_ParseTuple(args, "snO", &name, &layer, &channels))
        return NULL;
    const Py_ssize_t tensor = find_tensor(name);
    PyArrayObject *array = tensor < 0 ? NULL
                                      : (PyArrayObject *)PyArray_FROMANY(channels, NPY_INT32, 1, 1,
                                                                         NPY_ARRAY_IN_ARRAY);
    if (array == NULL)
        return NULL;
    aimo_error err;
    const aimo_status status =
        aimo_encoder_set_outliers(self->encoder, (size_t)tensor, (size_t)layer, PyArray_DATA(array),
                                  (size_t)PyArray_SIZE(array), &err);
    Py_DECREF(array);
    if (status != AIMO_OK)
        return aimo_py_encoder_fail(self, status, &err);
    Py_RETURN_NONE;
}

/* tensor_names() -> list[tuple[str, bool]]: name, and whether there is one for each layer */
PyObject *aimo_py_encoder_tensor_names(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused))
{
    PyObject *names = PyList_New(0);
    bool per_layer;
    const char *name;
    for (size_t i = 0; names && (name = aimo_encoder_tensor_name(i, &per_layer)) != NULL; i++) {
        PyObject *item = Py_BuildValue("(sO)", name, per_layer ? Py_True : Py_False);
        if (item == NULL || PyList_Append(names, item) != 0)
            Py_CLEAR(names);
        Py_XDECREF(item);
    }
    return names;
}

/* encoder_layout_version() -> int */
PyObject *aimo_py_encoder_layout_version(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused))
{
    return PyLong_FromLong(AIMO_PANELS_VERSION);
}
