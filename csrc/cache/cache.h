/* Stored embeddings and exact lookup by cosine similarity.
 *
 * A row is a vector as stored: normalised, then rounded to f16 or int8. The score of a row is the
 * exact cosine of the query and the stored row, a real number. A search finds exactly the rows of
 * its context whose score reaches the threshold, ordered by the exact scores too; of rows with
 * equal scores the older comes first. cache_bound.h has the proof.
 *
 * Any thread may call any function. A search takes no lock and does not wait for writers; its
 * answer is the state of the cache at one instant during the call. Changes are serialized. */
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
/* No other call may be in progress. NULL is ignored. */
void aimo_cache_free(aimo_cache *cache);

/* Lets searches use a device. The cache takes ownership of `screen`, whose dimension must be the
 * cache's. Call at most once, before any other call on the cache. Does not change any answer: the
 * device only says which rows are worth comparing. It gets copies of rows when aimo_cache_optimize
 * runs. */
void aimo_cache_use_device(aimo_cache *cache, aimo_row_screen *screen);

typedef struct {
    int device;  /* -1: none */
    size_t rows; /* rows of the copies held there, dead ones included; 0 when the device is lost */
    size_t searches;  /* calls to the device that helped a search */
    size_t failures;  /* calls that failed, leaving the work to the CPU */
    bool lost;        /* after a failure other than out of memory: no longer called */
    aimo_error error; /* the last failure's; empty before */
} aimo_cache_device;
void aimo_cache_get_device(aimo_cache *cache, aimo_cache_device *out);

size_t aimo_cache_dim(const aimo_cache *cache);
aimo_row_type aimo_cache_row_type(const aimo_cache *cache);
/* Rows stored now. */
size_t aimo_cache_count(const aimo_cache *cache);
/* Bytes held, allocation headers included. */
size_t aimo_cache_bytes(const aimo_cache *cache);

/* Stores vectors [n, dim] f32 in contexts [n]. slots [n] receives their slots: numbers from 0 that
 * name the rows and are reused after a removal. Vectors need not be normalised. AIMO_ERR_ARGUMENT
 * when one is zero or not finite; AIMO_ERR_MEMORY. After either, nothing is stored. */
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

/* Learns the principal directions of the stored rows and rebuilds the codes by which searches skip
 * rows quickly. Does not change any answer. Searches and changes continue meanwhile; a second call
 * waits for the first. Copies rows to the device, if there is one. Before the first call every
 * search reads every row of its context. */
AIMO_MUST_CHECK aimo_status aimo_cache_optimize(aimo_cache *cache, aimo_error *err);

/* The rows at one instant, oldest first, unaffected by later changes. Close the snapshot soon:
 * until then slots that are removed cannot be reused. */
AIMO_MUST_CHECK aimo_status aimo_cache_snapshot_open(aimo_cache *cache, aimo_cache_snapshot **out,
                                                     aimo_error *err);
size_t aimo_cache_snapshot_count(const aimo_cache_snapshot *snapshot);
/* rows [count, dim] u16 or int8 as stored, slots [count], contexts [count]. */
void aimo_cache_snapshot_read(const aimo_cache_snapshot *snapshot, void *rows, int64_t *slots,
                              int64_t *contexts);
void aimo_cache_snapshot_close(aimo_cache_snapshot *snapshot);

/* The inverse of a snapshot: stores n rows bit for bit in their slots, the first as the oldest.
 * AIMO_ERR_ARGUMENT, with nothing stored, unless the cache was never used, the slots are distinct
 * and between 0 and 2^32 - 2, and every row is one that aimo_cache_add could have stored. */
AIMO_MUST_CHECK aimo_status aimo_cache_restore(aimo_cache *cache, const void *rows,
                                               const int64_t *slots, const int64_t *contexts,
                                               size_t n, aimo_error *err);

#endif
