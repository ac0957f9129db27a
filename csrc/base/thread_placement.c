#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "base/thread_placement.h"

#if defined(__linux__)
#include <sched.h>
#include <stdbool.h>

int aimo_placement_here(void) { return sched_getcpu(); }

/* Whether the calling thread may run on a processor. */
static bool may_run_on(int cpu)
{
    cpu_set_t allowed;
    return sched_getaffinity(0, sizeof allowed, &allowed) == 0 && CPU_ISSET(cpu, &allowed);
}

/* Processors that others have since removed from the thread's affinity stay removed. The one
 * removed here is restored if the calling thread may run there, which shows that the process still
 * has it. */
void aimo_placement_avoid(aimo_placement *placement, pthread_t thread, int cpu)
{
    if (cpu < 0 || cpu >= CPU_SETSIZE || cpu == placement->avoided)
        return;
    cpu_set_t allowed;
    if (pthread_getaffinity_np(thread, sizeof allowed, &allowed) != 0)
        return;
    if (placement->avoided >= 0 && may_run_on(placement->avoided))
        CPU_SET(placement->avoided, &allowed);
    CPU_CLR(cpu, &allowed);
    if (CPU_COUNT(&allowed) == 0)
        return;
    if (pthread_setaffinity_np(thread, sizeof allowed, &allowed) == 0)
        placement->avoided = cpu;
}
#else
int aimo_placement_here(void) { return -1; }

void aimo_placement_avoid(aimo_placement *placement, pthread_t thread, int cpu)
{
    (void)placement;
    (void)thread;
    (void)cpu;
}
#endif
