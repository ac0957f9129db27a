/* device memory: owners, copies, conversion to and from halves, and their failures. */
#include "cuda_fixture.h"

#include "backend/device_memory.h"
#include "base/memory.h"

#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { SRC_BYTES = 16 << 10, DST_BYTES = 8 << 10 };

/* The same bytes on the host and on the device. */
typedef struct {
    aimo_device_memory *device;
    unsigned char *host;
} twin;

static bool twin_init(twin *t, size_t bytes, uint64_t seed)
{
    aimo_error err = {""};
    t->host = malloc(bytes);
    for (size_t i = 0; i < bytes; i++)
        t->host[i] = (unsigned char)(test_random(&seed) >> 32);
    const bool made = aimo_device_memory_new(0, bytes, &t->device, &err) == AIMO_OK &&
                      aimo_device_memory_write(t->device, t->host, &err) == AIMO_OK;
    if (!made)
        test_fail(__FILE__, __LINE__, "%s", err.message);
    return made;
}

static bool twin_is_same(const twin *t)
{
    aimo_error err;
    const size_t bytes = aimo_device_memory_bytes(t->device);
    unsigned char *read = malloc(bytes);
    const bool same = aimo_device_memory_read(t->device, read, &err) == AIMO_OK &&
                      memcmp(read, t->host, bytes) == 0;
    free(read);
    return same;
}

static void twin_clear(twin *t)
{
    aimo_device_memory_release(t->device);
    free(t->host);
}

/* Arrays that begin at an offset, in elements, into their memory; strides in elements. */
typedef struct {
    size_t ndim, shape[3], src_begin, dst_begin;
    ptrdiff_t src_stride[3], dst_stride[3];
} layout;

static aimo_half_arrays arrays_of(aimo_half_conversion conversion, const layout *l, const void *src,
                                  void *dst)
{
    const size_t src_size = aimo_half_src_size(conversion);
    const size_t dst_size = aimo_half_dst_size(conversion);
    aimo_half_arrays a = {.conversion = conversion, .ndim = l->ndim};
    a.src = (const char *)src + l->src_begin * src_size;
    a.dst = (char *)dst + l->dst_begin * dst_size;
    for (size_t i = 0; i < l->ndim; i++) {
        a.shape[i] = l->shape[i];
        a.src_stride[i] = l->src_stride[i] * (ptrdiff_t)src_size;
        a.dst_stride[i] = l->dst_stride[i] * (ptrdiff_t)dst_size;
    }
    return a;
}

/* Random bits, so NaN of every kind among them; what is beside dst is the canary. */
static void check_layout(aimo_half_conversion conversion, const layout *l)
{
    aimo_error err = {""};
    twin src, dst;
    if (!twin_init(&src, SRC_BYTES, 5) || !twin_init(&dst, DST_BYTES, 7))
        return;
    aimo_half_arrays on_host = arrays_of(conversion, l, src.host, dst.host);
    aimo_half_arrays on_device = arrays_of(conversion, l, aimo_device_memory_data(src.device),
                                           aimo_device_memory_data(dst.device));
    aimo_half_convert_arrays(&on_host);
    const aimo_status status = aimo_device_half_convert(0, &on_device, &err);
    const bool same = twin_is_same(&src) && twin_is_same(&dst);
    twin_clear(&src);
    twin_clear(&dst);
    CHECK_MSG(status == AIMO_OK, "%s", err.message);
    CHECK_MSG(same, "conversion %d, %zu axes, shape %zu ..., begin %zu, %zu", (int)conversion,
              l->ndim, l->shape[0], l->src_begin, l->dst_begin);
}

TEST(cuda_half_runs_of_any_length_and_begin_are_those_of_the_cpu)
{
    static const size_t lengths[] = {0, 1, 7, 8, 9, 15, 16, 17, 31, 67, 1000};
    if (!cuda_is_here())
        return;
    for (int conversion = 0; conversion < AIMO_HALF_CONVERSIONS; conversion++)
        for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++)
            for (size_t begin = 0; begin < 9; begin += begin < 4 ? 1 : 4)
                for (size_t dst_begin = 0; dst_begin < 9; dst_begin += 4) {
                    const layout l = {1, {lengths[i]}, begin, dst_begin, {1}, {1}};
                    check_layout((aimo_half_conversion)conversion, &l);
                }
}

TEST(cuda_half_arrays_of_any_stride_are_those_of_the_cpu)
{
    static const layout layouts[] = {
        {0, {0}, 3, 5, {0}, {0}},
        {1, {300}, 0, 0, {3}, {2}},
        {1, {300}, 299, 0, {-1}, {1}},
        {1, {300}, 0, 299, {1}, {-1}},
        {1, {300}, 8, 8, {0}, {1}},
        {2, {20, 30}, 0, 0, {30, 1}, {1, 20}},
        {2, {20, 30}, 7, 1, {40, 1}, {32, 1}},
        {2, {20, 30}, 19 * 40, 0, {-40, 1}, {30, 1}},
        {3, {5, 6, 7}, 0, 0, {42, 7, 1}, {1, 35, 5}},
        {3, {5, 0, 7}, 0, 0, {42, 7, 1}, {42, 7, 1}},
    };
    if (!cuda_is_here())
        return;
    for (int conversion = 0; conversion < AIMO_HALF_CONVERSIONS; conversion++)
        for (size_t i = 0; i < sizeof layouts / sizeof layouts[0]; i++)
            check_layout((aimo_half_conversion)conversion, &layouts[i]);
}

TEST(cuda_memory_lives_as_long_as_its_last_owner)
{
    static const float values[] = {1.0f, 2.0f, 3.0f};
    float read[3] = {0.0f};
    aimo_device_memory *memory, *copy = NULL;
    aimo_error err;
    if (!cuda_is_here())
        return;
    const cuda_shim_controls *shim = shim_controls();
    const size_t held = shim != NULL ? shim->held() : 0, live = aimo_memory_live_bytes();
    CHECK_MSG(aimo_device_memory_new(0, sizeof values, &memory, &err) == AIMO_OK, "%s",
              err.message);
    aimo_device_memory_retain(memory);
    bool good = aimo_device_memory_write(memory, values, &err) == AIMO_OK &&
                aimo_device_memory_copy(memory, &copy, &err) == AIMO_OK;
    aimo_device_memory_release(memory);
    good &= aimo_device_memory_read(memory, read, &err) == AIMO_OK && read[2] == 3.0f;
    aimo_device_memory_release(memory);
    memset(read, 0, sizeof read);
    good = good && aimo_device_memory_read(copy, read, &err) == AIMO_OK && read[2] == 3.0f;
    aimo_device_memory_release(copy);
    aimo_device_memory_release(NULL);
    CHECK(good);
    CHECK(aimo_memory_live_bytes() == live && (shim == NULL || shim->held() == held));
}

/* An array's life; the first failure ends it. */
static aimo_status life_with_fault(void (*fail_after)(long), long count, aimo_error *err)
{
    float values[8] = {1.0f};
    const layout l = {1, {8}, 0, 0, {1}, {1}};
    aimo_device_memory *memory = NULL, *copy = NULL;
    fail_after(count);
    aimo_status status = aimo_device_memory_new(0, sizeof values, &memory, err);
    if (status == AIMO_OK)
        status = aimo_device_memory_write(memory, values, err);
    if (status == AIMO_OK)
        status = aimo_device_memory_copy(memory, &copy, err);
    if (status == AIMO_OK) {
        aimo_half_arrays a = arrays_of(AIMO_F32_TO_F16, &l, aimo_device_memory_data(memory),
                                       aimo_device_memory_data(copy));
        status = aimo_device_half_convert(0, &a, err);
    }
    if (status == AIMO_OK)
        status = aimo_device_memory_read(copy, values, err);
    fail_after(-1);
    aimo_device_memory_release(copy);
    aimo_device_memory_release(memory);
    return status;
}

static void check_faults(void (*fail_after)(long), long least, const cuda_shim_controls *shim)
{
    const size_t held = shim->held(), live = aimo_memory_live_bytes();
    aimo_status status = AIMO_ERR_DEVICE;
    long count = 0;
    for (; status != AIMO_OK && count < 100; count++) {
        aimo_error err = {""};
        status = life_with_fault(fail_after, count, &err);
        CHECK_MSG(status == AIMO_OK || err.message[0] != '\0', "no message after %ld", count);
        CHECK_MSG(shim->held() == held && aimo_memory_live_bytes() == live, "leaks after %ld",
                  count);
    }
    CHECK_MSG(status == AIMO_OK && count > least, "only %ld could fail", count);
}

TEST(cuda_memory_reports_every_fault_and_leaks_nothing)
{
    const cuda_shim_controls *shim;
    if (!cuda_is_here() || (shim = shim_controls()) == NULL)
        return;
    check_faults(shim->fail_allocations_after, 2, shim);
    check_faults(shim->fail_calls_after, 10, shim);
}

TEST(cuda_memory_of_a_device_that_is_not_there_is_refused)
{
    const layout l = {1, {1}, 0, 0, {1}, {1}};
    uint64_t element = 0;
    aimo_device_memory *memory;
    aimo_error err;
    if (!cuda_is_here())
        return;
    CHECK(aimo_device_memory_new(99, 8, &memory, &err) == AIMO_ERR_ARGUMENT);
    CHECK(strstr(err.message, "no cuda:99") != NULL);
    CHECK(aimo_device_memory_new(0, (size_t)1 << 42, &memory, &err) == AIMO_ERR_MEMORY);
    CHECK_MSG(strstr(err.message, "are free") != NULL, "%s", err.message);
    aimo_half_arrays a = arrays_of(AIMO_F32_TO_F16, &l, &element, &element);
    CHECK(aimo_device_half_convert(-1, &a, &err) == AIMO_ERR_ARGUMENT);
}

TEST(cuda_memory_in_a_forked_child_can_be_dropped_and_not_read)
{
    const layout l = {1, {1}, 0, 0, {1}, {1}};
    aimo_device_memory *memory, *other;
    aimo_error err;
    if (!cuda_is_here())
        return;
    CHECK_MSG(aimo_device_memory_new(0, 8, &memory, &err) == AIMO_OK, "%s", err.message);
    const pid_t child = fork();
    if (child == 0) {
        uint64_t element;
        aimo_half_arrays a = arrays_of(AIMO_F32_TO_F16, &l, aimo_device_memory_data(memory),
                                       aimo_device_memory_data(memory));
        const bool refused = aimo_device_memory_read(memory, &element, &err) == AIMO_ERR_DEVICE &&
                             aimo_device_memory_new(0, 8, &other, &err) == AIMO_ERR_DEVICE &&
                             aimo_device_half_convert(0, &a, &err) == AIMO_ERR_DEVICE &&
                             strstr(err.message, "forked") != NULL;
        aimo_device_memory_release(memory);
        _exit(refused ? 0 : 1);
    }
    int status;
    CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0);
    aimo_device_memory_release(memory);
}
