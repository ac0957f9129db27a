/* The extension module ai_model_optimizations._core: multi-phase init, module state, and functions
 * about the whole process. */
#define AIMO_BINDING_IMPORTS_NUMPY
#include "binding/binding.h"

#include "backend/cuda_loader.h"
#include "base/cpu.h"
#include "base/memory.h"
#include "base/scratch.h"
#include "base/threads.h"
#include "cache/cache.h"

#include <stdbool.h>

static PyModuleDef module_def;

aimo_py_state *aimo_py_state_of(PyObject *module) { return PyModule_GetState(module); }

aimo_py_state *aimo_py_state_of_type(PyTypeObject *type) { return PyType_GetModuleState(type); }

PyObject *aimo_py_raise(const aimo_py_state *state, aimo_status status, const aimo_error *err)
{
    PyErr_SetString(state->exceptions[status], err->message);
    return NULL;
}

/* cpu_info() -> {"row": str, "available": [str, ...]} */
static PyObject *cpu_info(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused))
{
    PyObject *available = PyList_New(0);
    if (available == NULL)
        return NULL;
    for (size_t i = 0; aimo_cpu_row_name(i) != NULL; i++) {
        if ((aimo_cpu_row_features(i) & ~aimo_cpu_available()) != 0)
            continue;
        PyObject *name = PyUnicode_FromString(aimo_cpu_row_name(i));
        const int failed = name == NULL || PyList_Append(available, name) != 0;
        Py_XDECREF(name);
        if (failed) {
            Py_DECREF(available);
            return NULL;
        }
    }
    return Py_BuildValue("{s:s,s:N}", "row", aimo_cpu_row(), "available", available);
}

/* thread_count() -> int */
static PyObject *thread_count(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused))
{
    return PyLong_FromSize_t(aimo_thread_count());
}

/* set_thread_count(count: int, /) -> None; 0 restores the default */
static PyObject *set_thread_count(PyObject *module, PyObject *argument)
{
    const size_t count = PyLong_AsSize_t(argument);
    if (count == (size_t)-1 && PyErr_Occurred())
        return NULL;
    aimo_error err;
    const aimo_status status = aimo_thread_count_set(count, &err);
    if (status != AIMO_OK)
        return aimo_py_raise(aimo_py_state_of(module), status, &err);
    Py_RETURN_NONE;
}

/* set_busy(is_busy: bool, /) -> None */
static PyObject *set_busy(PyObject *Py_UNUSED(module), PyObject *argument)
{
    const int is_busy = PyObject_IsTrue(argument);
    if (is_busy < 0)
        return NULL;
    aimo_thread_set_busy(is_busy != 0);
    Py_RETURN_NONE;
}

/* memory_info() -> {"live_bytes": int, "scratch_bytes": int} */
static PyObject *memory_info(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused))
{
    return Py_BuildValue("{s:n,s:n}", "live_bytes", (Py_ssize_t)aimo_memory_live_bytes(),
                         "scratch_bytes", (Py_ssize_t)aimo_scratch_bytes());
}

static PyMethodDef methods[] = {
    {"cpu_info", cpu_info, METH_NOARGS, "cpu_info()\n--\n\nThe row of kernels in use."},
    {"thread_count", thread_count, METH_NOARGS, "thread_count()\n--\n\nThreads of the pool."},
    {"set_thread_count", set_thread_count, METH_O, "set_thread_count(count, /)\n--\n\n0: default."},
    {"set_busy", set_busy, METH_O,
     "set_busy(is_busy, /)\n--\n\nKeep the pool's workers out of this thread's place."},
    {"memory_info", memory_info, METH_NOARGS, "memory_info()\n--\n\nBytes the C core holds."},
    {NULL, NULL, 0, NULL},
};

static int import_exceptions(aimo_py_state *state)
{
    static const char *const names[] = {
        [AIMO_ERR_UNSUPPORTED] = "UnsupportedError",
        [AIMO_ERR_FORMAT] = "ModelFormatError",
        [AIMO_ERR_DEVICE] = "DeviceError",
    };
    PyObject *errors = PyImport_ImportModule("ai_model_optimizations.errors");
    if (errors == NULL)
        return -1;
    state->exceptions[AIMO_ERR_ARGUMENT] = Py_NewRef(PyExc_ValueError);
    state->exceptions[AIMO_ERR_MEMORY] = Py_NewRef(PyExc_MemoryError);
    bool found = true;
    for (int i = AIMO_ERR_UNSUPPORTED; i <= AIMO_ERR_DEVICE && found; i++) {
        state->exceptions[i] = PyObject_GetAttrString(errors, names[i]);
        found = state->exceptions[i] != NULL;
    }
    Py_DECREF(errors);
    return found ? 0 : -1;
}

/* Installs fork handlers and selects the row of kernels. This is per process: it happens once,
 * however often the module is loaded. */
static aimo_status init_process(aimo_error *err)
{
    static bool done; /* protected by the import lock */
    if (done)
        return AIMO_OK;
    AIMO_TRY(aimo_cpu_init(err));
    AIMO_TRY(aimo_threads_init(err));
    aimo_scratch_init();
    aimo_cache_init();
    aimo_cuda_loader_init();
    done = true;
    return AIMO_OK;
}

/* Before 3.12 only this check keeps the module out of subinterpreters. */
static int check_interpreter(void)
{
    if (PyInterpreterState_Get() == PyInterpreterState_Main())
        return 0;
    PyErr_SetString(PyExc_ImportError,
                    "ai_model_optimizations works in the main interpreter only, not in a "
                    "subinterpreter");
    return -1;
}

static int module_exec(PyObject *module)
{
    if (check_interpreter() != 0)
        return -1;
    import_array1(-1);
    aimo_py_state *state = aimo_py_state_of(module);
    if (import_exceptions(state) != 0)
        return -1;
    aimo_error err;
    const aimo_status status = init_process(&err);
    if (status != AIMO_OK) {
        aimo_py_raise(state, status, &err);
        return -1;
    }
    if (aimo_py_add_half(module) != 0 || aimo_py_add_dlpack(module) != 0 ||
        aimo_py_add_matrix(module) != 0 || aimo_py_add_encoder(module) != 0 ||
        aimo_py_add_cuda(module) != 0 || aimo_py_add_device_memory(module) != 0 ||
        aimo_py_add_cache(module) != 0 || aimo_py_add_memhook(module) != 0 ||
        aimo_py_add_census(module) != 0 || aimo_py_add_process(module) != 0)
        return -1;
    return 0;
}

static int module_traverse(PyObject *module, visitproc visit, void *arg)
{
    aimo_py_state *state = aimo_py_state_of(module);
    for (int i = 0; i <= AIMO_ERR_DEVICE; i++)
        Py_VISIT(state->exceptions[i]);
    Py_VISIT(state->device_memory);
    return 0;
}

static int module_clear(PyObject *module)
{
    aimo_py_state *state = aimo_py_state_of(module);
    for (int i = 0; i <= AIMO_ERR_DEVICE; i++)
        Py_CLEAR(state->exceptions[i]);
    Py_CLEAR(state->device_memory);
    return 0;
}

static void module_free(void *module) { module_clear(module); }

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, module_exec},
#if PY_VERSION_HEX >= 0x030c0000
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
#if PY_VERSION_HEX >= 0x030d0000
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static PyModuleDef module_def = {
    PyModuleDef_HEAD_INIT,
    .m_name = "ai_model_optimizations._core",
    .m_doc = "The C core. Private: use the classes of ai_model_optimizations.",
    .m_size = sizeof(aimo_py_state),
    .m_methods = methods,
    .m_slots = slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
    .m_free = module_free,
};

PyMODINIT_FUNC PyInit__core(void) { return PyModuleDef_Init(&module_def); }
