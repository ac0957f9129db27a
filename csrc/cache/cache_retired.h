/* Blocks that readers may still use after they were replaced. */
#ifndef AIMO_CACHE_CACHE_RETIRED_H
#define AIMO_CACHE_CACHE_RETIRED_H

#include <stddef.h>

/* The link that every such block starts with. */
typedef struct retired {
    struct retired *next;
    size_t bytes; /* of the block */
} retired;

#endif
