/* gemm_parallel: any number of threads gives the bits of one thread; lookups of missing rows
 * fail. */
#include "test.h"

#include "base/cpu.h"
#include "base/memory.h"
#include "base/threads.h"
#include "gemm/gemm_parallel.h"

#include <stdlib.h>
#include <string.h>

/* Threads share the columns of few rows, and many rows by rows. */
enum { N = 171, K = 130, FEW = 37, M = 400 };

typedef struct {
    float x[M * K], w[N * K], bias[N], one[M * N], many[M * N];
} product;

static void *new_panels(aimo_dtype dtype, size_t *bytes)
{
    void *panels;
    if (aimo_panels_size(dtype, N, K, bytes, NULL) != AIMO_OK ||
        aimo_memory_new_zero(&panels, *bytes, 1, "panels", NULL) != AIMO_OK)
        return NULL;
    return panels;
}

static void fill(product *p)
{
    uint64_t random = 5;
    for (size_t i = 0; i < M * K; i++)
        p->x[i] = test_random_float(&random);
    for (size_t i = 0; i < N * K; i++)
        p->w[i] = test_random_float(&random);
    for (size_t i = 0; i < N; i++)
        p->bias[i] = test_random_float(&random);
}

TEST(gemm_parallel_gives_the_bits_of_one_thread)
{
    static product p;
    fill(&p);
    for (int dtype = 0; dtype < AIMO_DTYPE_COUNT; dtype++) {
        size_t bytes;
        void *one = new_panels((aimo_dtype)dtype, &bytes);
        void *many = new_panels((aimo_dtype)dtype, &bytes);
        CHECK(one != NULL && many != NULL);
        aimo_panels_pack((aimo_dtype)dtype, N, K, one, p.w, 0, N);
        const aimo_matrix w = aimo_matrix_of((aimo_dtype)dtype, N, K, one, aimo_cpu_enabled());
        aimo_gemm(&w, p.x, K, M, p.bias, AIMO_ACT_GELU, p.one, N, 0, aimo_matrix_panel_count(&w));
        bool same = true;
        for (size_t threads = 1; threads <= 3; threads++) {
            CHECK(aimo_thread_count_set(threads, NULL) == AIMO_OK);
            memset(many, 0, bytes);
            aimo_panels_pack_parallel((aimo_dtype)dtype, N, K, many, p.w, 0, 100);
            aimo_panels_pack_parallel((aimo_dtype)dtype, N, K, many, p.w + 100 * K, 100, N - 100);
            same &= memcmp(one, many, bytes) == 0;
            for (size_t m = FEW; m <= M; m += M - FEW) {
                memset(p.many, 0, sizeof p.many);
                aimo_gemm_parallel(&w, p.x, m, p.bias, AIMO_ACT_GELU, p.many);
                same &= memcmp(p.one, p.many, m * N * sizeof(float)) == 0;
            }
        }
        CHECK(aimo_thread_count_set(0, NULL) == AIMO_OK);
        aimo_memory_free(one);
        aimo_memory_free(many);
        CHECK_MSG(same, "%s", aimo_dtype_name((aimo_dtype)dtype));
    }
}

TEST(gemm_parallel_looks_up_rows_and_refuses_others)
{
    static product p;
    fill(&p);
    size_t bytes;
    void *panels = new_panels(AIMO_F32, &bytes);
    CHECK(panels != NULL);
    aimo_panels_pack(AIMO_F32, N, K, panels, p.w, 0, N);
    const aimo_matrix w = aimo_matrix_of(AIMO_F32, N, K, panels, aimo_cpu_enabled());
    const int64_t indices[] = {N - 1, 0, 17, 17, 16};
    bool good = aimo_panels_rows(&w, indices, 5, p.many, NULL) == AIMO_OK;
    for (size_t i = 0; i < 5; i++)
        good &= memcmp(p.many + i * K, p.w + (size_t)indices[i] * K, K * sizeof(float)) == 0;
    good &= aimo_panels_rows(&w, indices, 0, p.many, NULL) == AIMO_OK;
    aimo_error err;
    const int64_t beyond[] = {3, N}, below[] = {-1};
    p.many[0] = 7.0f;
    good &= aimo_panels_rows(&w, beyond, 2, p.many, &err) == AIMO_ERR_ARGUMENT;
    good &= strcmp(err.message, "indices: 171 at 1, expected 0 to 170") == 0;
    good &= aimo_panels_rows(&w, below, 1, p.many, &err) == AIMO_ERR_ARGUMENT;
    good &= p.many[0] == 7.0f;
    aimo_memory_free(panels);
    CHECK(good);
}
