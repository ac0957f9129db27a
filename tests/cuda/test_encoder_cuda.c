/* encoder on cuda: the same vectors as on the CPU, whatever the batch; and device failures, which
 * only the shim can inject. */
#include "cuda_fixture.h"
#include "encoder_fixture.h"

#include "backend/device_memory.h"
#include "base/memory.h"
#include "base/threads.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static const aimo_encode_options unit = {.normalize = true};

enum { BATCH = 7 };
static const int64_t offsets[BATCH + 1] = {0, 1, 18, 108, 110, 126, 143, 150};

static void fill_ids(int32_t ids[150])
{
    uint64_t random = 23;
    for (size_t t = 0; t < 150; t++)
        ids[t] = (int32_t)(test_random(&random) % 40);
}

static double cosine(const float *a, const float *b, size_t n)
{
    double dot = 0.0, aa = 0.0, bb = 0.0;
    for (size_t i = 0; i < n; i++) {
        dot += (double)a[i] * (double)b[i];
        aa += (double)a[i] * (double)a[i];
        bb += (double)b[i] * (double)b[i];
    }
    return dot / sqrt(aa * bb);
}

/* The smallest cosine of the batch's vectors on cuda:0 with those of f32 on the CPU; -1 when
 * something fails. *invariant: each alone is the same as in the batch, bit for bit. */
static double compare(const aimo_encoder_config *config, bool *invariant)
{
    int32_t ids[150];
    float expected[BATCH * MOST_DIMENSION], got[BATCH * MOST_DIMENSION], one[MOST_DIMENSION];
    aimo_encoder_config exact = *config;
    aimo_encoder *cpu, *cuda;
    aimo_error err = {""};
    double smallest = 1.0;
    fill_ids(ids);
    exact.dtype = AIMO_F32;
    *invariant = true;
    aimo_status status = new_encoder(&exact, AIMO_DEVICE_CPU, &cpu, &err);
    if (status == AIMO_OK)
        status = new_encoder(config, 0, &cuda, &err);
    if (status == AIMO_OK)
        status = aimo_encoder_encode(cpu, ids, offsets, BATCH, &unit, expected, &err);
    if (status == AIMO_OK)
        status = aimo_encoder_encode(cuda, ids, offsets, BATCH, &unit, got, &err);
    const size_t n = status == AIMO_OK ? aimo_encoder_dimension(cuda) : 0;
    for (size_t i = 0; i < BATCH && status == AIMO_OK; i++) {
        const int64_t alone[] = {0, offsets[i + 1] - offsets[i]};
        status = aimo_encoder_encode(cuda, ids + offsets[i], alone, 1, &unit, one, &err);
        *invariant &= memcmp(one, got + i * n, n * sizeof *one) == 0;
        smallest = fmin(smallest, cosine(expected + i * n, got + i * n, n));
    }
    if (status != AIMO_OK)
        printf("    %s\n", err.message);
    aimo_encoder_free(cuda);
    aimo_encoder_free(cpu);
    return status == AIMO_OK ? smallest : -1.0;
}

TEST(cuda_vectors_are_those_of_the_cpu_and_do_not_depend_on_the_batch)
{
    /* int8: the CPU's weights are rounded to 8 bits, and here they are the same in f16. */
    static const double least[AIMO_DTYPE_COUNT] = {0.9999999, 0.99999, 0.9999, 0.999};
    if (!cuda_is_here())
        return;
    for (int dtype = 0; dtype < AIMO_DTYPE_COUNT; dtype++)
        for (int head = 0; head < 2; head++) {
            aimo_encoder_config config = head ? with_head() : small;
            bool invariant;
            config.dtype = (aimo_dtype)dtype;
            const double smallest = compare(&config, &invariant);
            CHECK_MSG(smallest >= least[dtype], "%s head %d: cosine %.8f",
                      aimo_dtype_name((aimo_dtype)dtype), head, smallest);
            CHECK(invariant);
        }
}

TEST(cuda_tokens_are_those_of_the_cpu)
{
    int32_t ids[150];
    static float expected[150 * 48], got[150 * 48];
    aimo_encoder_config config = small;
    aimo_encoder *cpu, *cuda;
    aimo_error err;
    if (!cuda_is_here())
        return;
    fill_ids(ids);
    config.dtype = AIMO_F32;
    CHECK(new_encoder(&config, AIMO_DEVICE_CPU, &cpu, &err) == AIMO_OK);
    CHECK_MSG(new_encoder(&config, 0, &cuda, &err) == AIMO_OK, "%s", err.message);
    bool good = aimo_encoder_encode_tokens(cpu, ids, offsets, BATCH, expected, &err) == AIMO_OK &&
                aimo_encoder_encode_tokens(cuda, ids, offsets, BATCH, got, &err) == AIMO_OK;
    for (size_t i = 0; i < 150 * 48; i++)
        good &= fabsf(got[i] - expected[i]) <= 1e-4f;
    float peaks[2 * 4 * 56];
    const aimo_status refused = aimo_encoder_input_peaks(cuda, ids, offsets, BATCH, peaks, &err);
    aimo_encoder_free(cuda);
    aimo_encoder_free(cpu);
    CHECK(good);
    CHECK(refused == AIMO_ERR_UNSUPPORTED);
}

/* A vector so wide that a workspace holds few tokens: the batch needs several chunks. */
TEST(cuda_vectors_that_stay_on_the_device_are_those_that_come_back)
{
    int32_t ids[150];
    const aimo_encoder_config config = with_head();
    float expected[BATCH * 21], got[(BATCH + 1) * 21];
    aimo_encoder *encoder;
    aimo_device_memory *memory;
    aimo_error err;
    if (!cuda_is_here())
        return;
    fill_ids(ids);
    CHECK_MSG(new_encoder(&config, 0, &encoder, &err) == AIMO_OK, "%s", err.message);
    CHECK_MSG(aimo_device_memory_new(0, sizeof got, &memory, &err) == AIMO_OK, "%s", err.message);
    memset(got, 0, sizeof got);
    bool good = aimo_device_memory_write(memory, got, &err) == AIMO_OK;
    const aimo_encode_options stay = {.normalize = true, .out_on_device = true};
    float *second = (float *)aimo_device_memory_data(memory) + 21;
    good &= aimo_encoder_encode(encoder, ids, offsets, BATCH, &unit, expected, &err) == AIMO_OK;
    good &= aimo_encoder_encode(encoder, ids, offsets, BATCH, &stay, second, &err) == AIMO_OK;
    good &= aimo_device_memory_read(memory, got, &err) == AIMO_OK;
    good &= memcmp(got + 21, expected, sizeof expected) == 0;
    for (size_t i = 0; i < 21; i++)
        good &= got[i] == 0.0f; /* nothing was written before them */
    aimo_device_memory_release(memory);
    aimo_encoder_free(encoder);
    CHECK(good);
}

TEST(cuda_batch_of_several_chunks_is_computed_by_two_workspaces)
{
    enum { WIDE = 150000 };
    int32_t ids[150];
    aimo_encoder_config config = small;
    aimo_encoder *encoder;
    aimo_error err;
    if (!cuda_is_here())
        return;
    const cuda_shim_controls *shim = shim_controls();
    fill_ids(ids);
    config.layers = 1;
    config.dense[0] = (aimo_dense){48, WIDE, AIMO_ACT_NONE};
    config.dense_count = 1;
    CHECK_MSG(new_encoder(&config, 0, &encoder, &err) == AIMO_OK, "%s", err.message);
    const aimo_encode_options options = {.columns = 8};
    float all[BATCH * 8], one[8];
    CHECK(aimo_thread_count_set(3, NULL) == AIMO_OK);
    if (shim != NULL)
        (void)shim->peak();
    bool same = aimo_encoder_encode(encoder, ids, offsets, BATCH, &options, all, &err) == AIMO_OK;
    CHECK(aimo_thread_count_set(0, NULL) == AIMO_OK);
    for (size_t i = 0; i < BATCH; i++) {
        const int64_t alone[] = {0, offsets[i + 1] - offsets[i]};
        same &= aimo_encoder_encode(encoder, ids + offsets[i], alone, 1, &options, one, &err) ==
                AIMO_OK;
        same &= memcmp(one, all + i * 8, sizeof one) == 0;
    }
    const size_t weights = (size_t)WIDE * 48 * 2 + WIDE * 4;
    const bool bounded = shim == NULL || shim->peak() < weights + (257u << 20);
    aimo_encoder_free(encoder);
    CHECK(same);
    CHECK(bounded);
}

typedef struct {
    const aimo_encoder *encoder;
    const float *expected;
    bool same;
} caller;

static void *encode_often(void *context)
{
    caller *c = context;
    int32_t ids[150];
    float got[BATCH * 48];
    fill_ids(ids);
    c->same = true;
    for (int i = 0; i < 3; i++) {
        c->same &=
            aimo_encoder_encode(c->encoder, ids, offsets, BATCH, &unit, got, NULL) == AIMO_OK;
        c->same &= memcmp(got, c->expected, sizeof got) == 0;
    }
    return NULL;
}

TEST(cuda_threads_share_an_encoder)
{
    enum { THREADS = 4 };
    int32_t ids[150];
    float expected[BATCH * 48];
    aimo_encoder *encoder;
    aimo_error err;
    if (!cuda_is_here())
        return;
    fill_ids(ids);
    CHECK_MSG(new_encoder(&small, 0, &encoder, &err) == AIMO_OK, "%s", err.message);
    bool same = aimo_encoder_encode(encoder, ids, offsets, BATCH, &unit, expected, &err) == AIMO_OK;
    pthread_t threads[THREADS];
    caller callers[THREADS];
    for (size_t i = 0; i < THREADS; i++) {
        callers[i] = (caller){encoder, expected, false};
        pthread_create(&threads[i], NULL, encode_often, &callers[i]);
    }
    for (size_t i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        same &= callers[i].same;
    }
    aimo_encoder_free(encoder);
    CHECK(same);
}

TEST(cuda_models_on_two_devices_are_freed_in_any_order)
{
    int32_t ids[150];
    float first[BATCH * 48], second[BATCH * 48];
    aimo_encoder *encoders[2];
    aimo_error err;
    aimo_cuda_versions versions;
    if (!cuda_is_here())
        return;
    fill_ids(ids);
    CHECK(aimo_cuda_get_versions(&versions, &err) == AIMO_OK);
    const int other = versions.devices > 1 ? 1 : 0;
    for (int order = 0; order < 2; order++) {
        CHECK_MSG(new_encoder(&small, 0, &encoders[0], &err) == AIMO_OK, "%s", err.message);
        CHECK_MSG(new_encoder(&small, other, &encoders[1], &err) == AIMO_OK, "%s", err.message);
        bool same =
            aimo_encoder_encode(encoders[0], ids, offsets, BATCH, &unit, first, &err) == AIMO_OK &&
            aimo_encoder_encode(encoders[1], ids, offsets, BATCH, &unit, second, &err) == AIMO_OK;
        same &= memcmp(first, second, sizeof first) == 0;
        aimo_encoder_free(encoders[order]);
        same &= aimo_encoder_encode(encoders[1 - order], ids, offsets, BATCH, &unit, second,
                                    &err) == AIMO_OK;
        same &= memcmp(first, second, sizeof first) == 0;
        aimo_encoder_free(encoders[1 - order]);
        CHECK(same);
    }
}

TEST(cuda_refuses_what_it_cannot_run)
{
    aimo_encoder *encoder;
    aimo_error err;
    if (!cuda_is_here())
        return;
    const aimo_status device = new_encoder(&small, 63, &encoder, &err);
    const bool named = strstr(err.message, "cuda:63") != NULL;
    aimo_encoder_config config = small;
    config.hidden = config.heads * 129;
    config.intermediate = 8;
    const aimo_status head = new_encoder(&config, 0, &encoder, &err);
    CHECK(device == AIMO_ERR_ARGUMENT && named);
    CHECK_MSG(head == AIMO_ERR_UNSUPPORTED && strstr(err.message, "129") != NULL, "%s",
              err.message);
}

TEST(cuda_out_of_memory_is_reported_with_sizes_and_the_model_still_works)
{
    int32_t ids[150];
    float before[BATCH * 48], after[BATCH * 48];
    aimo_encoder *encoder;
    aimo_error err;
    if (!cuda_is_here())
        return;
    const cuda_shim_controls *shim = shim_controls();
    if (shim == NULL) {
        test_skip("faults need the shim");
        return;
    }
    fill_ids(ids);
    CHECK(new_encoder(&small, 0, &encoder, &err) == AIMO_OK);
    const int64_t one[] = {0, 1};
    bool good = aimo_encoder_encode(encoder, ids, one, 1, &unit, before, &err) == AIMO_OK;
    shim->fail_allocations_after(0); /* a small batch's workspace is there, a larger one's is not */
    const aimo_status status =
        aimo_encoder_encode(encoder, ids, offsets, BATCH, &unit, after, &err);
    const bool sizes = strstr(err.message, "bytes could not be allocated") != NULL &&
                       strstr(err.message, "are free") != NULL;
    shim->fail_allocations_after(-1);
    good &= aimo_encoder_encode(encoder, ids, one, 1, &unit, after, &err) == AIMO_OK;
    good &= memcmp(before, after, 48 * sizeof *before) == 0;
    good &= aimo_encoder_encode(encoder, ids, offsets, BATCH, &unit, after, &err) == AIMO_OK;
    aimo_encoder_free(encoder);
    CHECK(status == AIMO_ERR_MEMORY && sizes);
    CHECK(good);
}

/* Loads, encodes (by itself, as a graph is recorded, by the graph) and frees with the fault after
 * `count` allocations or calls. */
static aimo_status life_with_fault(void (*fail_after)(long), long count, aimo_error *err)
{
    static const int32_t ids[] = {1, 2, 3};
    static const int64_t three[] = {0, 3};
    const aimo_encoder_config config = with_head();
    float out[21];
    aimo_encoder *encoder;
    fail_after(count);
    aimo_status status = new_encoder(&config, 1, &encoder, err);
    if (status == AIMO_OK) {
        for (int i = 0; i < 3 && status == AIMO_OK; i++)
            status = aimo_encoder_encode(encoder, ids, three, 1, &unit, out, err);
        aimo_encoder_free(encoder);
    }
    fail_after(-1);
    return status;
}

static void check_faults(void (*fail_after)(long), const cuda_shim_controls *shim)
{
    const size_t held = shim->held(), live = aimo_memory_live_bytes();
    for (long count = 0;; count++) {
        aimo_error err = {""};
        const aimo_status status = life_with_fault(fail_after, count, &err);
        CHECK_MSG(status == AIMO_OK || status == AIMO_ERR_MEMORY || status == AIMO_ERR_DEVICE,
                  "after %ld: %s", count, err.message);
        CHECK_MSG(shim->held() == held && aimo_memory_live_bytes() == live,
                  "after %ld: %zu bytes leaked: %s", count, shim->held() - held, err.message);
        if (status == AIMO_OK)
            return;
        CHECK(strstr(err.message, "CUDA") != NULL || status == AIMO_ERR_MEMORY);
        CHECK(count < 2000);
    }
}

TEST(cuda_reports_every_failed_allocation_and_leaks_nothing)
{
    if (cuda_is_here() && shim_controls() != NULL)
        check_faults(shim_controls()->fail_allocations_after, shim_controls());
}

TEST(cuda_reports_every_failed_call_and_leaks_nothing)
{
    if (cuda_is_here() && shim_controls() != NULL)
        check_faults(shim_controls()->fail_calls_after, shim_controls());
}

TEST(cuda_in_a_forked_child_is_a_clear_error)
{
    static const int32_t ids[] = {1, 2, 3};
    static const int64_t three[] = {0, 3};
    float out[48];
    aimo_encoder *encoder, *other;
    aimo_error err;
    if (!cuda_is_here())
        return;
    CHECK_MSG(new_encoder(&small, 0, &encoder, &err) == AIMO_OK, "%s", err.message);
    bool works = true;
    for (int i = 0; i < 3; i++)
        works &= aimo_encoder_encode(encoder, ids, three, 1, &unit, out, &err) == AIMO_OK;
    const pid_t child = fork();
    if (child == 0) {
        bool good =
            aimo_encoder_encode(encoder, ids, three, 1, &unit, out, &err) == AIMO_ERR_DEVICE &&
            strstr(err.message, "forked") != NULL;
        good &= new_encoder(&small, 0, &other, &err) == AIMO_ERR_DEVICE;
        aimo_encoder_free(encoder);
        _exit(good ? 0 : 1);
    }
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child);
    works &= aimo_encoder_encode(encoder, ids, three, 1, &unit, out, &err) == AIMO_OK;
    aimo_encoder_free(encoder);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    CHECK(works);
}

/* The first test by name: nothing is loaded yet. */
TEST(cuda_0_a_machine_that_lacks_something_is_told_so)
{
    static const struct {
        int devices, driver;
        const char *word;
    } machines[] = {{0, 13000, "no device"},
                    {1, 12040, "the driver supports version 12.4"},
                    {1, 0, "no driver"}};
    const cuda_shim_controls *shim = shim_controls();
    const char *cublas[] = {"no-such-library.so", cublas_library()};
    aimo_error err;
    aimo_encoder *encoder;
    if (shim == NULL)
        return;
    CHECK(new_encoder(&small, 0, &encoder, &err) == AIMO_ERR_UNSUPPORTED);
    CHECK(aimo_cuda_load("no-such-library.so", cublas, 2, &err) == AIMO_ERR_UNSUPPORTED);
    CHECK(aimo_cuda_load(cublas[1], cublas, 2, &err) == AIMO_ERR_UNSUPPORTED);
    CHECK_MSG(strstr(err.message, "another version") != NULL, "%s", err.message);
    for (size_t i = 0; i < sizeof machines / sizeof machines[0]; i++) {
        shim->set_machine(machines[i].devices, machines[i].driver);
        const aimo_status status = aimo_cuda_load(cuda_library(), cublas, 2, &err);
        CHECK_MSG(status == AIMO_ERR_UNSUPPORTED && strstr(err.message, machines[i].word) != NULL,
                  "%s", err.message);
    }
    shim->set_machine(2, 13000);
    CHECK(aimo_cuda_load(cuda_library(), cublas, 1, &err) == AIMO_ERR_UNSUPPORTED);
    CHECK_MSG(strstr(err.message, "cuBLASLt is missing") != NULL, "%s", err.message);
    CHECK(aimo_cuda_load(cuda_library(), cublas, 0, &err) == AIMO_ERR_UNSUPPORTED);
    CHECK_MSG(aimo_cuda_load(cuda_library(), cublas, 2, &err) == AIMO_OK, "%s", err.message);
}
