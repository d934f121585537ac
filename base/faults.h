#pragma once
/* A bounded list of everything wrong with one input, so that a client hears of every fault at once.
 * Texts are kept as valid UTF-8. */

#include <stddef.h>

#define FAULTS_MAX 32

struct fault {
    int code;          /* negative err code */
    char param[192];   /* JSON Pointer, or ?name of a query parameter */
    char detail[1024]; /* a sentence that stands alone: it names the member, its value and what is allowed */
    char hint[384];    /* what to change, or "" */
};

struct faults {
    size_t count;   /* as many as are kept */
    size_t dropped; /* those past FAULTS_MAX */
    struct fault items[FAULTS_MAX];
};

void faults_add(struct faults *faults, int code, const char *pointer, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
/* What to change, said of the fault that was added last (dropped ones too). */
void faults_hint(struct faults *faults, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* 0 when empty; else raises the first fault's code with its detail, pointer and hint, and returns it. */
int faults_raise(const struct faults *faults);
