/* DLPack: memory of other array libraries as numpy arrays, without a copy. numpy's own from_dlpack
 * knows no bf16, and older ones make every result read-only. */
#include "binding/dlpack.h"

/* The owner of the memory that an array shows: a capsule of our own that wraps theirs. */
#define OWNER_LEGACY "aimo_dltensor"
#define OWNER_VERSIONED "aimo_dltensor_versioned"

static void release(PyObject *owner)
{
    managed *m = PyCapsule_GetPointer(owner, OWNER_LEGACY);
    if (m != NULL && m->deleter != NULL)
        m->deleter(m);
}

static void release_versioned(PyObject *owner)
{
    managed_versioned *m = PyCapsule_GetPointer(owner, OWNER_VERSIONED);
    if (m != NULL && m->deleter != NULL)
        m->deleter(m);
}

/* bf16 maps to uint16; NPY_NOTYPE with an exception for anything but 16, 32 and 64-bit floats and
 * uint16. */
static int numpy_type(const dl_tensor *t, const char *name)
{
    const int code = t->dtype.code, bits = t->dtype.bits;
    if (t->dtype.lanes == 1) {
        if (bits == 16 && (code == CODE_UINT || code == CODE_BFLOAT))
            return NPY_UINT16;
        if (code == CODE_FLOAT && bits == 16)
            return NPY_FLOAT16;
        if (code == CODE_FLOAT && bits == 32)
            return NPY_FLOAT32;
        if (code == CODE_FLOAT && bits == 64)
            return NPY_FLOAT64;
    }
    PyErr_Format(PyExc_TypeError,
                 "%s: expected a tensor of a 16, 32 or 64-bit float or of uint16, got DLPack type "
                 "code %d of %d bits, %d lanes",
                 name, code, bits, (int)t->dtype.lanes);
    return NPY_NOTYPE;
}

static int check_tensor(const dl_tensor *t, bool on_cuda, const char *name)
{
    const int device = t->device.type;
    if (on_cuda && device != DEVICE_CUDA) {
        PyErr_Format(PyExc_ValueError,
                     "%s: expected memory of a CUDA device, got a tensor on DLPack device type %d",
                     name, device);
        return -1;
    }
    if (!on_cuda && device != DEVICE_CPU && device != DEVICE_CUDA_HOST &&
        device != DEVICE_ROCM_HOST) {
        PyErr_Format(PyExc_ValueError,
                     "%s: expected memory of the CPU, got a tensor on DLPack device type %d; copy "
                     "it to the CPU first",
                     name, device);
        return -1;
    }
    if (t->ndim < 0 || t->ndim > NPY_MAXDIMS) {
        PyErr_Format(PyExc_ValueError, "%s: expected at most %d dimensions, got %d", name,
                     NPY_MAXDIMS, (int)t->ndim);
        return -1;
    }
    return 0;
}

/* Steals `owner`, which stays alive as the array's base. */
static PyObject *array_over(const dl_tensor *t, bool read_only, bool on_cuda, PyObject *owner,
                            const char *name)
{
    npy_intp shape[NPY_MAXDIMS], strides[NPY_MAXDIMS];
    const int type = check_tensor(t, on_cuda, name) == 0 ? numpy_type(t, name) : NPY_NOTYPE;
    if (type == NPY_NOTYPE) {
        Py_DECREF(owner);
        return NULL;
    }
    npy_intp stride = t->dtype.bits / 8;
    for (int i = t->ndim - 1; i >= 0; i--) {
        shape[i] = (npy_intp)t->shape[i];
        strides[i] = t->strides != NULL ? (npy_intp)t->strides[i] * (t->dtype.bits / 8) : stride;
        stride *= shape[i];
    }
    PyObject *array =
        PyArray_New(&PyArray_Type, t->ndim, shape, type, strides, (char *)t->data + t->byte_offset,
                    0, read_only ? 0 : NPY_ARRAY_WRITEABLE, NULL);
    if (array == NULL) {
        Py_DECREF(owner);
        return NULL;
    }
    PyArray_UpdateFlags((PyArrayObject *)array, NPY_ARRAY_UPDATE_ALL);
    if (PyArray_SetBaseObject((PyArrayObject *)array, owner) != 0)
        Py_CLEAR(array);
    return array;
}

static PyObject *from_legacy(PyObject *capsule, bool on_cuda, const char *name)
{
    managed *m = PyCapsule_GetPointer(capsule, "dltensor");
    if (m == NULL)
        return NULL;
    PyObject *owner = PyCapsule_New(m, OWNER_LEGACY, release);
    if (owner == NULL)
        return NULL;
    PyCapsule_SetName(capsule, "used_dltensor");
    return array_over(&m->tensor, false, on_cuda, owner, name);
}

static PyObject *from_versioned(PyObject *capsule, bool on_cuda, const char *name)
{
    managed_versioned *m = PyCapsule_GetPointer(capsule, "dltensor_versioned");
    if (m == NULL)
        return NULL;
    if (m->version.major > MAJOR_VERSION) {
        PyErr_Format(PyExc_BufferError, "%s: DLPack %u.%u is newer than 1.x", name,
                     (unsigned)m->version.major, (unsigned)m->version.minor);
        return NULL;
    }
    PyObject *owner = PyCapsule_New(m, OWNER_VERSIONED, release_versioned);
    if (owner == NULL)
        return NULL;
    PyCapsule_SetName(capsule, "used_dltensor_versioned");
    return array_over(&m->tensor, (m->flags & FLAG_READ_ONLY) != 0, on_cuda, owner, name);
}

static PyObject *from_capsule(PyObject *capsule, bool on_cuda, const char *name)
{
    if (PyCapsule_IsValid(capsule, "dltensor_versioned"))
        return from_versioned(capsule, on_cuda, name);
    if (PyCapsule_IsValid(capsule, "dltensor"))
        return from_legacy(capsule, on_cuda, name);
    PyErr_Format(PyExc_TypeError, "%s: expected an unused DLPack capsule, got %s", name,
                 Py_TYPE(capsule)->tp_name);
    return NULL;
}

/* NULL when the capsule has neither of these names. */
static const dl_tensor *tensor_of(PyObject *capsule, const char *versioned, const char *legacy)
{
    if (PyCapsule_IsValid(capsule, versioned))
        return &((managed_versioned *)PyCapsule_GetPointer(capsule, versioned))->tensor;
    if (PyCapsule_IsValid(capsule, legacy))
        return &((managed *)PyCapsule_GetPointer(capsule, legacy))->tensor;
    return NULL;
}

PyArrayObject *aimo_py_cuda_view(PyObject *capsule, const char *name, int *device)
{
    PyObject *array = from_capsule(capsule, true, name);
    if (array == NULL)
        return NULL;
    *device =
        tensor_of(PyArray_BASE((PyArrayObject *)array), OWNER_VERSIONED, OWNER_LEGACY)->device.id;
    return (PyArrayObject *)array;
}

/* dlpack_array(capsule, name: str, /) -> ndarray, which keeps the capsule's memory alive */
static PyObject *dlpack_array(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *capsule;
    const char *name;
    if (!PyArg_ParseTuple(args, "Os:dlpack_array", &capsule, &name))
        return NULL;
    return from_capsule(capsule, false, name);
}

/* dlpack_layout(capsule, name: str, /) -> (shape, strides in elements); leaves the capsule unused
 */
static PyObject *dlpack_layout(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *capsule;
    const char *name;
    if (!PyArg_ParseTuple(args, "Os:dlpack_layout", &capsule, &name))
        return NULL;
    const dl_tensor *t = tensor_of(capsule, "dltensor_versioned", "dltensor");
    if (t == NULL)
        return PyErr_Format(PyExc_TypeError, "%s: expected an unused DLPack capsule, got %s", name,
                            Py_TYPE(capsule)->tp_name);
    PyObject *shape = PyTuple_New(t->ndim), *strides = PyTuple_New(t->ndim);
    bool good = shape != NULL && strides != NULL;
    int64_t stride = 1;
    for (int i = t->ndim - 1; good && i >= 0; i--) {
        PyObject *length = PyLong_FromLongLong(t->shape[i]);
        PyObject *step = PyLong_FromLongLong(t->strides != NULL ? t->strides[i] : stride);
        stride *= t->shape[i];
        PyTuple_SET_ITEM(shape, i, length);
        PyTuple_SET_ITEM(strides, i, step);
        good = length != NULL && step != NULL;
    }
    if (good)
        return Py_BuildValue("(NN)", shape, strides);
    Py_XDECREF(shape);
    Py_XDECREF(strides);
    return NULL;
}

static PyMethodDef methods[] = {
    {"dlpack_array", dlpack_array, METH_VARARGS,
     "dlpack_array(capsule, name, /)\n--\n\nThe capsule's memory; bfloat16 as uint16."},
    {"dlpack_layout", dlpack_layout, METH_VARARGS,
     "dlpack_layout(capsule, name, /)\n--\n\nShape, and strides in elements."},
    {NULL, NULL, 0, NULL},
};

int aimo_py_add_dlpack(PyObject *module) { return PyModule_AddFunctions(module, methods); }
