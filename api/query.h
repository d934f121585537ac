#pragma once
/* Query parameters, checked against a table: unknown parameters are refused, and every error is reported. Headers that
 * a route reads are rows of the same kind. */

#include "base/page.h"
#include "base/validation.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define QUERY_ITEMS_MAX 16
#define QUERY_TEXT_MAX 512
#define QUERY_NAME_PATTERN "^[a-z0-9_-]{1,64}$" /* of a project's name */

enum query_type {
    QUERY_STRING,   /* 1..255 bytes of UTF-8 */
    QUERY_INT,      /* min..max */
    QUERY_FLAG,     /* 1, true, 0 or false */
    QUERY_ENUM,     /* one of choices */
    QUERY_ID,       /* an id with the prefix kind */
    QUERY_CURSOR,   /* the same; ERR_INVALID_CURSOR when it is none */
    QUERY_METADATA, /* name[key]=value */
    QUERY_COLUMN,   /* one of columns(), or a minus and one of them */
    QUERY_VISIBLE,  /* 1..255 visible ASCII characters */
    QUERY_EVENT,    /* the number of an event, or empty; ERR_INVALID_CURSOR when it is neither */
};

struct query_row {
    const char *name; /* NULL ends a table */
    enum query_type type;
    int64_t min, max;           /* INT */
    const char *const *choices; /* ENUM */
    const char *kind;           /* ID and CURSOR; NULL: a project's name */
    const char *const *(*columns)(void);
    const char *help;
    bool required;
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
/* The same for one header: adds an error, whose param is the header's name, unless the value is what the row says. */
void query_check_header(const struct query_row *row, const char *value, struct validation_errors *errors);
/* NULL when not given. */
const struct query_item *query_find(const struct query *query, const char *name);
const char *query_text(const struct query *query, const char *name);
int64_t query_int(const struct query *query, const char *name, int64_t fallback);
/* limit, after, before, order and the filters of the table. */
void query_page(const struct query *query, struct page *page);

#define QUERY_ROW(name_, type_, ...) QUERY_ROW_OF(name_, type_, __VA_ARGS__, )
#define QUERY_ROW_OF(name_, type_, help_, ...)                               \
    {                                                                        \
        .name = (name_), .type = QUERY_##type_, .help = (help_), __VA_ARGS__ \
    }
#define QUERY_END    \
    {                \
        .name = NULL \
    }

/* The parameters of every list of objects whose ids have that prefix. */
#define QUERY_PAGE_ROWS(kind_)                                                                              \
    QUERY_ROW("limit", INT, "Maximum number of objects in the page; 20 by default.", .min = 1, .max = 100), \
        QUERY_ROW("after", CURSOR, "Objects after this id, in the requested order.", .kind = (kind_)),      \
        QUERY_ROW("before", CURSOR, "Objects before this id, in the requested order.", .kind = (kind_)),    \
        QUERY_ROW("order", ENUM, "Newest first (desc, the default) or oldest first (asc).", .choices = query_orders)
extern const char *const query_orders[];
