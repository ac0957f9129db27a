/* Dispatch of similarity. */
#include "similarity/similarity.h"

#include "similarity/similarity_kernels.h"

static const aimo_similarity_kernels rows[] = {
#define AIMO_SIMILARITY_KERNEL(isa, required)                                                      \
    {#isa,                                                                                         \
     required,                                                                                     \
     aimo_dot_f16_##isa,                                                                           \
     aimo_dot_i8_##isa,                                                                            \
     aimo_dot_f16_f64_##isa,                                                                       \
     aimo_dot_i8_f64_##isa,                                                                        \
     aimo_project_##isa,                                                                           \
     aimo_screen_##isa,                                                                            \
     aimo_refine_##isa},
#include "similarity/similarity_kernels.def"
#undef AIMO_SIMILARITY_KERNEL
};
enum { ROW_COUNT = sizeof rows / sizeof rows[0] };

const aimo_similarity_kernels *aimo_similarity_row(size_t index)
{
    return index < ROW_COUNT ? &rows[index] : NULL;
}

const aimo_similarity_kernels *aimo_similarity_select(unsigned features)
{
    const aimo_similarity_kernels *best = &rows[0];
    for (size_t i = 1; i < ROW_COUNT; i++)
        if ((rows[i].required & ~features) == 0)
            best = &rows[i];
    return best;
}
