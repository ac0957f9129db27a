/* The type _core.Encoder, for the files that define its methods. */
#ifndef AIMO_BINDING_ENCODER_PY_H
#define AIMO_BINDING_ENCODER_PY_H

#include "binding/binding.h"

#include "encoder/encoder.h"

#include <stdbool.h>

typedef struct {
    PyObject_HEAD aimo_encoder *encoder; /* NULL when __init__ did not succeed */
    PyObject *mapped; /* list of memoryviews: the buffers that weights are mapped from */
    int device;       /* the device that it was sealed for */
} encoder_object;

/* False with a RuntimeError when __init__ did not succeed; every method checks this first. */
bool aimo_py_encoder_is_ready(const encoder_object *self);

/* Raises the exception for `status`; returns NULL. */
PyObject *aimo_py_encoder_fail(const encoder_object *self, aimo_status status,
                               const aimo_error *err);

/* Methods; their Python signatures are at the definitions. In encoder_weights_py.c: */
PyObject *aimo_py_encoder_set_tensor(encoder_object *self, PyObject *args);
PyObject *aimo_py_encoder_get_tensor(encoder_object *self, PyObject *args);
PyObject *aimo_py_encoder_tensor_shape(encoder_object *self, PyObject *name);
PyObject *aimo_py_encoder_weights(encoder_object *self, PyObject *unused);
PyObject *aimo_py_encoder_get_weight(encoder_object *self, PyObject *args);
PyObject *aimo_py_encoder_map_weight(encoder_object *self, PyObject *args);
PyObject *aimo_py_encoder_set_outliers(encoder_object *self, PyObject *args);
/* In encoder_batch_py.c: */
PyObject *aimo_py_encoder_encode(encoder_object *self, PyObject *args);
PyObject *aimo_py_encoder_encode_to(encoder_object *self, PyObject *args);
PyObject *aimo_py_encoder_encode_tokens(encoder_object *self, PyObject *args);
PyObject *aimo_py_encoder_input_peaks(encoder_object *self, PyObject *args);
PyObject *aimo_py_encoder_operation_seconds(encoder_object *self, PyObject *args);

/* Module functions, in encoder_weights_py.c. */
PyObject *aimo_py_encoder_tensor_names(PyObject *module, PyObject *unused);
PyObject *aimo_py_encoder_layout_version(PyObject *module, PyObject *unused);

#endif
