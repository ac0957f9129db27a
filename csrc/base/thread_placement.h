/* Which processors a thread may run on when it is about to be woken. */
#ifndef AIMO_BASE_THREAD_PLACEMENT_H
#define AIMO_BASE_THREAD_PLACEMENT_H

#include <pthread.h>

/* State of one thread; protected by the lock of whoever wakes it. */
typedef struct {
    int avoided; /* the processor that was removed from the thread's affinity, or -1 */
} aimo_placement;

#define AIMO_PLACEMENT_INIT ((aimo_placement){-1})

/* The processor that the calling thread runs on; -1 when the system cannot say. */
int aimo_placement_here(void);

/* Keeps a sleeping thread off processor `cpu`, where the thread that is about to wake it runs.
 * Schedulers tend to place a woken thread on its waker's processor, but here the waker goes on
 * computing: where processors share no cache, or a virtual machine does not expose that they do,
 * the two take turns on one processor while another is idle.
 *
 * The thread keeps its other processors. Does nothing when it has no other, or when the system
 * cannot set affinities. */
void aimo_placement_avoid(aimo_placement *placement, pthread_t thread, int cpu);

#endif
