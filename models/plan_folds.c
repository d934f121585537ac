/* Where the factors of a group's input can go, from a plan's steps. */

#include "models/plan_internal.h"

bool plan_step_reads(const struct plan_step *step, int value)
{
    for (int i = 0; i < step->inputs; i++) {
        if (step->in[i] == value) {
            return true;
        }
    }
    return false;
}

int plan_only_reader(const struct plan_builder *b, int value)
{
    int found = -1;

    for (int s = 0; s < b->plan.step_count; s++) {
        if (plan_step_reads(&b->steps[s], value)) {
            if (found >= 0) {
                return -1;
            }
            found = s;
        }
    }
    return found;
}

/* Whether nothing but the selection `s` reads the columns of its input that it takes: all that read it select, by the
 * same stride, other columns. */
static bool selects_alone(const struct plan_builder *b, int s)
{
    const struct plan_select *mine = &b->steps[s].select;

    for (int k = 0; k < b->plan.step_count; k++) {
        const struct plan_select *other = &b->steps[k].select;
        if (k == s || !plan_step_reads(&b->steps[k], b->steps[s].in[0])) {
            continue;
        }
        bool apart = other->first >= mine->first + mine->count || mine->first >= other->first + other->count;
        if (b->steps[k].kind != STEP_SELECT || other->stride != mine->stride || !apart) {
            return false;
        }
    }
    return true;
}

/* Of the fold: the linear that makes a value by itself, through factors alone, if nothing else reads what it makes; or
 * some rows of it, where the value is a selection of its outputs. */
static void rows_behind(const struct plan_builder *b, int value, int reader, struct plan_fold *fold)
{
    while (value > 0 && b->values[value].producer >= 0) {
        const struct plan_step *step = &b->steps[b->values[value].producer];
        bool selected = b->steps[reader].kind == STEP_SELECT && selects_alone(b, reader);
        if (!selected && plan_only_reader(b, value) != reader) {
            return;
        }
        if (step->kind == STEP_LINEAR) {
            fold->module = step->module;
            return;
        }
        if (step->kind == STEP_SELECT && fold->rows.stride == 0) {
            fold->rows = step->select;
        } else if (step->kind != STEP_SCALE) {
            return;
        }
        reader = b->values[value].producer;
        value = step->in[0];
    }
}

static bool only_linears_read(const struct plan_builder *b, int value)
{
    for (int s = 0; s < b->plan.step_count; s++) {
        if (plan_step_reads(&b->steps[s], value) && b->steps[s].kind != STEP_LINEAR &&
            b->steps[s].kind != STEP_EXPERTS) {
            return false;
        }
    }
    return true;
}

static struct plan_fold find_fold(const struct plan_builder *b, int value)
{
    struct plan_fold fold = {.kind = FOLD_NONE, .norm = -1, .module = -1};
    int s = b->values[value].producer;

    if (!only_linears_read(b, value)) {
        return fold;
    }
    while (s >= 0 && b->steps[s].kind == STEP_SCALE && b->values[b->steps[s].in[0]].last == s) {
        s = b->values[b->steps[s].in[0]].producer;
    }
    if (s < 0) {
        return fold;
    }
    const struct plan_step *step = &b->steps[s];
    switch (step->kind) {
    case STEP_NORM:
    case STEP_GATED_NORM:
        if (b->norms[step->norm].path != NULL && b->norms[step->norm].size == b->values[value].width) {
            fold.kind = FOLD_NORM;
            fold.norm = step->norm;
        }
        break;
    case STEP_ATTENTION:
        rows_behind(b, step->in[2], s, &fold);
        fold.attention = true;
        fold.shared = step->attention.heads != step->attention.kv_heads;
        fold.kind = fold.module >= 0 && !fold.shared ? FOLD_ROWS : FOLD_NONE;
        break;
    case STEP_ACTIVATE:
        /* Factors pass through what multiplies, and through relu, which is homogeneous. */
        if (step->inputs == 2 && step->activation != ACTIVATION_SWIGLU_CLAMPED) {
            rows_behind(b, step->in[1], s, &fold);
        } else if (step->activation == ACTIVATION_RELU) {
            rows_behind(b, step->in[0], s, &fold);
        }
        fold.kind = fold.module >= 0 ? FOLD_ROWS : FOLD_NONE;
        break;
    default:
        break;
    }
    return fold;
}

void plan_find_folds(const struct plan_builder *b, struct plan_group *groups)
{
    for (int g = 0; g < b->plan.group_count; g++) {
        if (groups[g].expert < 0) {
            groups[g].fold = find_fold(b, groups[g].input);
        }
    }
}
