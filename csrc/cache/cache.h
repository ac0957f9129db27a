/* Stored embeddings and exact lookup by cosine similarity.
 *
 * A row is a vector as it is stored: normalised, then rounded to f16 or int8. The score of a row is
 * the cosine of the query with the stored row, a real number. A search finds exactly the rows of
 * its context whose score reaches the threshold; the order is that of the real numbers, too, and of
 * equal rows the older comes first. cache_bound.h has the proof.
 *
 * Every function may be called by any thread. A search takes no lock and waits for nobody; its
 * answer is right for one instant of the call. Changes wait for each other. */
#ifndef AIMO_CACHE_CACHE_H
#define AIMO_CACHE_CACHE_H

#include "backend/row_screen.h"
#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct aimo_cache aimo_cache;
typedef struct aimo_cache_snapshot aimo_cache_snapshot;

typedef enum {
    AIMO_ROWS_F16,
    AIMO_ROWS_INT8, /* codes from -127 to 127; the scale is whatever makes the row's norm 1 */
} aimo_row_type;

enum { AIMO_CACHE_MAX_DIM = 65536 };

/* Installs the fork handlers; call once. */
void aimo_cache_init(void);

/* AIMO_ERR_ARGUMENT unless dim is 1 to AIMO_CACHE_MAX_DIM. */
AIMO_MUST_CHECK aimo_status aimo_cache_new(aimo_cache **out, size_t dim, aimo_row_type type,
                                           aimo_error *err);
/* No other call may be under way. NULL is ignored. */
void aimo_cache_free(aimo_cache *cache);

/* Lets searches use a device, which the cache then owns; the screen's dimension is the cache's. To
 * be called once, before anything else is. Changes no answer: a device only says which rows are
 * worth comparing. It gets copies of rows when aimo_cache_optimize runs. */
void aimo_cache_use_device(aimo_cache *cache, aimo_row_screen *screen);

typedef struct {
    int device;       /* -1: none */
    size_t rows;      /* places of rows that have a copy there; 0 when it is lost */
    size_t searches;  /* calls of the device that helped a search */
    size_t failures;  /* calls that failed, so that the CPU did their work */
    bool lost;        /* after a failure other than full memory: it is not called any more */
    aimo_error error; /* the last failure's; empty before */
} aimo_cache_device;
void aimo_cache_get_device(aimo_cache *cache, aimo_cache_device *out);

size_t aimo_cache_dim(const aimo_cache *cache);
aimo_row_type aimo_cache_row_type(const aimo_cache *cache);
/* Rows stored now. */
size_t aimo_cache_count(const aimo_cache *cache);
/* Bytes held, allocation headers included. */
size_t aimo_cache_bytes(const aimo_cache *cache);

/* Stores vectors [n, dim] f32 in contexts [n]; slots [n] receives their names, numbers from 0 that
 * are used again after a removal. Any scale is fine; AIMO_ERR_ARGUMENT when a vector is zero or not
 * finite, before anything is stored. AIMO_ERR_MEMORY: nothing is stored. */
AIMO_MUST_CHECK aimo_status aimo_cache_add(aimo_cache *cache, const float *vectors,
                                           const int64_t *contexts, size_t n, int64_t *slots,
                                           aimo_error *err);

/* AIMO_ERR_ARGUMENT when the slot holds no row. Needs no memory. */
AIMO_MUST_CHECK aimo_status aimo_cache_remove(aimo_cache *cache, int64_t slot, aimo_error *err);

/* For each query i: the best k rows of contexts[i] whose score reaches the threshold, best first.
 *
 *   queries [n, dim] f32, of any scale   contexts [n]   threshold in [-1, 1]   k >= 1
 *   slots [n, k]: -1 where there is no further row   scores [n, k]: within 1e-9 of the cosine, at
 *   least the threshold, never rising within a query; 0 where the slot is -1
 *
 * Several queries are spread over the thread pool; one runs on the caller's thread.
 * AIMO_ERR_ARGUMENT as in aimo_cache_add; AIMO_ERR_MEMORY when there is no working memory. */
AIMO_MUST_CHECK aimo_status aimo_cache_search(aimo_cache *cache, const float *queries,
                                              const int64_t *contexts, size_t n, double threshold,
                                              size_t k, int64_t *slots, double *scores,
                                              aimo_error *err);

/* out [dim] = the stored row, widened: an f16 row as it is, an int8 row divided by 128. Both are
 * exact, so a search for it finds it at threshold 1. */
AIMO_MUST_CHECK aimo_status aimo_cache_vector(aimo_cache *cache, int64_t slot, float *out,
                                              aimo_error *err);

/* Learns from the stored rows in which directions they differ, and rebuilds what searches use to
 * pass rows over quickly. Changes no answer. Searches and changes go on meanwhile; a second call
 * waits for the first. Copies rows to the device, if there is one. Before the first call every
 * search reads every row of its context. */
AIMO_MUST_CHECK aimo_status aimo_cache_optimize(aimo_cache *cache, aimo_error *err);

/* The rows of one instant, oldest first, while changes go on. The caller closes the snapshot soon:
 * slots that are removed meanwhile cannot be used again. */
AIMO_MUST_CHECK aimo_status aimo_cache_snapshot_open(aimo_cache *cache, aimo_cache_snapshot **out,
                                                     aimo_error *err);
size_t aimo_cache_snapshot_count(const aimo_cache_snapshot *snapshot);
/* rows [count, dim] u16 or int8 as stored, slots [count], contexts [count]. */
void aimo_cache_snapshot_read(const aimo_cache_snapshot *snapshot, void *rows, int64_t *slots,
                              int64_t *contexts);
void aimo_cache_snapshot_close(aimo_cache_snapshot *snapshot);

/* The inverse: stores n rows bit for bit in their slots, the first as the oldest.
 * AIMO_ERR_ARGUMENT, nothing stored, unless the cache is empty and was never used, the slots differ
 * and are 0 to 2^32 - 2, and every row is one that aimo_cache_add could have stored. */
AIMO_MUST_CHECK aimo_status aimo_cache_restore(aimo_cache *cache, const void *rows,
                                               const int64_t *slots, const int64_t *contexts,
                                               size_t n, aimo_error *err);

#endif
