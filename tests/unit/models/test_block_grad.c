/* Gradients of blocks, held to central differences of formulas in double (plan_reference.h): of layers
 * that have every kind of step, with their tensors at random. */

#include "tests/unit/models/grad_rig.h"
#include "tests/unit/models/plan_reference.h"

#define STEP 1e-5      /* of central differences */
#define TOLERANCE 1e-4 /* of the largest number of a gradient */

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

int main(void)
{
    Suite *suite = suite_create("models/block_grad");
    TCase *tcase = tcase_create("all");

    tcase_add_loop_test(tcase, test_layers, 0, CASES);
    tcase_add_loop_test(tcase, test_threads, 0, CASES);
    tcase_add_loop_test(tcase, test_alone, 0, CASES);
    tcase_add_loop_test(tcase, test_parts, 9, 14);
    tcase_add_test(tcase, test_quantized);
    tcase_set_timeout(tcase, 120);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
