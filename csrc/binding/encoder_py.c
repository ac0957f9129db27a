/* encoder: the type _core.Encoder. */
#include "binding/device_memory_py.h"

#include "encoder/encoder.h"

#include <stdbool.h>
#include <string.h>

typedef struct {
    PyObject_HEAD aimo_encoder *encoder; /* NULL when __init__ did not succeed */
    PyObject *mapped;                    /* list of memoryviews: what weights are mapped from */
    int device;                          /* where it was sealed for */
} encoder_object;

static const char *const poolings[AIMO_POOLING_COUNT] = {
    "mean", "cls", "max", "mean_sqrt_len", "weighted_mean", "last_token"};

static aimo_py_state *state_of(encoder_object *self)
{
    return aimo_py_state_of_type(Py_TYPE(self));
}

/* poolings: a sequence of names. False with an exception set. */
static bool parse_poolings(PyObject *value, aimo_encoder_config *config)
{
    PyObject *items = PySequence_Fast(value, "poolings: expected a sequence of names");
    if (items == NULL)
        return false;
    const Py_ssize_t count = PySequence_Fast_GET_SIZE(items);
    config->pooling_count = (size_t)count; /* checked by the encoder */
    bool good = true;
    for (Py_ssize_t i = 0; good && i < count && i < AIMO_POOLINGS_MOST; i++) {
        const char *name = PyUnicode_AsUTF8(PySequence_Fast_GET_ITEM(items, i));
        const int index =
            name == NULL ? -1 : aimo_py_find_name("poolings", name, poolings, AIMO_POOLING_COUNT);
        good = index >= 0;
        if (good)
            config->poolings[i] = (aimo_pooling)index;
    }
    Py_DECREF(items);
    return good;
}

/* dense: a sequence of (inputs, outputs, activation). False with an exception set. */
static bool parse_dense(PyObject *value, aimo_encoder_config *config)
{
    PyObject *items = PySequence_Fast(value, "dense: expected a sequence of tuples");
    if (items == NULL)
        return false;
    const Py_ssize_t count = PySequence_Fast_GET_SIZE(items);
    config->dense_count = (size_t)count;
    bool good = true;
    for (Py_ssize_t i = 0; good && i < count && i < AIMO_DENSE_MOST; i++) {
        PyObject *item = PySequence_Fast_GET_ITEM(items, i);
        Py_ssize_t inputs, outputs;
        const char *activation;
        good = PyTuple_Check(item) &&
               PyArg_ParseTuple(item, "nns;dense: expected (inputs, outputs, activation)", &inputs,
                                &outputs, &activation);
        if (!good)
            break;
        const int index = aimo_py_find_activation(activation);
        good = index >= 0;
        if (good)
            config->dense[i] =
                (aimo_dense){(size_t)inputs, (size_t)outputs, (aimo_activation)index};
    }
    if (!good && !PyErr_Occurred())
        PyErr_SetString(PyExc_TypeError, "dense: expected a sequence of tuples");
    Py_DECREF(items);
    return good;
}

static PyObject *fail(encoder_object *self, aimo_status status, const aimo_error *err)
{
    return aimo_py_raise(state_of(self), status, err);
}

static int encoder_init(encoder_object *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"dtype",          "layers",     "hidden",    "heads",
                            "intermediate",   "vocabulary", "positions", "token_types",
                            "first_position", "activation", "poolings",  "layer_norm_epsilon",
                            "dense",          NULL};
    const char *dtype, *activation;
    PyObject *pooling_names, *dense;
    Py_ssize_t n[8];
    float epsilon;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "$snnnnnnnnsOfO", names, &dtype, &n[0], &n[1],
                                     &n[2], &n[3], &n[4], &n[5], &n[6], &n[7], &activation,
                                     &pooling_names, &epsilon, &dense))
        return -1;
    const int dtype_index = aimo_py_find_dtype(dtype);
    const int activation_index = aimo_py_find_activation(activation);
    if (dtype_index < 0 || activation_index < 0)
        return -1;
    aimo_encoder_config config = {
        .dtype = (aimo_dtype)dtype_index,
        .layers = (size_t)n[0],
        .hidden = (size_t)n[1],
        .heads = (size_t)n[2],
        .intermediate = (size_t)n[3],
        .vocabulary = (size_t)n[4],
        .positions = (size_t)n[5],
        .token_types = (size_t)n[6],
        .first_position = (size_t)n[7],
        .layer_norm_epsilon = epsilon,
        .activation = (aimo_activation)activation_index,
    };
    if (!parse_poolings(pooling_names, &config) || !parse_dense(dense, &config))
        return -1;
    if (self->encoder != NULL) {
        PyErr_SetString(PyExc_RuntimeError, "Encoder.__init__ was called twice");
        return -1;
    }
    aimo_error err;
    const aimo_status status = aimo_encoder_new(&config, &self->encoder, &err);
    if (status != AIMO_OK) {
        fail(self, status, &err);
        return -1;
    }
    return 0;
}

static void encoder_dealloc(encoder_object *self)
{
    PyTypeObject *type = Py_TYPE(self);
    aimo_encoder_free(self->encoder);
    Py_XDECREF(self->mapped);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

/* False with a RuntimeError when __init__ did not run; every method asks first. */
static bool is_ready(encoder_object *self)
{
    if (self->encoder != NULL)
        return true;
    PyErr_SetString(PyExc_RuntimeError, "Encoder was not initialised");
    return false;
}

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
static PyObject *set_tensor(encoder_object *self, PyObject *args)
{
    const char *name;
    Py_ssize_t layer;
    PyObject *data;
    if (!is_ready(self) || !PyArg_ParseTuple(args, "snO", &name, &layer, &data))
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
    Py_BEGIN_ALLOW_THREADS status = aimo_encoder_set_tensor(
        self->encoder, (size_t)index, (size_t)layer, values, rows, columns, &err);
    Py_END_ALLOW_THREADS Py_DECREF(array);
    if (status != AIMO_OK)
        return fail(self, status, &err);
    Py_RETURN_NONE;
}

/* tensor(name: str, layer: int, /) -> ndarray[float32], as stored */
static PyObject *get_tensor(encoder_object *self, PyObject *args)
{
    const char *name;
    Py_ssize_t layer;
    if (!is_ready(self) || !PyArg_ParseTuple(args, "sn", &name, &layer))
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
        return fail(self, status, &err);
    }
    return (PyObject *)array;
}

/* tensor_shape(name: str, /) -> tuple[int, ...], empty of a tensor that the model does not have */
static PyObject *tensor_shape(encoder_object *self, PyObject *name)
{
    const char *text = PyUnicode_AsUTF8(name);
    const Py_ssize_t index = text != NULL && is_ready(self) ? find_tensor(text) : -1;
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
static PyObject *weights(encoder_object *self, PyObject *Py_UNUSED(unused))
{
    if (!is_ready(self))
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
static PyObject *get_weight(encoder_object *self, PyObject *args)
{
    const char *name;
    Py_ssize_t layer;
    aimo_weight_info info;
    if (!is_ready(self) || !PyArg_ParseTuple(args, "sn", &name, &layer))
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
static PyObject *map_weight(encoder_object *self, PyObject *args)
{
    const char *name;
    Py_ssize_t layer;
    PyObject *data;
    aimo_weight_info info;
    if (!is_ready(self) || !PyArg_ParseTuple(args, "snO", &name, &layer, &data))
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
    /* Kept before it is used, so that no failure leaves the encoder with memory that went away. */
    const int kept = PyList_Append(self->mapped, view);
    Py_DECREF(view);
    if (kept != 0)
        return NULL;
    aimo_error err;
    const aimo_status status = aimo_encoder_map_weight(self->encoder, (size_t)index, (size_t)layer,
                                                       buffer->buf, (size_t)buffer->len, &err);
    if (status != AIMO_OK)
        return fail(self, status, &err);
    Py_RETURN_NONE;
}

/* seal(device: int = -1, /) -> None; -1 is the CPU, others are CUDA devices */
static PyObject *seal(encoder_object *self, PyObject *args)
{
    int device = AIMO_DEVICE_CPU;
    if (!is_ready(self) || !PyArg_ParseTuple(args, "|i", &device))
        return NULL;
    aimo_error err;
    aimo_status status;
    Py_BEGIN_ALLOW_THREADS status = aimo_encoder_seal(self->encoder, device, &err);
    Py_END_ALLOW_THREADS if (status != AIMO_OK) return fail(self, status, &err);
    self->device = device;
    Py_RETURN_NONE;
}

/* Packed sequences as the core takes them. */
typedef struct {
    PyArrayObject *ids, *offsets;
    npy_intp batch;
} sequences;

static void sequences_clear(sequences *s)
{
    Py_XDECREF(s->ids);
    Py_XDECREF(s->offsets);
}

/* False with an exception, and then nothing to clear. */
static bool sequences_of(PyObject *ids, PyObject *offsets, sequences *s)
{
    s->ids = (PyArrayObject *)PyArray_FROMANY(ids, NPY_INT32, 1, 1, NPY_ARRAY_IN_ARRAY);
    s->offsets = (PyArrayObject *)PyArray_FROMANY(offsets, NPY_INT64, 1, 1, NPY_ARRAY_IN_ARRAY);
    if (s->ids != NULL && s->offsets != NULL) {
        s->batch = PyArray_SIZE(s->offsets) - 1;
        const int64_t *begins = PyArray_DATA(s->offsets);
        if (s->batch >= 0 && begins[s->batch] == PyArray_SIZE(s->ids))
            return true;
        PyErr_SetString(PyExc_ValueError, "offsets: expected to end with the number of token_ids");
    }
    sequences_clear(s);
    return false;
}

/* set_outliers(name: str, layer: int, channels: ndarray[int32], /) -> None */
static PyObject *set_outliers(encoder_object *self, PyObject *args)
{
    const char *name;
    Py_ssize_t layer;
    PyObject *channels;
    if (!is_ready(self) || !PyArg_ParseTuple(args, "snO", &name, &layer, &channels))
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
        return fail(self, status, &err);
    Py_RETURN_NONE;
}

/* input_peaks(token_ids: ndarray[int32], offsets: ndarray[int64], /)
 * -> ndarray[float32] of shape (layers, 4, max(hidden, intermediate)) */
static PyObject *input_peaks(encoder_object *self, PyObject *args)
{
    PyObject *ids, *offsets;
    sequences s;
    if (!is_ready(self) || !PyArg_ParseTuple(args, "OO", &ids, &offsets) ||
        !sequences_of(ids, offsets, &s))
        return NULL;
    const aimo_encoder_config *c = aimo_encoder_config_of(self->encoder);
    const npy_intp shape[3] = {
        (npy_intp)c->layers,
        AIMO_LAYER_MATRICES,
        (npy_intp)(c->intermediate > c->hidden ? c->intermediate : c->hidden),
    };
    PyObject *result = PyArray_SimpleNew(3, shape, NPY_FLOAT32);
    aimo_error err;
    aimo_status status = AIMO_OK;
    if (result != NULL)
        status =
            aimo_encoder_input_peaks(self->encoder, PyArray_DATA(s.ids), PyArray_DATA(s.offsets),
                                     (size_t)s.batch, PyArray_DATA((PyArrayObject *)result), &err);
    if (status != AIMO_OK) {
        Py_CLEAR(result);
        fail(self, status, &err);
    }
    sequences_clear(&s);
    return result;
}

/* operation_seconds(token_ids: ndarray[int32], offsets: ndarray[int64], /) -> dict[str, float] */
static PyObject *operation_seconds(encoder_object *self, PyObject *args)
{
    static const char *const names[AIMO_OPERATION_COUNT] = {
        "embed", "qkv", "attention", "attention_output", "up", "down", "pool",
    };
    PyObject *ids, *offsets;
    sequences s;
    if (!is_ready(self) || !PyArg_ParseTuple(args, "OO", &ids, &offsets) ||
        !sequences_of(ids, offsets, &s))
        return NULL;
    double seconds[AIMO_OPERATION_COUNT];
    aimo_error err;
    aimo_status status;
    Py_BEGIN_ALLOW_THREADS;
    status =
        aimo_encoder_operation_seconds(self->encoder, PyArray_DATA(s.ids), PyArray_DATA(s.offsets),
                                       (size_t)s.batch, seconds, &err);
    Py_END_ALLOW_THREADS;
    sequences_clear(&s);
    if (status != AIMO_OK)
        return fail(self, status, &err);
    PyObject *result = PyDict_New();
    for (size_t i = 0; result != NULL && i < AIMO_OPERATION_COUNT; i++) {
        PyObject *value = PyFloat_FromDouble(seconds[i]);
        if (value == NULL || PyDict_SetItemString(result, names[i], value) != 0)
            Py_CLEAR(result);
        Py_XDECREF(value);
    }
    return result;
}

static bool check_cut(const encoder_object *self, Py_ssize_t skip, Py_ssize_t columns)
{
    const Py_ssize_t dimension = (Py_ssize_t)aimo_encoder_dimension(self->encoder);
    if (skip >= 0 && columns >= 1 && columns <= dimension)
        return true;
    PyErr_Format(PyExc_ValueError, "skip %zd, columns %zd: expected 0 up, 1 to %zd", skip, columns,
                 dimension);
    return false;
}

/* encode(token_ids: ndarray[int32], offsets: ndarray[int64], normalize: bool, skip: int,
 * columns: int, /) -> ndarray[float32] of shape (batch, columns) */
static PyObject *encode(encoder_object *self, PyObject *args)
{
    PyObject *ids_arg, *offsets_arg, *result = NULL;
    int normalize;
    Py_ssize_t skip, columns;
    sequences s;
    if (!is_ready(self) ||
        !PyArg_ParseTuple(args, "OOpnn", &ids_arg, &offsets_arg, &normalize, &skip, &columns))
        return NULL;
    if (!check_cut(self, skip, columns) || !sequences_of(ids_arg, offsets_arg, &s))
        return NULL;
    const npy_intp batch = s.batch;
    const int64_t *begins = PyArray_DATA(s.offsets);
    const npy_intp shape[2] = {batch, (npy_intp)columns};
    result = PyArray_SimpleNew(2, shape, NPY_FLOAT32);
    if (result == NULL)
        goto done;
    const int32_t *tokens = PyArray_DATA(s.ids);
    float *out = PyArray_DATA((PyArrayObject *)result);
    const aimo_encode_options options = {(size_t)skip, (size_t)columns, normalize != 0, false};
    aimo_error err;
    aimo_status status;
    Py_BEGIN_ALLOW_THREADS status =
        aimo_encoder_encode(self->encoder, tokens, begins, (size_t)batch, &options, out, &err);
    Py_END_ALLOW_THREADS if (status != AIMO_OK)
    {
        Py_CLEAR(result);
        fail(self, status, &err);
    }
done:
    sequences_clear(&s);
    return result;
}

/* Whether the memory is on the encoder's device, with room for `batch` vectors behind `first`. */
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
static PyObject *encode_to(encoder_object *self, PyObject *args)
{
    PyObject *ids, *offsets, *out;
    int normalize;
    Py_ssize_t skip, columns, first;
    sequences s;
    if (!is_ready(self) || !PyArg_ParseTuple(args, "OOpnnOn", &ids, &offsets, &normalize, &skip,
                                             &columns, &out, &first))
        return NULL;
    const aimo_device_memory *memory = aimo_py_device_memory_of(state_of(self), out);
    if (memory == NULL || !check_cut(self, skip, columns) || !sequences_of(ids, offsets, &s))
        return NULL;
    bool good = has_room(self, memory, first, s.batch, columns);
    if (good) {
        float *to = (float *)aimo_device_memory_data(memory) + first * columns;
        const aimo_encode_options options = {(size_t)skip, (size_t)columns, normalize != 0, true};
        aimo_error err;
        aimo_status status;
        Py_BEGIN_ALLOW_THREADS status =
            aimo_encoder_encode(self->encoder, PyArray_DATA(s.ids), PyArray_DATA(s.offsets),
                                (size_t)s.batch, &options, to, &err);
        Py_END_ALLOW_THREADS good = status == AIMO_OK;
        if (!good)
            fail(self, status, &err);
    }
    sequences_clear(&s);
    return good ? Py_NewRef(Py_None) : NULL;
}

/* encode_tokens(token_ids: ndarray[int32], offsets: ndarray[int64], /)
 * -> ndarray[float32] of shape (tokens, hidden) */
static PyObject *encode_tokens(encoder_object *self, PyObject *args)
{
    PyObject *ids, *offsets;
    sequences s;
    if (!is_ready(self) || !PyArg_ParseTuple(args, "OO", &ids, &offsets) ||
        !sequences_of(ids, offsets, &s))
        return NULL;
    const int32_t *tokens = PyArray_DATA(s.ids);
    const int64_t *begins = PyArray_DATA(s.offsets);
    const npy_intp shape[2] = {PyArray_SIZE(s.ids),
                               (npy_intp)aimo_encoder_config_of(self->encoder)->hidden};
    PyObject *result = PyArray_SimpleNew(2, shape, NPY_FLOAT32);
    if (result != NULL) {
        float *out = PyArray_DATA((PyArrayObject *)result);
        aimo_error err;
        aimo_status status;
        Py_BEGIN_ALLOW_THREADS status =
            aimo_encoder_encode_tokens(self->encoder, tokens, begins, (size_t)s.batch, out, &err);
        Py_END_ALLOW_THREADS if (status != AIMO_OK)
        {
            Py_CLEAR(result);
            fail(self, status, &err);
        }
    }
    sequences_clear(&s);
    return result;
}

static PyObject *get_weight_bytes(encoder_object *self, void *Py_UNUSED(closure))
{
    return is_ready(self) ? PyLong_FromSize_t(aimo_encoder_weight_bytes(self->encoder)) : NULL;
}

static PyObject *get_dimension(encoder_object *self, void *Py_UNUSED(closure))
{
    return is_ready(self) ? PyLong_FromSize_t(aimo_encoder_dimension(self->encoder)) : NULL;
}

static PyObject *get_max_length(encoder_object *self, void *Py_UNUSED(closure))
{
    return is_ready(self) ? PyLong_FromSize_t(aimo_encoder_max_length(self->encoder)) : NULL;
}

/* tensor_names() -> list[tuple[str, bool]]: name, and whether there is one for each layer */
static PyObject *tensor_names(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused))
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

static PyMethodDef encoder_methods[] = {
    {"set_tensor", (PyCFunction)set_tensor, METH_VARARGS,
     "set_tensor($self, name, layer, data, /)\n--\n\nPack one tensor."},
    {"tensor", (PyCFunction)get_tensor, METH_VARARGS,
     "tensor($self, name, layer, /)\n--\n\nA tensor as stored, widened to float32."},
    {"tensor_shape", (PyCFunction)tensor_shape, METH_O,
     "tensor_shape($self, name, /)\n--\n\nThe shape that set_tensor takes."},
    {"weights", (PyCFunction)weights, METH_NOARGS,
     "weights($self, /)\n--\n\nThe packed weights: name, layers, dtype, shape, bytes."},
    {"weight", (PyCFunction)get_weight, METH_VARARGS,
     "weight($self, name, layer, /)\n--\n\nA packed weight's bytes where they lie."},
    {"map_weight", (PyCFunction)map_weight, METH_VARARGS,
     "map_weight($self, name, layer, data, /)\n--\n\nTake a packed weight where it lies."},
    {"set_outliers", (PyCFunction)set_outliers, METH_VARARGS,
     "set_outliers($self, name, layer, channels, /)\n--\n\nChannels of int8 kept in 16 bits."},
    {"input_peaks", (PyCFunction)input_peaks, METH_VARARGS,
     "input_peaks($self, token_ids, offsets, /)\n--\n\nLargest magnitude of each input channel."},
    {"operation_seconds", (PyCFunction)operation_seconds, METH_VARARGS,
     "operation_seconds($self, token_ids, offsets, /)\n--\n\nWhere the time of a batch goes."},
    {"seal", (PyCFunction)seal, METH_VARARGS,
     "seal($self, device=-1, /)\n--\n\nCheck that nothing is missing and make ready on a device."},
    {"encode", (PyCFunction)encode, METH_VARARGS,
     "encode($self, token_ids, offsets, normalize, skip, columns, /)\n--\n\nEmbed packed "
     "sequences."},
    {"encode_to", (PyCFunction)encode_to, METH_VARARGS,
     "encode_to($self, token_ids, offsets, normalize, skip, columns, out, first, /)\n--\n\nEmbed "
     "packed sequences into device memory."},
    {"encode_tokens", (PyCFunction)encode_tokens, METH_VARARGS,
     "encode_tokens($self, token_ids, offsets, /)\n--\n\nThe last layer's vector of each token."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef encoder_getset[] = {
    {"weight_bytes", (getter)get_weight_bytes, NULL, "Bytes of weights held.", NULL},
    {"dimension", (getter)get_dimension, NULL, "Elements of a vector.", NULL},
    {"max_length", (getter)get_max_length, NULL, "Tokens of the longest sequence.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot encoder_slots[] = {
    {Py_tp_doc, "An encoder's packed weights and its forward pass. Private."},
    {Py_tp_init, encoder_init},
    {Py_tp_new, PyType_GenericNew},
    {Py_tp_dealloc, encoder_dealloc},
    {Py_tp_methods, encoder_methods},
    {Py_tp_getset, encoder_getset},
    {0, NULL},
};

static PyType_Spec encoder_spec = {
    .name = "ai_model_optimizations._core.Encoder",
    .basicsize = sizeof(encoder_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = encoder_slots,
};

/* encoder_layout_version() -> int */
static PyObject *layout_version(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused))
{
    return PyLong_FromLong(AIMO_PANELS_VERSION);
}

static PyMethodDef functions[] = {
    {"encoder_layout_version", layout_version, METH_NOARGS,
     "encoder_layout_version()\n--\n\nThe version of the packed weights' layout."},
    {"encoder_tensor_names", tensor_names, METH_NOARGS,
     "encoder_tensor_names()\n--\n\nThe tensors that set_tensor knows."},
    {NULL, NULL, 0, NULL},
};

int aimo_py_add_encoder(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &encoder_spec, NULL);
    if (type == NULL)
        return -1;
    const int added = PyModule_AddType(module, (PyTypeObject *)type);
    Py_DECREF(type);
    return added == 0 ? PyModule_AddFunctions(module, functions) : -1;
}
