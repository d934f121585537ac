/* Bodies of the operations that make targets: sums of two tensors, moments of two sets of inputs, products with the
 * inverse of a Hessian. */

#include "tests/conformance/ops_bodies.h"

/* variant: elements. Onto a third tensor, without b, onto a and onto b. */
int body_combine(struct ops_rig *rig, int variant, struct ops_output *out)
{
    const struct gpu_ops *ops = rig->gpu.ops;
    struct tensor a, b, y;

    TRY(ops_random(rig, DTYPE_F32, 1, variant, 61, &a));
    TRY(ops_random(rig, DTYPE_F32, 1, variant, 62, &b));
    TRY(ops_new(rig, DTYPE_F32, 1, variant, &y));
    TRY(ops->combine(rig->stream, &y, 0.3, &a, -1.7, &b));
    TRY(ops_put(rig, out, &y));
    TRY(ops->combine(rig->stream, &y, 1.0 / 3, &a, 0, NULL));
    TRY(ops_put(rig, out, &y));
    TRY(ops->combine(rig->stream, &a, 1, &a, -1, &b));
    TRY(ops_put(rig, out, &a));
    TRY(ops->combine(rig->stream, &b, 0.5, &a, 2, &b));
    return ops_put(rig, out, &b);
}

static const struct cross_row {
    int64_t m, k;
} crosses[] = {{64, 96}, {37, 21}, {300, 515}, {1, 9}};

/* variant: a row of crosses. Two sets of inputs and an empty one into one sum; then those of one tensor alone. */
int body_cross(struct ops_rig *rig, int variant, struct ops_output *out)
{
    const struct cross_row *row = &crosses[variant];
    const struct gpu_ops *ops = rig->gpu.ops;
    struct tensor a, b, c, more_a, more_b, none_a, none_b, own;

    TRY(ops_random(rig, DTYPE_F32, 40, row->m, 63, &a));
    TRY(ops_random(rig, DTYPE_F32, 40, row->k, 64, &b));
    TRY(ops_random(rig, DTYPE_F32, 7, row->m, 65, &more_a));
    TRY(ops_random(rig, DTYPE_F32, 7, row->k, 66, &more_b));
    TRY(ops_new(rig, DTYPE_F32, 0, row->m, &none_a));
    TRY(ops_new(rig, DTYPE_F32, 0, row->k, &none_b));
    TRY(ops_new(rig, DTYPE_F32, row->m, row->k, &c));
    TRY(ops_new(rig, DTYPE_F32, row->m, row->m, &own));
    TRY(ops->cross(rig->stream, &c, &a, &b));
    TRY(ops->cross(rig->stream, &c, &more_a, &more_b));
    TRY(ops->cross(rig->stream, &c, &none_a, &none_b));
    TRY(ops->cross(rig->stream, &own, &a, &a));
    TRY(ops_put(rig, out, &c));
    return ops_put(rig, out, &own);
}

static const struct solve_row {
    int64_t n, k;
    bool order, alias;
} solves[] = {
    {33, 64, false, false}, {7, 37, true, false}, {50, 600, false, true}, {19, 557, true, true}, {1, 1, true, false},
};

static int solve_onto(struct ops_rig *rig, const struct solve_row *row, const struct tensor *u, const int32_t *order,
                      struct ops_output *out)
{
    struct tensor g, y;

    TRY(ops_random(rig, DTYPE_F32, row->n, row->k, 67, &g));
    TRY(ops_random(rig, DTYPE_F32, row->n, row->k, 68, &y));
    TRY(rig->gpu.ops->solve(rig->stream, row->alias ? &g : &y, &g, u, order));
    TRY(ops_put(rig, out, row->alias ? &g : &y));
    return row->alias ? 0 : ops_put(rig, out, &g); /* unchanged */
}

/* variant: a row of solves, with a factor that is the same on every backend: one strip of a device's product and
 * several, sizes that no tile divides, with and without an order, onto a tensor of its own and onto g. */
int body_solve(struct ops_rig *rig, int variant, struct ops_output *out)
{
    const struct solve_row *row = &solves[variant];
    int32_t order[OPS_FACTOR_MAX];
    struct tensor u;

    ops_shuffle(order, (int)row->k);
    TRY(ops_upper(rig, row->k, &u));
    return solve_onto(rig, row, &u, row->order ? order : NULL, out);
}

/* variant: a row of solves, with the backend's own factor of a damped Hessian that has a dead column. */
int body_solve_hessian(struct ops_rig *rig, int variant, struct ops_output *out)
{
    const struct solve_row *row = &solves[variant];
    int32_t order[OPS_FACTOR_MAX];
    const struct gpu_factor spec = {.damp_percent = 0.05, .order = row->order ? order : NULL};
    struct tensor h, u;

    ops_shuffle(order, (int)row->k);
    TRY(ops_hessian(rig, (int)row->k, &h));
    TRY(ops_new(rig, DTYPE_F32, row->k, row->k, &u));
    TRY(rig->gpu.ops->factor(rig->stream, &u, &h, &spec));
    return solve_onto(rig, row, &u, spec.order, out);
}
