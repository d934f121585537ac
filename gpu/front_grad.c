/* The arguments of the backward pass and of the steps of what is trained.
 *
 * Outputs are added to while inputs are still read, by any number of tasks at once: none shares memory with another
 * argument. */

#include "gpu/front.h"

#include <math.h>

struct named_tensor {
    const char *name;
    const struct tensor *tensor; /* or NULL */
};

/* The first `outs` of these share no memory with each other or with those after them; a list ends at a NULL name. */
static int check_apart(const char *op, const struct named_tensor *list, int outs)
{
    for (int i = 0; i < outs; i++) {
        for (int j = i + 1; list[i].tensor != NULL && list[j].name != NULL; j++) {
            if (list[j].tensor != NULL) {
                TRY(check_separate(op, list[i].name, list[i].tensor, list[j].name, list[j].tensor));
            }
        }
    }
    return 0;
}

/* As check_f32; NULL is fine. */
static int check_optional_f32(const char *op, const char *name, const struct tensor *tensor, int64_t rows, int64_t cols)
{
    return tensor == NULL ? 0 : check_f32(op, name, tensor, rows, cols);
}

int check_linear_grad(const char *op, const struct tensor *dx, const struct tensor *dy, const struct tensor *w)
{
    TRY(check_f32(op, "dy", dy, -1, -1));
    TRY(check_weight(op, "w", w, matrix_cols(dy), -1));
    TRY(check_f32(op, "dx", dx, matrix_rows(dy), matrix_cols(w)));
    return check_apart(op, (struct named_tensor[]){{"dx", dx}, {"dy", dy}, {"w", w}, {NULL, NULL}}, 1);
}

int check_column_sums(const char *op, const struct tensor *d, const struct tensor *x)
{
    TRY(check_f32(op, "x", x, -1, -1));
    TRY(check_vector(op, "d", d, matrix_cols(x)));
    return check_separate(op, "d", d, "x", x);
}

int check_norm_grad(const char *op, const struct tensor *dx, const struct tensor *dweight, const struct tensor *dbias,
                    const struct tensor *dy, const struct tensor *x, const struct tensor *weight,
                    const struct gpu_norm *spec)
{
    TRY(check_norm(op, dy, x, weight, NULL, spec));
    TRY(check_optional_f32(op, "dx", dx, matrix_rows(x), matrix_cols(x)));
    TRY(check_optional(op, "dweight", dweight, spec->size));
    TRY(check_optional(op, "dbias", dbias, spec->size));
    if (dweight != NULL && weight == NULL) {
        return err_raise(ERR_INTERNAL, "%s: dweight without a weight", op);
    }
    return check_apart(
        op,
        (struct named_tensor[]){
            {"dx", dx}, {"dweight", dweight}, {"dbias", dbias}, {"dy", dy}, {"x", x}, {"weight", weight}, {NULL, NULL}},
        3);
}

int check_attention_grad(const char *op, const struct tensor *dq, const struct tensor *dk, const struct tensor *dv,
                         const struct tensor *dsinks, const struct tensor *d_out, const struct tensor *q,
                         const struct tensor *k, const struct tensor *v, const struct gpu_attention *spec)
{
    TRY(check_heads(op, q, k, v, spec));
    TRY(check_f32(op, "d_out", d_out, matrix_rows(q), spec->heads * gpu_value_dim(spec)));
    TRY(check_optional_f32(op, "dq", dq, matrix_rows(q), matrix_cols(q)));
    TRY(check_optional_f32(op, "dk", dk, matrix_rows(k), matrix_cols(k)));
    TRY(check_optional_f32(op, "dv", dv, matrix_rows(v), matrix_cols(v)));
    TRY(check_optional(op, "dsinks", dsinks, spec->heads));
    if (dsinks != NULL && spec->sinks == NULL) {
        return err_raise(ERR_INTERNAL, "%s: dsinks without sinks", op);
    }
    return check_apart(op,
                       (struct named_tensor[]){{"dq", dq},
                                               {"dk", dk},
                                               {"dv", dv},
                                               {"dsinks", dsinks},
                                               {"d_out", d_out},
                                               {"q", q},
                                               {"k", k},
                                               {"v", v},
                                               {"sinks", spec->sinks},
                                               {NULL, NULL}},
                       4);
}

int check_activate_grad(const char *op, const struct tensor *dgate, const struct tensor *dup, const struct tensor *dy,
                        const struct tensor *gate, const struct tensor *up, enum gpu_activation activation)
{
    TRY(check_activate(op, dy, gate, up, activation));
    TRY(check_optional_f32(op, "dgate", dgate, matrix_rows(gate), matrix_cols(gate)));
    TRY(check_optional_f32(op, "dup", dup, matrix_rows(dy), matrix_cols(dy)));
    if (dup != NULL && up == NULL) {
        return err_raise(ERR_INTERNAL, "%s: dup without up", op);
    }
    return check_apart(
        op,
        (struct named_tensor[]){{"dgate", dgate}, {"dup", dup}, {"dy", dy}, {"gate", gate}, {"up", up}, {NULL, NULL}},
        2);
}

int check_soft_cap_grad(const char *op, const struct tensor *dx, const struct tensor *dy, const struct tensor *x,
                        double cap)
{
    TRY(check_soft_cap(op, dy, x, cap));
    TRY(check_f32(op, "dx", dx, matrix_rows(x), matrix_cols(x)));
    return check_apart(op, (struct named_tensor[]){{"dx", dx}, {"dy", dy}, {"x", x}, {NULL, NULL}}, 1);
}

int check_add_columns(const char *op, const struct tensor *y, const struct tensor *x, const struct gpu_columns *spec)
{
    return check_placement(op, y, x, spec, true);
}

int check_row_dots(const char *op, const struct tensor *d, const struct tensor *a, const struct tensor *x,
                   const struct tensor *places, int64_t k)
{
    TRY(check_f32(op, "a", a, -1, -1));
    TRY(check_f32(op, "x", x, -1, matrix_cols(a)));
    TRY(check_numbers(op, "places", places, matrix_rows(x)));
    if (k < 1) {
        return err_raise(ERR_INTERNAL, "%s: %lld choices of a token", op, (long long)k);
    }
    TRY(check_vector(op, "d", d, matrix_rows(a) * k));
    return check_apart(op, (struct named_tensor[]){{"d", d}, {"a", a}, {"x", x}, {"places", places}, {NULL, NULL}}, 1);
}

int check_route_grad(const char *op, const struct tensor *dlogits, const struct tensor *dweights,
                     const struct tensor *ids, const struct tensor *logits, const struct gpu_route *spec)
{
    int64_t tokens = matrix_rows(logits);

    TRY(check_choices(op, logits, spec));
    TRY(check_f32(op, "dlogits", dlogits, tokens, matrix_cols(logits)));
    TRY(check_f32(op, "dweights", dweights, tokens, spec->top_k));
    TRY(check_matrix(op, "ids", ids, DTYPE_I32, tokens, spec->top_k));
    return check_apart(
        op,
        (struct named_tensor[]){
            {"dlogits", dlogits}, {"dweights", dweights}, {"ids", ids}, {"logits", logits}, {NULL, NULL}},
        1);
}

int check_quantize_input_grad(const char *op, const struct tensor *dx, const struct tensor *dy, const struct tensor *x,
                              const struct tensor *outliers, const struct gpu_input *spec)
{
    TRY(check_quantize_input(op, dx, x, outliers, spec));
    TRY(check_f32(op, "dy", dy, matrix_rows(x), matrix_cols(x)));
    return check_apart(
        op, (struct named_tensor[]){{"dx", dx}, {"dy", dy}, {"x", x}, {"outliers", outliers}, {NULL, NULL}}, 1);
}

/* A factor of a gradient. */
static int check_factor_of(const char *op, double factor)
{
    return isfinite(factor) ? 0 : err_raise(ERR_INTERNAL, "%s: a factor of %g", op, factor);
}

int check_mse_grad(const char *op, const struct tensor *dy, const struct tensor *y, const struct tensor *target,
                   double factor, double *loss)
{
    TRY(check_f32(op, "y", y, -1, -1));
    TRY(check_f32(op, "target", target, matrix_rows(y), matrix_cols(y)));
    TRY(check_optional_f32(op, "dy", dy, matrix_rows(y), matrix_cols(y)));
    TRY(check_factor_of(op, factor));
    return check_apart(op, (struct named_tensor[]){{"dy", dy}, {"y", y}, {"target", target}, {NULL, NULL}}, 1);
}

int check_kl_grad(const char *op, const struct tensor *dlogits, const struct tensor *logits,
                  const struct tensor *teacher, double factor, double *loss)
{
    TRY(check_f32(op, "logits", logits, -1, -1));
    TRY(check_f32(op, "teacher", teacher, matrix_rows(logits), matrix_cols(logits)));
    TRY(check_optional_f32(op, "dlogits", dlogits, matrix_rows(logits), matrix_cols(logits)));
    TRY(check_factor_of(op, factor));
    return check_apart(
        op, (struct named_tensor[]){{"dlogits", dlogits}, {"logits", logits}, {"teacher", teacher}, {NULL, NULL}}, 1);
}

int check_nll_grad(const char *op, const struct tensor *dlogits, const struct tensor *logits, const int32_t *labels,
                   double factor, double *loss)
{
    int64_t vocabulary = matrix_cols(logits);

    TRY(check_f32(op, "logits", logits, -1, -1));
    TRY(check_optional_f32(op, "dlogits", dlogits, matrix_rows(logits), vocabulary));
    TRY(check_factor_of(op, factor));
    for (int64_t t = 0; t < matrix_rows(logits); t++) {
        if (labels[t] >= vocabulary) {
            return err_raise(ERR_INTERNAL, "%s: label %d of %lld logits", op, (int)labels[t], (long long)vocabulary);
        }
    }
    return check_apart(op, (struct named_tensor[]){{"dlogits", dlogits}, {"logits", logits}, {NULL, NULL}}, 1);
}

int check_fake_round(const char *op, const struct tensor *wq, const struct tensor *codes, const struct tensor *u,
                     const struct tensor *scale, const struct tensor *zero, const struct gpu_grid *spec)
{
    TRY(check_points(op, u, scale, zero, spec));
    TRY(check_optional_f32(op, "wq", wq, matrix_rows(u), matrix_cols(u)));
    if (codes != NULL) {
        TRY(check_codes(op, codes, u));
    }
    return check_apart(
        op,
        (struct named_tensor[]){{"wq", wq}, {"codes", codes}, {"u", u}, {"scale", scale}, {"zero", zero}, {NULL, NULL}},
        2);
}

int check_fake_round_grad(const char *op, const struct tensor *du, const struct tensor *dscale,
                          const struct tensor *dzero, const struct tensor *dwq, const struct tensor *u,
                          const struct tensor *scale, const struct tensor *zero, const struct gpu_grid *spec)
{
    TRY(check_points(op, u, scale, zero, spec));
    TRY(check_f32(op, "dwq", dwq, matrix_rows(u), matrix_cols(u)));
    TRY(check_optional_f32(op, "du", du, matrix_rows(u), matrix_cols(u)));
    TRY(check_optional_f32(op, "dscale", dscale, matrix_rows(u), matrix_cols(scale)));
    TRY(check_optional_f32(op, "dzero", dzero, matrix_rows(u), matrix_cols(scale)));
    return check_apart(op,
                       (struct named_tensor[]){{"du", du},
                                               {"dscale", dscale},
                                               {"dzero", dzero},
                                               {"dwq", dwq},
                                               {"u", u},
                                               {"scale", scale},
                                               {"zero", zero},
                                               {NULL, NULL}},
                       3);
}

/* Levels of which at least one is a number to round to. */
static int check_finite_levels(const char *op, const struct tensor *u, const struct tensor *scale,
                               const struct gpu_levels *levels)
{
    TRY(check_levels(op, u, scale, levels));
    for (int i = 0; i < levels->count; i++) {
        if (isfinite(levels->values[i])) {
            return 0;
        }
    }
    return err_raise(ERR_INTERNAL, "%s: none of %d levels is finite", op, levels->count);
}

int check_fake_levels(const char *op, const struct tensor *wq, const struct tensor *codes, const struct tensor *u,
                      const struct tensor *scale, const struct gpu_levels *levels)
{
    TRY(check_finite_levels(op, u, scale, levels));
    TRY(check_optional_f32(op, "wq", wq, matrix_rows(u), matrix_cols(u)));
    if (codes != NULL) {
        TRY(check_codes(op, codes, u));
    }
    return check_apart(
        op, (struct named_tensor[]){{"wq", wq}, {"codes", codes}, {"u", u}, {"scale", scale}, {NULL, NULL}}, 2);
}

int check_fake_levels_grad(const char *op, const struct tensor *du, const struct tensor *dscale,
                           const struct tensor *dwq, const struct tensor *u, const struct tensor *scale,
                           const struct gpu_levels *levels)
{
    TRY(check_finite_levels(op, u, scale, levels));
    TRY(check_f32(op, "dwq", dwq, matrix_rows(u), matrix_cols(u)));
    TRY(check_optional_f32(op, "du", du, matrix_rows(u), matrix_cols(u)));
    TRY(check_optional_f32(op, "dscale", dscale, matrix_rows(u), matrix_cols(scale)));
    return check_apart(
        op,
        (struct named_tensor[]){{"du", du}, {"dscale", dscale}, {"dwq", dwq}, {"u", u}, {"scale", scale}, {NULL, NULL}},
        2);
}

int check_sign_step(const char *op, const struct tensor *p, const struct tensor *g, const struct tensor *center,
                    double lr, double low, double high)
{
    int64_t count = tensor_count(p);

    TRY(check_vector(op, "p", p, count));
    TRY(check_vector(op, "g", g, count));
    TRY(check_optional(op, "center", center, count));
    if (!isfinite(lr) || !(low <= high)) {
        return err_raise(ERR_INTERNAL, "%s: a step of %g within [%g, %g]", op, lr, low, high);
    }
    return check_apart(op, (struct named_tensor[]){{"p", p}, {"g", g}, {"center", center}, {NULL, NULL}}, 1);
}

int check_adamw(const char *op, const struct tensor *p, const struct tensor *m, const struct tensor *v,
                const struct tensor *g, const struct gpu_adamw *spec)
{
    int64_t count = tensor_count(p);

    TRY(check_vector(op, "p", p, count));
    TRY(check_vector(op, "m", m, count));
    TRY(check_vector(op, "v", v, count));
    TRY(check_vector(op, "g", g, count));
    TRY(check_factor_of(op, spec->factor));
    if (!isfinite(spec->lr) || !(spec->beta1 >= 0 && spec->beta1 < 1) || !(spec->beta2 >= 0 && spec->beta2 < 1) ||
        !(spec->eps >= 0) || !isfinite(spec->decay) || spec->step < 1) {
        return err_raise(ERR_INTERNAL, "%s: step %lld with lr %g, beta %g and %g, eps %g, decay %g", op,
                         (long long)spec->step, spec->lr, spec->beta1, spec->beta2, spec->eps, spec->decay);
    }
    return check_apart(op, (struct named_tensor[]){{"p", p}, {"m", m}, {"v", v}, {"g", g}, {NULL, NULL}}, 3);
}
