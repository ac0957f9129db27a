/* Arguments: the names that Python uses for the core's enumerators, and sequences. */
#include "binding/binding.h"

#include "base/dtype.h"
#include "gemm/gemm.h"

#include <string.h>

static const char *const activations[AIMO_ACTIVATION_COUNT] = {
    "none", "gelu", "gelu_tanh", "quick_gelu", "relu", "silu", "tanh"};

int aimo_py_find_name(const char *what, const char *name, const char *const *names, int count)
{
    for (int i = 0; i < count; i++)
        if (strcmp(name, names[i]) == 0)
            return i;
    PyErr_Format(PyExc_ValueError, "%s: unknown value '%s'", what, name);
    return -1;
}

int aimo_py_find_dtype(const char *name)
{
    const char *names[AIMO_DTYPE_COUNT];
    for (int i = 0; i < AIMO_DTYPE_COUNT; i++)
        names[i] = aimo_dtype_name((aimo_dtype)i);
    return aimo_py_find_name("dtype", name, names, AIMO_DTYPE_COUNT);
}

int aimo_py_find_activation(const char *name)
{
    return aimo_py_find_name("activation", name, activations, AIMO_ACTIVATION_COUNT);
}

PyObject *aimo_py_tuple_of(PyObject *value, const char *message)
{
    PyObject *items = PySequence_Fast(value, message);
    PyObject *tuple = items != NULL ? PySequence_Tuple(items) : NULL;
    Py_XDECREF(items);
    return tuple;
}
