/* The query string, and the event after which a stream continues: query_parse over rows of every type -> struct page,
 * and Last-Event-ID. Every value that is taken lies within its row, no name is taken twice, and what is refused is an
 * error that names its parameter. */

#include "api/header.h"
#include "api/query.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char *const states[] = {"queued", "running", NULL};
static const struct query_row rows[] = {
    QUERY_PAGE_ROWS("mdl"),
    QUERY_ROW("status", ENUM, "An enumeration.", .choices = states),
    QUERY_ROW("created_after", INT, "A whole range.", .min = 0, .max = INT64_MAX),
    QUERY_ROW("layer", INT, "A small one.", .min = -5, .max = 7),
    QUERY_ROW("complete", FLAG, "A flag."),
    QUERY_ROW("method", STRING, "A text."),
    QUERY_ROW("metadata", METADATA, "A pair."),
    QUERY_END,
};
/* Of events, the cursor is a number. */
static const struct query_row event_rows[] = {
    QUERY_ROW("limit", INT, "A page.", .min = 1, .max = 1000),
    QUERY_ROW("after", INT, "A sequence number.", .min = 0, .max = INT64_MAX),
    QUERY_END,
};

static void check_item(const struct query *query, const struct query_item *item)
{
    const struct query_row *row = item->row;

    if (strlen(item->text) >= sizeof(item->text) || strlen(item->key) >= sizeof(item->key) ||
        (row->type == QUERY_INT && (item->number < row->min || item->number > row->max)) ||
        (row->type == QUERY_FLAG && item->number != 0 && item->number != 1) ||
        (row->type == QUERY_METADATA) != (item->key[0] != '\0')) {
        abort();
    }
    for (const struct query_item *other = query->items; other < item; other++) {
        if (other->row == row && strcmp(other->key, item->key) == 0) {
            abort();
        }
    }
}

static void parse(const struct query_row *table, const char *text)
{
    struct query query = {0};
    struct validation_errors errors = {0};
    struct page page = {0};

    if (query_parse(table, text, &query, &errors) != 0) {
        for (size_t i = 0; i < errors.count; i++) {
            if (errors.items[i].code >= 0 || errors.items[i].detail[0] == '\0') {
                abort();
            }
        }
        if (errors.count == 0) {
            abort();
        }
        return;
    }
    if (query.count > QUERY_ITEMS_MAX || errors.count > 0) {
        abort();
    }
    for (size_t i = 0; i < query.count; i++) {
        check_item(&query, &query.items[i]);
    }
    if (table == rows) {
        query_page(&query, &page);
        if (page.limit < 1 || page.limit > 100 || (page.after != NULL && page.before != NULL)) {
            abort();
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    int64_t number = -1;

    char *text = malloc(size + 1);
    if (text == NULL) {
        abort();
    }
    memcpy(text, data, size);
    text[size] = '\0';
    parse(rows, text);
    parse(event_rows, text);
    parse(NULL, text);
    if (header_parse_u63(text, strlen(text), &number) != (number >= 0)) {
        abort();
    }
    free(text);
    return 0;
}
