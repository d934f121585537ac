#pragma once
/* Option rows: one table gives JSON validation, defaults, JSON Schema and documentation.
 *
 * A struct of plain members is described by rows; params_parse fills it from a JSON object,
 * params_schema prints the rows as JSON Schema (draft 2020-12), params_json echoes a filled struct. */

#include "base/text.h"
#include "base/validation.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum params_type {
    PARAMS_BOOL,    /* bool */
    PARAMS_INT,     /* int64_t, range [min, max]; `choices` lists extra rules when set */
    PARAMS_NUMBER,  /* double, range [min, max] */
    PARAMS_STRING,  /* char[size], at most size-1 bytes of UTF-8 without NUL */
    PARAMS_ENUM,    /* int, index into `choices` */
    PARAMS_JSON,    /* json_t *, a new reference or NULL: checked by the caller */
    PARAMS_STRINGS, /* json_t *, an array of strings, a new reference or NULL */
    PARAMS_SWITCH,  /* int, enum params_switch */
};

/* true, false, or null: the reader of the struct decides. */
enum params_switch { PARAMS_AUTO, PARAMS_OFF, PARAMS_ON };

struct params_row {
    const char *name;
    enum params_type type;
    size_t offset;              /* offsetof the member */
    size_t size;                /* sizeof the member */
    const char *fallback;       /* default as JSON text ("4", "true", "\"gemm\""); NULL = required; "null" = may be
                                 * absent: JSON, STRINGS (NULL), STRING (""), NUMBER (NAN), SWITCH (PARAMS_AUTO) */
    double min, max;            /* INT and NUMBER, inclusive; both 0 = unbounded */
    bool exclusive;             /* NUMBER: the ends are excluded */
    const char *const *choices; /* ENUM: names; INT: decimal strings of the allowed values; NULL-terminated, or NULL */
    const char *help;           /* one sentence, shown in the schema */
    bool quiet; /* params_json leaves it out while it has its fallback: a member that few requests use */
    const char *const *aliases; /* names that other programs give the member, accepted in its place; NULL-terminated, or
                                 * NULL. "!name" of a BOOL: the opposite of it */
    /* For the schema; the caller checks them. */
    const char *id;                        /* STRING and JSON: an id with this prefix, or NULL */
    const char *pattern;                   /* STRING: what it must look like, or NULL */
    const struct params_row *const *parts; /* JSON: the members of the object, or NULL */
};

/* A table ends with a row whose name is NULL. A table may be given as several, in order. */

/* Fill `out` (zeroed) from `object` (NULL = all defaults; anything but an object is an error). Every error goes to
 * `errors` under `pointer` + "/" + name, unknown members included. 0, or the first error's code; on failure `out` is
 * released. `tables` is NULL-terminated. Any thread. */
int params_parse(const struct params_row *const *tables, const json_t *object, const char *pointer, void *out,
                 struct validation_errors *errors);
/* Whether the member may be absent or null. */
bool params_nullable(const struct params_row *row);
/* The row of a member by its name or one of its aliases, or NULL. */
const struct params_row *params_find(const struct params_row *const *tables, const char *name);
/* The value that `object` has under the row's name or an alias, and *name, as it is spelled there; or NULL. */
json_t *params_member(const struct params_row *row, const json_t *object, const char **name);
/* Offer every name and alias to the guess of what an unknown member was meant to be. */
void params_offer(const struct params_row *const *tables, struct text_guess *guess);
/* A JSON value for an error message: short values as they are, others by their kind. */
#define PARAMS_VALUE_SIZE 96
const char *params_value_text(const json_t *value, char out[PARAMS_VALUE_SIZE]);
/* "a, b, c" from a NULL-terminated list. */
void params_join(const char *const *list, char *out, size_t size);
/* Drop the references that PARAMS_JSON and PARAMS_STRINGS members hold. */
void params_release(const struct params_row *const *tables, void *values);
/* The struct as a JSON object, every member present (absent = null). New reference, NULL if out of memory. */
json_t *params_json(const struct params_row *const *tables, const void *values);
/* {"type":"object","properties":{...},"required":[...],"additionalProperties":false}. New reference. */
json_t *params_schema(const struct params_row *const *tables);
