/* Option rows read and echoed. Every error of an object is found in one pass; nothing is applied partly, because the
 * caller gets the struct only when the list of errors did not grow. */

#include "base/params.h"

#include "base/err.h"
#include "base/text.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct reader {
    const char *pointer; /* of the object */
    struct validation_errors *errors;
    char *out;
    const char *name; /* of the member that is read, as the object spells it */
};

const char *params_value_text(const json_t *value, char out[PARAMS_VALUE_SIZE])
{
    enum { SHOWN = 60 };

    if (json_is_string(value)) {
        size_t length = json_string_length(value);
        snprintf(out, PARAMS_VALUE_SIZE, "\"%.*s%s\"", (int)(length < SHOWN ? length : SHOWN), json_string_value(value),
                 length > SHOWN ? "..." : "");
    } else if (json_is_array(value)) {
        snprintf(out, PARAMS_VALUE_SIZE, "a list of %zu", json_array_size(value));
    } else if (json_is_object(value)) {
        snprintf(out, PARAMS_VALUE_SIZE, "an object");
    } else {
        size_t length = json_dumpb(value, out, PARAMS_VALUE_SIZE - 1, JSON_ENCODE_ANY);
        out[length < PARAMS_VALUE_SIZE ? length : 0] = '\0';
    }
    return out;
}

/* name + " is " + value + "; it must be " + what + fact */
static void params_refuse(struct reader *reader, const json_t *value, const char *what, const char *fact)
{
    char pointer[192], text[PARAMS_VALUE_SIZE];

    text_pointer(pointer, sizeof(pointer), reader->pointer, reader->name);
    validation_add(reader->errors, ERR_INVALID_PARAMETER, pointer, "\"%.80s\" is %s; it must be %s%s", reader->name,
                   params_value_text(value, text), what, fact);
}

void params_join(const char *const *list, char *out, size_t size)
{
    out[0] = '\0';
    for (size_t i = 0; list[i] != NULL; i++) {
        size_t used = strlen(out);
        snprintf(out + used, size - used, "%s%s", i > 0 ? ", " : "", list[i]);
    }
}

static void range_text(const struct params_row *row, char *out, size_t size)
{
    /* 16 digits: the largest seed is 2^53 - 1, and the bounds that are fractions have few. */
    snprintf(out, size, row->exclusive ? "above %.16g and below %.16g" : "from %.16g to %.16g", row->min, row->max);
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
    for (int i = 0; row->choices[i] != NULL && row->type == PARAMS_ENUM; i++) {
        if (text_same_name(row->choices[i], text)) { /* "E4M3" */
            return i;
        }
    }
    return -1;
}

static void read_int(struct reader *reader, const struct params_row *row, const json_t *value)
{
    char fact[192];

    if (!json_is_integer(value)) {
        if (row->choices != NULL) {
            params_join(row->choices, fact, sizeof(fact));
        } else if (bounded(row)) {
            range_text(row, fact, sizeof(fact));
        }
        params_refuse(reader, value,
                      row->choices != NULL ? "an integer, one of "
                      : bounded(row)       ? "an integer "
                                           : "an integer",
                      row->choices != NULL || bounded(row) ? fact : "");
        return;
    }
    int64_t n = json_integer_value(value);
    if (row->choices != NULL) {
        char text[32];
        snprintf(text, sizeof(text), "%lld", (long long)n);
        if (choice_of(row, text) < 0) {
            params_join(row->choices, fact, sizeof(fact));
            params_refuse(reader, value, "one of ", fact);
            return;
        }
    } else if (bounded(row) && ((double)n < row->min || (double)n > row->max)) {
        range_text(row, fact, sizeof(fact));
        params_refuse(reader, value, "an integer ", fact);
        return;
    }
    memcpy(reader->out + row->offset, &n, sizeof(n));
}

static void params_read_number(struct reader *reader, const struct params_row *row, const json_t *value)
{
    char fact[128];

    if (!json_is_number(value)) {
        if (bounded(row)) {
            range_text(row, fact, sizeof(fact));
        }
        params_refuse(reader, value, bounded(row) ? "a number " : "a number", bounded(row) ? fact : "");
        return;
    }
    double x = json_number_value(value);
    bool outside = row->exclusive ? x <= row->min || x >= row->max : x < row->min || x > row->max;
    if (bounded(row) && outside) { /* JSON has no infinity, and the parser refuses what overflows */
        range_text(row, fact, sizeof(fact));
        params_refuse(reader, value, "a number ", fact);
        return;
    }
    memcpy(reader->out + row->offset, &x, sizeof(x));
}

static void params_read_string(struct reader *reader, const struct params_row *row, const json_t *value)
{
    char fact[32];

    snprintf(fact, sizeof(fact), "%zu bytes", row->size - 1);
    if (!json_is_string(value) || json_string_length(value) >= row->size ||
        strlen(json_string_value(value)) != json_string_length(value)) {
        params_refuse(reader, value, "a string of at most ", fact);
        return;
    }
    memcpy(reader->out + row->offset, json_string_value(value), json_string_length(value) + 1);
}

static void read_enum(struct reader *reader, const struct params_row *row, const json_t *value)
{
    int choice = json_is_string(value) ? choice_of(row, json_string_value(value)) : -1;

    if (choice < 0) {
        char fact[192];
        params_join(row->choices, fact, sizeof(fact));
        params_refuse(reader, value, "one of ", fact);
        if (json_is_string(value)) {
            struct text_guess guess = {.word = json_string_value(value)};
            for (size_t i = 0; row->choices[i] != NULL; i++) {
                text_guess_offer(&guess, row->choices[i]);
            }
            if (guess.name != NULL) {
                validation_hint(reader->errors, "did you mean \"%s\"?", guess.name);
            }
        }
        return;
    }
    memcpy(reader->out + row->offset, &choice, sizeof(choice));
}

static void read_strings(struct reader *reader, const struct params_row *row, const json_t *value)
{
    size_t i;
    json_t *item;

    if (!json_is_array(value) || json_array_size(value) > 1024) {
        params_refuse(reader, value, "a list of at most 1024 strings", "");
        return;
    }
    json_array_foreach(value, i, item)
    {
        if (!json_is_string(item) || json_string_length(item) > 512 ||
            strlen(json_string_value(item)) != json_string_length(item)) {
            params_refuse(reader, value, "a list of strings of at most 512 bytes each", "");
            return;
        }
    }
    json_t *reference = json_incref((json_t *)value);
    memcpy(reader->out + row->offset, &reference, sizeof(reference));
}

static void read_switch(struct reader *reader, const struct params_row *row, const json_t *value)
{
    int state = json_is_true(value) ? PARAMS_ON : PARAMS_OFF;

    if (!json_is_boolean(value)) {
        params_refuse(reader, value, "true, false or null", "");
        return;
    }
    memcpy(reader->out + row->offset, &state, sizeof(state));
}

static void params_read_value(struct reader *reader, const struct params_row *row, const json_t *value)
{
    switch (row->type) {
    case PARAMS_BOOL:
        if (!json_is_boolean(value)) {
            params_refuse(reader, value, "true or false", "");
            return;
        }
        *(bool *)(reader->out + row->offset) = json_is_true(value);
        return;
    case PARAMS_INT:
        read_int(reader, row, value);
        return;
    case PARAMS_NUMBER:
        params_read_number(reader, row, value);
        return;
    case PARAMS_STRING:
        params_read_string(reader, row, value);
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
    case PARAMS_SWITCH:
        read_switch(reader, row, value);
        return;
    }
}

static void read_fallback(struct reader *reader, const struct params_row *row)
{
    json_t *value = json_loads(row->fallback, JSON_DECODE_ANY, NULL);

    if (value == NULL) {
        validation_add(reader->errors, ERR_INTERNAL, "", "the default of %s is not JSON", row->name);
        return;
    }
    if (!json_is_null(value)) {
        params_read_value(reader, row, value);
    } else if (row->type == PARAMS_NUMBER) {
        const double none = NAN;
        memcpy(reader->out + row->offset, &none, sizeof(none));
    }
    json_decref(value);
}

bool params_nullable(const struct params_row *row)
{
    return row->fallback != NULL && strcmp(row->fallback, "null") == 0;
}

/* Whether it is the row's name or one of its aliases. *opposite: an alias for the opposite. */
static bool names_row(const struct params_row *row, const char *name, bool *opposite)
{
    *opposite = false;
    if (strcmp(row->name, name) == 0) {
        return true;
    }
    for (size_t i = 0; row->aliases != NULL && row->aliases[i] != NULL; i++) {
        *opposite = row->aliases[i][0] == '!';
        if (strcmp(row->aliases[i] + *opposite, name) == 0) {
            return true;
        }
    }
    return false;
}

const struct params_row *params_find(const struct params_row *const *tables, const char *name)
{
    bool opposite;

    for (size_t t = 0; tables[t] != NULL; t++) {
        for (const struct params_row *row = tables[t]; row->name != NULL; row++) {
            if (names_row(row, name, &opposite)) {
                return row;
            }
        }
    }
    return NULL;
}

json_t *params_member(const struct params_row *row, const json_t *object, const char **name)
{
    json_t *value = json_object_get(object, row->name);

    *name = row->name;
    for (size_t i = 0; value == NULL && row->aliases != NULL && row->aliases[i] != NULL; i++) {
        *name = row->aliases[i] + (row->aliases[i][0] == '!');
        value = json_object_get(object, *name);
    }
    return value;
}

void params_offer(const struct params_row *const *tables, struct text_guess *guess)
{
    for (size_t t = 0; tables[t] != NULL; t++) {
        for (const struct params_row *row = tables[t]; row->name != NULL; row++) {
            text_guess_offer(guess, row->name);
            for (size_t i = 0; row->aliases != NULL && row->aliases[i] != NULL; i++) {
                if (row->aliases[i][0] != '!') {
                    text_guess_offer_as(guess, row->aliases[i], row->name);
                }
            }
        }
    }
}

static void list_members(const struct params_row *const *tables, char *out, size_t size)
{
    size_t used = 0;

    out[0] = '\0';
    for (size_t t = 0; tables[t] != NULL; t++) {
        for (const struct params_row *row = tables[t]; row->name != NULL && used < size; row++) {
            used += (size_t)snprintf(out + used, size - used, "%s%s", used > 0 ? ", " : "", row->name);
        }
    }
}

/* Members that no row has, and a second name of one that another has. */
static void refuse_unknown(struct reader *reader, const struct params_row *const *tables, const json_t *object)
{
    const char *key, *first;
    json_t *value;

    json_object_foreach((json_t *)object, key, value)
    {
        const struct params_row *row = params_find(tables, key);
        char pointer[192], members[320];
        text_pointer(pointer, sizeof(pointer), reader->pointer, key);
        if (row != NULL) {
            (void)params_member(row, object, &first);
            if (strcmp(first, key) != 0) {
                validation_add(reader->errors, ERR_INVALID_PARAMETER, pointer,
                               "\"%.80s\" is another name of \"%s\", which is there too", key, first);
                validation_hint(reader->errors, "give one of them");
            }
            continue;
        }
        struct text_guess guess = {.word = key};
        params_offer(tables, &guess);
        validation_add(reader->errors, ERR_UNKNOWN_PARAMETER, pointer, "\"%.80s\" is not a member of %s%s%s", key,
                       reader->pointer[0] != '\0' ? "\"" : "the request",
                       reader->pointer[0] != '\0' ? reader->pointer + 1 : "", reader->pointer[0] != '\0' ? "\"" : "");
        if (guess.name != NULL) {
            validation_hint(reader->errors, "did you mean \"%s\"?", guess.name);
        } else {
            list_members(tables, members, sizeof(members));
            validation_hint(reader->errors, "the members are %s", members);
        }
    }
}

static void read_row(struct reader *reader, const struct params_row *row, const json_t *object)
{
    const json_t *value = params_member(row, object, &reader->name);
    bool opposite = false;

    if (value != NULL && !(json_is_null(value) && params_nullable(row))) {
        (void)names_row(row, reader->name, &opposite);
        if (opposite && json_is_boolean(value)) {
            value = json_is_true(value) ? json_false() : json_true();
        }
        params_read_value(reader, row, value);
    } else if (value == NULL && row->fallback == NULL) {
        char member[192];
        text_pointer(member, sizeof(member), reader->pointer, row->name);
        validation_add(reader->errors, ERR_MISSING_PARAMETER, member, "\"%s\" is required", row->name);
        validation_hint(reader->errors, "%s", row->help != NULL ? row->help : "");
    } else {
        reader->name = row->name;
        read_fallback(reader, row);
    }
}

int params_parse(const struct params_row *const *tables, const json_t *object, const char *pointer, void *out,
                 struct validation_errors *errors)
{
    struct reader reader = {.pointer = pointer, .errors = errors, .out = out};
    size_t before = errors->count + errors->dropped;

    if (object != NULL && !json_is_object(object)) {
        char text[PARAMS_VALUE_SIZE];
        validation_add(errors, ERR_INVALID_PARAMETER, pointer, "%s%s%s is %s; it must be an object",
                       pointer[0] != '\0' ? "\"" : "the body", pointer[0] != '\0' ? pointer + 1 : "",
                       pointer[0] != '\0' ? "\"" : "", params_value_text(object, text));
        return ERR_INVALID_PARAMETER;
    }
    for (size_t t = 0; tables[t] != NULL; t++) {
        for (const struct params_row *row = tables[t]; row->name != NULL; row++) {
            read_row(&reader, row, object);
        }
    }
    refuse_unknown(&reader, tables, object);
    if (errors->count + errors->dropped == before) {
        return 0;
    }
    params_release(tables, out);
    /* The list was full before when the first error of this object was dropped. */
    return before < errors->count ? errors->items[before].code : ERR_INVALID_PARAMETER;
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
