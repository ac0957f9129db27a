/* half: f32 <-> f16 and bf16 over numpy arrays. bf16 travels as uint16. */
#include "binding/binding.h"

#include "half/half.h"

/* Fewer elements than this convert faster than the GIL changes hands. */
enum { GIL_THRESHOLD = 4096 };

/* A new array of src's shape and type `dst_type`, src being C-contiguous; both owned by the caller.
 */
static int prepare(PyObject *arg, int src_type, int dst_type, PyArrayObject **src,
                   PyArrayObject **dst)
{
    *src = (PyArrayObject *)PyArray_FROM_OTF(arg, src_type, NPY_ARRAY_IN_ARRAY);
    if (*src == NULL)
        return -1;
    *dst = (PyArrayObject *)PyArray_SimpleNew(PyArray_NDIM(*src), PyArray_DIMS(*src), dst_type);
    if (*dst == NULL) {
        Py_CLEAR(*src);
        return -1;
    }
    return 0;
}

static PyObject *narrow(PyObject *arg, int dst_type,
                        void (*convert)(const float *, uint16_t *, size_t))
{
    PyArrayObject *src, *dst;
    if (prepare(arg, NPY_FLOAT32, dst_type, &src, &dst) != 0)
        return NULL;
    const float *in = PyArray_DATA(src);
    uint16_t *out = PyArray_DATA(dst);
    const size_t n = (size_t)PyArray_SIZE(src);
    NPY_BEGIN_THREADS_DEF;
    if (n >= GIL_THRESHOLD)
        NPY_BEGIN_THREADS;
    convert(in, out, n);
    NPY_END_THREADS;
    Py_DECREF(src);
    return (PyObject *)dst;
}

static PyObject *widen(PyObject *arg, int src_type,
                       void (*convert)(const uint16_t *, float *, size_t))
{
    PyArrayObject *src, *dst;
    if (prepare(arg, src_type, NPY_FLOAT32, &src, &dst) != 0)
        return NULL;
    const uint16_t *in = PyArray_DATA(src);
    float *out = PyArray_DATA(dst);
    const size_t n = (size_t)PyArray_SIZE(src);
    NPY_BEGIN_THREADS_DEF;
    if (n >= GIL_THRESHOLD)
        NPY_BEGIN_THREADS;
    convert(in, out, n);
    NPY_END_THREADS;
    Py_DECREF(src);
    return (PyObject *)dst;
}

/* f32_to_f16(x: ndarray[float32], /) -> ndarray[float16] */
static PyObject *f32_to_f16(PyObject *Py_UNUSED(module), PyObject *arg)
{
    return narrow(arg, NPY_FLOAT16, aimo_f32_to_f16);
}

/* f16_to_f32(x: ndarray[float16], /) -> ndarray[float32] */
static PyObject *f16_to_f32(PyObject *Py_UNUSED(module), PyObject *arg)
{
    return widen(arg, NPY_FLOAT16, aimo_f16_to_f32);
}

/* f32_to_bf16(x: ndarray[float32], /) -> ndarray[uint16] */
static PyObject *f32_to_bf16(PyObject *Py_UNUSED(module), PyObject *arg)
{
    return narrow(arg, NPY_UINT16, aimo_f32_to_bf16);
}

/* bf16_to_f32(x: ndarray[uint16], /) -> ndarray[float32] */
static PyObject *bf16_to_f32(PyObject *Py_UNUSED(module), PyObject *arg)
{
    return widen(arg, NPY_UINT16, aimo_bf16_to_f32);
}

static PyMethodDef methods[] = {
    {"f32_to_f16", f32_to_f16, METH_O, "f32_to_f16(x, /)\n--\n\nRound to nearest even."},
    {"f16_to_f32", f16_to_f32, METH_O, "f16_to_f32(x, /)\n--\n\nExact."},
    {"f32_to_bf16", f32_to_bf16, METH_O, "f32_to_bf16(x, /)\n--\n\nRound to nearest even."},
    {"bf16_to_f32", bf16_to_f32, METH_O, "bf16_to_f32(x, /)\n--\n\nExact."},
    {NULL, NULL, 0, NULL},
};

int aimo_py_add_half(PyObject *module) { return PyModule_AddFunctions(module, methods); }
