/* cuda: loading the CUDA library, and the versions and devices that it finds. */
#include "binding/binding.h"

#include "backend/cuda_loader.h"

#include <stdbool.h>

enum { CUBLAS_FILES_MOST = 16 };

static PyObject *fail(PyObject *module, aimo_status status, const aimo_error *err)
{
    return aimo_py_raise(aimo_py_state_of(module), status, err);
}

/* cuda_load(library: str, cublas: Sequence[str], /) -> None */
static PyObject *cuda_load(PyObject *module, PyObject *args)
{
    const char *library, *cublas[CUBLAS_FILES_MOST];
    PyObject *names;
    if (!PyArg_ParseTuple(args, "sO", &library, &names))
        return NULL;
    PyObject *items = aimo_py_tuple_of(names, "cublas: expected a sequence of str");
    if (items == NULL)
        return NULL;
    const Py_ssize_t all = PyTuple_GET_SIZE(items);
    const Py_ssize_t count = all < CUBLAS_FILES_MOST ? all : CUBLAS_FILES_MOST;
    bool good = true;
    for (Py_ssize_t i = 0; good && i < count; i++) {
        cublas[i] = PyUnicode_AsUTF8(PyTuple_GET_ITEM(items, i));
        good = cublas[i] != NULL;
    }
    aimo_error err;
    aimo_status status = AIMO_OK;
    if (good) {
        Py_BEGIN_ALLOW_THREADS;
        status = aimo_cuda_load(library, cublas, (size_t)count, &err);
        Py_END_ALLOW_THREADS;
    }
    Py_DECREF(items);
    if (!good)
        return NULL;
    if (status != AIMO_OK)
        return fail(module, status, &err);
    Py_RETURN_NONE;
}

/* cuda_versions() -> {"driver": int, "runtime": int, "cublas": int, "devices": int} */
static PyObject *cuda_versions(PyObject *module, PyObject *Py_UNUSED(unused))
{
    aimo_cuda_versions v;
    aimo_error err;
    const aimo_status status = aimo_cuda_get_versions(&v, &err);
    if (status != AIMO_OK)
        return fail(module, status, &err);
    return Py_BuildValue("{s:i,s:i,s:n,s:n}", "driver", v.driver, "runtime", v.runtime, "cublas",
                         (Py_ssize_t)v.cublas, "devices", (Py_ssize_t)v.devices);
}

/* cuda_device(index: int, /) -> {"name": str, "memory_bytes": int, "capability": (int, int)} */
static PyObject *cuda_device(PyObject *module, PyObject *argument)
{
    const long index = PyLong_AsLong(argument);
    if (index == -1 && PyErr_Occurred())
        return NULL;
    aimo_cuda_device device;
    aimo_error err;
    const aimo_status status =
        aimo_cuda_get_device(index < 0 || index > INT32_MAX ? -1 : (int)index, &device, &err);
    if (status != AIMO_OK)
        return fail(module, status, &err);
    return Py_BuildValue("{s:s,s:n,s:(ii)}", "name", device.name, "memory_bytes",
                         (Py_ssize_t)device.memory_bytes, "capability", device.major, device.minor);
}

static PyMethodDef functions[] = {
    {"cuda_load", cuda_load, METH_VARARGS,
     "cuda_load(library, cublas, /)\n--\n\nLoad the CUDA backend."},
    {"cuda_versions", cuda_versions, METH_NOARGS,
     "cuda_versions()\n--\n\nThe versions found; call after cuda_load."},
    {"cuda_device", cuda_device, METH_O,
     "cuda_device(index, /)\n--\n\nOne device; after cuda_load."},
    {NULL, NULL, 0, NULL},
};

int aimo_py_add_cuda(PyObject *module) { return PyModule_AddFunctions(module, functions); }
