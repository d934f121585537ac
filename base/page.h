#pragma once
/* One page of a list, by key: what a request asks for and a store reads. */

#include <stdbool.h>
#include <stdint.h>

struct page {
    int limit;          /* 1..100 */
    const char *after;  /* id or NULL: rows after it in the requested order */
    const char *before; /* id or NULL: rows before it */
    bool ascending;
    /* filters: equal when not NULL/0 */
    const char *project, *status, *method, *model, *purpose, *job, *webhook;
    const char *metadata_key, *metadata_value;
    int64_t created_after;
    bool unended; /* jobs of a project: those that have not ended, whatever their status becomes meanwhile */
};
