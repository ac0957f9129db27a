/* encoder: the methods of _core.Encoder that take a batch. */
#include "binding/device_memory_py.h"
#include "binding/encoder_py.h"

/* Packed sequences as the core takes them, and the arrays that hold them. */
typedef struct {
    PyArrayObject *ids_array, *offsets_array;
    const int32_t *ids;
    const int64_t *offsets;
    npy_intp batch;
} sequences;

static void sequences_clear(sequences *s)
{
    Py_XDECREF(s->ids_array);
    Py_XDECREF(s->offsets_array);
}

/* False with an exception, and then nothing to clear. */
static bool sequences_of(PyObject *ids, PyObject *offsets, sequences *s)
{
    s->ids_array = (PyArrayObject *)PyArray_FROMANY(ids, NPY_INT32, 1, 1, NPY_ARRAY_IN_ARRAY);
    s->offsets_array =
        (PyArrayObject *)PyArray_FROMANY(offsets, NPY_INT64, 1, 1, NPY_ARRAY_IN_ARRAY);
    if (s->ids_array != NULL && s->offsets_array != NULL) {
        s->ids = PyArray_DATA(s->ids_array);
        s->offsets = PyArray_DATA(s->offsets_array);
        s->batch = PyArray_SIZE(s->offsets_array) - 1;
        if (s->batch >= 0 && s->offsets[s->batch] == PyArray_SIZE(s->ids_array))
            return true;
        PyErr_SetString(PyExc_ValueError, "offsets: expected to end with the number of token_ids");
    }
    sequences_clear(s);
    return false;
}

static bool check_cut(const encoder_object *self, Py_ssize_t skip, Py_ssize_t columns)
{
    const Py_ssize_t dimension = (Py_ssize_t)aimo_encoder_dimension(self->encoder);
    if (skip >= 0 && columns >= 1 && columns <= dimension)
        return true;
    PyErr_Format(PyExc_ValueError, "skip %zd, columns %zd: expected at least 0, and 1 to %zd", skip,
                 columns, dimension);
    return false;
}

/* encode(token_ids: ndarray[int32], offsets: ndarray[int64], normalize: bool, skip: int,
 * columns: int, /) -> ndarray[float32] of shape (batch, columns) */
PyObject *aimo_py_encoder_encode(encoder_object *self, PyObject *args)
{
    PyObject *ids, *offsets;
    int normalize;
    Py_ssize_t skip, columns;
    sequences s;
    if (!aimo_py_encoder_is_ready(self) ||
        !PyArg_ParseTuple(args, "OOpnn", &ids, &offsets, &normalize, &skip, &columns))
        return NULL;
    if (!check_cut(self, skip, columns) || !sequences_of(ids, offsets, &s))
        return NULL;
    const npy_intp shape[2] = {s.batch, (npy_intp)columns};
    PyObject *result = PyArray_SimpleNew(2, shape, NPY_FLOAT32);
    if (result != NULL) {
        float *out = PyArray_DATA((PyArrayObject *)result);
        const aimo_encode_options options = {(size_t)skip, (size_t)columns, normalize != 0, false};
        aimo_error err;
        aimo_status status;
        Py_BEGIN_ALLOW_THREADS;
        status = aimo_encoder_encode(self->encoder, s.ids, s.offsets, (size_t)s.batch, &options,
                                     out, &err);
        Py_END_ALLOW_THREADS;
        if (status != AIMO_OK) {
            Py_CLEAR(result);
            aimo_py_encoder_fail(self, status, &err);
        }
    }
    sequences_clear(&s);
    return result;
}

/* Whether the memory is on the encoder's device and has room for `batch` vectors after the first
 * `first`. */
static bool has_room(const encoder_object *self, const aimo_device_memory *memory, Py_ssize_t first,
                     Py_ssize_t batch, Py_ssize_t columns)
{
    const size_t rows = aimo_device_memory_bytes(memory) / sizeof(float) / (size_t)columns;
    if (self->device == aimo_device_memory_device(memory) && first >= 0 && (size_t)first <= rows &&
        (size_t)batch <= rows - (size_t)first)
        return true;
    PyErr_Format(PyExc_ValueError,
                 "out: no room for %zd vectors behind %zd, or not the encoder's device", batch,
                 first);
    return false;
}

/* encode_to(token_ids: ndarray[int32], offsets: ndarray[int64], normalize: bool, skip: int,
 * columns: int, out: DeviceMemory, first: int, /) -> None; the vectors become rows first, first + 1
 * ... of `columns` f32 each */
PyObject *aimo_py_encoder_encode_to(encoder_object *self, PyObject *args)
{
    PyObject *ids, *offsets, *out;
    int normalize;
    Py_ssize_t skip, columns, first;
    sequences s;
    if (!aimo_py_encoder_is_ready(self) ||
        !PyArg_ParseTuple(args, "OOpnnOn", &ids, &offsets, &normalize, &skip, &columns, &out,
                          &first))
        return NULL;
    const aimo_device_memory *memory =
        aimo_py_device_memory_of(aimo_py_state_of_type(Py_TYPE(self)), out);
    if (memory == NULL || !check_cut(self, skip, columns) || !sequences_of(ids, offsets, &s))
        return NULL;
    bool good = has_room(self, memory, first, s.batch, columns);
    if (good) {
        float *to = (float *)aimo_device_memory_data(memory) + first * columns;
        const aimo_encode_options options = {(size_t)skip, (size_t)columns, normalize != 0, true};
        aimo_error err;
        aimo_status status;
        Py_BEGIN_ALLOW_THREADS;
        status = aimo_encoder_encode(self->encoder, s.ids, s.offsets, (size_t)s.batch, &options, to,
                                     &err);
        Py_END_ALLOW_THREADS;
        good = status == AIMO_OK;
        if (!good)
            aimo_py_encoder_fail(self, status, &err);
    }
    sequences_clear(&s);
    return good ? Py_NewRef(Py_None) : NULL;
}

/* A core function that computes an array of f32 from a batch. */
typedef aimo_status compute_function(const aimo_encoder *encoder, const int32_t *token_ids,
                                     const int64_t *offsets, size_t batch, float *out,
                                     aimo_error *err);

/* A new array of this shape, filled by `compute`; NULL with an exception. */
static PyObject *computed_array(const encoder_object *self, const sequences *s,
                                compute_function *compute, int ndim, const npy_intp *shape)
{
    PyObject *result = PyArray_SimpleNew(ndim, shape, NPY_FLOAT32);
    if (result == NULL)
        return NULL;
    float *out = PyArray_DATA((PyArrayObject *)result);
    aimo_error err;
    aimo_status status;
    Py_BEGIN_ALLOW_THREADS;
    status = compute(self->encoder, s->ids, s->offsets, (size_t)s->batch, out, &err);
    Py_END_ALLOW_THREADS;
    if (status != AIMO_OK) {
        Py_CLEAR(result);
        aimo_py_encoder_fail(self, status, &err);
    }
    return result;
}

/* encode_tokens(token_ids: ndarray[int32], offsets: ndarray[int64], /)
 * -> ndarray[float32] of shape (tokens, hidden) */
PyObject *aimo_py_encoder_encode_tokens(encoder_object *self, PyObject *args)
{
    PyObject *ids, *offsets;
    sequences s;
    if (!aimo_py_encoder_is_ready(self) || !PyArg_ParseTuple(args, "OO", &ids, &offsets) ||
        !sequences_of(ids, offsets, &s))
        return NULL;
    const npy_intp shape[2] = {PyArray_SIZE(s.ids_array),
                               (npy_intp)aimo_encoder_config_of(self->encoder)->hidden};
    PyObject *result = computed_array(self, &s, aimo_encoder_encode_tokens, 2, shape);
    sequences_clear(&s);
    return result;
}

/* input_peaks(token_ids: ndarray[int32], offsets: ndarray[int64], /)
 * -> ndarray[float32] of shape (layers, 4, max(hidden, intermediate)) */
PyObject *aimo_py_encoder_input_peaks(encoder_object *self, PyObject *args)
{
    PyObject *ids, *offsets;
    sequences s;
    if (!aimo_py_encoder_is_ready(self) || !PyArg_ParseTuple(args, "OO", &ids, &offsets) ||
        !sequences_of(ids, offsets, &s))
        return NULL;
    const aimo_encoder_config *c = aimo_encoder_config_of(self->encoder);
    const npy_intp shape[3] = {
        (npy_intp)c->layers,
        AIMO_LAYER_MATRICES,
        (npy_intp)(c->intermediate > c->hidden ? c->intermediate : c->hidden),
    };
    PyObject *result = computed_array(self, &s, aimo_encoder_input_peaks, 3, shape);
    sequences_clear(&s);
    return result;
}

/* operation_seconds(token_ids: ndarray[int32], offsets: ndarray[int64], /) -> dict[str, float] */
PyObject *aimo_py_encoder_operation_seconds(encoder_object *self, PyObject *args)
{
    static const char *const names[AIMO_OPERATION_COUNT] = {
        "embed", "qkv", "attention", "attention_output", "up", "down", "pool",
    };
    PyObject *ids, *offsets;
    sequences s;
    if (!aimo_py_encoder_is_ready(self) || !PyArg_ParseTuple(args, "OO", &ids, &offsets) ||
        !sequences_of(ids, offsets, &s))
        return NULL;
    double seconds[AIMO_OPERATION_COUNT];
    aimo_error err;
    aimo_status status;
    Py_BEGIN_ALLOW_THREADS;
    status = aimo_encoder_operation_seconds(self->encoder, s.ids, s.offsets, (size_t)s.batch,
                                            seconds, &err);
    Py_END_ALLOW_THREADS;
    sequences_clear(&s);
    if (status != AIMO_OK)
        return aimo_py_encoder_fail(self, status, &err);
    PyObject *result = PyDict_New();
    for (size_t i = 0; result != NULL && i < AIMO_OPERATION_COUNT; i++) {
        PyObject *value = PyFloat_FromDouble(seconds[i]);
        if (value == NULL || PyDict_SetItemString(result, names[i], value) != 0)
            Py_CLEAR(result);
        Py_XDECREF(value);
    }
    return result;
}
