/* Working memory that is leased. */
#include "base/scratch.h"

#include "base/memory.h"

#include <pthread.h>
#include <stdbool.h>

enum { MAX_BLOCKS = 64 };

typedef struct {
    void *memory; /* NULL: an empty slot */
    size_t bytes;
    bool leased;
} block;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t returned = PTHREAD_COND_INITIALIZER;
static block blocks[MAX_BLOCKS]; /* protected by lock */

/* With lock held: the idle slot that fits best: the smallest that is large enough, else the
 * largest, which is then replaced. */
static block *best_idle(size_t bytes)
{
    block *best = NULL;
    for (int i = 0; i < MAX_BLOCKS; i++) {
        block *b = &blocks[i];
        if (b->leased)
            continue;
        const bool fits = b->bytes >= bytes;
        const bool best_fits = best != NULL && best->bytes >= bytes;
        if (best == NULL || (fits && !best_fits) || (fits && best_fits && b->bytes < best->bytes) ||
            (!fits && !best_fits && b->bytes > best->bytes))
            best = b;
    }
    return best;
}

aimo_status aimo_scratch_lease(void **out, size_t bytes, aimo_error *err)
{
    aimo_status status = AIMO_OK;
    *out = NULL;
    pthread_mutex_lock(&lock);
    block *b;
    while ((b = best_idle(bytes)) == NULL)
        pthread_cond_wait(&returned, &lock);
    if (b->memory == NULL || b->bytes < bytes) {
        aimo_memory_free(b->memory);
        *b = (block){0};
        status = aimo_memory_new(&b->memory, bytes, 1, "working memory", err);
        if (status == AIMO_OK)
            b->bytes = bytes;
    }
    if (status == AIMO_OK) {
        b->leased = true;
        *out = b->memory;
    }
    pthread_mutex_unlock(&lock);
    return status;
}

void aimo_scratch_return(void *memory)
{
    pthread_mutex_lock(&lock);
    for (int i = 0; i < MAX_BLOCKS; i++)
        if (blocks[i].leased && blocks[i].memory == memory)
            blocks[i].leased = false;
    pthread_cond_signal(&returned);
    pthread_mutex_unlock(&lock);
}

static void before_fork(void) { pthread_mutex_lock(&lock); }

static void after_fork_in_parent(void) { pthread_mutex_unlock(&lock); }

/* Blocks leased by the parent's other threads will never be returned: abandon their slots. */
static void after_fork_in_child(void)
{
    for (int i = 0; i < MAX_BLOCKS; i++)
        if (blocks[i].leased)
            blocks[i] = (block){0};
    pthread_mutex_init(&lock, NULL);
    pthread_cond_init(&returned, NULL);
}

void aimo_scratch_init(void)
{
    pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
}

void aimo_scratch_trim(void)
{
    pthread_mutex_lock(&lock);
    for (int i = 0; i < MAX_BLOCKS; i++) {
        if (blocks[i].leased)
            continue;
        aimo_memory_free(blocks[i].memory);
        blocks[i] = (block){0};
    }
    pthread_mutex_unlock(&lock);
}

size_t aimo_scratch_bytes(void)
{
    size_t bytes = 0;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < MAX_BLOCKS; i++)
        bytes += blocks[i].bytes;
    pthread_mutex_unlock(&lock);
    return bytes;
}
