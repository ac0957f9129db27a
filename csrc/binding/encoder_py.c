/* encoder: the type _core.Encoder; its methods for weights and for batches are in
 * encoder_weights_py.c and encoder_batch_py.c. */
#include "binding/encoder_py.h"

static const char *const poolings[AIMO_POOLING_COUNT] = {
    "mean", "cls", "max", "mean_sqrt_len", "weighted_mean", "last_token"};

/* poolings: a sequence of names. False with an exception set. */
static bool parse_poolings(PyObject *value, aimo_encoder_config *config)
{
    PyObject *items = aimo_py_tuple_of(value, "poolings: expected a sequence of names");
    if (items == NULL)
        return false;
    const Py_ssize_t count = PyTuple_GET_SIZE(items);
    config->pooling_count = (size_t)count; /* checked by the encoder */
    bool good = true;
    for (Py_ssize_t i = 0; good && i < count && i < AIMO_POOLINGS_MOST; i++) {
        const char *name = PyUnicode_AsUTF8(PyTuple_GET_ITEM(items, i));
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
    PyObject *items = aimo_py_tuple_of(value, "dense: expected a sequence of tuples");
    if (items == NULL)
        return false;
    const Py_ssize_t count = PyTuple_GET_SIZE(items);
    config->dense_count = (size_t)count;
    bool good = true;
    for (Py_ssize_t i = 0; good && i < count && i < AIMO_DENSE_MOST; i++) {
        PyObject *item = PyTuple_GET_ITEM(items, i);
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

/* The keywords of __init__. False with an exception set. */
static bool parse_config(PyObject *args, PyObject *kwargs, aimo_encoder_config *config)
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
        return false;
    const int dtype_index = aimo_py_find_dtype(dtype);
    const int activation_index = aimo_py_find_activation(activation);
    if (dtype_index < 0 || activation_index < 0)
        return false;
    *config = (aimo_encoder_config){
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
    return parse_poolings(pooling_names, config) && parse_dense(dense, config);
}

bool aimo_py_encoder_is_ready(const encoder_object *self)
{
    if (self->encoder != NULL)
        return true;
    PyErr_SetString(PyExc_RuntimeError, "Encoder was not initialised");
    return false;
}

PyObject *aimo_py_encoder_fail(const encoder_object *self, aimo_status status,
                               const aimo_error *err)
{
    return aimo_py_raise(aimo_py_state_of_type(Py_TYPE(self)), status, err);
}

static int encoder_init(encoder_object *self, PyObject *args, PyObject *kwargs)
{
    aimo_encoder_config config;
    if (!parse_config(args, kwargs, &config))
        return -1;
    if (self->encoder != NULL) {
        PyErr_SetString(PyExc_RuntimeError, "Encoder.__init__ was called twice");
        return -1;
    }
    aimo_error err;
    const aimo_status status = aimo_encoder_new(&config, &self->encoder, &err);
    if (status != AIMO_OK) {
        aimo_py_encoder_fail(self, status, &err);
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

/* seal(device: int = -1, /) -> None; -1 is the CPU, others are CUDA devices */
static PyObject *seal(encoder_object *self, PyObject *args)
{
    int device = AIMO_DEVICE_CPU;
    if (!aimo_py_encoder_is_ready(self) || !PyArg_ParseTuple(args, "|i", &device))
        return NULL;
    aimo_error err;
    aimo_status status;
    Py_BEGIN_ALLOW_THREADS;
    status = aimo_encoder_seal(self->encoder, device, &err);
    Py_END_ALLOW_THREADS;
    if (status != AIMO_OK)
        return aimo_py_encoder_fail(self, status, &err);
    self->device = device;
    Py_RETURN_NONE;
}

static PyObject *get_weight_bytes(encoder_object *self, void *Py_UNUSED(closure))
{
    return aimo_py_encoder_is_ready(self)
               ? PyLong_FromSize_t(aimo_encoder_weight_bytes(self->encoder))
               : NULL;
}

static PyObject *get_dimension(encoder_object *self, void *Py_UNUSED(closure))
{
    return aimo_py_encoder_is_ready(self) ? PyLong_FromSize_t(aimo_encoder_dimension(self->encoder))
                                          : NULL;
}

static PyObject *get_max_length(encoder_object *self, void *Py_UNUSED(closure))
{
    return aimo_py_encoder_is_ready(self)
               ? PyLong_FromSize_t(aimo_encoder_max_length(self->encoder))
               : NULL;
}

static PyMethodDef encoder_methods[] = {
    {"set_tensor", (PyCFunction)aimo_py_encoder_set_tensor, METH_VARARGS,
     "set_tensor($self, name, layer, data, /)\n--\n\nPack one tensor."},
    {"tensor", (PyCFunction)aimo_py_encoder_get_tensor, METH_VARARGS,
     "tensor($self, name, layer, /)\n--\n\nA tensor as stored, widened to float32."},
    {"tensor_shape", (PyCFunction)aimo_py_encoder_tensor_shape, METH_O,
     "tensor_shape($self, name, /)\n--\n\nThe shape that set_tensor takes."},
    {"weights", (PyCFunction)aimo_py_encoder_weights, METH_NOARGS,
     "weights($self, /)\n--\n\nThe packed weights: name, layers, dtype, shape, bytes."},
    {"weight", (PyCFunction)aimo_py_encoder_get_weight, METH_VARARGS,
     "weight($self, name, layer, /)\n--\n\nA packed weight's bytes where they lie."},
    {"map_weight", (PyCFunction)aimo_py_encoder_map_weight, METH_VARARGS,
     "map_weight($self, name, layer, data, /)\n--\n\nTake a packed weight where it lies."},
    {"set_outliers", (PyCFunction)aimo_py_encoder_set_outliers, METH_VARARGS,
     "set_outliers($self, name, layer, channels, /)\n--\n\nChannels of int8 kept in 16 bits."},
    {"input_peaks", (PyCFunction)aimo_py_encoder_input_peaks, METH_VARARGS,
     "input_peaks($self, token_ids, offsets, /)\n--\n\nLargest magnitude of each input channel."},
    {"operation_seconds", (PyCFunction)aimo_py_encoder_operation_seconds, METH_VARARGS,
     "operation_seconds($self, token_ids, offsets, /)\n--\n\nWhere the time of a batch goes."},
    {"seal", (PyCFunction)seal, METH_VARARGS,
     "seal($self, device=-1, /)\n--\n\nCheck that nothing is missing and make ready on a device."},
    {"encode", (PyCFunction)aimo_py_encoder_encode, METH_VARARGS,
     "encode($self, token_ids, offsets, normalize, skip, columns, /)\n--\n\nEmbed packed "
     "sequences."},
    {"encode_to", (PyCFunction)aimo_py_encoder_encode_to, METH_VARARGS,
     "encode_to($self, token_ids, offsets, normalize, skip, columns, out, first, /)\n--\n\nEmbed "
     "packed sequences into device memory."},
    {"encode_tokens", (PyCFunction)aimo_py_encoder_encode_tokens, METH_VARARGS,
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

static PyMethodDef functions[] = {
    {"encoder_layout_version", aimo_py_encoder_layout_version, METH_NOARGS,
     "encoder_layout_version()\n--\n\nThe version of the packed weights' layout."},
    {"encoder_tensor_names", aimo_py_encoder_tensor_names, METH_NOARGS,
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
