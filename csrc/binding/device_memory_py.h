/* The type _core.DeviceMemory, for functions that take one. */
#ifndef AIMO_BINDING_DEVICE_MEMORY_PY_H
#define AIMO_BINDING_DEVICE_MEMORY_PY_H

#include "binding/binding.h"

#include "backend/device_memory.h"

/* The memory of a DeviceMemory, valid as long as the object; `state` is the module's. NULL with a
 * TypeError for any other object. */
aimo_device_memory *aimo_py_device_memory_of(const aimo_py_state *state, PyObject *object);

#endif
