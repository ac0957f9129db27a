/* How many threads the operating system lets this process run at once. */
#ifndef AIMO_BASE_THREAD_COUNT_H
#define AIMO_BASE_THREAD_COUNT_H

#include <stddef.h>

/* The smaller of the CPU affinity and the cgroup's cpu quota (v2 or v1, rounded up); at least 1. A
 * limit that cannot be read is ignored. */
size_t aimo_os_thread_count(void);

#endif
