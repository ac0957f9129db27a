/* How tests control the shim: they inject faults and ask what is still held. The table of functions
 * is looked up in the library by name. */
#ifndef AIMO_CUDA_SHIM_H
#define AIMO_CUDA_SHIM_H

#include <stddef.h>

typedef struct {
    /* Number of visible devices, and the CUDA version of the driver; 0 means none. */
    void (*set_machine)(int devices, int driver);
    /* After `count` more allocations, of host or device memory, every one fails; negative: none. */
    void (*fail_allocations_after)(long count);
    /* After `count` more calls, launches included, every one fails as when the device is lost. */
    void (*fail_calls_after)(long count);
    /* What is held now: bytes of device, pinned and the library's own memory, plus objects. */
    size_t (*held)(void);
    /* Peak bytes of device memory since the last call. */
    size_t (*peak)(void);
    /* Graphs launched so far. */
    size_t (*graph_launches)(void);
} cuda_shim_controls;

/* The symbol is `cuda_shim_controls_get`. */
typedef const cuda_shim_controls *cuda_shim_controls_getter(void);

/* The first member of a stream, for stand-in libraries that enqueue work of their own. */
typedef struct cuda_shim_queue cuda_shim_queue;
struct cuda_shim_queue {
    /* Runs work when its turn comes, on a copy of the arguments; 0 when the call fails. */
    int (*enqueue)(cuda_shim_queue *, void (*work)(const void *arguments), const void *arguments,
                   size_t bytes);
};

#endif
