/* The allocator is queried through symbols looked up at run time: a wheel built against an old
 * glibc still finds mallinfo2 on a new one, musl and macOS simply lack it, and a preloaded
 * jemalloc, which defines malloc but not mallinfo2, is recognised by its own mallctl. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "process/process.h"

#include <dirent.h>
#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

/* glibc's struct mallinfo2, whose header older versions lack. */
typedef struct {
    size_t arena, ordblks, smblks, hblks, hblkhd, usmblks, fsmblks, uordblks, fordblks, keepcost;
} mallinfo2_result;

typedef mallinfo2_result (*mallinfo2_function)(void);
typedef int (*malloc_trim_function)(size_t);
typedef int (*mallctl_function)(const char *, void *, size_t *, void *, size_t);

/* A function pointer from dlsym without the cast that ISO C forbids. */
static void find_symbol(const char *name, void *function, size_t size)
{
    void *symbol = dlsym(RTLD_DEFAULT, name);
    memcpy(function, &symbol, size);
}

static size_t jemalloc_value(mallctl_function mallctl, const char *name)
{
    size_t value = 0;
    size_t size = sizeof value;
    return mallctl(name, &value, &size, NULL, 0) == 0 ? value : 0;
}

static bool read_jemalloc(aimo_allocator_info *info)
{
    mallctl_function mallctl;
    find_symbol("mallctl", &mallctl, sizeof mallctl);
    if (mallctl == NULL)
        return false;
    /* jemalloc's statistics are a snapshot, refreshed by advancing the epoch. */
    uint64_t epoch = 1;
    if (mallctl("epoch", NULL, NULL, &epoch, sizeof epoch) != 0)
        return false;
    const size_t resident = jemalloc_value(mallctl, "stats.resident");
    info->name = "jemalloc";
    info->live = jemalloc_value(mallctl, "stats.allocated");
    info->retained = resident > info->live ? resident - info->live : 0;
    info->known = info->live != 0;
    return true;
}

void aimo_allocator_read(aimo_allocator_info *info)
{
    *info = (aimo_allocator_info){.name = "unknown"};
    if (read_jemalloc(info))
        return;
    mallinfo2_function mallinfo2_of_libc;
    find_symbol("mallinfo2", &mallinfo2_of_libc, sizeof mallinfo2_of_libc);
    if (mallinfo2_of_libc == NULL)
        return; /* plain mallinfo counts in int and is wrong beyond 2 GiB */
    const mallinfo2_result figures = mallinfo2_of_libc();
    malloc_trim_function trim;
    find_symbol("malloc_trim", &trim, sizeof trim);
    info->name = "glibc";
    info->known = true;
    info->live = figures.uordblks + figures.hblkhd;
    info->retained = figures.fordblks;
    info->mapped = figures.hblkhd;
    info->can_trim = trim != NULL;
}

bool aimo_allocator_trim(void)
{
    aimo_allocator_info info;
    aimo_allocator_read(&info);
    if (!info.can_trim)
        return false;
    malloc_trim_function trim;
    find_symbol("malloc_trim", &trim, sizeof trim);
    return trim(0) != 0;
}

static bool is_connected(int fd)
{
    struct sockaddr_storage peer;
    socklen_t size = sizeof peer;
    /* Fails at once for anything but a socket, and for listening sockets. */
    if (getpeername(fd, (struct sockaddr *)&peer, &size) != 0)
        return false;
    return peer.ss_family == AF_INET || peer.ss_family == AF_INET6;
}

bool aimo_process_count_files(size_t *open, size_t *connected)
{
    *open = *connected = 0;
    DIR *folder = opendir("/proc/self/fd");
    if (folder == NULL)
        return false;
    const int own = dirfd(folder);
    for (struct dirent *entry; (entry = readdir(folder)) != NULL;) {
        if (entry->d_name[0] == '.')
            continue;
        const int fd = atoi(entry->d_name);
        if (fd == own)
            continue;
        ++*open;
        *connected += is_connected(fd);
    }
    closedir(folder);
    return true;
}
