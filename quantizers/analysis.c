/* Rows of an analysis. */

#include "quantizers/analysis.h"

#include "base/err.h"

#include <stdlib.h>

struct analysis_row *analysis_rows_add(struct analysis_rows *rows)
{
    struct analysis_row *grown = realloc(rows->list, ((size_t)rows->count + 1) * sizeof(*grown));

    if (grown == NULL) {
        (void)err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for the rows of an analysis");
        return NULL;
    }
    rows->list = grown;
    grown[rows->count] = (struct analysis_row){0};
    return &grown[rows->count++];
}

void analysis_rows_deinit(struct analysis_rows *rows)
{
    for (int i = 0; i < rows->count; i++) {
        cache_scales_deinit(&rows->list[i].scales);
    }
    free(rows->list);
    *rows = (struct analysis_rows){0};
}
