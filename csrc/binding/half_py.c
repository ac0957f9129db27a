/* half: f32 or f64 <-> f16 and bf16 over numpy arrays of any shape, stride and byte order. bf16 is
 * uint16, or a dtype that the caller supplies for it. */
#include "binding/dlpack.h"

#include "backend/device_memory.h"
#include "half/half.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

/* Converting fewer elements than this is faster than releasing and taking the GIL. */
enum { GIL_THRESHOLD = 4096 };

/* The calling convention of one of the module's functions, and the names in its messages. */
typedef struct {
    aimo_half_conversion conversion;
    int src_type, dst_type;
    const char *src_name, *dst_name;
} direction;

static const direction to_f16 = {AIMO_F32_TO_F16, NPY_FLOAT32, NPY_FLOAT16, "float32 or float64",
                                 "float16"};
static const direction from_f16 = {AIMO_F16_TO_F32, NPY_FLOAT16, NPY_FLOAT32, "float16", "float32"};
static const direction to_bf16 = {AIMO_F32_TO_BF16, NPY_FLOAT32, NPY_UINT16, "float32",
                                  "uint16 or bfloat16"};
static const direction from_bf16 = {AIMO_BF16_TO_F32, NPY_UINT16, NPY_FLOAT32, "uint16 or bfloat16",
                                    "float32"};

static PyArrayObject *as_array(PyObject *argument, const char *name)
{
    if (PyArray_Check(argument))
        return (PyArrayObject *)argument;
    PyErr_Format(PyExc_TypeError, "%s: expected a numpy array, got %s", name,
                 Py_TYPE(argument)->tp_name);
    return NULL;
}

static int raise_dtype(const char *name, const char *expected, PyArrayObject *array)
{
    PyErr_Format(PyExc_TypeError, "%s: expected dtype %s, got %S", name, expected,
                 (PyObject *)PyArray_DESCR(array));
    return -1;
}

/* NumPy has no bf16 type: NPY_UINT16 also accepts the dtype `bfloat16`, unless that is NULL. */
static bool has_type(PyArrayObject *array, int type, const PyArray_Descr *bfloat16)
{
    const int found = PyArray_TYPE(array);
    return found == type || (type == NPY_UINT16 && bfloat16 != NULL && found == bfloat16->type_num);
}

/* The range of addresses [*low, *high) that contains all elements; the array must not be empty. */
static void memory_range(PyArrayObject *array, const char **low, const char **high)
{
    *low = PyArray_BYTES(array);
    *high = *low + PyArray_ITEMSIZE(array);
    for (int i = 0; i < PyArray_NDIM(array); i++) {
        const npy_intp reach = (PyArray_DIM(array, i) - 1) * PyArray_STRIDE(array, i);
        *(reach < 0 ? low : high) += reach;
    }
}

typedef struct {
    npy_intp stride, reach;
} axis_span;

static int compare_strides(const void *a, const void *b)
{
    const npy_intp x = ((const axis_span *)a)->stride, y = ((const axis_span *)b)->stride;
    return (x > y) - (x < y);
}

/* True when every stride exceeds what all smaller strides span together, so that no two elements
 * can share a byte. A few layouts are free of overlap for other reasons; proving that is not worth
 * the code. */
static bool elements_are_distinct(PyArrayObject *array)
{
    axis_span axes[AIMO_HALF_MAX_DIMS];
    size_t count = 0;
    for (int i = 0; i < PyArray_NDIM(array); i++) {
        const npy_intp stride = PyArray_STRIDE(array, i), length = PyArray_DIM(array, i);
        if (length == 1)
            continue;
        axes[count].stride = stride < 0 ? -stride : stride;
        axes[count].reach = axes[count].stride * (length - 1);
        count++;
    }
    qsort(axes, count, sizeof axes[0], compare_strides);
    npy_intp span = PyArray_ITEMSIZE(array);
    for (size_t i = 0; i < count; i++) {
        if (axes[i].stride < span)
            return false;
        span += axes[i].reach;
    }
    return true;
}

/* 0 when src can be converted into dst, else -1 with an exception that names the argument. */
static int check_out(PyArrayObject *dst, PyArrayObject *src, const direction *d,
                     const PyArray_Descr *bfloat16)
{
    if (!has_type(dst, d->dst_type, bfloat16))
        return raise_dtype("out", d->dst_name, dst);
    if (!PyArray_SAMESHAPE(dst, src)) {
        PyObject *expected = PyObject_GetAttrString((PyObject *)src, "shape");
        PyObject *got = PyObject_GetAttrString((PyObject *)dst, "shape");
        if (expected != NULL && got != NULL)
            PyErr_Format(PyExc_ValueError, "out: expected shape %R, as x has, got %R", expected,
                         got);
        Py_XDECREF(expected);
        Py_XDECREF(got);
        return -1;
    }
    if (!PyArray_ISWRITEABLE(dst)) {
        PyErr_SetString(PyExc_ValueError, "out: the array is read-only");
        return -1;
    }
    if (PyArray_SIZE(dst) == 0)
        return 0;
    if (!elements_are_distinct(dst)) {
        PyErr_SetString(PyExc_ValueError, "out: its elements overlap each other");
        return -1;
    }
    const char *src_low, *src_high, *dst_low, *dst_high;
    memory_range(src, &src_low, &src_high);
    memory_range(dst, &dst_low, &dst_high);
    if (src_low < dst_high && dst_low < src_high) {
        PyErr_SetString(PyExc_ValueError, "out: its memory overlaps that of x");
        return -1;
    }
    return 0;
}

static void describe(PyArrayObject *src, PyArrayObject *dst, aimo_half_arrays *arrays)
{
    arrays->ndim = (size_t)PyArray_NDIM(src);
    arrays->src = PyArray_DATA(src);
    arrays->dst = PyArray_DATA(dst);
    arrays->src_swapped = PyArray_ISBYTESWAPPED(src);
    arrays->dst_swapped = PyArray_ISBYTESWAPPED(dst);
    for (int i = 0; i < PyArray_NDIM(src); i++) {
        arrays->shape[i] = (size_t)PyArray_DIM(src, i);
        arrays->src_stride[i] = PyArray_STRIDE(src, i);
        arrays->dst_stride[i] = PyArray_STRIDE(dst, i);
    }
}

static void run(aimo_half_conversion conversion, PyArrayObject *src, PyArrayObject *dst)
{
    const bool plain = PyArray_ISCARRAY_RO(src) && PyArray_ISCARRAY(dst);
    const size_t n = (size_t)PyArray_SIZE(src);
    const void *in = PyArray_DATA(src);
    void *out = PyArray_DATA(dst);
    aimo_half_arrays arrays = {.conversion = conversion};
    if (!plain)
        describe(src, dst, &arrays);
    NPY_BEGIN_THREADS_DEF;
    NPY_BEGIN_THREADS_THRESHOLDED(n >= GIL_THRESHOLD ? 501 : 0);
    if (plain)
        aimo_half_convert(conversion, in, out, n);
    else
        aimo_half_convert_arrays(&arrays);
    NPY_END_THREADS;
}

/* A new array in src's order of axes. */
static PyArrayObject *new_result(PyArrayObject *src, int type, PyArray_Descr *bfloat16)
{
    PyArray_Descr *descr = bfloat16;
    if (type == NPY_UINT16 && bfloat16 != NULL)
        Py_INCREF(descr);
    else
        descr = PyArray_DescrFromType(type);
    return (PyArrayObject *)PyArray_NewLikeArray(src, NPY_KEEPORDER, descr, 0);
}

/* `bfloat16` from the arguments, NULL when it is absent or None. */
static int parse_bfloat16(PyObject *const *args, Py_ssize_t count, PyArray_Descr **bfloat16)
{
    *bfloat16 = NULL;
    if (count < 3 || args[2] == Py_None)
        return 0;
    *bfloat16 = (PyArray_Descr *)args[2];
    if (PyArray_DescrCheck(args[2]) && PyDataType_ELSIZE(*bfloat16) == 2)
        return 0;
    PyErr_SetString(PyExc_TypeError, "bfloat16: expected a dtype of two bytes");
    return -1;
}

static PyObject *convert(const direction *d, PyObject *const *args, Py_ssize_t count)
{
    const Py_ssize_t most = d == &to_bf16 || d == &from_bf16 ? 3 : 2;
    if (count < 1 || count > most) {
        PyErr_Format(PyExc_TypeError, "expected 1 to %zd arguments, got %zd", most, count);
        return NULL;
    }
    PyArray_Descr *bfloat16;
    PyArrayObject *src = as_array(args[0], "x"), *dst;
    if (src == NULL || parse_bfloat16(args, count, &bfloat16) != 0)
        return NULL;
    const bool doubles = d->conversion == AIMO_F32_TO_F16 && PyArray_TYPE(src) == NPY_FLOAT64;
    if (!doubles && !has_type(src, d->src_type, bfloat16)) {
        raise_dtype("x", d->src_name, src);
        return NULL;
    }
    if (count == 1 || args[1] == Py_None) {
        dst = new_result(src, d->dst_type, bfloat16);
    } else {
        dst = as_array(args[1], "out");
        if (dst == NULL || check_out(dst, src, d, bfloat16) != 0)
            return NULL;
        Py_INCREF(dst);
    }
    if (dst != NULL)
        run(doubles ? AIMO_F64_TO_F16 : d->conversion, src, dst);
    return (PyObject *)dst;
}

/* f32_to_f16(x: ndarray[float32 | float64], out: ndarray[float16] | None = None, /) */
static PyObject *f32_to_f16(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    return convert(&to_f16, args, count);
}

/* f16_to_f32(x: ndarray[float16], out: ndarray[float32] | None = None, /) */
static PyObject *f16_to_f32(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    return convert(&from_f16, args, count);
}

/* f32_to_bf16(x: ndarray[float32], out: ndarray[uint16] | None = None,
 *             bfloat16: dtype | None = None, /) */
static PyObject *f32_to_bf16(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    return convert(&to_bf16, args, count);
}

/* bf16_to_f32(x: ndarray[uint16], out: ndarray[float32] | None = None,
 *             bfloat16: dtype | None = None, /) */
static PyObject *bf16_to_f32(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    return convert(&from_bf16, args, count);
}

static const direction *find_direction(const char *name)
{
    return strcmp(name, "f32_to_f16") == 0    ? &to_f16
           : strcmp(name, "f16_to_f32") == 0  ? &from_f16
           : strcmp(name, "f32_to_bf16") == 0 ? &to_bf16
           : strcmp(name, "bf16_to_f32") == 0 ? &from_bf16
                                              : NULL;
}

/* The same checks as for arrays in CPU memory, and those that only a device needs. */
static int check_on_device(const direction *d, PyArrayObject *src, int src_device,
                           PyArrayObject *dst, int dst_device)
{
    const bool doubles = d->conversion == AIMO_F32_TO_F16 && PyArray_TYPE(src) == NPY_FLOAT64;
    if (!doubles && PyArray_TYPE(src) != d->src_type)
        return raise_dtype("x", d->src_name, src);
    if (src_device != dst_device) {
        PyErr_Format(PyExc_ValueError, "out: expected memory of cuda:%d, as x, got cuda:%d",
                     src_device, dst_device);
        return -1;
    }
    if (!PyArray_ISALIGNED(src) || !PyArray_ISALIGNED(dst)) {
        PyErr_Format(PyExc_ValueError, "%s: its elements are not aligned",
                     PyArray_ISALIGNED(src) ? "out" : "x");
        return -1;
    }
    return check_out(dst, src, d, NULL);
}

/* half_on_device(name: str, x: capsule, out: capsule, /) -> None; `name` is a function's of this
 * module, both arrays are in the memory of one CUDA device */
static PyObject *half_on_device(PyObject *module, PyObject *args)
{
    const char *name;
    PyObject *x, *out;
    if (!PyArg_ParseTuple(args, "sOO", &name, &x, &out))
        return NULL;
    const direction *d = find_direction(name);
    if (d == NULL)
        return PyErr_Format(PyExc_ValueError, "no conversion %s", name);
    int src_device, dst_device;
    PyArrayObject *src = aimo_py_cuda_view(x, "x", &src_device);
    PyArrayObject *dst = src != NULL ? aimo_py_cuda_view(out, "out", &dst_device) : NULL;
    bool good = dst != NULL && check_on_device(d, src, src_device, dst, dst_device) == 0;
    if (good) {
        aimo_half_arrays arrays = {.conversion = PyArray_TYPE(src) == NPY_FLOAT64 ? AIMO_F64_TO_F16
                                                                                  : d->conversion};
        aimo_error err;
        aimo_status status;
        describe(src, dst, &arrays);
        Py_BEGIN_ALLOW_THREADS;
        status = aimo_device_half_convert(src_device, &arrays, &err);
        Py_END_ALLOW_THREADS;
        good = status == AIMO_OK;
        if (!good)
            aimo_py_raise(aimo_py_state_of(module), status, &err);
    }
    Py_XDECREF(dst);
    Py_XDECREF(src);
    return good ? Py_NewRef(Py_None) : NULL;
}

#define METHOD(name, doc)                                                                          \
    {                                                                                              \
#name, (PyCFunction)(void (*)(void))name, METH_FASTCALL, #name doc                         \
    }
static PyMethodDef methods[] = {
    METHOD(f32_to_f16, "(x, out=None, /)\n--\n\nRound to nearest even."),
    METHOD(f16_to_f32, "(x, out=None, /)\n--\n\nExact."),
    METHOD(f32_to_bf16, "(x, out=None, bfloat16=None, /)\n--\n\nRound to nearest even."),
    METHOD(bf16_to_f32, "(x, out=None, bfloat16=None, /)\n--\n\nExact."),
    {"half_on_device", half_on_device, METH_VARARGS,
     "half_on_device(name, x, out, /)\n--\n\nConvert between DLPack capsules of a CUDA device."},
    {NULL, NULL, 0, NULL},
};

int aimo_py_add_half(PyObject *module) { return PyModule_AddFunctions(module, methods); }
