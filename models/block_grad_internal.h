#pragma once
/* What the files of a block's backward pass share. Not for other files. */

#include "models/block_grad.h"
#include "models/block_internal.h"

/* A plan whose values have storage of their own, one after another, and where their gradients are: each lives from the
 * last step that reads the value back to the step that makes it, and shares memory with those that live at other times.
 */
struct tape_layout {
    struct plan plan;
    struct plan_value values[PLAN_VALUES_MAX];
    struct plan_storage storages[PLAN_VALUES_MAX];
    int64_t gradients[PLAN_VALUES_MAX]; /* first columns, */
    int64_t columns;                    /* after so many of the values; of both */
};

struct block_tape {
    struct block_tape_spec spec;
    struct gpu gpu;
    struct gpu_stream *stream;
    struct block_scratch *scratch; /* without memory for values; `sequences` of the micro-batch */
    struct tensor memory;          /* F32: values, then gradients */
    struct tensor dweights;        /* F32 [T, k]: of the weights of experts; data NULL: there are none */
    const struct plan *plan;       /* the layer's; NULL: not begun */
    struct tape_layout layer;
    struct tape_layout expert; /* of the step EXPERTS that is taken in reverse */
    struct block_values values;
    int routed; /* the step EXPERTS whose choices the scratch has; -1: none */
};

/* Values of a plan and their gradients: the layer's, or those of an expert's rows. */
struct tape_pass {
    const struct block *block;
    struct block_tape *tape;
    const struct tape_layout *layout;
    const struct block_values *values;
    float *memory; /* where the values begin, with the gradients after them */
    const struct block_grads *grads;
    plan_set needed; /* values whose gradients what is wanted follows from */
};

void tape_layout_make(const struct plan *plan, struct tape_layout *out);
/* Give the values their places from `memory` on. */
void tape_layout_place(const struct tape_layout *layout, struct block_values *values, float *memory);
struct tensor tape_gradient(const struct tape_pass *pass, int value);
/* The steps of the pass's plan in reverse, from the gradients of the values `from`; those of `want` are there then. */
int tape_reverse(struct tape_pass *pass, plan_set from, plan_set want);
/* A step on its way back: `out` is the gradient of its output, which nothing reads afterwards; grads[i] that of input
 * i, to add to, data NULL: not needed. block_grad_experts.c: EXPERTS. */
int tape_vjp_experts(const struct tape_pass *pass, const struct block_step *r, const struct tensor *out,
                     const struct tensor *grads);
/* Whether gradients of an expert's tensors are wanted. */
bool tape_wants_experts(const struct block_grads *grads, const struct plan_experts *experts);
