/* The running thread's Python stack, read from inside the allocator. */
#ifndef AIMO_BINDING_MEMHOOK_FRAMES_H
#define AIMO_BINDING_MEMHOOK_FRAMES_H

#include "memhook/memhook.h"

#include <stdbool.h>
#include <stddef.h>

/* Why stacks cannot be walked on the CPython this was built for; NULL when they can. */
extern const char *const aimo_frames_missing;

/* Writes at most `capacity` frames, innermost first; 0 when the thread runs no Python code. Needs
 * the GIL. Allocates nothing, takes no reference, runs no code. */
size_t aimo_frames_walk(aimo_frame *frames, size_t capacity);

/* Whether the calling thread runs in the main interpreter. */
bool aimo_frames_in_main_interpreter(void);

/* Whether the calling thread holds the GIL; any thread may ask, at any time. */
bool aimo_frames_holds_gil(void);

/* The line number of a frame whose code object is alive; must not be called inside an
 * allocation. */
int aimo_frames_line(const aimo_frame *frame);

/* Takes a reference to a code object; this only increments a counter, so it is allowed inside an
 * allocation. */
void aimo_frames_retain(void *code);

#endif
