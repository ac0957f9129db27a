/* How many threads the operating system lets this process run at once.
 *
 * A container with `--cpus=2` on a 128-core host still sees 128 cores; the quota is only in the
 * cgroup files. Starting 128 threads there makes everything several times slower. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "base/thread_count.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#if defined(__linux__)
#include <sched.h>

static bool read_line(const char *path, char *line, size_t size)
{
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return false;
    const bool read = fgets(line, (int)size, file) != NULL;
    fclose(file);
    return read;
}

static size_t quota_to_threads(long quota, long period)
{
    if (quota <= 0 || period <= 0)
        return 0;
    return (size_t)((quota + period - 1) / period);
}

/* The tightest cpu.max between this process's cgroup and the root; 0 when there is no limit. */
static size_t cgroup_v2_limit(void)
{
    char line[512];
    FILE *file = fopen("/proc/self/cgroup", "re");
    if (file == NULL)
        return 0;
    char group[512] = "";
    while (fgets(line, sizeof line, file) != NULL)
        if (strncmp(line, "0::", 3) == 0)
            snprintf(group, sizeof group, "%s", line + 3);
    fclose(file);
    group[strcspn(group, "\n")] = '\0';

    size_t limit = 0;
    for (;;) {
        char path[640];
        snprintf(path, sizeof path, "/sys/fs/cgroup%s/cpu.max",
                 strcmp(group, "/") == 0 ? "" : group);
        long quota, period;
        if (read_line(path, line, sizeof line) && sscanf(line, "%ld %ld", &quota, &period) == 2) {
            const size_t threads = quota_to_threads(quota, period);
            if (threads != 0 && (limit == 0 || threads < limit))
                limit = threads;
        }
        char *slash = strrchr(group, '/');
        if (slash == NULL)
            return limit;
        *slash = '\0';
    }
}

static size_t cgroup_v1_limit(void)
{
    char line[64];
    long quota = 0, period = 0;
    if (read_line("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", line, sizeof line))
        (void)sscanf(line, "%ld", &quota);
    if (read_line("/sys/fs/cgroup/cpu/cpu.cfs_period_us", line, sizeof line))
        (void)sscanf(line, "%ld", &period);
    return quota_to_threads(quota, period);
}

/* The mask may be larger than cpu_set_t on big machines; then the kernel refuses the short one. */
static size_t affinity_count(void)
{
    for (int cpus = CPU_SETSIZE; cpus <= 1 << 20; cpus *= 2) {
        cpu_set_t *set = CPU_ALLOC(cpus);
        if (set == NULL)
            return 0;
        const size_t bytes = CPU_ALLOC_SIZE(cpus);
        const bool read = sched_getaffinity(0, bytes, set) == 0;
        const int count = read ? CPU_COUNT_S(bytes, set) : 0;
        CPU_FREE(set);
        if (read)
            return (size_t)count;
    }
    return 0;
}
#else
static size_t cgroup_v2_limit(void) { return 0; }
static size_t cgroup_v1_limit(void) { return 0; }
static size_t affinity_count(void)
{
    const long online = sysconf(_SC_NPROCESSORS_ONLN);
    return online > 0 ? (size_t)online : 0;
}
#endif

size_t aimo_os_thread_count(void)
{
    const size_t limits[] = {affinity_count(), cgroup_v2_limit(), cgroup_v1_limit()};
    size_t count = 0;
    for (size_t i = 0; i < sizeof limits / sizeof limits[0]; i++)
        if (limits[i] != 0 && (count == 0 || limits[i] < count))
            count = limits[i];
    return count != 0 ? count : 1;
}
