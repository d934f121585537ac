/* Option rows read and echoed. Every fault of an object is found in one pass; nothing is half-applied, because the
 * caller gets the struct only when the list of faults did not grow. */

#include "base/params.h"

#include "base/err.h"
#include "base/text.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct reader {
    const char *pointer; /* of the object */
    struct faults *faults;
    char *out;
};

/* "must be " + what + fact */
static void fault(struct reader *reader, const struct params_row *row, const char *what, const char *fact)
{
    char pointer[192];

    text_pointer(pointer, sizeof(pointer), reader->pointer, row->name);
    faults_add(reader->faults, ERR_INVALID_PARAMETER, pointer, "must be %s%s", what, fact);
}

/* "1, 2, 3" from a NULL-terminated list. */
static void join(const char *const *list, char *out, size_t size)
{
    out[0] = '\0';
    for (size_t i = 0; list[i] != NULL; i++) {
        size_t used = strlen(out);
        snprintf(out + used, size - used, "%s%s", i > 0 ? ", " : "", list[i]);
    }
}

static void range_text(const struct params_row *row, char *out, size_t size)
{
    snprintf(out, size, "%c%.15g, %.15g%c", row->exclusive ? '(' : '[', row->min, row->max, row->exclusive ? ')' : ']');
}

static bool bounded(const struct params_row *row)
{
    return row->min != 0 || row->max != 0;
}

static int choice_of(const struct params_row *row, const char *text)
{
    for (int i = 0; row->choices[i] != NULL; i++) {
        if (strcmp(row->choices[i], text) == 0) {
            return i;
        }
    }
    return -1;
}

static void read_int(struct reader *reader, const struct params_row *row, const json_t *value)
{
    char fact[192];

    if (!json_is_integer(value)) {
        fault(reader, row, "an integer", "");
        return;
    }
    int64_t n = json_integer_value(value);
    if (row->choices != NULL) {
        char text[32];
        snprintf(text, sizeof(text), "%lld", (long long)n);
        if (choice_of(row, text) < 0) {
            join(row->choices, fact, sizeof(fact));
            fault(reader, row, "one of ", fact);
            return;
        }
    } else if (bounded(row) && ((double)n < row->min || (double)n > row->max)) {
        range_text(row, fact, sizeof(fact));
        fault(reader, row, "an integer in ", fact);
        return;
    }
    memcpy(reader->out + row->offset, &n, sizeof(n));
}

static void read_number(struct reader *reader, const struct params_row *row, const json_t *value)
{
    char fact[128];

    if (!json_is_number(value)) {
        fault(reader, row, "a number", "");
        return;
    }
    double x = json_number_value(value);
    bool outside = row->exclusive ? x <= row->min || x >= row->max : x < row->min || x > row->max;
    if (bounded(row) && outside) { /* JSON has no infinity, and the parser refuses what overflows */
        range_text(row, fact, sizeof(fact));
        fault(reader, row, "a number in ", fact);
        return;
    }
    memcpy(reader->out + row->offset, &x, sizeof(x));
}

static void read_string(struct reader *reader, const struct params_row *row, const json_t *value)
{
    char fact[32];

    snprintf(fact, sizeof(fact), "%zu bytes", row->size - 1);
    if (!json_is_string(value) || json_string_length(value) >= row->size ||
        strlen(json_string_value(value)) != json_string_length(value)) {
        fault(reader, row, "a string of at most ", fact);
        return;
    }
    memcpy(reader->out + row->offset, json_string_value(value), json_string_length(value) + 1);
}

static void read_enum(struct reader *reader, const struct params_row *row, const json_t *value)
{
    int choice = json_is_string(value) ? choice_of(row, json_string_value(value)) : -1;

    if (choice < 0) {
        char fact[192];
        join(row->choices, fact, sizeof(fact));
        fault(reader, row, "one of ", fact);
        return;
    }
    memcpy(reader->out + row->offset, &choice, sizeof(choice));
}

static void read_strings(struct reader *reader, const struct params_row *row, const json_t *value)
{
    size_t i;
    json_t *item;

    if (!json_is_array(value) || json_array_size(value) > 1024) {
        fault(reader, row, "an array of at most 1024 strings", "");
        return;
    }
    json_array_foreach(value, i, item)
    {
        if (!json_is_string(item) || json_string_length(item) > 512 ||
            strlen(json_string_value(item)) != json_string_length(item)) {
            fault(reader, row, "an array of strings of at most 512 bytes", "");
            return;
        }
    }
    json_t *reference = json_incref((json_t *)value);
    memcpy(reader->out + row->offset, &reference, sizeof(reference));
}

static void read_value(struct reader *reader, const struct params_row *row, const json_t *value)
{
    switch (row->type) {
    case PARAMS_BOOL:
        if (!json_is_boolean(value)) {
            fault(reader, row, "true or false", "");
            return;
        }
        *(bool *)(reader->out + row->offset) = json_is_true(value);
        return;
    case PARAMS_INT:
        read_int(reader, row, value);
        return;
    case PARAMS_NUMBER:
        read_number(reader, row, value);
        return;
    case PARAMS_STRING:
        read_string(reader, row, value);
        return;
    case PARAMS_ENUM:
        read_enum(reader, row, value);
        return;
    case PARAMS_JSON: {
        json_t *reference = json_incref((json_t *)value);
        memcpy(reader->out + row->offset, &reference, sizeof(reference));
        return;
    }
    case PARAMS_STRINGS:
        read_strings(reader, row, value);
        return;
    }
}

static void read_fallback(struct reader *reader, const struct params_row *row)
{
    json_t *value = json_loads(row->fallback, JSON_DECODE_ANY, NULL);

    if (value == NULL) {
        faults_add(reader->faults, ERR_INTERNAL, "", "the default of %s is not JSON", row->name);
        return;
    }
    if (!json_is_null(value)) {
        read_value(reader, row, value);
    }
    json_decref(value);
}

static bool nullable(const struct params_row *row)
{
    return row->fallback != NULL && strcmp(row->fallback, "null") == 0;
}

static const struct params_row *find_row(const struct params_row *const *tables, const char *name)
{
    for (size_t t = 0; tables[t] != NULL; t++) {
        for (const struct params_row *row = tables[t]; row->name != NULL; row++) {
            if (strcmp(row->name, name) == 0) {
                return row;
            }
        }
    }
    return NULL;
}

static void refuse_unknown(struct reader *reader, const struct params_row *const *tables, const json_t *object)
{
    const char *key;
    json_t *value;

    json_object_foreach((json_t *)object, key, value)
    {
        if (find_row(tables, key) == NULL) {
            char pointer[192];
            text_pointer(pointer, sizeof(pointer), reader->pointer, key);
            faults_add(reader->faults, ERR_UNKNOWN_PARAMETER, pointer, "is not known here");
        }
    }
}

int params_parse(const struct params_row *const *tables, const json_t *object, const char *pointer, void *out,
                 struct faults *faults)
{
    struct reader reader = {pointer, faults, out};
    size_t before = faults->count + faults->dropped;

    if (object != NULL && !json_is_object(object)) {
        faults_add(faults, ERR_INVALID_PARAMETER, pointer, "must be an object");
        return ERR_INVALID_PARAMETER;
    }
    for (size_t t = 0; tables[t] != NULL; t++) {
        for (const struct params_row *row = tables[t]; row->name != NULL; row++) {
            const json_t *value = json_object_get(object, row->name);
            if (value != NULL && !(json_is_null(value) && nullable(row))) {
                read_value(&reader, row, value);
            } else if (value == NULL && row->fallback == NULL) {
                char member[192];
                text_pointer(member, sizeof(member), pointer, row->name);
                faults_add(faults, ERR_MISSING_PARAMETER, member, "is required");
            } else {
                read_fallback(&reader, row);
            }
        }
    }
    refuse_unknown(&reader, tables, object);
    if (faults->count + faults->dropped == before) {
        return 0;
    }
    params_release(tables, out);
    /* The list was full before when the first fault of this object was dropped. */
    return before < faults->count ? faults->items[before].code : ERR_INVALID_PARAMETER;
}

void params_release(const struct params_row *const *tables, void *values)
{
    for (size_t t = 0; tables[t] != NULL; t++) {
        for (const struct params_row *row = tables[t]; row->name != NULL; row++) {
            if (row->type == PARAMS_JSON || row->type == PARAMS_STRINGS) {
                json_t *reference;
                memcpy(&reference, (char *)values + row->offset, sizeof(reference));
                json_decref(reference);
                memset((char *)values + row->offset, 0, sizeof(reference));
            }
        }
    }
}
