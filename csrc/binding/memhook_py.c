/* memhook: installs the hook in CPython's OBJ and MEM domains, and returns what it recorded as
 * plain Python data. */
#include "binding/binding.h"

#include "base/memory.h"
#include "binding/memhook_frames.h"
#include "memhook/memhook.h"

#include <stdbool.h>
#include <string.h>

_Static_assert(sizeof(aimo_allocator) == sizeof(PyMemAllocatorEx) &&
                   offsetof(aimo_allocator, context) == offsetof(PyMemAllocatorEx, ctx) &&
                   offsetof(aimo_allocator, malloc) == offsetof(PyMemAllocatorEx, malloc) &&
                   offsetof(aimo_allocator, calloc) == offsetof(PyMemAllocatorEx, calloc) &&
                   offsetof(aimo_allocator, realloc) == offsetof(PyMemAllocatorEx, realloc) &&
                   offsetof(aimo_allocator, free) == offsetof(PyMemAllocatorEx, free),
               "aimo_allocator must be PyMemAllocatorEx");

/* RAW is not tracked: that domain is called without the GIL, and its blocks either belong to an
 * object that is counted already or are not Python objects. Buffers of numpy and torch come from
 * malloc and pass through no domain. */
static const PyMemAllocatorDomain domains[AIMO_MEMHOOK_DOMAINS] = {PYMEM_DOMAIN_OBJ,
                                                                   PYMEM_DOMAIN_MEM};

/* Each sample that is allocated as a large block takes up to half a kilobyte more, at most 1% of
 * what is allocated when samples are this far apart. With denser sampling, every free is checked
 * instead. */
enum { LEAST_DISTANCE_OF_LARGE = 64 << 10 };

/* The wrappers that were installed last. Protected by the GIL. */
static aimo_allocator installed[AIMO_MEMHOOK_DOMAINS], installed_raw, below_raw;

/* Set when the hook was on and somebody's PyMem_SetAllocator removed it. Protected by the GIL. */
static bool displaced;

static aimo_allocator get_allocator(PyMemAllocatorDomain domain)
{
    PyMemAllocatorEx current;
    PyMem_GetAllocator(domain, &current);
    return (aimo_allocator){current.ctx, current.malloc, current.calloc, current.realloc,
                            current.free};
}

static void set_allocator(PyMemAllocatorDomain domain, const aimo_allocator *a)
{
    PyMemAllocatorEx next = {a->context, a->malloc, a->calloc, a->realloc, a->free};
    PyMem_SetAllocator(domain, &next);
}

static bool is_on_top(PyMemAllocatorDomain domain, const aimo_allocator *ours)
{
    const aimo_allocator top = get_allocator(domain);
    return memcmp(&top, ours, sizeof top) == 0;
}

/* Whether an allocation in the domain still passes through our wrapper, even if somebody has
 * wrapped that since. */
static bool is_reached(size_t domain)
{
    aimo_memhook_probe_begin();
    if (domains[domain] == PYMEM_DOMAIN_OBJ)
        PyObject_Free(PyObject_Malloc(1));
    else
        PyMem_Free(PyMem_Malloc(1));
    return aimo_memhook_probe_end();
}

/* The same for a free in RAW; when there is no memory to try it, assumes that it does. */
static bool raw_is_reached(void)
{
    void *block = PyMem_RawMalloc(1);
    if (block == NULL)
        return true;
    aimo_memhook_probe_free_begin(block);
    PyMem_RawFree(block);
    return aimo_memhook_probe_free_end(block);
}

/* Whether large blocks of the domain come from RAW: not with PYTHONMALLOC=malloc, for example. */
static bool large_free_is_seen(size_t domain)
{
    const aimo_allocator below = aimo_memhook_below(domain);
    void *block = below.malloc(below.context, AIMO_MEMHOOK_LARGE);
    if (block == NULL)
        return true;
    aimo_memhook_probe_free_begin(block);
    below.free(below.context, block);
    return aimo_memhook_probe_free_end(block);
}

static bool large_frees_are_seen(void)
{
    for (size_t i = 0; i < AIMO_MEMHOOK_DOMAINS; i++)
        if (!large_free_is_seen(i))
            return false;
    return true;
}

/* Only the top of the chain can be removed; below another allocator the wrapper stays, idle. */
static void uninstall(void)
{
    for (size_t i = 0; i < AIMO_MEMHOOK_DOMAINS; i++) {
        const aimo_allocator below = aimo_memhook_below(i);
        if (is_on_top(domains[i], &installed[i]))
            set_allocator(domains[i], &below);
    }
    if (is_on_top(PYMEM_DOMAIN_RAW, &installed_raw))
        set_allocator(PYMEM_DOMAIN_RAW, &below_raw);
}

/* Threads that call RAW without the GIL meanwhile see its old free or the new one, and both work:
 * nothing else in it changes. */
static void install_raw(void)
{
    if (raw_is_reached())
        return;
    below_raw = get_allocator(PYMEM_DOMAIN_RAW);
    installed_raw = aimo_memhook_wrap_large(&below_raw);
    set_allocator(PYMEM_DOMAIN_RAW, &installed_raw);
}

/* A wrapper that had to stay at the last stop because another allocator was on top of it, and still
 * is, is reused as it is. */
static void install(size_t sample_bytes)
{
    bool is_new[AIMO_MEMHOOK_DOMAINS], large = sample_bytes >= LEAST_DISTANCE_OF_LARGE;
    uninstall();
    for (size_t i = 0; i < AIMO_MEMHOOK_DOMAINS; i++) {
        is_new[i] = !is_reached(i);
        if (is_new[i]) {
            const aimo_allocator below = get_allocator(domains[i]);
            aimo_memhook_wrap(i, &below);
        } else {
            large = large || !aimo_memhook_wraps_free(&installed[i]);
        }
    }
    if (large)
        install_raw();
    large = large && large_frees_are_seen();
    aimo_memhook_make_samples_large(large);
    for (size_t i = 0; i < AIMO_MEMHOOK_DOMAINS; i++)
        if (is_new[i]) {
            const aimo_allocator below = aimo_memhook_below(i);
            installed[i] =
                large ? aimo_memhook_wrap_but_free(i, &below) : aimo_memhook_wrap(i, &below);
            set_allocator(domains[i], &installed[i]);
        }
}

/* May run finalizers, because the hook may own the last reference to a code object. */
static void release_codes(void)
{
    PyObject *code;
    while ((code = aimo_memhook_next_release()) != NULL)
        Py_DECREF(code);
}

static void stop(void)
{
    aimo_memhook_stop();
    uninstall();
    release_codes();
}

/* Blocks that were freed while the hook was not installed would stay in the table for ever, so the
 * whole table is dropped. */
static void check_displaced(void)
{
    aimo_memhook_summary s;
    aimo_memhook_summarize(&s);
    if (!s.active)
        return;
    for (size_t i = 0; i < AIMO_MEMHOOK_DOMAINS && !displaced; i++)
        displaced = !is_reached(i);
    if (s.samples_are_large && !displaced)
        displaced = !large_frees_are_seen();
    if (displaced)
        stop();
}

/* memhook_start(sample_bytes: int, frames: int, seed: int, /) -> None */
static PyObject *memhook_start(PyObject *module, PyObject *args)
{
    Py_ssize_t sample_bytes, frames;
    unsigned long long seed;
    if (!PyArg_ParseTuple(args, "nnK:memhook_start", &sample_bytes, &frames, &seed))
        return NULL;
    aimo_error err;
    if (!aimo_frames_in_main_interpreter()) {
        aimo_fail(&err, AIMO_ERR_UNSUPPORTED,
                  "allocation sampling: only the main interpreter can start it");
        return aimo_py_raise(aimo_py_state_of(module), AIMO_ERR_UNSUPPORTED, &err);
    }
#ifdef Py_GIL_DISABLED
    aimo_fail(&err, AIMO_ERR_UNSUPPORTED,
              "allocation sampling: a free-threaded CPython has no GIL to rely on");
    return aimo_py_raise(aimo_py_state_of(module), AIMO_ERR_UNSUPPORTED, &err);
#else
    const aimo_memhook_config config = {
        .sample_bytes = sample_bytes > 0 ? (size_t)sample_bytes : 0,
        .frames = frames >= 0 ? (size_t)frames : SIZE_MAX,
        .seed = seed,
        .owner = aimo_frames_in_main_interpreter,
        .holds_lock = aimo_frames_holds_gil,
        .walk = aimo_frames_walk,
        .retain = aimo_frames_retain,
    };
    const aimo_status status = aimo_memhook_start(&config, &err);
    if (status != AIMO_OK)
        return aimo_py_raise(aimo_py_state_of(module), status, &err);
    displaced = false;
    install(config.sample_bytes);
    Py_RETURN_NONE;
#endif
}

/* memhook_stop() -> None */
static PyObject *memhook_stop(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused))
{
    displaced = false;
    stop();
    Py_RETURN_NONE;
}

/* memhook_info() -> dict; first checks whether the hook is still installed */
static PyObject *memhook_info(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused))
{
    check_displaced();
    aimo_memhook_summary s;
    aimo_memhook_summarize(&s);
    return Py_BuildValue(
        "{s:O,s:O,s:O,s:z,s:n,s:n,s:n,s:d,s:d,s:d,s:n,s:n,s:n,s:n,s:n}", "active",
        s.active ? Py_True : Py_False, "samples_are_large",
        s.samples_are_large ? Py_True : Py_False, "displaced", displaced ? Py_True : Py_False,
        "frames_missing", aimo_frames_missing, "sample_bytes", (Py_ssize_t)s.sample_bytes, "frames",
        (Py_ssize_t)s.frames, "live_samples", (Py_ssize_t)s.live.samples, "live_bytes",
        s.live.bytes, "live_variance", s.live.variance, "peak_bytes", s.peak_bytes,
        "dropped_samples", (Py_ssize_t)s.dropped_samples, "cut_stacks", (Py_ssize_t)s.cut_stacks,
        "memory_bytes", (Py_ssize_t)aimo_memhook_memory_bytes(), "max_sample_bytes",
        (Py_ssize_t)AIMO_MEMHOOK_MAX_SAMPLE_BYTES, "max_frames",
        (Py_ssize_t)AIMO_MEMHOOK_MAX_FRAMES);
}

/* (parent, filename, line, function) of a node, or None for the root and for unused nodes. */
static PyObject *node_frame(const aimo_memhook_node *node)
{
    PyCodeObject *code = node->frame.code;
    if (code == NULL)
        Py_RETURN_NONE;
#if PY_VERSION_HEX >= 0x030b0000
    PyObject *function = code->co_qualname;
#else
    PyObject *function = code->co_name;
#endif
    return Py_BuildValue("(nOiO)", (Py_ssize_t)node->parent, code->co_filename,
                         aimo_frames_line(&node->frame), function);
}

/* (node, bytes, blocks, variance, samples) */
static PyObject *site_tuple(size_t node, const aimo_memhook_stats *s)
{
    return Py_BuildValue("(ndddn)", (Py_ssize_t)node, s->bytes, s->blocks, s->variance,
                         (Py_ssize_t)s->samples);
}

/* Takes over `item`. */
static int append(PyObject *list, PyObject *item)
{
    const int status = item != NULL ? PyList_Append(list, item) : -1;
    Py_XDECREF(item);
    return status;
}

static int append_node(PyObject *frames, PyObject *live, PyObject *at_peak, size_t index,
                       const aimo_memhook_node *node)
{
    if (append(frames, node_frame(node)) != 0)
        return -1;
    if (node->live.samples != 0 && append(live, site_tuple(index, &node->live)) != 0)
        return -1;
    if (node->at_peak.samples != 0 && append(at_peak, site_tuple(index, &node->at_peak)) != 0)
        return -1;
    return 0;
}

static PyObject *describe_nodes(const aimo_memhook_node *nodes, size_t count)
{
    PyObject *frames = PyList_New(0), *live = PyList_New(0), *at_peak = PyList_New(0);
    PyObject *result = NULL;
    if (frames == NULL || live == NULL || at_peak == NULL)
        goto done;
    for (size_t i = 0; i < count; i++)
        if (append_node(frames, live, at_peak, i, &nodes[i]) != 0)
            goto done;
    result = PyTuple_Pack(3, frames, live, at_peak);
done:
    Py_XDECREF(frames);
    Py_XDECREF(live);
    Py_XDECREF(at_peak);
    return result;
}

/* memhook_sites() -> (frames, live sites, sites at the peak); see node_frame and site_tuple.
 *
 * Building the result allocates, which changes the data being described, and may trigger a
 * collection and with it arbitrary code. So the nodes are copied first, with a reference to each
 * code object. */
static PyObject *memhook_sites(PyObject *module, PyObject *Py_UNUSED(unused))
{
    check_displaced();
    aimo_memhook_collect();
    release_codes();
    const size_t count = aimo_memhook_copy_nodes(NULL, 0);
    void *block;
    aimo_error err;
    const aimo_status status =
        aimo_memory_new(&block, count, sizeof(aimo_memhook_node), "call sites", &err);
    if (status != AIMO_OK)
        return aimo_py_raise(aimo_py_state_of(module), status, &err);
    aimo_memhook_node *nodes = block;
    aimo_memhook_copy_nodes(nodes, count);
    for (size_t i = 0; i < count; i++)
        Py_XINCREF((PyObject *)nodes[i].frame.code);
    PyObject *result = describe_nodes(nodes, count);
    for (size_t i = 0; i < count; i++)
        Py_XDECREF((PyObject *)nodes[i].frame.code);
    aimo_memory_free(block);
    return result;
}

static PyMethodDef methods[] = {
    {"memhook_start", memhook_start, METH_VARARGS,
     "memhook_start(sample_bytes, frames, seed, /)\n--\n\nPut the hook into the allocators."},
    {"memhook_stop", memhook_stop, METH_NOARGS,
     "memhook_stop()\n--\n\nTake the hook out, forget everything."},
    {"memhook_info", memhook_info, METH_NOARGS, "memhook_info()\n--\n\nState, totals and limits."},
    {"memhook_sites", memhook_sites, METH_NOARGS,
     "memhook_sites()\n--\n\nFrames, live sites and sites at the peak."},
    {NULL, NULL, 0, NULL},
};

int aimo_py_add_memhook(PyObject *module) { return PyModule_AddFunctions(module, methods); }
