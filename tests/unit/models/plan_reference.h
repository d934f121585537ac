#pragma once
/* The steps of a plan in double, each by its formula, over a block's tensors as lists of doubles that a test may move
 * one number of: what derivatives are held to. Choices of experts stay those of the first evaluation. */

#include "models/block.h"
#include "tests/unit/unit.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Quantization as its straight-through derivative sees it: x becomes constant + slope * x, both per element. */
struct straight {
    double *constant, *slope; /* NULL: x stays */
};

struct reference {
    const struct block *block;
    int64_t sequences, length;
    double **weights, **biases, **norm_weights, **norm_biases, **parameters;
    double *values[PLAN_VALUES_MAX]; /* of the layer; the inputs are set by the test */
    struct straight *inputs;         /* by module: of the linear's input */
    struct straight keys, given;     /* of attention's keys and values */
    int64_t *ids;                    /* [T, top_k]; NULL until they are chosen */
};

static inline double *reference_copy(const struct tensor *tensor)
{
    double *out = NULL;

    if (tensor->data != NULL) {
        int64_t count = tensor_count(tensor);
        out = calloc((size_t)count, sizeof(*out));
        for (int64_t i = 0; i < count; i++) {
            out[i] = (double)((const float *)tensor->data)[i];
        }
    }
    return out;
}

static inline void reference_init(struct reference *r, const struct block *block, int64_t sequences, int64_t length)
{
    const struct plan *plan = block->plan;

    *r = (struct reference){.block = block, .sequences = sequences, .length = length};
    r->weights = calloc((size_t)plan->module_count + 1, sizeof(*r->weights));
    r->biases = calloc((size_t)plan->module_count + 1, sizeof(*r->biases));
    r->inputs = calloc((size_t)plan->module_count + 1, sizeof(*r->inputs));
    r->norm_weights = calloc((size_t)plan->norm_count + 1, sizeof(*r->norm_weights));
    r->norm_biases = calloc((size_t)plan->norm_count + 1, sizeof(*r->norm_biases));
    r->parameters = calloc((size_t)plan->parameter_count + 1, sizeof(*r->parameters));
    for (int i = 0; i < plan->module_count; i++) {
        r->weights[i] = reference_copy(&block->modules[i].weight);
        r->biases[i] = reference_copy(&block->modules[i].bias);
    }
    for (int i = 0; i < plan->norm_count; i++) {
        r->norm_weights[i] = reference_copy(&block->norms[i].weight);
        r->norm_biases[i] = reference_copy(&block->norms[i].bias);
    }
    for (int i = 0; i < plan->parameter_count; i++) {
        r->parameters[i] = reference_copy(&block->parameters[i]);
    }
    for (int v = 0; v < plan->value_count; v++) {
        r->values[v] = calloc((size_t)(sequences * length * plan->values[v].width), sizeof(double));
    }
}

static inline void reference_free_list(double **list, int count)
{
    for (int i = 0; i < count; i++) {
        free(list[i]);
    }
    free(list);
}

static inline void reference_deinit(struct reference *r)
{
    const struct plan *plan = r->block->plan;

    for (int i = 0; i < plan->module_count; i++) {
        free(r->inputs[i].constant);
        free(r->inputs[i].slope);
    }
    free(r->inputs);
    free(r->keys.constant);
    free(r->keys.slope);
    free(r->given.constant);
    free(r->given.slope);
    reference_free_list(r->weights, plan->module_count);
    reference_free_list(r->biases, plan->module_count);
    reference_free_list(r->norm_weights, plan->norm_count);
    reference_free_list(r->norm_biases, plan->norm_count);
    reference_free_list(r->parameters, plan->parameter_count);
    for (int v = 0; v < plan->value_count; v++) {
        free(r->values[v]);
    }
    free(r->ids);
}

/* A step over `rows` rows: of which plan, whose modules begin where. */
struct reference_step {
    struct reference *r;
    const struct plan *plan;
    const struct plan_step *step;
    double **values;
    int64_t rows;
    int first_module;
};

static inline int64_t reference_width(const struct reference_step *s, int value)
{
    return s->plan->values[value].width;
}

static inline void reference_straight(const struct straight *straight, double *x, int64_t count)
{
    for (int64_t i = 0; straight->constant != NULL && i < count; i++) {
        x[i] = straight->constant[i] + straight->slope[i] * x[i];
    }
}

static inline void reference_linear(const struct reference_step *s, const double *x, double *y)
{
    int m = s->first_module + s->step->module;
    const struct plan_module *module = &s->plan->modules[s->step->module];
    int64_t cols = module->cols, rows = module->rows;
    const double *w = s->r->weights[m], *bias = s->r->biases[m];
    double *in = calloc((size_t)(s->rows * cols), sizeof(*in));

    memcpy(in, x, (size_t)(s->rows * cols) * sizeof(*in));
    reference_straight(&s->r->inputs[m], in, s->rows * cols);
    for (int64_t t = 0; t < s->rows; t++) {
        for (int64_t n = 0; n < rows; n++) {
            double sum = bias != NULL ? bias[n] : 0;
            for (int64_t k = 0; k < cols; k++) {
                sum += in[t * cols + k] * w[n * cols + k];
            }
            y[t * rows + n] = sum;
        }
    }
    free(in);
}

static inline void reference_norm(const struct reference_step *s, const double *x, double *y)
{
    const struct plan_norm *norm = &s->plan->norms[s->step->norm];
    const double *w = s->r->norm_weights[s->step->norm], *bias = s->r->norm_biases[s->step->norm];
    double eps = norm->eps > 0 ? norm->eps : s->r->block->config->rms_norm_eps;
    int64_t size = norm->size, count = s->rows * reference_width(s, s->step->in[0]);

    for (int64_t at = 0; at < count; at += size) {
        double mean = 0, square = 0;
        for (int64_t i = 0; norm->kind == NORM_LAYER && i < size; i++) {
            mean += x[at + i] / (double)size;
        }
        for (int64_t i = 0; i < size; i++) {
            square += (x[at + i] - mean) * (x[at + i] - mean) / (double)size;
        }
        for (int64_t i = 0; i < size; i++) {
            double factor = w != NULL ? w[i] + (norm->unit_offset ? 1 : 0) : 1;
            y[at + i] = (x[at + i] - mean) / sqrt(square + (double)(float)eps) * factor + (bias != NULL ? bias[i] : 0);
        }
    }
}

static inline void reference_rope(const struct reference_step *s, const double *x, double *y)
{
    const struct plan_rope *rope = &s->step->rope;
    const struct rope_spec *spec = &s->r->block->config->ropes[rope->table];
    int64_t width = reference_width(s, s->step->in[0]), half = rope->rotated / 2, columns = spec->dims / 2;
    float *cosine = calloc((size_t)(s->r->length * columns), sizeof(*cosine));
    float *sine = calloc((size_t)(s->r->length * columns), sizeof(*sine));

    rope_tables(spec, s->r->length, cosine, sine);
    memcpy(y, x, (size_t)(s->rows * width) * sizeof(*y));
    for (int64_t t = 0; t < s->rows; t++) {
        for (int64_t head = t * width; head < (t + 1) * width; head += rope->head_dim) {
            for (int64_t i = 0; i < half; i++) {
                int64_t a = head + (rope->interleaved ? 2 * i : i), b = rope->interleaved ? a + 1 : a + half;
                double c = (double)cosine[t % s->r->length * columns + i],
                       n = (double)sine[t % s->r->length * columns + i];
                y[a] = x[a] * c - x[b] * n;
                y[b] = x[b] * c + x[a] * n;
            }
        }
    }
    free(cosine);
    free(sine);
}

/* One query head of a token. */
static inline void reference_head(const struct reference_step *s, int64_t t, int64_t head, const double *q,
                                  const double *k, const double *v, double *o)
{
    const struct plan_attention *a = &s->step->attention;
    int64_t dim = a->head_dim, value = a->value_dim > 0 ? a->value_dim : dim, kv = head / (a->heads / a->kv_heads);
    int64_t place = t % s->r->length, first = a->window > 0 && place >= a->window ? place - a->window + 1 : 0;
    double sum = a->has_sinks ? exp(s->r->parameters[a->sinks][head]) : 0;

    first = a->chunk > 0 && place - place % a->chunk > first ? place - place % a->chunk : first;
    for (int64_t u = t - place + first; u <= t; u++) {
        double score = 0;
        for (int64_t i = 0; i < dim; i++) {
            score += q[(t * a->heads + head) * dim + i] * k[(u * a->kv_heads + kv) * dim + i] * a->scale;
        }
        double weight = exp(a->cap > 0 ? a->cap * tanh(score / a->cap) : score);
        sum += weight;
        for (int64_t i = 0; i < value; i++) {
            o[(t * a->heads + head) * value + i] += weight * v[(u * a->kv_heads + kv) * value + i];
        }
    }
    for (int64_t i = 0; i < value; i++) {
        o[(t * a->heads + head) * value + i] /= sum;
    }
}

static inline void reference_attention(const struct reference_step *s, double *const *in, double *y)
{
    int64_t keys = s->rows * reference_width(s, s->step->in[1]), given = s->rows * reference_width(s, s->step->in[2]);
    double *k = calloc((size_t)keys, sizeof(*k)), *v = calloc((size_t)given, sizeof(*v));

    memcpy(k, in[1], (size_t)keys * sizeof(*k));
    memcpy(v, in[2], (size_t)given * sizeof(*v));
    reference_straight(&s->r->keys, k, keys);
    reference_straight(&s->r->given, v, given);
    memset(y, 0, (size_t)(s->rows * reference_width(s, s->step->out)) * sizeof(*y));
    for (int64_t t = 0; t < s->rows; t++) {
        for (int64_t head = 0; head < s->step->attention.heads; head++) {
            reference_head(s, t, head, in[0], k, v, y);
        }
    }
    free(k);
    free(v);
}

static inline double reference_sigmoid(double x)
{
    return 1 / (1 + exp(-x));
}

static inline double reference_activation(enum plan_activation activation, double x)
{
    switch (activation) {
    case ACTIVATION_SILU:
        return x * reference_sigmoid(x);
    case ACTIVATION_GELU:
        return x * (1 + erf(x / sqrt(2))) / 2;
    case ACTIVATION_GELU_TANH:
        return x / 2 * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case ACTIVATION_RELU:
        return x > 0 ? x : 0;
    case ACTIVATION_RELU2:
        return x > 0 ? x * x : 0;
    case ACTIVATION_SIGMOID:
        return reference_sigmoid(x);
    case ACTIVATION_SWIGLU_CLAMPED:
        return fmin(x, 7) * reference_sigmoid(1.702 * fmin(x, 7));
    }
    return NAN;
}

static inline void reference_activate(const struct reference_step *s, double *const *in, double *y)
{
    int64_t width = reference_width(s, s->step->out);
    bool one = reference_width(s, s->step->in[0]) == 1, clamped = s->step->activation == ACTIVATION_SWIGLU_CLAMPED;

    for (int64_t i = 0; i < s->rows * width; i++) {
        double up = s->step->inputs > 1 ? in[1][i] : 1;
        up = clamped ? fmax(fmin(up, 7), -7) + 1 : up;
        y[i] = reference_activation(s->step->activation, in[0][one ? i / width : i]) * up;
    }
}

static inline void reference_select(const struct reference_step *s, const double *x, double *y)
{
    const struct plan_select *select = &s->step->select;
    int64_t heads = s->rows * reference_width(s, s->step->in[0]) / select->stride;

    for (int64_t i = 0; i < heads * select->count; i++) {
        y[i] = x[i / select->count * select->stride + select->first + i % select->count];
    }
}

static inline void reference_join(const struct reference_step *s, double *const *in, double *y)
{
    const struct plan_join *join = &s->step->join;
    int64_t first = reference_width(s, s->step->in[0]) / join->heads;
    int64_t second = reference_width(s, s->step->in[1]) / (join->shared ? 1 : join->heads);

    for (int64_t i = 0; i < s->rows * join->heads; i++) {
        int64_t other = join->shared ? i / join->heads : i;
        memcpy(y + i * (first + second), in[0] + i * first, (size_t)first * sizeof(*y));
        memcpy(y + i * (first + second) + first, in[1] + other * second, (size_t)second * sizeof(*y));
    }
}

static inline void reference_scale(const struct reference_step *s, const double *x, double *y)
{
    int64_t width = reference_width(s, s->step->out);
    const double *by = s->step->has_parameter ? s->r->parameters[s->step->parameter] : NULL;
    bool one = by != NULL && s->r->block->plan->parameters[s->step->parameter].shape[0] == 1;

    for (int64_t i = 0; i < s->rows * width; i++) {
        y[i] = s->step->factor * x[i] * (by == NULL ? 1 : by[one ? 0 : i % width]);
    }
}

/* How good an expert is to the choice; -INFINITY: its group is not chosen. */
static inline void reference_ranks(const struct reference_step *s, const double *logits, const double *scores,
                                   double *rank)
{
    const struct plan_experts *e = s->step->experts;
    const double *bias = e->has_bias ? s->r->parameters[e->bias] : NULL;
    int64_t groups = e->groups > 1 ? e->groups : 1, size = e->count / groups;
    double group[GPU_ROUTE_MAX];

    for (int64_t i = 0; i < e->count; i++) {
        rank[i] = bias != NULL || e->group_pairs ? scores[i] + (bias != NULL ? bias[i] : 0) : logits[i];
    }
    for (int64_t g = 0; groups > 1 && g < groups; g++) {
        double best = -INFINITY, next = -INFINITY;
        for (int64_t i = g * size; i < (g + 1) * size; i++) {
            next = rank[i] > best ? best : fmax(next, rank[i]);
            best = fmax(best, rank[i]);
        }
        group[g] = e->group_pairs ? best + next : best;
    }
    for (int64_t g = 0; groups > 1 && g < groups; g++) {
        int64_t better = 0;
        for (int64_t k = 0; k < groups; k++) {
            better += group[k] > group[g];
        }
        for (int64_t i = g * size; better >= e->group_top_k && i < (g + 1) * size; i++) {
            rank[i] = -INFINITY;
        }
    }
}

/* The weights of the chosen experts of a token. */
static inline void reference_route(const struct reference_step *s, const double *logits, int64_t *ids, bool choose,
                                   double *weights)
{
    const struct plan_experts *e = s->step->experts;
    double scores[GPU_ROUTE_MAX], rank[GPU_ROUTE_MAX], sum = 0, total = 0;

    for (int64_t i = 0; i < e->count; i++) {
        sum += exp(logits[i]);
    }
    for (int64_t i = 0; i < e->count; i++) {
        scores[i] = e->scores == SCORES_SIGMOID ? reference_sigmoid(logits[i]) : exp(logits[i]) / sum;
    }
    reference_ranks(s, logits, scores, rank);
    for (int64_t k = 0; choose && k < e->top_k; k++) {
        ids[k] = 0;
        for (int64_t i = 1; i < e->count; i++) {
            ids[k] = rank[i] > rank[ids[k]] ? i : ids[k];
        }
        rank[ids[k]] = -INFINITY;
    }
    for (int64_t k = 0; k < e->top_k; k++) {
        total += scores[ids[k]];
    }
    for (int64_t k = 0; k < e->top_k; k++) {
        double own = scores[ids[k]];
        own = e->scores == SCORES_SOFTMAX_CHOSEN ? own / total : e->normalize ? own / (total + e->epsilon) : own;
        weights[k] = e->factor * own * (e->has_scale ? s->r->parameters[e->scale][ids[k]] : 1);
    }
}

static inline void reference_steps(struct reference *r, const struct plan *plan, double **values, int64_t rows,
                                   int first_module);

/* One token through one expert. */
static inline void reference_expert(const struct reference_step *s, int64_t expert, double weight, const double *x,
                                    double *y)
{
    const struct plan_experts *e = s->step->experts;
    const struct plan *plan = e->plan;
    double *values[PLAN_VALUES_MAX] = {0};
    int64_t in = plan->values[0].width, out = plan->values[plan->output].width;

    for (int v = 0; v < plan->value_count; v++) {
        values[v] = calloc((size_t)plan->values[v].width, sizeof(double));
    }
    for (int64_t i = 0; i < in; i++) {
        values[0][i] = x[i] * (e->scale_input ? weight : 1);
    }
    reference_steps(s->r, plan, values, 1, e->first_module + (int)expert * plan->module_count);
    for (int64_t i = 0; i < out; i++) {
        y[i] += values[plan->output][i] * (e->scale_input ? 1 : weight);
    }
    for (int v = 0; v < plan->value_count; v++) {
        free(values[v]);
    }
}

static inline void reference_experts(const struct reference_step *s, double *const *in, double *y)
{
    const struct plan_experts *e = s->step->experts;
    int64_t width = reference_width(s, s->step->in[0]), wide = reference_width(s, s->step->out);
    bool choose = s->r->ids == NULL;
    double weights[GPU_ROUTE_MAX];

    if (choose) {
        s->r->ids = calloc((size_t)(s->rows * e->top_k), sizeof(*s->r->ids));
    }
    memset(y, 0, (size_t)(s->rows * wide) * sizeof(*y));
    for (int64_t t = 0; t < s->rows; t++) {
        int64_t *ids = s->r->ids + t * e->top_k;
        reference_route(s, in[1] + t * e->count, ids, choose, weights);
        for (int64_t k = 0; k < e->top_k; k++) {
            reference_expert(s, ids[k], weights[k], in[0] + t * width, y + t * wide);
        }
    }
}

static inline void reference_run_step(const struct reference_step *s)
{
    double *const in[] = {s->values[s->step->in[0]], s->values[s->step->in[1]], s->values[s->step->in[2]]};
    double *y = s->values[s->step->out];

    switch (s->step->kind) {
    case STEP_LINEAR:
        reference_linear(s, in[0], y);
        break;
    case STEP_NORM:
        reference_norm(s, in[0], y);
        break;
    case STEP_ROPE:
        reference_rope(s, in[0], y);
        break;
    case STEP_ATTENTION:
        reference_attention(s, in, y);
        break;
    case STEP_ACTIVATE:
        reference_activate(s, in, y);
        break;
    case STEP_SELECT:
        reference_select(s, in[0], y);
        break;
    case STEP_JOIN:
        reference_join(s, in, y);
        break;
    case STEP_ADD:
        for (int64_t i = 0; i < s->rows * reference_width(s, s->step->out); i++) {
            y[i] = in[0][i] + in[1][i];
        }
        break;
    case STEP_SCALE:
        reference_scale(s, in[0], y);
        break;
    case STEP_EXPERTS:
        reference_experts(s, in, y);
        break;
    default:
        ck_abort_msg("a step of kind %d", (int)s->step->kind);
    }
}

static inline void reference_steps(struct reference *r, const struct plan *plan, double **values, int64_t rows,
                                   int first_module)
{
    for (int i = 0; i < plan->step_count; i++) {
        const struct reference_step step = {.r = r,
                                            .plan = plan,
                                            .step = &plan->steps[i],
                                            .values = values,
                                            .rows = rows,
                                            .first_module = first_module};
        reference_run_step(&step);
    }
}

/* The layer from its inputs. */
static inline void reference_run(struct reference *r)
{
    reference_steps(r, r->block->plan, r->values, r->sequences * r->length, 0);
}
