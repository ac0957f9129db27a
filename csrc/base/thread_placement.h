/* Where a thread that is about to be woken may run. */
#ifndef AIMO_BASE_THREAD_PLACEMENT_H
#define AIMO_BASE_THREAD_PLACEMENT_H

#include <pthread.h>

/* Of one thread; protected by whoever wakes it. */
typedef struct {
    int avoided; /* the processor that is left out, or -1 */
} aimo_placement;

#define AIMO_PLACEMENT_INIT ((aimo_placement){-1})

/* The processor that the calling thread runs on; -1 when the system does not tell. */
int aimo_placement_here(void);

/* Keeps a sleeping thread off a processor, that of the thread which is about to wake it. Schedulers
 * like to put a woken thread beside the one that wakes it, which then goes on computing: where
 * processors share no cache, or a virtual machine does not say that they do, the two take turns on
 * one of them while another is idle.
 *
 * Only this one is left out of the processors that the thread had; where there is no other, or the
 * system has no such call, nothing is done. */
void aimo_placement_avoid(aimo_placement *placement, pthread_t thread, int cpu);

#endif
