#pragma once
/* Within jobs/: what recommendations are made of. */

#include "jobs/roofline.h"

#include <stdbool.h>

struct accelerator_row {
    const char *name, *title;
    struct roofline_device device;
};
/* Ends with a row whose name is NULL. */
extern const struct accelerator_row accelerators[];
const struct accelerator_row *accelerator_find(const char *name);

/* In what type a runtime multiplies. */
enum choice_products { PRODUCTS_BF16, PRODUCTS_INT8, PRODUCTS_FP8 };

/* A way to quantize: a job but for its model. Which runtimes load its artifact, and by which kernels, is in the table
 * of formats/runtime_rows.c. */
struct choice_row {
    const char *name;
    const char *job; /* JSON: method, quantization, output */
    enum choice_products products;
    bool cache;          /* keys and values in eight bits */
    bool serves;         /* its kernels are made for throughput; else no speed is promised */
    const char *caution; /* NULL: there is nothing to be careful of */
};
extern const struct choice_row choices[];
const struct choice_row *choice_find(const char *name);

#define GOAL_CHOICES_MAX 8
struct goal_row {
    const char *name, *title;
    struct {
        const char *choice, *reason;
    } order[GOAL_CHOICES_MAX]; /* the best first; ends with a choice NULL */
    const char *note;          /* what to know before any of them */
};
extern const struct goal_row goals[];
