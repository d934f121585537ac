/* The query string, parsed once for every route from its rows.
 *
 * application/x-www-form-urlencoded, UTF-8, exact names, each at most once: ignoring a misspelt filter would return
 * the wrong objects. Escapes are decoded after the text is split at '&' and '='. */

#include "api/query.h"

#include "api/header.h"
#include "base/err.h"
#include "base/ids.h"
#include "base/params.h"
#include "base/text.h"

#include <jansson.h>
#include <stdio.h>
#include <string.h>

const char *const query_orders[] = {"desc", "asc", NULL};

static bool is_utf8(const char *text)
{
    json_t *probe = json_string(text);
    json_decref(probe);
    return probe != NULL;
}

/* The row of the parameter `name`; for name[key] the key is copied. */
static const struct query_row *find_row(const struct query_row *rows, const char *name, char key[64])
{
    for (const struct query_row *row = rows; row != NULL && row->name != NULL; row++) {
        if (row->type != QUERY_METADATA) {
            if (strcmp(row->name, name) == 0) {
                return row;
            }
            continue;
        }
        size_t prefix = strlen(row->name), size = strlen(name);
        if (strncmp(name, row->name, prefix) == 0 && name[prefix] == '[' && name[size - 1] == ']' &&
            size - prefix > 2 && size - prefix - 2 < 64) {
            memcpy(key, name + prefix + 1, size - prefix - 2);
            key[size - prefix - 2] = '\0';
            return row;
        }
    }
    return NULL;
}

static bool check_int(struct query_item *item, const char *pointer, struct validation_errors *errors)
{
    const struct query_row *row = item->row;
    const char *digits = item->text[0] == '-' ? item->text + 1 : item->text;
    if (!header_parse_u63(digits, strlen(digits), &item->number)) {
        validation_add(errors, ERR_INVALID_PARAMETER, pointer,
                       "the query parameter \"%s\" is \"%.60s\"; it must be an integer", row->name, item->text);
        return false;
    }
    item->number = digits == item->text ? item->number : -item->number;
    if (item->number < row->min || item->number > row->max) {
        validation_add(errors, ERR_INVALID_PARAMETER, pointer,
                       "the query parameter \"%s\" is %lld; it must be from %lld to %lld", row->name,
                       (long long)item->number, (long long)row->min, (long long)row->max);
        return false;
    }
    return true;
}

static bool check_enum(struct query_item *item, const char *pointer, struct validation_errors *errors)
{
    struct text_guess guess = {.word = item->text};
    char names[256] = "";
    for (size_t i = 0; item->row->choices[i] != NULL; i++) {
        if (strcmp(item->text, item->row->choices[i]) == 0) {
            item->number = (int64_t)i;
            return true;
        }
        text_guess_offer(&guess, item->row->choices[i]);
        size_t used = strlen(names);
        snprintf(names + used, sizeof(names) - used, "%s%s", i > 0 ? ", " : "", item->row->choices[i]);
    }
    validation_add(errors, ERR_INVALID_PARAMETER, pointer,
                   "the query parameter \"%s\" is \"%.60s\"; it must be one of %s", item->row->name, item->text, names);
    if (guess.name != NULL) {
        validation_hint(errors, "did you mean \"%s\"?", guess.name);
    }
    return false;
}

static bool check_project_name(const struct query_item *item, const char *pointer, struct validation_errors *errors)
{
    size_t size = strlen(item->text);

    if (size > 0 && size < PROJECT_SIZE && strspn(item->text, "abcdefghijklmnopqrstuvwxyz0123456789_-") == size) {
        return true;
    }
    validation_add(errors, ERR_INVALID_CURSOR, pointer,
                   "the query parameter \"%s\" is \"%.60s\"; it must be the name of a project: 1 to 64 of a-z, 0-9, _ "
                   "and -",
                   item->row->name, item->text);
    return false;
}

static bool check_id(struct query_item *item, const char *pointer, struct validation_errors *errors)
{
    if (item->row->kind == NULL) {
        return check_project_name(item, pointer, errors);
    }
    if (id_valid(item->text, item->row->kind)) {
        return true;
    }
    validation_add(errors, item->row->type == QUERY_ID ? ERR_INVALID_PARAMETER : ERR_INVALID_CURSOR, pointer,
                   "the query parameter \"%s\" is \"%.60s\"; it must be an id (%s_...)", item->row->name, item->text,
                   item->row->kind);
    return false;
}

static bool check_visible(const struct query_item *item, const char *pointer, struct validation_errors *errors)
{
    size_t size = strlen(item->text);
    for (size_t i = 0; i < size; i++) {
        size = item->text[i] <= 0x20 || item->text[i] >= 0x7f ? 0 : size;
    }
    if (size == 0 || size > 255) {
        validation_add(errors, ERR_INVALID_PARAMETER, pointer, "%s must be 1 to 255 visible ASCII characters",
                       item->row->name);
        return false;
    }
    return true;
}

static bool check_event(struct query_item *item, const char *pointer, struct validation_errors *errors)
{
    if (item->text[0] != '\0' && !header_parse_u63(item->text, strlen(item->text), &item->number)) {
        validation_add(errors, ERR_INVALID_CURSOR, pointer, "%s is \"%.60s\"; it must be the number of an event",
                       item->row->name, item->text);
        return false;
    }
    return true;
}

static bool check_column(const struct query_item *item, const char *pointer, struct validation_errors *errors)
{
    const char *name = item->text + (item->text[0] == '-');
    struct text_guess guess = {.word = name};
    char names[320];
    for (const char *const *column = item->row->columns(); *column != NULL; column++) {
        if (strcmp(*column, name) == 0) {
            return true;
        }
        text_guess_offer(&guess, *column);
    }
    validation_add(errors, ERR_INVALID_PARAMETER, pointer, "\"%.60s\" is not a column of the report", name);
    if (guess.name != NULL) {
        validation_hint(errors, "did you mean \"%s\"?", guess.name);
    } else {
        params_join(item->row->columns(), names, sizeof(names));
        validation_hint(errors, "the columns are %s", names);
    }
    return false;
}

static bool check_flag(struct query_item *item, const char *pointer, struct validation_errors *errors)
{
    bool on = strcmp(item->text, "1") == 0 || strcmp(item->text, "true") == 0;
    if (!on && strcmp(item->text, "0") != 0 && strcmp(item->text, "false") != 0) {
        validation_add(errors, ERR_INVALID_PARAMETER, pointer,
                       "the query parameter \"%s\" is \"%.60s\"; it must be 1, true, 0 or false", item->row->name,
                       item->text);
        return false;
    }
    item->number = on;
    return true;
}

static bool query_check_item(struct query_item *item, const char *pointer, struct validation_errors *errors)
{
    switch (item->row->type) {
    case QUERY_INT:
        return check_int(item, pointer, errors);
    case QUERY_FLAG:
        return check_flag(item, pointer, errors);
    case QUERY_ENUM:
        return check_enum(item, pointer, errors);
    case QUERY_ID:
    case QUERY_CURSOR:
        return check_id(item, pointer, errors);
    case QUERY_COLUMN:
        return check_column(item, pointer, errors);
    case QUERY_VISIBLE:
        return check_visible(item, pointer, errors);
    case QUERY_EVENT:
        return check_event(item, pointer, errors);
    case QUERY_STRING:
    case QUERY_METADATA:
        break;
    }
    if (item->text[0] == '\0' || strlen(item->text) > 255 || !is_utf8(item->text)) {
        validation_add(errors, ERR_INVALID_PARAMETER, pointer,
                       "the query parameter \"%s\" must be 1 to 255 bytes of UTF-8", item->row->name);
        return false;
    }
    return true;
}

static bool is_repeated(const struct query *query, const struct query_item *item)
{
    for (size_t i = 0; i < query->count; i++) {
        if (query->items[i].row == item->row) {
            return true;
        }
    }
    return false;
}

static void refuse_name(const struct query_row *rows, const char *name, const char *pointer,
                        struct validation_errors *errors)
{
    struct text_guess guess = {.word = name};
    char names[256] = "";
    for (const struct query_row *row = rows; row != NULL && row->name != NULL; row++) {
        size_t used = strlen(names);
        snprintf(names + used, sizeof(names) - used, "%s%s", used > 0 ? ", " : "", row->name);
        text_guess_offer(&guess, row->name);
    }
    validation_add(errors, ERR_UNKNOWN_PARAMETER, pointer, "\"%.80s\" is not a query parameter of this route", name);
    if (guess.name != NULL) {
        validation_hint(errors, "did you mean \"%s\"?", guess.name);
    } else if (names[0] != '\0') {
        validation_hint(errors, "the query parameters are %s", names);
    } else {
        validation_hint(errors, "this route has no query parameters");
    }
}

static void parse_pair(const struct query_row *rows, const char *pair, size_t size, struct query *out,
                       struct validation_errors *errors)
{
    char name[160], pointer[170];
    const char *equals = memchr(pair, '=', size);
    size_t name_size = equals != NULL ? (size_t)(equals - pair) : size;
    if (!header_percent_decode(pair, name_size, true, name, sizeof(name)) || !is_utf8(name)) {
        validation_add(errors, ERR_UNKNOWN_PARAMETER, "?",
                       "a query parameter's name is not percent-encoded UTF-8 of at most 159 bytes");
        return;
    }
    snprintf(pointer, sizeof(pointer), "?%s", name);
    struct query_item item = {0};
    item.row = find_row(rows, name, item.key);
    if (item.row == NULL) {
        refuse_name(rows, name, pointer, errors);
        return;
    }
    const char *value = equals != NULL ? equals + 1 : pair + size;
    size_t value_size = size - (size_t)(value - pair);
    if (!header_percent_decode(value, value_size, true, item.text, sizeof(item.text))) {
        validation_add(errors, ERR_INVALID_PARAMETER, pointer,
                       "the value of the query parameter \"%.80s\" is not percent-encoded text of at most 255 bytes",
                       name);
    } else if (is_repeated(out, &item)) {
        validation_add(errors, ERR_INVALID_PARAMETER, pointer, "the query parameter \"%.80s\" is given more than once",
                       name);
    } else if (query_check_item(&item, pointer, errors) && out->count < QUERY_ITEMS_MAX) {
        out->items[out->count++] = item;
    }
}

/* An error since `first` is about that parameter. */
static bool is_refused(const struct validation_errors *errors, size_t first, const char *name)
{
    for (size_t i = first; i < errors->count; i++) {
        if (strcmp(errors->items[i].param + 1, name) == 0) {
            return true;
        }
    }
    return false;
}

int query_parse(const struct query_row *rows, const char *raw, struct query *out, struct validation_errors *errors)
{
    out->count = 0;
    size_t before = errors->count;
    for (const char *at = raw; at != NULL && *at != '\0';) {
        size_t size = strcspn(at, "&");
        if (size > 0) {
            parse_pair(rows, at, size, out, errors);
        }
        at += size + (at[size] == '&');
    }
    for (const struct query_row *row = rows; row != NULL && row->name != NULL; row++) {
        char pointer[170];
        if (row->required && query_find(out, row->name) == NULL && !is_refused(errors, before, row->name)) {
            (void)snprintf(pointer, sizeof(pointer), "?%s", row->name);
            validation_add(errors, ERR_MISSING_PARAMETER, pointer, "the query parameter \"%s\" is required. %s",
                           row->name, row->help);
        }
    }
    if (query_find(out, "after") != NULL && query_find(out, "before") != NULL) {
        validation_add(errors, ERR_INVALID_PARAMETER, "?before",
                       "the query parameters \"before\" and \"after\" cannot be combined");
    }
    return errors->count > before ? validation_raise(errors) : 0;
}

void query_check_header(const struct query_row *row, const char *value, struct validation_errors *errors)
{
    struct query_item item = {.row = row};
    bool checked =
        row->type == QUERY_VISIBLE || row->type == QUERY_EVENT; /* others are for their reader to understand */
    if (!checked) {
        return;
    }
    (void)snprintf(item.text, sizeof(item.text), "%s", value);
    (void)query_check_item(&item, row->name, errors);
}

const struct query_item *query_find(const struct query *query, const char *name)
{
    for (size_t i = 0; i < query->count; i++) {
        if (strcmp(query->items[i].row->name, name) == 0) {
            return &query->items[i];
        }
    }
    return NULL;
}

const char *query_text(const struct query *query, const char *name)
{
    const struct query_item *item = query_find(query, name);
    return item != NULL ? item->text : NULL;
}

int64_t query_int(const struct query *query, const char *name, int64_t fallback)
{
    const struct query_item *item = query_find(query, name);
    return item != NULL ? item->number : fallback;
}

void query_page(const struct query *query, struct page *page)
{
    const struct query_item *metadata = query_find(query, "metadata");
    *page = (struct page){
        .limit = (int)query_int(query, "limit", 20),
        .after = query_text(query, "after"),
        .before = query_text(query, "before"),
        .ascending = query_int(query, "order", 0) == 1,
        .status = query_text(query, "status"),
        .method = query_text(query, "method"),
        .model = query_text(query, "model_id"),
        .purpose = query_text(query, "purpose"),
        .job = query_text(query, "job_id"),
        .metadata_key = metadata != NULL ? metadata->key : NULL,
        .metadata_value = metadata != NULL ? metadata->text : NULL,
        .created_after = query_int(query, "created_after", 0),
    };
}
