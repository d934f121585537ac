#pragma once
/* A plan as it is made. Shared by the files of models/plan*.c only. */

#include "models/plan.h"

struct plan_builder {
    struct arena *arena;
    struct plan plan; /* its lists are these: */
    struct plan_value values[PLAN_VALUES_MAX];
    struct plan_step steps[PLAN_STEPS_MAX];
    struct plan_module *modules;
    struct plan_norm norms[PLAN_STEPS_MAX];
    struct plan_parameter parameters[PLAN_STEPS_MAX];
    struct plan_fused *fused;
    int module_room, fused_room;
    bool expert; /* the plan of one */
    int rc;      /* the first failure */
};

/* Value 0 is `width` wide. NULL: no memory. */
struct plan_builder *plan_builder_new(struct arena *arena, int64_t width);
/* The builder fails, with the first of its failures; 0. */
int plan_fail(struct plan_builder *b, int rc);
/* Add a step whose output is `width` wide; returns the value's number. */
int plan_add_step(struct plan_builder *b, const struct plan_step *step, int64_t width);
/* plan_recurrent.c: whether the widths of the inputs of a CONV, a DELTA, a SCAN or a GATED_NORM fit its constants. */
bool plan_recurrent_fits(const struct plan_builder *b, const struct plan_step *step);
bool plan_recurrent_same(const struct plan_step *a, const struct plan_step *b);
/* plan_derive.c: what follows from the steps, into builder->plan; its lists are the arena's afterwards. */
int plan_derive(struct plan_builder *b, int output);
/* plan_folds.c. */
bool plan_step_reads(const struct plan_step *step, int value);
/* The one step that reads a value, or -1. */
int plan_only_reader(const struct plan_builder *b, int value);
/* Set `fold` of all groups but experts', whose plans have theirs. */
void plan_find_folds(const struct plan_builder *b, struct plan_group *groups);
/* plan_check.c: whether each step's inputs fit it, and each group follows from the residual stream. ERR_INTERNAL. */
int plan_check_steps(const struct plan_builder *b);
int plan_check_stream(const struct plan *plan);
/* Whether what the layer gives is made before the first sum of the residual stream, apart from it. ERR_INTERNAL. */
int plan_check_given(const struct plan *plan);
