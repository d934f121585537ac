#pragma once
/* A bounded list of the validation errors of one input, so that a client sees all of them in one answer.
 * Texts are stored as valid UTF-8. */

#include <stddef.h>

#define VALIDATION_ERRORS_MAX 32

struct validation_error {
    int code;          /* negative err code */
    char param[192];   /* JSON Pointer, or ?name of a query parameter */
    char detail[1024]; /* a self-contained sentence: it names the member, its value and what is allowed */
    char hint[384];    /* what to change, or "" */
};

struct validation_errors {
    size_t count;   /* stored in items */
    size_t dropped; /* those past VALIDATION_ERRORS_MAX */
    struct validation_error items[VALIDATION_ERRORS_MAX];
};

void validation_add(struct validation_errors *errors, int code, const char *pointer, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
/* Add a hint: what to change to avoid the error that was added last (no effect when that one was dropped). */
void validation_hint(struct validation_errors *errors, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* 0 when empty; otherwise raises the first error's code with its detail, pointer and hint, and returns it. */
int validation_raise(const struct validation_errors *errors);
