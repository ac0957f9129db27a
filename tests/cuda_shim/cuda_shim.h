/* What tests may ask of the shim: faults, and what is still held. The functions are found in the
 * library by name. */
#ifndef AIMO_CUDA_SHIM_H
#define AIMO_CUDA_SHIM_H

#include <stddef.h>

typedef struct {
    /* Devices that are visible, and CUDA's version of the driver; 0 is none. */
    void (*set_machine)(int devices, int driver);
    /* After `count` more allocations, of host or device memory, every one fails; negative: none. */
    void (*fail_allocations_after)(long count);
    /* After `count` more calls, launches included, every one fails as when the device is lost. */
    void (*fail_calls_after)(long count);
    /* Bytes of device memory, of pinned and of the library's own memory, and objects. */
    size_t (*held)(void);
    /* The largest amount of device memory at one time since it was last asked. */
    size_t (*peak)(void);
    /* Graphs that were launched so far. */
    size_t (*graph_launches)(void);
} cuda_shim_controls;

/* The symbol is `cuda_shim_controls_get`. */
typedef const cuda_shim_controls *cuda_shim_controls_getter(void);

/* How a stream begins, for the stand-ins of libraries that enqueue work of their own. */
typedef struct cuda_shim_queue cuda_shim_queue;
struct cuda_shim_queue {
    /* Runs work when its turn comes, on a copy of the arguments; 0: the call fails. */
    int (*enqueue)(cuda_shim_queue *, void (*work)(const void *arguments), const void *arguments,
                   size_t bytes);
};

#endif
