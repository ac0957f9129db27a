/* Workspaces: a stream with its device memory and pinned host memory, leased by one chunk at a
 * time.
 *
 * A backend has two, so that the copies of one chunk overlap with the kernels of another. */
#ifndef AIMO_CUDA_WORKSPACE_H
#define AIMO_CUDA_WORKSPACE_H

#include "backend/cuda/cuda_device.h"
#include "backend/cuda/cuda_graphs.h"
#include "backend/cuda/cuda_kernels.h"

#include <pthread.h>

constexpr unsigned DOWNLOAD_BUFFERS = 2;

struct cuda_workspace {
    aimo_workspace base;
    bool leased, busy; /* busy: enqueued work may not have been waited for yet */
    cudaStream_t stream;
    cudaEvent_t downloaded[DOWNLOAD_BUFFERS];
    growing_memory memory; /* device: what the lease asked for, then the products' workspace */
    growing_memory input;  /* device: the sequences */
    growing_memory pinned_input; /* host: the same */
    growing_memory pinned_output[DOWNLOAD_BUFFERS];
    cuda_sequences sequences; /* of the chunk, after cuda_workspace_upload */
    cuda_graphs graphs;
    growing_memory graphs_memory,
        graphs_input;    /* device: the addresses that the graphs were recorded with */
    int previous_device; /* of the leasing thread, for cuda_leave_device */
};

/* Rows of the largest chunk that graphs are made for: beyond that, the device takes longer than the
 * host takes to enqueue. */
constexpr size_t GRAPH_ROWS_MOST = 512;

constexpr unsigned WORKSPACES = 2;

struct cuda_workspaces {
    int device;
    pthread_mutex_t lock;
    pthread_cond_t returned;
    cuda_workspace all[WORKSPACES]; /* while not leased, protected by lock */
};

void cuda_workspaces_init(cuda_workspaces *pool, int device);
/* No workspace may be leased. */
void cuda_workspaces_clear(cuda_workspaces *pool);

/* *out = a workspace with `bytes` of device memory; waits while all are leased. Until
 * cuda_workspace_return the thread's current device is the pool's. AIMO_ERR_MEMORY when the memory
 * cannot be allocated, with the sizes in the message; nothing is leased then. */
aimo_status cuda_workspace_lease(cuda_workspaces *pool, size_t bytes, cuda_workspace **out,
                                 aimo_error *err);
/* Waits for the chunk's unfinished work, then ends the lease. */
void cuda_workspace_return(cuda_workspaces *pool, cuda_workspace *workspace);

/* Device memory that products may use. */
void *cuda_workspace_of_products(const cuda_workspace *workspace);

/* Rounds up the rows of a chunk that graphs are made for, unless that gives more than `most`. */
void cuda_workspace_pad(size_t most, size_t *token_rows, size_t *vector_rows);

/* Enqueues the upload of a chunk's sequences, to which the workspace's `sequences` then refer. Up
 * to GRAPH_ROWS_MOST rows, the addresses and sizes depend on the numbers of rows alone. */
aimo_status cuda_workspace_upload(cuda_workspace *workspace, const aimo_sequences &sequences,
                                  aimo_error *err);

/* As aimo_backend_ops says. */
aimo_status cuda_workspace_run(cuda_workspace *workspace, aimo_forward *forward, void *context,
                               const aimo_run_key *key, aimo_error *err);

/* host [count, row_bytes] = rows of device memory that are `stride` bytes apart; waits for
 * everything enqueued before. Fills one pinned buffer while the other is emptied. */
aimo_status cuda_workspace_download(cuda_workspace *workspace, const void *rows, size_t stride,
                                    size_t row_bytes, size_t count, void *host, aimo_error *err);

/* The same into device memory. */
aimo_status cuda_workspace_hand_over(cuda_workspace *workspace, const void *rows, size_t stride,
                                     size_t row_bytes, size_t count, void *device, aimo_error *err);

#endif
