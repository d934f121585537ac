/* Gradients of the head, held to central differences of its formulas in double: with and without a cap, a factor of
 * logits and a bias; of the cross-entropy and of the divergence from a teacher, some tokens at a time. */

#include "models/block_grad.h"
#include "tests/unit/models/small_config.h"
#include "tests/unit/models/support.h"

#define STEP 1e-5      /* of central differences */
#define TOLERANCE 1e-4 /* of the largest number of a gradient */
#define ROWS 11
#define HIDDEN 64
#define VOCABULARY 100

/* A head in double over lists that a test may move one number of. */
struct head_reference {
    const struct model_config *c;
    double *x, *norm, *lm_head, *bias;
    const double *teacher; /* logits; NULL: labels */
    const int32_t *labels;
};

static void head_row(const struct head_reference *r, int64_t t, double *logits)
{
    double mean = 0;

    for (int64_t i = 0; i < HIDDEN; i++) {
        mean += r->x[t * HIDDEN + i] * r->x[t * HIDDEN + i] / HIDDEN;
    }
    for (int64_t v = 0; v < VOCABULARY; v++) {
        double sum = r->bias != NULL ? r->bias[v] : 0;
        for (int64_t i = 0; i < HIDDEN; i++) {
            double factor = r->norm[i] + (r->c->arch->unit_offset ? 1 : 0);
            sum += r->x[t * HIDDEN + i] / sqrt(mean + (double)(float)r->c->rms_norm_eps) * factor *
                   r->lm_head[v * HIDDEN + i];
        }
        sum *= r->c->logit_scale;
        logits[v] = r->c->logit_cap > 0 ? r->c->logit_cap * tanh(sum / r->c->logit_cap) : sum;
    }
}

static double log_sum(const double *logits)
{
    double sum = 0;
    for (int64_t v = 0; v < VOCABULARY; v++) {
        sum += exp(logits[v]);
    }
    return log(sum);
}

static double head_loss_of(const struct head_reference *r)
{
    double loss = 0, logits[VOCABULARY];

    for (int64_t t = 0; t < ROWS; t++) {
        head_row(r, t, logits);
        double own = log_sum(logits);
        if (r->teacher == NULL) {
            loss += r->labels[t] >= 0 ? own - logits[r->labels[t]] : 0;
            continue;
        }
        const double *teacher = r->teacher + t * VOCABULARY;
        double other = log_sum(teacher);
        for (int64_t v = 0; v < VOCABULARY; v++) {
            loss += exp(teacher[v] - other) * (teacher[v] - other - logits[v] + own);
        }
    }
    return loss;
}

static void check_head(const struct head_reference *r, double *numbers, const struct tensor *gradient, double factor)
{
    const float *found = gradient->data;
    int64_t count = tensor_count(gradient), largest = 0;

    for (int64_t i = 0; i < count; i++) {
        largest = fabsf(found[i]) > fabsf(found[largest]) ? i : largest;
    }
    const int64_t places[] = {largest, count / 3, count - 1};
    for (int k = 0; k < 3; k++) {
        double before = numbers[places[k]];
        numbers[places[k]] = before + STEP;
        double up = head_loss_of(r);
        numbers[places[k]] = before - STEP;
        double want = factor * (up - head_loss_of(r)) / (2 * STEP);
        numbers[places[k]] = before;
        ck_assert_double_eq_tol((double)found[places[k]], want, TOLERANCE * fabs((double)found[largest]) + 1e-7);
    }
}

static const struct {
    const char *architecture, *more;
    bool bias;
} heads[] = {{"LlamaForCausalLM", "{}", false},
             {"Gemma2ForCausalLM", "{\"final_logit_softcapping\":3.0,\"head_dim\":16}", false},
             {"Cohere2ForCausalLM", "{\"logit_scale\":0.7}", false},
             {"LlamaForCausalLM", "{}", true}};

/* Chunks of 4 and of 3; both kinds of loss, the teacher as logits and as hidden states. */
START_TEST(test_head)
{
    const int64_t rows[] = {ROWS, HIDDEN}, matrix[] = {VOCABULARY, HIDDEN}, logits[] = {ROWS, VOCABULARY};
    const int64_t hidden = HIDDEN, vocabulary = VOCABULARY;
    const double factor = 0.25;
    struct rig rig = {0};
    struct model_config c;
    struct head head = {0};
    struct head_grads grads = {0};
    struct head_tape *tape;
    struct tensor x = {0}, dx = {0}, teacher = {0}, teacher_x = {0}, scratch = {0};
    int32_t labels[ROWS];

    ck_assert_rc_ok(small_config(heads[_i].architecture, heads[_i].more, &c));
    ck_assert_rc_ok(gpu_open("cpu", 2, &rig.gpu));
    ck_assert_rc_ok(rig.gpu.ops->stream_new(rig.gpu.device, &rig.stream));
    rig_tensor(&rig, &head.norm, 1, &hidden, 0.4, 1, 3);
    rig_tensor(&rig, &head.lm_head, 2, matrix, 0.3, 0, 4);
    if (heads[_i].bias) {
        rig_tensor(&rig, &head.head_bias, 1, &vocabulary, 0.5, 0, 5);
        rig_tensor(&rig, &grads.bias, 1, &vocabulary, 0, 0, 1);
    }
    rig_tensor(&rig, &grads.norm, 1, &hidden, 0, 0, 1);
    rig_tensor(&rig, &grads.lm_head, 2, matrix, 0, 0, 1);
    rig_tensor(&rig, &x, 2, rows, 2, 0, 6);
    rig_tensor(&rig, &dx, 2, rows, 2, 0, 7);
    rig_tensor(&rig, &teacher_x, 2, rows, 2, 0, 8);
    rig_tensor(&rig, &scratch, 2, rows, 2, 0, 8);
    rig_tensor(&rig, &teacher, 2, logits, 0, 0, 9);
    ck_assert_rc_ok(head_logits(&head, &c, &rig.gpu, rig.stream, &scratch, &teacher));
    for (int t = 0; t < ROWS; t++) {
        labels[t] = t % 4 == 1 ? -1 : t * 7 % VOCABULARY;
    }
    struct head_reference r = {.c = &c,
                               .x = reference_copy(&x),
                               .norm = reference_copy(&head.norm),
                               .lm_head = reference_copy(&head.lm_head),
                               .bias = reference_copy(&head.head_bias),
                               .labels = labels};
    double *teacher_logits = reference_copy(&teacher), sums[3] = {0};
    for (int kind = 0; kind < 3; kind++) {
        struct head_loss loss = {.factor = factor};
        loss.labels = kind == 0 ? labels : NULL;
        loss.logits = kind == 1 ? &teacher : NULL;
        loss.teacher = kind == 2 ? &head : NULL;
        loss.hidden = kind == 2 ? &teacher_x : NULL;
        r.teacher = kind == 0 ? NULL : teacher_logits;
        ck_assert_rc_ok(rig.gpu.ops->fill_zero(rig.stream, grads.norm.data, tensor_bytes(&grads.norm)));
        ck_assert_rc_ok(rig.gpu.ops->fill_zero(rig.stream, grads.lm_head.data, tensor_bytes(&grads.lm_head)));
        if (heads[_i].bias) {
            ck_assert_rc_ok(rig.gpu.ops->fill_zero(rig.stream, grads.bias.data, tensor_bytes(&grads.bias)));
        }
        ck_assert_rc_ok(head_tape_new(&c, kind == 1 ? 3 : 4, kind == 2, &rig.gpu, rig.stream, &tape));
        ck_assert_rc_ok(head_backward(&head, tape, &x, &loss, &dx, &grads, &sums[kind]));
        ck_assert_double_eq_tol(sums[kind], head_loss_of(&r), 1e-5 * sums[kind]);
        check_head(&r, r.x, &dx, factor);
        check_head(&r, r.norm, &grads.norm, factor);
        check_head(&r, r.lm_head, &grads.lm_head, factor);
        if (heads[_i].bias) {
            check_head(&r, r.bias, &grads.bias, factor);
        }
        double again = 0;
        ck_assert_rc_ok(head_backward(&head, tape, &x, &loss, NULL, NULL, &again)); /* the loss alone */
        ck_assert_double_eq(again, sums[kind]);
        memcpy(scratch.data, x.data, tensor_bytes(&x));
        ck_assert_rc_ok(head_backward(&head, tape, &scratch, &loss, &scratch, NULL, &again)); /* in place */
        ck_assert_mem_eq(scratch.data, dx.data, tensor_bytes(&dx));
        head_tape_free(tape);
    }
    ck_assert_double_eq_tol(sums[1], sums[2], 1e-6 * sums[1]);

    labels[2] = VOCABULARY;
    const struct head_loss wrong = {.labels = labels, .factor = 1}, both = {.labels = labels, .logits = &teacher};
    ck_assert_rc_ok(head_tape_new(&c, 4, false, &rig.gpu, rig.stream, &tape));
    ck_assert_int_eq(head_backward(&head, tape, &x, &wrong, NULL, NULL, &sums[0]), ERR_INVALID_PARAMETER);
    ck_assert_int_eq(head_backward(&head, tape, &x, &both, NULL, NULL, &sums[0]), ERR_INTERNAL);
    const struct head_loss no_memory = {.teacher = &head, .hidden = &x};
    ck_assert_int_eq(head_backward(&head, tape, &x, &no_memory, NULL, NULL, &sums[0]), ERR_INTERNAL);
    head_tape_free(tape);
    ck_assert_int_eq(head_tape_bytes(&c, 0, false), -1);
    free(r.x);
    free(r.norm);
    free(r.lm_head);
    free(r.bias);
    free(teacher_logits);
    struct tensor *const tensors[] = {&x,       &dx,         &teacher,       &teacher_x,
                                      &scratch, &grads.norm, &grads.lm_head, &grads.bias};
    for (size_t i = 0; i < sizeof(tensors) / sizeof(tensors[0]); i++) {
        gpu_tensor_free(&rig.gpu, tensors[i]);
    }
    head_deinit(&head, &rig.gpu);
    rig.gpu.ops->stream_free(rig.stream);
    gpu_close(&rig.gpu);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("models/head_grad");
    TCase *tcase = tcase_create("all");

    tcase_add_loop_test(tcase, test_losses, 0, (int)(sizeof(heads) / sizeof(heads[0])));
    tcase_add_test(tcase, test_refused);
    tcase_set_timeout(tcase, 120);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
