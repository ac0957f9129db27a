/* Frames are read where the interpreter keeps them, because every public API for frames may
 * allocate: from 3.11 on PyThreadState_GetFrame makes a frame object, and inside the allocator that
 * means recursion and, up to 3.11, a garbage collection in the middle of somebody's realloc.
 *
 * The layouts come from the headers that this file is compiled with, and only versions on which the
 * tests ran are supported; on any other, stacks are unknown and aimo_frames_missing says so. */
#define Py_BUILD_CORE 1 /* _PyInterpreterFrame */
#include <Python.h>

#define AIMO_CPYTHON (PY_MAJOR_VERSION * 100 + PY_MINOR_VERSION)
#if defined(Py_GIL_DISABLED) || AIMO_CPYTHON < 310 || AIMO_CPYTHON > 313
#define AIMO_FRAMES_KNOWN 0
#else
#define AIMO_FRAMES_KNOWN 1
#endif

#if AIMO_FRAMES_KNOWN && AIMO_CPYTHON >= 311
#include <internal/pycore_frame.h>
#elif AIMO_FRAMES_KNOWN
#include <frameobject.h>
#endif

#include "binding/memhook_frames.h"

#if !AIMO_FRAMES_KNOWN

const char *const aimo_frames_missing =
    "call stacks are known on CPython 3.10 to 3.13 with the GIL";

size_t aimo_frames_walk(aimo_frame *frames, size_t capacity)
{
    (void)frames;
    (void)capacity;
    return 0;
}

#else

const char *const aimo_frames_missing = NULL;

#if AIMO_CPYTHON == 310

size_t aimo_frames_walk(aimo_frame *frames, size_t capacity)
{
    const PyThreadState *thread = _PyThreadState_UncheckedGet();
    size_t depth = 0;
    if (thread == NULL)
        return 0;
    for (const PyFrameObject *f = thread->frame; f != NULL && depth < capacity; f = f->f_back)
        frames[depth++] = (aimo_frame){f->f_code, f->f_lasti};
    return depth;
}

#else

static _PyInterpreterFrame *innermost_frame(const PyThreadState *thread)
{
#if AIMO_CPYTHON >= 313
    return thread->current_frame;
#else
    return thread->cframe != NULL ? thread->cframe->current_frame : NULL;
#endif
}

static void *code_of(const _PyInterpreterFrame *frame)
{
#if AIMO_CPYTHON >= 313
    return frame->f_executable;
#else
    return frame->f_code;
#endif
}

/* Incomplete frames (those being set up, and markers of C calls) are skipped, as tracemalloc and
 * sys._getframe do. */
size_t aimo_frames_walk(aimo_frame *frames, size_t capacity)
{
    const PyThreadState *thread = _PyThreadState_UncheckedGet();
    size_t depth = 0;
    if (thread == NULL)
        return 0;
    for (_PyInterpreterFrame *f = innermost_frame(thread); f != NULL && depth < capacity;
         f = f->previous) {
        if (_PyFrame_IsIncomplete(f))
            continue;
        frames[depth++] = (aimo_frame){code_of(f), _PyInterpreterFrame_LASTI(f)};
    }
    return depth;
}

#endif
#endif

bool aimo_frames_in_main_interpreter(void)
{
    const PyThreadState *thread = _PyThreadState_UncheckedGet();
    return thread != NULL && thread->interp == PyInterpreterState_Main();
}

/* Up to 3.11 the current thread state is a global of the process, so on its own it only tells that
 * some thread holds the GIL. */
bool aimo_frames_holds_gil(void)
{
    const PyThreadState *thread = _PyThreadState_UncheckedGet();
#if PY_VERSION_HEX < 0x030c0000
    return thread != NULL && thread == PyGILState_GetThisThreadState();
#else
    return thread != NULL;
#endif
}

void aimo_frames_retain(void *code) { Py_INCREF((PyObject *)code); }

/* Frames count instructions in units of two bytes, line tables in bytes. */
int aimo_frames_line(const aimo_frame *frame)
{
    PyCodeObject *code = frame->code;
    const int line = PyCode_Addr2Line(code, frame->instruction * 2);
    return line > 0 ? line : code->co_firstlineno;
}
