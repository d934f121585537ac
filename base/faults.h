#pragma once
/* A bounded list of everything wrong with one input, so that a client hears of every fault at once.
 * Texts are kept as valid UTF-8. */

#include <stddef.h>

#define FAULTS_MAX 32

struct fault {
    int code;          /* negative err code */
    char param[192];   /* JSON Pointer */
    char detail[1024]; /* as long as a module, an error's message and its hint together */
};

struct faults {
    size_t count;   /* as many as are kept */
    size_t dropped; /* those past FAULTS_MAX */
    struct fault items[FAULTS_MAX];
};

void faults_add(struct faults *faults, int code, const char *pointer, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
/* 0 when empty; else raises the first fault's code with its detail and pointer, and returns it. */
int faults_raise(const struct faults *faults);
