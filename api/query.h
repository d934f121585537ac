#pragma once
/* Query parameters, checked against a table: unknown parameters are refused, and every error is reported. */

#include "base/page.h"
#include "base/validation.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define QUERY_ITEMS_MAX 16
#define QUERY_TEXT_MAX 512

enum query_type {
    QUERY_STRING,   /* 1..255 bytes of UTF-8 */
    QUERY_INT,      /* min..max */
    QUERY_FLAG,     /* 1, true, 0 or false */
    QUERY_ENUM,     /* one of choices */
    QUERY_CURSOR,   /* an object id */
    QUERY_METADATA, /* name[key]=value */
};

struct query_row {
    const char *name; /* NULL ends a table */
    enum query_type type;
    int64_t min, max;
    const char *const *choices;
    const char *help;
};

struct query_item {
    const struct query_row *row;
    char key[64]; /* QUERY_METADATA */
    char text[QUERY_TEXT_MAX];
    int64_t number; /* INT and FLAG */
};

struct query {
    size_t count;
    struct query_item items[QUERY_ITEMS_MAX];
};

/* Parse the text after '?' (NULL = none). rows may be NULL: then no parameter is allowed. An error's param is
 * "?name". 0 or the first error's code. Any thread. */
int query_parse(const struct query_row *rows, const char *raw, struct query *out, struct validation_errors *errors);
/* NULL when not given. */
const struct query_item *query_find(const struct query *query, const char *name);
const char *query_text(const struct query *query, const char *name);
int64_t query_int(const struct query *query, const char *name, int64_t fallback);
/* limit, after, before, order and the filters of the table. */
void query_page(const struct query *query, struct page *page);

/* The parameters of every list. */
#define QUERY_PAGE_ROWS                                                                                    \
    {"limit", QUERY_INT, 1, 100, NULL, "Maximum number of objects in the page; 20 by default."},           \
        {"after", QUERY_CURSOR, 0, 0, NULL, "Objects after this id, in the requested order."},             \
        {"before", QUERY_CURSOR, 0, 0, NULL, "Objects before this id, in the requested order."},           \
    {                                                                                                      \
        "order", QUERY_ENUM, 0, 0, query_orders, "Newest first (desc, the default) or oldest first (asc)." \
    }
extern const char *const query_orders[];
