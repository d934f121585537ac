/* Gradients of blocks, held to central differences of formulas in double (plan_reference.h): of layers
 * that have every kind of step, with their tensors at random. */

#include "tests/unit/models/grad_rig.h"
#include "tests/unit/models/plan_reference.h"

#define STEP 1e-5      /* of central differences */
#define TOLERANCE 1e-4 /* of the largest number of a gradient */

/* The numbers of sequences [first, first + count) of a value: its content, or what the loss multiplies it by. */
static void fill_value(const struct tensor *x, int value, int64_t first, double scale)
{
    uint64_t seed = (uint64_t)(1000 * value + 17);

    for (int64_t i = -first * LENGTH * x->shape[1]; i < tensor_count(x); i++) {
        float number = (float)(scale * (double)support_unit(&seed));
        if (i >= 0) {
            ((float *)x->data)[i] = number;
        }
    }
}

static plan_set result_values(const struct plan *plan)
{
    return plan->given | PLAN_BIT(plan->output);
}

static void run_forward(const struct rig *rig, int64_t first, int64_t count)
{
    const struct plan *plan = rig->block.plan;

    ck_assert_rc_ok(block_tape_begin(rig->tape, plan, count, NULL));
    for (int v = 0; v < plan->value_count; v++) {
        if ((plan->inputs & PLAN_BIT(v)) != 0) {
            const struct tensor x = block_tape_value(rig->tape, v);
            fill_value(&x, v, first, 2);
        }
    }
    ck_assert_rc_ok(block_tape_forward(&rig->block, rig->tape));
}

/* Of the loss sum c * value over all that the layer gives. */
static void run_backward(const struct rig *rig, const struct block_grads *grads, plan_set want, int64_t first)
{
    const struct plan *plan = rig->block.plan;

    for (int v = 0; v < plan->value_count; v++) {
        if ((result_values(plan) & PLAN_BIT(v)) != 0) {
            const struct tensor d = block_tape_gradient(rig->tape, v);
            for (int64_t i = 0; i < tensor_count(&d); i++) {
                ck_assert_float_eq(((const float *)d.data)[i], 0);
            }
            fill_value(&d, v + 64, first, 1);
        }
    }
    ck_assert_rc_ok(block_tape_backward(&rig->block, rig->tape, grads, want));
}

static void reference_inputs(const struct rig *rig, struct reference *r)
{
    const struct plan *plan = rig->block.plan;

    for (int v = 0; v < plan->value_count; v++) {
        const struct tensor x = block_tape_value(rig->tape, v);
        for (int64_t i = 0; (plan->inputs & PLAN_BIT(v)) != 0 && i < tensor_count(&x); i++) {
            r->values[v][i] = (double)((const float *)x.data)[i];
        }
    }
}

static double reference_loss(struct reference *r)
{
    const struct plan *plan = r->block->plan;
    double loss = 0;

    reference_run(r);
    for (int v = 0; v < plan->value_count; v++) {
        uint64_t seed = (uint64_t)(1000 * (v + 64) + 17);
        int64_t count = r->sequences * r->length * plan->values[v].width;
        for (int64_t i = 0; (result_values(plan) & PLAN_BIT(v)) != 0 && i < count; i++) {
            loss += r->values[v][i] * (double)(float)(double)support_unit(&seed);
        }
    }
    return loss;
}

/* Some numbers of a gradient: the largest, and two others. */
static void check_gradient(struct reference *r, double *numbers, const struct tensor *gradient, const char *what)
{
    const float *found = gradient->data;
    int64_t count = tensor_count(gradient), largest = 0;

    for (int64_t i = 0; i < count; i++) {
        ck_assert_msg(isfinite(found[i]), "%s[%lld] is not finite", what, (long long)i);
        largest = fabsf(found[i]) > fabsf(found[largest]) ? i : largest;
    }
    const int64_t places[] = {largest, count / 3, count - 1 - count / 5};
    for (int k = 0; k < 3; k++) {
        double *number = &numbers[places[k]], before = *number;
        *number = before + STEP;
        double up = reference_loss(r);
        *number = before - STEP;
        double want = (up - reference_loss(r)) / (2 * STEP), scale = fabs((double)found[largest]);
        *number = before;
        ck_assert_msg(fabs((double)found[places[k]] - want) <= TOLERANCE * scale + 2e-6,
                      "%s[%lld]: %.9g, not %.9g of %.9g", what, (long long)places[k], (double)found[places[k]], want,
                      scale);
    }
}

/* A bias that a linear does not have counts as one that is zero. */
static void check_module(struct reference *r, int i, const struct block_module_grad *grad, const char *path)
{
    bool none = r->biases[i] == NULL;

    check_gradient(r, r->weights[i], &grad->weight, path);
    if (none) {
        r->biases[i] = calloc((size_t)grad->bias.shape[0], sizeof(double));
    }
    check_gradient(r, r->biases[i], &grad->bias, path);
    if (none) {
        free(r->biases[i]);
        r->biases[i] = NULL;
    }
}

static void check_all(const struct rig *rig, struct reference *r)
{
    const struct plan *plan = rig->block.plan;
    char what[64];

    for (int v = 0; v < plan->value_count; v++) {
        if ((plan->inputs & PLAN_BIT(v)) != 0) {
            const struct tensor d = block_tape_gradient(rig->tape, v);
            snprintf(what, sizeof(what), "value %d", v);
            check_gradient(r, r->values[v], &d, what);
        }
    }
    for (int i = 0; i < plan->module_count; i++) {
        check_module(r, i, &rig->grads.modules[i], plan->modules[i].path);
    }
    for (int i = 0; i < plan->norm_count; i++) {
        if (plan->norms[i].path != NULL) {
            check_gradient(r, r->norm_weights[i], &rig->grads.norms[i].weight, plan->norms[i].path);
        }
        if (plan->norms[i].bias) {
            check_gradient(r, r->norm_biases[i], &rig->grads.norms[i].bias, plan->norms[i].path);
        }
    }
    for (int i = 0; i < plan->parameter_count; i++) {
        if (rig->grads.sinks[i].data != NULL) {
            check_gradient(r, r->parameters[i], &rig->grads.sinks[i], plan->parameters[i].path);
        }
    }
}

START_TEST(test_layers)
{
    struct reference r;
    struct rig rig;

    rig_open(&rig, &cases[_i], SEQUENCES, 2, false);
    const struct plan *plan = rig.block.plan;
    run_forward(&rig, 0, SEQUENCES);
    reference_init(&r, &rig.block, SEQUENCES, LENGTH);
    reference_inputs(&rig, &r);
    reference_run(&r);
    const struct tensor out = block_tape_value(rig.tape, plan->output);
    for (int64_t i = 0; i < tensor_count(&out); i++) {
        double want = r.values[plan->output][i];
        ck_assert_double_eq_tol((double)((const float *)out.data)[i], want, 5e-5 * (1 + fabs(want)));
    }
    run_backward(&rig, &rig.grads, plan->inputs, 0);
    check_all(&rig, &r);
    reference_deinit(&r);
    rig_close(&rig);
}
END_TEST

static void expect_bytes(const struct tensor *a, const struct tensor *b)
{
    ck_assert((a->data == NULL) == (b->data == NULL));
    if (a->data != NULL) {
        ck_assert_mem_eq(a->data, b->data, tensor_bytes(a));
    }
}

static void expect_same_grads(const struct rig *a, const struct rig *b)
{
    for (int i = 0; i < a->block.plan->module_count; i++) {
        expect_bytes(&a->grads.modules[i].weight, &b->grads.modules[i].weight);
        expect_bytes(&a->grads.modules[i].bias, &b->grads.modules[i].bias);
    }
    for (int i = 0; i < a->block.plan->norm_count; i++) {
        expect_bytes(&a->grads.norms[i].weight, &b->grads.norms[i].weight);
        expect_bytes(&a->grads.norms[i].bias, &b->grads.norms[i].bias);
    }
    for (int i = 0; i < a->block.plan->parameter_count; i++) {
        expect_bytes(&a->grads.sinks[i], &b->grads.sinks[i]);
    }
}

START_TEST(test_threads)
{
    struct rig one, many;

    rig_open(&one, &cases[_i], 9, 1, false);
    rig_open(&many, &cases[_i], 9, 4, false);
    run_forward(&one, 0, 9);
    run_backward(&one, &one.grads, one.block.plan->inputs, 0);
    run_forward(&many, 0, 9);
    run_backward(&many, &many.grads, many.block.plan->inputs, 0);
    expect_same_grads(&one, &many);
    const struct tensor a = block_tape_gradient(one.tape, 0), b = block_tape_gradient(many.tape, 0);
    expect_bytes(&a, &b);
    rig_close(&one);
    rig_close(&many);
}
END_TEST

/* What is not wanted changes nothing: one gradient alone is what it is among all. */
START_TEST(test_alone)
{
    struct rig rig;

    rig_open(&rig, &cases[_i], SEQUENCES, 2, false);
    const struct plan *plan = rig.block.plan;
    run_forward(&rig, 0, SEQUENCES);
    run_backward(&rig, &rig.grads, plan->inputs, 0);
    struct block_grads alone = rig_grads(&rig), none = {0};
    for (int i = 0; i < plan->module_count; i += plan->module_count / 3 + 1) {
        struct block_module_grad *modules = calloc((size_t)plan->module_count, sizeof(*modules));
        modules[i].weight = alone.modules[i].weight;
        none.modules = modules;
        run_forward(&rig, 0, SEQUENCES);
        run_backward(&rig, &none, 0, 0);
        expect_bytes(&modules[i].weight, &rig.grads.modules[i].weight);
        free(modules);
    }
    run_forward(&rig, 0, SEQUENCES);
    run_backward(&rig, NULL, PLAN_BIT(0), 0);
    const struct tensor d = block_tape_gradient(rig.tape, 0);
    float *first = calloc((size_t)tensor_count(&d), sizeof(*first));
    memcpy(first, d.data, tensor_bytes(&d));
    run_forward(&rig, 0, SEQUENCES);
    run_backward(&rig, &alone, plan->inputs, 0);
    ck_assert_mem_eq(first, d.data, tensor_bytes(&d));
    free(first);
    rig_free_grads(&rig, &alone);
    rig_close(&rig);
}
END_TEST

/* Micro-batches add up, smaller ones on the same tape. */
START_TEST(test_parts)
{
    struct rig all, parts;

    rig_open(&all, &cases[_i], 3, 2, false);
    rig_open(&parts, &cases[_i], 2, 2, false);
    run_forward(&all, 0, 3);
    run_backward(&all, &all.grads, 0, 0);
    for (int64_t first = 0; first < 3; first += 2) {
        run_forward(&parts, first, first == 0 ? 2 : 1);
        run_backward(&parts, &parts.grads, 0, first);
    }
    for (int i = 0; i < all.block.plan->module_count; i++) {
        const struct tensor *a = &all.grads.modules[i].weight, *b = &parts.grads.modules[i].weight;
        for (int64_t k = 0; k < tensor_count(a); k++) {
            double x = (double)((const float *)a->data)[k], y = (double)((const float *)b->data)[k];
            ck_assert_double_eq_tol(x, y, 1e-4 * (1 + fabs(x)));
        }
    }
    rig_close(&all);
    rig_close(&parts);
}
END_TEST

/* --- moments of the gradients of outputs */

enum { SINGLES = 5 };

/* Sequences of one token each, from `first` on, with numbers of their own. */
static void run_singles(const struct rig *rig, struct block_tape *tape, const struct block_grads *grads, int64_t first,
                        int64_t count)
{
    const struct plan *plan = rig->block.plan;

    ck_assert_rc_ok(block_tape_begin(tape, plan, count, NULL));
    for (int back = 0; back < 2; back++) {
        for (int v = 0; v < plan->value_count; v++) {
            if (((back ? result_values(plan) : plan->inputs) & PLAN_BIT(v)) == 0) {
                continue;
            }
            const struct tensor x = back ? block_tape_gradient(tape, v) : block_tape_value(tape, v);
            for (int64_t i = 0; i < tensor_count(&x); i++) {
                uint64_t seed = (uint64_t)(100000 * (2 * v + back) + first * x.shape[1] + i);
                ((float *)x.data)[i] = support_unit(&seed);
            }
        }
        ck_assert_rc_ok(back ? block_tape_backward(&rig->block, tape, grads, 0)
                             : block_tape_forward(&rig->block, tape));
    }
}

/* Adds a module's bias gradient's products with itself, and zeroes it. */
static void add_outer(const struct tensor *bias, double *sum)
{
    float *d = bias->data;
    int64_t n = bias->shape[0];

    for (int64_t i = 0; i < n * n; i++) {
        sum[i] += (double)d[i / n] * (double)d[i % n];
    }
    memset(d, 0, (size_t)n * sizeof(*d));
}

static void check_moments(const struct tensor *moments, const double *want, const char *path)
{
    int64_t n = moments->shape[0];
    double largest = 0;

    for (int64_t i = 0; i < n; i++) {
        largest = fmax(largest, want[i * (n + 1)]);
    }
    for (int64_t i = 0; i < n * n; i++) {
        double found = (double)((const float *)moments->data)[i];
        ck_assert_msg(i / n > i % n || fabs(found - want[i]) <= 1e-5 * largest + 1e-12, "%s[%lld]: %g, not %g", path,
                      (long long)i, found, want[i]);
    }
}

/* The bias gradient of a single token is that of its output: products of them, summed, are the moments of all. */
START_TEST(test_moments)
{
    struct block_tape *tape;
    struct rig rig;

    rig_open(&rig, &cases[_i], SEQUENCES, 2, false);
    const struct plan *plan = rig.block.plan;
    const struct block_tape_spec spec = {.plans = rig.plans, .sequences = SINGLES, .length = 1};
    struct block_module_grad *modules = calloc((size_t)plan->module_count, sizeof(*modules));
    const struct block_grads grads = {.modules = modules};
    double **want = calloc((size_t)plan->module_count, sizeof(*want));
    ck_assert_rc_ok(block_tape_new(&spec, &rig.gpu, rig.stream, &tape));
    for (int i = 0; i < plan->module_count; i++) {
        int64_t n = plan->modules[i].rows;
        ck_assert_rc_ok(gpu_tensor_new(&rig.gpu, DTYPE_F32, 2, (const int64_t[]){n, n}, &modules[i].moments));
        want[i] = calloc((size_t)(n * n), sizeof(double));
    }
    run_singles(&rig, tape, &grads, 0, SINGLES);
    struct tensor *moments = calloc((size_t)plan->module_count, sizeof(*moments));
    for (int i = 0; i < plan->module_count; i++) {
        moments[i] = tensor_move(&modules[i].moments);
        ck_assert_rc_ok(gpu_tensor_new(&rig.gpu, DTYPE_F32, 1, &plan->modules[i].rows, &modules[i].bias));
    }
    for (int64_t s = 0; s < SINGLES; s++) {
        run_singles(&rig, tape, &grads, s, 1);
        for (int i = 0; i < plan->module_count; i++) {
            add_outer(&modules[i].bias, want[i]);
        }
    }
    for (int i = 0; i < plan->module_count; i++) {
        check_moments(&moments[i], want[i], plan->modules[i].path);
        gpu_tensor_free(&rig.gpu, &moments[i]);
        gpu_tensor_free(&rig.gpu, &modules[i].bias);
        free(want[i]);
    }
    free(moments);
    free(want);
    free(modules);
    block_tape_free(tape);
    rig_close(&rig);
}
END_TEST

/* --- inputs and caches that are quantized at run time */

/* x becomes what is there, and moves with it where no static range clips it. */
static struct straight straight_of(const double *x, const float *there, int64_t count, double limit)
{
    struct straight s = {.constant = calloc((size_t)count, sizeof(double)),
                         .slope = calloc((size_t)count, sizeof(double))};

    for (int64_t i = 0; i < count; i++) {
        s.slope[i] = fabs(x[i]) > limit ? 0 : 1;
        s.constant[i] = (double)there[i] - s.slope[i] * x[i];
    }
    return s;
}

/* Each value in its order, since what is quantized changes what follows. */
static void follow_quantization(const struct rig *rig, struct reference *r)
{
    const struct plan *plan = rig->block.plan;

    for (int s = 0; s < plan->step_count; s++) {
        const struct plan_step *step = &plan->steps[s];
        reference_run(r);
        if (step->kind == STEP_LINEAR) {
            const struct gpu_input *input = &rig->block.modules[step->module].input;
            const struct tensor x = block_tape_value(rig->tape, step->in[0]);
            float *rounded = calloc((size_t)tensor_count(&x), sizeof(*rounded));
            const struct tensor to = tensor_2d(rounded, DTYPE_F32, x.shape[0], x.shape[1]);
            ck_assert_rc_ok(rig->gpu.ops->quantize_input(rig->stream, &to, &x, NULL, input));
            ck_assert_rc_ok(rig->gpu.ops->stream_sync(rig->stream));
            r->inputs[step->module] = straight_of(r->values[step->in[0]], rounded, tensor_count(&x),
                                                  input->dynamic ? INFINITY : 127 * (double)input->scale);
            free(rounded);
        }
        if (step->kind == STEP_ATTENTION) {
            const struct tensor k = block_tape_value(rig->tape, step->in[1]),
                                v = block_tape_value(rig->tape, step->in[2]);
            r->keys = straight_of(r->values[step->in[1]], k.data, tensor_count(&k), INFINITY);
            r->given = straight_of(r->values[step->in[2]], v.data, tensor_count(&v), INFINITY);
        }
    }
}

START_TEST(test_quantized)
{
    const struct layer_case row = {"Qwen3ForCausalLM", "{\"head_dim\":12}", 0};
    struct reference r;
    struct rig rig;
    int64_t groups = 2;

    rig_open(&rig, &row, SEQUENCES, 2, true);
    const struct plan *plan = rig.block.plan;
    for (int i = 0; i < plan->module_count; i++) {
        bool dynamic = i % 2 == 0;
        rig.block.modules[i].input = (struct gpu_input){
            .element = DTYPE_I8, .dynamic = dynamic, .group_size = dynamic ? 16 : 0, .scale = dynamic ? 0 : 0.01f};
    }
    rig_tensor(&rig, &rig.block.key_scale, 1, &groups, 0, 0.02, 1);
    rig_tensor(&rig, &rig.block.value_scale, 1, &groups, 0, 0.03, 1);
    rig.block.key_cache = (struct gpu_cache){.element = DTYPE_I8, .scale = &rig.block.key_scale, .group_size = 12};
    rig.block.value_cache = (struct gpu_cache){.element = DTYPE_I8, .scale = &rig.block.value_scale, .group_size = 12};
    run_forward(&rig, 0, SEQUENCES);
    reference_init(&r, &rig.block, SEQUENCES, LENGTH);
    reference_inputs(&rig, &r);
    follow_quantization(&rig, &r);
    int64_t clipped = 0;
    for (int i = 0; i < plan->module_count; i++) {
        for (int64_t k = 0; k < SEQUENCES * LENGTH * plan->modules[i].cols; k++) {
            clipped += r.inputs[i].slope[k] == 0;
        }
    }
    ck_assert_int_gt(clipped, 20); /* so that it matters */
    run_backward(&rig, &rig.grads, plan->inputs, 0);
    check_all(&rig, &r);
    reference_deinit(&r);
    rig_close(&rig);
}
END_TEST

/* --- memory */

static int64_t allocated;
static const struct gpu_ops *plain_ops;

static int counting_alloc(struct gpu_device *device, size_t bytes, bool zeroed, void **pointer)
{
    allocated += (int64_t)bytes;
    return plain_ops->alloc(device, bytes, zeroed, pointer);
}

START_TEST(test_memory)
{
    struct gpu_ops counting;
    struct rig rig;

    rig_open(&rig, &cases[_i], SEQUENCES, 2, false);
    plain_ops = rig.gpu.ops;
    counting = *plain_ops;
    counting.alloc = counting_alloc;
    block_tape_free(rig.tape);
    rig.gpu.ops = &counting;
    for (int rounds = 0; rounds < 2; rounds++) {
        const struct block_tape_spec spec = {
            .plans = rig.plans, .sequences = 5, .length = LENGTH, .rounds = rounds == 1};
        allocated = 0;
        ck_assert_rc_ok(block_tape_new(&spec, &rig.gpu, rig.stream, &rig.tape));
        ck_assert_int_gt(allocated, 5 * LENGTH * 64 * 4);
        ck_assert_int_eq(allocated, block_tape_bytes(&spec));
        for (int i = 0; rounds == 1 && i < rig.block.plan->module_count; i++) {
            rig.block.modules[i].input = (struct gpu_input){.element = DTYPE_I8, .scale = 0.02f};
        }
        run_forward(&rig, 0, 5);
        run_backward(&rig, &rig.grads, rig.block.plan->inputs, 0);
        ck_assert_int_eq(allocated, block_tape_bytes(&spec));
        if (rounds == 0) {
            block_tape_free(rig.tape);
        }
    }
    rig_close(&rig);
}
END_TEST

/* --- what is refused */

START_TEST(test_not_differentiable)
{
    static const struct {
        const char *architecture, *more, *word;
    } rows[] = {
        {"Qwen3NextForCausalLM",
         "{\"linear_key_head_dim\":16,\"linear_value_head_dim\":16,\"linear_num_key_heads\":2,"
         "\"linear_num_value_heads\":4,\"head_dim\":16,\"num_experts\":4,\"num_experts_per_tok\":2,"
         "\"moe_intermediate_size\":24,\"shared_expert_intermediate_size\":24}",
         "CONV"},
        {"GraniteMoeHybridForCausalLM",
         "{\"layer_types\":[\"mamba\",\"attention\",\"mamba\",\"mamba\"],\"mamba_n_heads\":8,\"mamba_d_state\":16,"
         "\"mamba_n_groups\":2,\"mamba_expand\":2,\"num_local_experts\":0,\"shared_intermediate_size\":96}",
         "CONV"},
    };
    struct model_config c;
    struct plans *plans;

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        const char *reason = NULL;
        ck_assert_rc_ok(small_config(rows[i].architecture, rows[i].more, &c));
        ck_assert_rc_ok(plans_new(&c, &plans));
        ck_assert(!plans_differentiable(plans, &reason));
        ck_assert_msg(strstr(reason, rows[i].word) != NULL, "says %s", reason);
        const struct block_tape_spec spec = {.plans = plans, .sequences = 1, .length = 4};
        ck_assert_int_eq(block_tape_bytes(&spec), -1);
        plans_free(plans);
    }
    ck_assert_rc_ok(small_config("LlamaForCausalLM", "{}", &c));
    const size_t ends[4] = {0};
    const char *reason = NULL;
    ck_assert_rc_ok(plans_new_listed(&c, NULL, ends, &plans));
    ck_assert(!plan_differentiable(plans_layer(plans, 0), &reason) && strstr(reason, "not known") != NULL);
    plans_free(plans);
    ck_assert_rc_ok(plans_new(&c, &plans));
    ck_assert(plans_differentiable(plans, NULL));
    const struct block_tape_spec huge = {.plans = plans, .sequences = INT64_MAX, .length = 4};
    ck_assert_int_eq(block_tape_bytes(&huge), -1);
    plans_free(plans);
}
END_TEST

START_TEST(test_misuse)
{
    struct block_tape *tape = NULL;
    struct rig rig;

    rig_open(&rig, &cases[10], SEQUENCES, 1, false);
    const struct plan *plan = rig.block.plan;
    const struct block_tape_spec none = {.plans = rig.plans, .sequences = 0, .length = LENGTH};
    ck_assert_int_eq(block_tape_new(&none, &rig.gpu, rig.stream, &tape), ERR_INTERNAL);
    ck_assert_ptr_null(tape);
    ck_assert_int_eq(block_tape_forward(&rig.block, rig.tape), ERR_INTERNAL); /* not begun */
    ck_assert_int_eq(block_tape_begin(rig.tape, plan, SEQUENCES + 1, NULL), ERR_INTERNAL);
    run_forward(&rig, 0, SEQUENCES);
    ck_assert_int_eq(block_tape_backward(&rig.block, rig.tape, NULL, PLAN_BIT(plan->output)), ERR_INTERNAL);
    rig.block.modules[0].input = (struct gpu_input){.element = DTYPE_I8, .scale = 1};
    ck_assert_int_eq(block_tape_forward(&rig.block, rig.tape), ERR_INTERNAL); /* no memory for it */
    rig_close(&rig);
    rig_open(&rig, &cases[13], SEQUENCES, 1, false);
    run_forward(&rig, 0, SEQUENCES);
    rig_tensor(&rig, &rig.grads.sinks[0], 1, rig.block.parameters[0].shape, 0, 0, 1);
    ck_assert_int_eq(block_tape_backward(&rig.block, rig.tape, &rig.grads, 0), ERR_INTERNAL); /* a constant */
    rig_close(&rig);
    block_tape_free(NULL);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("models/block_grad");
    TCase *tcase = tcase_create("all");

    tcase_add_loop_test(tcase, test_layers, 0, CASES);
    tcase_add_loop_test(tcase, test_threads, 0, CASES);
    tcase_add_loop_test(tcase, test_alone, 0, CASES);
    tcase_add_loop_test(tcase, test_parts, 9, 14);
    tcase_add_loop_test(tcase, test_moments, 0, CASES);
    tcase_add_loop_test(tcase, test_memory, 0, CASES);
    tcase_add_test(tcase, test_quantized);
    tcase_add_test(tcase, test_not_differentiable);
    tcase_add_test(tcase, test_misuse);
    tcase_set_timeout(tcase, 120);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
