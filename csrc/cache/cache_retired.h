/* What readers may still look at after it was replaced. */
#ifndef AIMO_CACHE_CACHE_RETIRED_H
#define AIMO_CACHE_CACHE_RETIRED_H

#include <stddef.h>

/* The first member of every such block. */
typedef struct retired {
    struct retired *next;
    size_t bytes; /* of the block */
} retired;

#endif
