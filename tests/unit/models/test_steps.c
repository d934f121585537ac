/* The steps that no Llama-shaped layer has, on a layer made up of them: each is held to its formula in double, from the
 * values that it reads; and folds into norms with an offset or a bias, and through relu, leave the output as it is. */

#include "models/block.h"
#include "tests/unit/models/small_config.h"
#include "tests/unit/models/support.h"

#define SEQUENCES 2
#define LENGTH 11
#define TOKENS (SEQUENCES * LENGTH)
#define WIDE 128

static bool unit_offset, norm_bias; /* of the layer's first norm */

static int made_up_plan(const struct model_config *c, int64_t layer, struct plan_builder *b)
{
    const struct plan_norm first = {.path = "first",
                                    .size = 64,
                                    .kind = norm_bias ? NORM_LAYER : NORM_RMS,
                                    .unit_offset = unit_offset,
                                    .bias = norm_bias};
    const struct plan_norm bare = {.size = 64}, heads = {.path = "heads", .size = 16, .kind = NORM_LAYER};
    const struct plan_parameter sinks = {.path = "sinks", .shape = {4}, .rank = 1};
    struct plan_attention attention = {.heads = 4,
                                       .kv_heads = 2,
                                       .head_dim = 24,
                                       .value_dim = 10,
                                       .chunk = 4,
                                       .scale = 0.3,
                                       .cap = 1.5,
                                       .has_sinks = true};
    int in = plan_normalize(b, 0, &first);
    int q = plan_linear(b, in, "q", NULL, 4 * 24, false), k = plan_linear(b, in, "k", NULL, 2 * 16, false);
    int shared = plan_linear(b, in, "shared", NULL, 8, false), v = plan_linear(b, in, "v", NULL, 2 * 10, false);
    int gate = plan_linear(b, in, "gate", NULL, 1, false);
    int tail = plan_select(b, q, &(struct plan_select){.stride = 24, .first = 8, .count = 16});
    int head = plan_select(b, q, &(struct plan_select){.stride = 24, .first = 0, .count = 8});
    q = plan_join(b, plan_normalize(b, tail, &heads), head, &(struct plan_join){.heads = 4});
    k = plan_join(b, k, shared, &(struct plan_join){.heads = 2, .shared = true});
    attention.sinks = plan_parameter(b, &sinks);
    int out = plan_activate(b, ACTIVATION_SIGMOID, gate, plan_attend(b, q, k, v, &attention));
    int x = plan_add(b, 0, plan_linear(b, out, "o", NULL, 64, true));
    int up = plan_linear(b, plan_normalize(b, x, &bare), "up", NULL, 96, true);
    out = plan_linear(b, plan_activate(b, ACTIVATION_RELU, up, -1), "down", NULL, 64, true);

    (void)c;
    (void)layer;
    return plan_add(b, x, out);
}

struct layer {
    struct arch arch;
    struct plans *plans;
    struct gpu gpu;
    struct gpu_stream *stream;
    struct block block;
    struct block_scratch *scratch;
    struct block_values values;
};

static float *layer_random(const struct layer *l, struct tensor *out, int64_t rows, int64_t cols, uint64_t seed)
{
    ck_assert_rc_ok(gpu_tensor_new(&l->gpu, DTYPE_F32, cols > 0 ? 2 : 1, (const int64_t[]){rows, cols}, out));
    for (int64_t i = 0; i < tensor_count(out); i++) {
        ((float *)out->data)[i] = support_unit(&seed);
    }
    return out->data;
}

static void layer_open(struct layer *l)
{
    struct model_config c;

    memset(l, 0, sizeof(*l));
    ck_assert_rc_ok(small_config("LlamaForCausalLM", "{\"num_hidden_layers\": 1}", &c));
    l->arch = *c.arch;
    l->arch.plan = made_up_plan;
    c.arch = &l->arch;
    ck_assert_rc_ok(plans_new(&c, &l->plans));
    ck_assert_rc_ok(gpu_open("cpu", 2, &l->gpu));
    ck_assert_rc_ok(l->gpu.ops->stream_new(l->gpu.device, &l->stream));
    const struct plan *plan = plans_layer(l->plans, 0);
    l->block = (struct block){.config = plans_config(l->plans), .plan = plan};
    l->block.modules = calloc((size_t)plan->module_count, sizeof(*l->block.modules));
    l->block.norms = calloc((size_t)plan->norm_count, sizeof(*l->block.norms));
    l->block.parameters = calloc(1, sizeof(*l->block.parameters));
    for (int i = 0; i < plan->module_count; i++) {
        const struct plan_module *m = &plan->modules[i];
        layer_random(l, &l->block.modules[i].weight, m->rows, m->cols, (uint64_t)(100 + i));
        if (m->bias) {
            layer_random(l, &l->block.modules[i].bias, m->rows, 0, (uint64_t)(200 + i));
        }
    }
    for (int i = 0; i < plan->norm_count; i++) {
        if (plan->norms[i].path != NULL) {
            layer_random(l, &l->block.norms[i].weight, plan->norms[i].size, 0, (uint64_t)(300 + i));
        }
        if (plan->norms[i].bias) {
            layer_random(l, &l->block.norms[i].bias, plan->norms[i].size, 0, (uint64_t)(400 + i));
        }
    }
    layer_random(l, &l->block.parameters[0], 4, 0, 500);
    ck_assert_rc_ok(block_scratch_new(l->plans, SEQUENCES, LENGTH, &l->gpu, l->stream, &l->scratch));
    ck_assert_rc_ok(block_values_init(&l->values, plan, l->scratch, NULL));
}

/* The layer's input, the same each time. */
static void layer_input(struct layer *l)
{
    const struct tensor x = block_value(&l->values, 0);
    uint64_t seed = 42;

    for (int64_t i = 0; i < tensor_count(&x); i++) {
        ((float *)x.data)[i] = 3 * support_unit(&seed) + 0.5f;
    }
}

static void layer_close(struct layer *l)
{
    block_scratch_free(l->scratch);
    block_deinit(&l->block, &l->gpu);
    l->gpu.ops->stream_free(l->stream);
    gpu_close(&l->gpu);
    plans_free(l->plans);
}

struct rows {
    int64_t cols;
    double at[TOKENS][WIDE];
};

static void rows_of(const struct block_values *values, int value, struct rows *out)
{
    const struct tensor x = block_value(values, value);

    out->cols = x.shape[1];
    for (int64_t i = 0; i < tensor_count(&x); i++) {
        out->at[i / out->cols][i % out->cols] = (double)((const float *)x.data)[i];
    }
}

static void want_norm(const struct block *block, const struct plan_step *step, const struct rows *in, struct rows *out)
{
    const struct plan_norm *norm = &block->plan->norms[step->norm];
    const float *w = block->norms[step->norm].weight.data, *bias = block->norms[step->norm].bias.data;

    for (int64_t i = 0; i < TOKENS * in->cols; i++) {
        int64_t t = i / in->cols, col = i % in->cols, first = col / norm->size * norm->size;
        double mean = 0, square = 0, size = (double)norm->size;
        for (int64_t k = 0; k < norm->size; k++) {
            mean += norm->kind == NORM_LAYER ? in->at[t][first + k] / size : 0;
        }
        for (int64_t k = 0; k < norm->size; k++) {
            square += pow(in->at[t][first + k] - mean, 2) / size;
        }
        double factor = w != NULL ? (double)w[col - first] + (norm->unit_offset ? 1 : 0) : 1;
        out->at[t][col] = (in->at[t][col] - mean) / sqrt(square + block->config->rms_norm_eps) * factor;
        out->at[t][col] += bias != NULL ? (double)bias[col - first] : 0;
    }
}

static void want_attention(const struct block *block, const struct plan_step *step, const struct rows in[3],
                           struct rows *out)
{
    const struct plan_attention *a = &step->attention;
    const float *sinks = block->parameters[a->sinks].data;

    for (int64_t i = 0; i < TOKENS * a->heads; i++) {
        int64_t t = i / a->heads, head = i % a->heads, kv = head / (a->heads / a->kv_heads);
        int64_t begin = t - t % LENGTH, from = begin + t % LENGTH / a->chunk * a->chunk;
        double total = exp((double)sinks[head]), sums[WIDE] = {0};
        for (int64_t s = from; s <= t; s++) {
            double score = 0;
            for (int64_t d = 0; d < a->head_dim; d++) {
                score += a->scale * in[0].at[t][head * a->head_dim + d] * in[1].at[s][kv * a->head_dim + d];
            }
            double weight = exp(a->cap * tanh(score / a->cap));
            total += weight;
            for (int64_t d = 0; d < a->value_dim; d++) {
                sums[d] += weight * in[2].at[s][kv * a->value_dim + d];
            }
        }
        for (int64_t d = 0; d < a->value_dim; d++) {
            out->at[t][head * a->value_dim + d] = sums[d] / total;
        }
    }
}

static void want_columns(const struct plan_step *step, const struct rows in[2], struct rows *out)
{
    const struct plan_select *s = &step->select;
    const struct plan_join *j = &step->join;
    int64_t first = step->kind == STEP_JOIN ? in[0].cols / j->heads : 0,
            width = step->kind == STEP_JOIN ? out->cols / j->heads : 1;

    for (int64_t i = 0; i < TOKENS * out->cols; i++) {
        int64_t t = i / out->cols, col = i % out->cols, head = col / width, at = col % width;
        if (step->kind == STEP_SELECT) {
            out->at[t][col] = in[0].at[t][col / s->count * s->stride + s->first + col % s->count];
        } else if (at < first) {
            out->at[t][col] = in[0].at[t][head * first + at];
        } else {
            out->at[t][col] = in[1].at[t][(j->shared ? 0 : head * (width - first)) + at - first];
        }
    }
}

static void want_activation(const struct plan_step *step, const struct rows in[2], struct rows *out)
{
    for (int64_t i = 0; i < TOKENS * out->cols; i++) {
        int64_t t = i / out->cols, col = i % out->cols;
        out->at[t][col] = step->activation == ACTIVATION_RELU ? fmax(in[0].at[t][col], 0)
                                                              : in[1].at[t][col] / (1 + exp(-in[0].at[t][0]));
    }
}

/* What a step makes of its inputs; false: of a kind that other tests are about. */
static bool want_step(const struct block *block, const struct plan_step *step, const struct rows in[3],
                      struct rows *out)
{
    switch (step->kind) {
    case STEP_NORM:
        want_norm(block, step, in, out);
        return true;
    case STEP_ATTENTION:
        want_attention(block, step, in, out);
        return true;
    case STEP_SELECT:
    case STEP_JOIN:
        want_columns(step, in, out);
        return true;
    case STEP_ACTIVATE:
        want_activation(step, in, out);
        return true;
    default:
        return false;
    }
}

START_TEST(steps_are_their_formulas)
{
    static struct rows in[3], want, found;
    struct layer l;

    unit_offset = (_i & 1) != 0;
    norm_bias = (_i & 2) != 0;
    layer_open(&l);
    layer_input(&l);
    const struct plan *plan = l.block.plan;
    int checked = 0;
    for (int s = 0; s < plan->step_count; s++) {
        const struct plan_step *step = &plan->steps[s];
        for (int i = 0; i < step->inputs; i++) {
            rows_of(&l.values, step->in[i], &in[i]);
        }
        ck_assert_rc_ok(block_run(&l.block, &l.values, PLAN_BIT(s)));
        rows_of(&l.values, step->out, &found);
        want.cols = found.cols;
        if (!want_step(&l.block, step, in, &want)) {
            continue;
        }
        for (int64_t i = 0; i < TOKENS * want.cols; i++) {
            double w = want.at[i / want.cols][i % want.cols], f = found.at[i / want.cols][i % want.cols];
            ck_assert_msg(fabs(f - w) <= 3e-6 * (1 + fabs(w)), "step %d [%d]: %.9g, not %.9g", s, (int)i, f, w);
        }
        checked++;
    }
    ck_assert_int_eq(checked, 10);
    layer_close(&l);
}
END_TEST

static void run_whole(struct layer *l, struct rows *out)
{
    layer_input(l);
    ck_assert_rc_ok(block_run(&l->block, &l->values, ~(plan_set)0));
    rows_of(&l->values, l->block.plan->output, out);
}

/* The norm that all of q, k, v read, and up's rows through relu, give up factors. */
START_TEST(folds_leave_the_output)
{
    static struct rows before, after;
    enum dtype dtype = (_i & 2) != 0 ? DTYPE_F32 : DTYPE_BF16; /* BF16 would round the norm's bias again */
    float factors[96];
    uint64_t seed = 9;
    struct layer l;

    unit_offset = (_i & 1) != 0;
    norm_bias = (_i & 2) != 0;
    layer_open(&l);
    run_whole(&l, &before);
    const struct plan *plan = l.block.plan;
    const struct plan_group *groups[] = {&plan->groups[0],
                                         &plan->groups[plan->modules[plan_find_module(plan, "down")].group]};
    ck_assert_int_eq(groups[0]->fold.kind, FOLD_NORM);
    ck_assert_int_eq(groups[1]->fold.kind, FOLD_ROWS);
    for (int g = 0; g < 2; g++) {
        for (int i = 0; i < 96; i++) {
            factors[i] = exp2f(2 * support_unit(&seed));
        }
        ck_assert_rc_ok(block_fold(&l.block, groups[g], factors, dtype, &l.gpu, l.stream));
    }
    run_whole(&l, &after);
    double largest = 1; /* sums round by what goes into them, whatever is left: orders differ between processors */
    for (int64_t i = 0; i < TOKENS * 64; i++) {
        largest = fmax(largest, fabs((double)before.at[i / 64][i % 64]));
    }
    for (int64_t i = 0; i < TOKENS * 64; i++) {
        double a = before.at[i / 64][i % 64], b = after.at[i / 64][i % 64];
        ck_assert_msg(fabs(a - b) <= 2e-5 * largest, "[%d]: %.9g, then %.9g", (int)i, a, b);
    }
    const struct block_norm *norm = &l.block.norms[groups[0]->fold.norm];
    ck_assert(norm->changed);
    for (int i = 0; i < 64; i++) { /* as it is stored */
        float w = ((const float *)norm->weight.data)[i];
        ck_assert_float_eq(w, dtype_round(w, dtype));
    }
    layer_close(&l);
}
END_TEST

/* The bias of a norm loses what the norm's weight really lost, and is rounded as it will be stored. */
START_TEST(a_norm_bias_loses_what_the_weight_lost)
{
    float factors[64], weight[64], bias[64];
    uint64_t seed = 10;
    struct layer l;

    unit_offset = false;
    norm_bias = true;
    layer_open(&l);
    const struct plan_group *group = &l.block.plan->groups[0];
    const float *w = l.block.norms[group->fold.norm].weight.data, *b = l.block.norms[group->fold.norm].bias.data;
    memcpy(weight, w, sizeof(weight));
    memcpy(bias, b, sizeof(bias));
    for (int i = 0; i < 64; i++) {
        factors[i] = exp2f(2 * support_unit(&seed));
    }
    ck_assert_rc_ok(block_fold(&l.block, group, factors, DTYPE_BF16, &l.gpu, l.stream));
    for (int i = 0; i < 64; i++) {
        ck_assert_float_eq(w[i], dtype_round(weight[i] / factors[i], DTYPE_BF16));
        ck_assert_float_eq(b[i], dtype_round(bias[i] / (weight[i] / w[i]), DTYPE_BF16));
    }
    layer_close(&l);
}
END_TEST

/* A factor that would leave a norm of nothing is not taken: 1 + w = 0, or a quotient that rounds to it. */
START_TEST(a_norm_of_nothing_takes_no_factor)
{
    float factors[64];
    struct layer l;

    unit_offset = true;
    norm_bias = false;
    layer_open(&l);
    const struct plan_group *group = &l.block.plan->groups[0];
    float *w = l.block.norms[group->fold.norm].weight.data, *q = l.block.modules[0].weight.data;
    w[3] = -1;
    w[4] = -0.999f;
    float q3 = q[3], q4 = q[4], q5 = q[5];
    for (int i = 0; i < 64; i++) {
        factors[i] = i == 4 ? 1e9f : 2;
    }
    ck_assert_rc_ok(block_fold(&l.block, group, factors, DTYPE_BF16, &l.gpu, l.stream));
    ck_assert(w[3] == -1 && q[3] == q3);
    ck_assert(w[4] == -0.999f && q[4] == q4);
    ck_assert(q[5] != q5);
    layer_close(&l);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("steps");
    TCase *tcase = tcase_create("all");

    tcase_add_loop_test(tcase, steps_are_their_formulas, 0, 4);
    tcase_add_loop_test(tcase, folds_leave_the_output, 0, 4);
    tcase_add_test(tcase, a_norm_bias_loses_what_the_weight_lost);
    tcase_add_test(tcase, a_norm_of_nothing_takes_no_factor);
    tcase_set_timeout(tcase, 120);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
