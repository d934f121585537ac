/* Tapes: moments of the gradients of outputs, memory, and what is refused. */

#include "tests/unit/models/grad_rig.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

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
    Suite *suite = suite_create("models/block_tape");
    TCase *tcase = tcase_create("all");

    tcase_add_loop_test(tcase, test_moments, 0, CASES);
    tcase_add_loop_test(tcase, test_memory, 0, CASES);
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
