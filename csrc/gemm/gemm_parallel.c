/* Loops over panels and rows. Threads split the columns of a product, or its rows when there are
 * many, but never k. */
#include "gemm/gemm_parallel.h"

#include "base/threads.h"

/* Below this many multiplications another thread's help costs more than it saves. */
enum { LOOP_WORK = 1 << 18 };

/* The number of rows of x that pays for widening or rearranging all of w. */
enum { ROWS_PER_INDEX = 128 };

typedef struct {
    const aimo_matrix *w;
    const float *x;
    size_t m;
    const float *bias;
    aimo_activation activation;
    float *y;
    size_t step; /* panels of one index, or rows */
} product;

static void panels_index(void *context, size_t index)
{
    const product *p = context;
    const size_t panels = aimo_matrix_panel_count(p->w), begin = index * p->step;
    const size_t end = panels - begin < p->step ? panels : begin + p->step;
    aimo_gemm(p->w, p->x, p->w->k, p->m, p->bias, p->activation, p->y, p->w->n, begin, end);
}

static void rows_index(void *context, size_t index)
{
    const product *p = context;
    const size_t k = p->w->k, n = p->w->n, begin = index * p->step;
    const size_t rows = p->m - begin < p->step ? p->m - begin : p->step;
    aimo_gemm(p->w, p->x + begin * k, k, rows, p->bias, p->activation, p->y + begin * n, n, 0,
              aimo_matrix_panel_count(p->w));
}

/* How many of `count` items, each of `work` steps, one index of a loop takes: an even number,
 * because wide tiles take two panels; in equal shares, several per thread if those are large
 * enough. */
static size_t items_per_index(size_t count, size_t work)
{
    const size_t most = aimo_thread_count() * 4, worth = count * work / LOOP_WORK;
    const size_t parts = worth < 1 ? 1 : worth < most ? worth : most;
    const size_t step = (count + parts - 1) / parts;
    return step < 2 ? 2 : step + step % 2;
}

/* Multiplications of a panel, counted in floats: four of 8 bits take as long as one. */
static size_t panel_work(const aimo_matrix *w, size_t m)
{
    const size_t work = m * w->k * AIMO_PANEL_COLUMNS;
    return w->dtype == AIMO_INT8 ? work / 4 : work;
}

void aimo_gemm_parallel(const aimo_matrix *w, const float *x, size_t m, const float *bias,
                        aimo_activation activation, float *y)
{
    product p = {w, x, m, bias, activation, y, 0};
    const size_t threads = aimo_thread_count();
    if (m / threads >= ROWS_PER_INDEX) {
        /* Split by columns, each index would round all of x again and read it from beyond L2. */
        const size_t parts = m / threads / ROWS_PER_INDEX * threads;
        p.step = (m + parts - 1) / parts;
        aimo_parallel_for((m + p.step - 1) / p.step, rows_index, &p);
        return;
    }
    const size_t panels = aimo_matrix_panel_count(w);
    p.step = items_per_index(panels, panel_work(w, m));
    aimo_parallel_for((panels + p.step - 1) / p.step, panels_index, &p);
}

typedef struct {
    aimo_dtype dtype;
    size_t n, k;
    void *panels;
    const float *src;
    size_t first, rows, step;
} packing;

static void packing_index(void *context, size_t index)
{
    const packing *p = context;
    const size_t begin = index * p->step;
    const size_t rows = p->rows - begin < p->step ? p->rows - begin : p->step;
    aimo_panels_pack(p->dtype, p->n, p->k, p->panels, p->src + begin * p->k, p->first + begin,
                     rows);
}

void aimo_panels_pack_parallel(aimo_dtype dtype, size_t n, size_t k, void *panels, const float *src,
                               size_t first, size_t rows)
{
    const size_t step = items_per_index(rows, k * 4);
    packing p = {dtype, n, k, panels, src, first, rows, step};
    aimo_parallel_for((rows + step - 1) / step, packing_index, &p);
}

typedef struct {
    const aimo_matrix *w;
    const int64_t *indices;
    size_t count, step;
    float *out;
} lookup;

static void lookup_index(void *context, size_t index)
{
    const lookup *l = context;
    const aimo_matrix *w = l->w;
    const size_t begin = index * l->step;
    const size_t end = l->count - begin < l->step ? l->count : begin + l->step;
    for (size_t i = begin; i < end; i++)
        aimo_panels_unpack(w->dtype, w->n, w->k, w->panels, l->out + i * w->k,
                           (size_t)l->indices[i], 1);
}

aimo_status aimo_panels_rows(const aimo_matrix *w, const int64_t *indices, size_t count, float *out,
                             aimo_error *err)
{
    for (size_t i = 0; i < count; i++)
        if (indices[i] < 0 || (size_t)indices[i] >= w->n)
            return aimo_fail(err, AIMO_ERR_ARGUMENT, "indices: %lld at %zu, expected 0 to %zu",
                             (long long)indices[i], i, w->n - 1);
    lookup l = {w, indices, count, items_per_index(count, w->k * 4), out};
    aimo_parallel_for((count + l.step - 1) / l.step, lookup_index, &l);
    return AIMO_OK;
}
