/* What the files of the binding share. _core is private; its functions parse arguments, view
 * arrays, call the core and wrap the result, nothing else. */
#ifndef AIMO_BINDING_BINDING_H
#define AIMO_BINDING_BINDING_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#define PY_ARRAY_UNIQUE_SYMBOL aimo_numpy_api
#ifndef AIMO_BINDING_IMPORTS_NUMPY
#define NO_IMPORT_ARRAY
#endif
#include <numpy/arrayobject.h>

#include "base/status.h"

typedef struct {
    /* From ai_model_optimizations.errors, indexed by aimo_status. */
    PyObject *exceptions[AIMO_ERR_DEVICE + 1];
    PyObject *device_memory; /* the type _core.DeviceMemory */
} aimo_py_state;

/* The state of a module, or of the module that defines `type`. */
aimo_py_state *aimo_py_state_of(PyObject *module);
aimo_py_state *aimo_py_state_of_type(PyTypeObject *type);

/* Raises the exception for `status`; returns NULL. */
PyObject *aimo_py_raise(const aimo_py_state *state, aimo_status status, const aimo_error *err);

/* A sequence's items as a tuple, which neither another thread nor code called during parsing can
 * change; NULL with a TypeError with `message`. */
PyObject *aimo_py_tuple_of(PyObject *value, const char *message);

/* The index of `name` in `names`; -1 with a ValueError that mentions `what` when it is missing. */
int aimo_py_find_name(const char *what, const char *name, const char *const *names, int count);
int aimo_py_find_dtype(const char *name);
int aimo_py_find_activation(const char *name);

/* Each capability adds its functions and types to the module; -1 with an exception on failure. */
int aimo_py_add_half(PyObject *module);
int aimo_py_add_dlpack(PyObject *module);
int aimo_py_add_matrix(PyObject *module);
int aimo_py_add_encoder(PyObject *module);
int aimo_py_add_cuda(PyObject *module);
int aimo_py_add_device_memory(PyObject *module);
int aimo_py_add_memhook(PyObject *module);
int aimo_py_add_census(PyObject *module);
int aimo_py_add_process(PyObject *module);
int aimo_py_add_cache(PyObject *module);

#endif
