/* device memory: the type _core.DeviceMemory, and its export by DLPack. */
#include "binding/device_memory_py.h"

#include "base/memory.h"
#include "binding/dlpack.h"

typedef struct {
    PyObject_HEAD aimo_device_memory *memory;
} memory_object;

static aimo_py_state *state_of(const memory_object *self)
{
    return aimo_py_state_of_type(Py_TYPE((PyObject *)self));
}

aimo_device_memory *aimo_py_device_memory_of(const aimo_py_state *state, PyObject *object)
{
    if ((PyObject *)Py_TYPE(object) == state->device_memory)
        return ((memory_object *)object)->memory;
    PyErr_Format(PyExc_TypeError, "expected a DeviceMemory, got %s", Py_TYPE(object)->tp_name);
    return NULL;
}

/* Steals `memory`. */
static PyObject *wrap(PyTypeObject *type, aimo_device_memory *memory)
{
    memory_object *self = (memory_object *)type->tp_alloc(type, 0);
    if (self == NULL)
        aimo_device_memory_release(memory);
    else
        self->memory = memory;
    return (PyObject *)self;
}

static PyObject *memory_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    int device;
    Py_ssize_t bytes;
    if (kwargs != NULL && PyDict_GET_SIZE(kwargs) != 0)
        return PyErr_Format(PyExc_TypeError, "DeviceMemory takes no keyword arguments");
    if (!PyArg_ParseTuple(args, "in", &device, &bytes))
        return NULL;
    if (bytes < 0)
        return PyErr_Format(PyExc_ValueError, "nbytes: expected at least 0, got %zd", bytes);
    aimo_device_memory *memory;
    aimo_error err;
    aimo_status status;
    Py_BEGIN_ALLOW_THREADS;
    status = aimo_device_memory_new(device, (size_t)bytes, &memory, &err);
    Py_END_ALLOW_THREADS;
    if (status != AIMO_OK)
        return aimo_py_raise(aimo_py_state_of_type(type), status, &err);
    return wrap(type, memory);
}

static void memory_dealloc(memory_object *self)
{
    PyTypeObject *type = Py_TYPE(self);
    aimo_device_memory *memory = self->memory;
    type->tp_free(self);
    Py_DECREF(type);
    Py_BEGIN_ALLOW_THREADS;
    aimo_device_memory_release(memory); /* may wait for the device */
    Py_END_ALLOW_THREADS;
}

/* copy() -> DeviceMemory */
static PyObject *memory_copy(memory_object *self, PyObject *Py_UNUSED(unused))
{
    aimo_device_memory *copy;
    aimo_error err;
    aimo_status status;
    Py_BEGIN_ALLOW_THREADS;
    status = aimo_device_memory_copy(self->memory, &copy, &err);
    Py_END_ALLOW_THREADS;
    if (status != AIMO_OK)
        return aimo_py_raise(state_of(self), status, &err);
    return wrap(Py_TYPE(self), copy);
}

/* True when the host buffer has the memory's size; else a ValueError. */
static bool is_as_large(const memory_object *self, const Py_buffer *host)
{
    const size_t bytes = aimo_device_memory_bytes(self->memory);
    if ((size_t)host->len == bytes)
        return true;
    PyErr_Format(PyExc_ValueError, "expected %zu bytes, got %zd", bytes, host->len);
    return false;
}

/* Copies between the memory and a host buffer, then releases the buffer. */
static PyObject *transfer(memory_object *self, Py_buffer *host, bool to_host)
{
    bool good = is_as_large(self, host);
    if (good) {
        aimo_error err;
        aimo_status status;
        Py_BEGIN_ALLOW_THREADS;
        status = to_host ? aimo_device_memory_read(self->memory, host->buf, &err)
                         : aimo_device_memory_write(self->memory, host->buf, &err);
        Py_END_ALLOW_THREADS;
        good = status == AIMO_OK;
        if (!good)
            aimo_py_raise(state_of(self), status, &err);
    }
    PyBuffer_Release(host);
    return good ? Py_NewRef(Py_None) : NULL;
}

/* read(into: buffer, /) -> None */
static PyObject *memory_read(memory_object *self, PyObject *args)
{
    Py_buffer host;
    return PyArg_ParseTuple(args, "w*", &host) ? transfer(self, &host, true) : NULL;
}

/* write(values: buffer, /) -> None */
static PyObject *memory_write(memory_object *self, PyObject *args)
{
    Py_buffer host;
    return PyArg_ParseTuple(args, "y*", &host) ? transfer(self, &host, false) : NULL;
}

/* --- DLPack ----------------------------------------------------------------------------------- */

/* What a consumer holds. It shares ownership of the memory and needs no Python, so it may be
 * deleted on any thread, with or without the GIL, even after the interpreter has ended. */
typedef struct {
    union {
        managed legacy;
        managed_versioned versioned;
    } tensor;
    aimo_device_memory *memory;
    int64_t shape_and_strides[]; /* [2 * ndim] */
} exported;

static void free_exported(exported *e)
{
    aimo_device_memory_release(e->memory);
    aimo_memory_free(e);
}

static void delete_legacy(managed *m) { free_exported(m->context); }
static void delete_versioned(managed_versioned *m) { free_exported(m->context); }

/* A capsule that was never consumed still owns its tensor; a consumer renames the capsule. */
static void drop_capsule(PyObject *capsule)
{
    if (PyCapsule_IsValid(capsule, "dltensor"))
        delete_legacy(PyCapsule_GetPointer(capsule, "dltensor"));
    else if (PyCapsule_IsValid(capsule, "dltensor_versioned"))
        delete_versioned(PyCapsule_GetPointer(capsule, "dltensor_versioned"));
}

/* values [count] = a tuple of int; -1 with an exception. */
static int parse_lengths(PyObject *tuple, int64_t *values)
{
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(tuple); i++) {
        values[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(tuple, i));
        if (values[i] == -1 && PyErr_Occurred())
            return -1;
    }
    return 0;
}

/* Steals `e`, in which everything but the managed part must be filled in. */
static PyObject *capsule_of(exported *e, const dl_tensor *tensor, bool versioned, bool copied)
{
    PyObject *capsule;
    if (versioned) {
        e->tensor.versioned = (managed_versioned){
            .version = {MAJOR_VERSION, MINOR_VERSION},
            .context = e,
            .deleter = delete_versioned,
            .flags = copied ? FLAG_IS_COPIED : 0,
            .tensor = *tensor,
        };
        capsule = PyCapsule_New(&e->tensor.versioned, "dltensor_versioned", drop_capsule);
    } else {
        e->tensor.legacy = (managed){*tensor, e, delete_legacy};
        capsule = PyCapsule_New(&e->tensor.legacy, "dltensor", drop_capsule);
    }
    if (capsule == NULL)
        free_exported(e);
    return capsule;
}

/* dlpack(code: int, bits: int, shape: tuple[int, ...], strides: tuple[int, ...], versioned: bool,
 * copied: bool, /) -> capsule */
static PyObject *memory_dlpack(memory_object *self, PyObject *args)
{
    int code, bits, versioned, copied;
    PyObject *shape, *strides;
    if (!PyArg_ParseTuple(args, "iiO!O!pp", &code, &bits, &PyTuple_Type, &shape, &PyTuple_Type,
                          &strides, &versioned, &copied))
        return NULL;
    const Py_ssize_t ndim = PyTuple_GET_SIZE(shape);
    if (PyTuple_GET_SIZE(strides) != ndim)
        return PyErr_Format(PyExc_ValueError, "expected as many strides as dimensions");
    exported *e;
    aimo_error err;
    const aimo_status status = aimo_memory_new(
        (void **)&e, 1, sizeof *e + 2 * (size_t)ndim * sizeof(int64_t), "tensor", &err);
    if (status != AIMO_OK)
        return aimo_py_raise(state_of(self), status, &err);
    if (parse_lengths(shape, e->shape_and_strides) != 0 ||
        parse_lengths(strides, e->shape_and_strides + ndim) != 0) {
        aimo_memory_free(e);
        return NULL;
    }
    aimo_device_memory_retain(self->memory);
    e->memory = self->memory;
    const dl_tensor tensor = {
        .data = aimo_device_memory_data(self->memory),
        .device = {DEVICE_CUDA, aimo_device_memory_device(self->memory)},
        .ndim = (int32_t)ndim,
        .dtype = {(uint8_t)code, (uint8_t)bits, 1},
        .shape = e->shape_and_strides,
        .strides = e->shape_and_strides + ndim,
    };
    return capsule_of(e, &tensor, versioned != 0, copied != 0);
}

static PyObject *get_device(memory_object *self, void *Py_UNUSED(closure))
{
    return PyLong_FromLong(aimo_device_memory_device(self->memory));
}

static PyObject *get_nbytes(memory_object *self, void *Py_UNUSED(closure))
{
    return PyLong_FromSize_t(aimo_device_memory_bytes(self->memory));
}

static PyMethodDef memory_methods[] = {
    {"copy", (PyCFunction)memory_copy, METH_NOARGS, "copy($self, /)\n--\n\nOther memory."},
    {"read", (PyCFunction)memory_read, METH_VARARGS,
     "read($self, into, /)\n--\n\nCopy to the host."},
    {"write", (PyCFunction)memory_write, METH_VARARGS,
     "write($self, values, /)\n--\n\nCopy from the host."},
    {"dlpack", (PyCFunction)memory_dlpack, METH_VARARGS,
     "dlpack($self, code, bits, shape, strides, versioned, copied, /)\n--\n\nA DLPack capsule, "
     "which owns the memory as well."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef memory_getset[] = {
    {"device", (getter)get_device, NULL, "The number of the CUDA device.", NULL},
    {"nbytes", (getter)get_nbytes, NULL, "Bytes.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot memory_slots[] = {
    {Py_tp_doc, "DeviceMemory(device, nbytes, /)\n--\n\nMemory of a CUDA device. Private."},
    {Py_tp_new, memory_new},
    {Py_tp_dealloc, memory_dealloc},
    {Py_tp_methods, memory_methods},
    {Py_tp_getset, memory_getset},
    {0, NULL},
};

static PyType_Spec memory_spec = {
    .name = "ai_model_optimizations._core.DeviceMemory",
    .basicsize = sizeof(memory_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = memory_slots,
};

int aimo_py_add_device_memory(PyObject *module)
{
    aimo_py_state *state = aimo_py_state_of(module);
    state->device_memory = PyType_FromModuleAndSpec(module, &memory_spec, NULL);
    if (state->device_memory == NULL)
        return -1;
    return PyModule_AddType(module, (PyTypeObject *)state->device_memory);
}
