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

static double *reference_copy(const struct tensor *tensor)
{
    double *out = tensor->data != NULL ? calloc((size_t)tensor_count(tensor), sizeof(*out)) : NULL;

    for (int64_t i = 0; out != NULL && i < tensor_count(tensor); i++) {
        out[i] = (double)((const float *)tensor->data)[i];
    }
    return out;
}

static void head_row(const struct head_reference *r, int64_t t, double *logits)
{
    double mean = 0, square = 0, eps = (double)(float)r->c->rms_norm_eps;
    const double *x = r->x + t * HIDDEN;

    for (int64_t i = 0; r->c->arch->layer_norms && i < HIDDEN; i++) {
        mean += x[i] / HIDDEN;
    }
    for (int64_t i = 0; i < HIDDEN; i++) {
        square += (x[i] - mean) * (x[i] - mean) / HIDDEN;
    }
    for (int64_t v = 0; v < VOCABULARY; v++) {
        double sum = r->bias != NULL ? r->bias[v] : 0;
        for (int64_t i = 0; i < HIDDEN; i++) {
            double factor = r->norm[i] + (r->c->arch->unit_offset ? 1 : 0);
            sum += (x[i] - mean) / sqrt(square + eps) * factor * r->lm_head[v * HIDDEN + i];
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

struct head_rig {
    struct gpu gpu;
    struct gpu_stream *stream;
    struct model_config c;
    struct head head;
    struct head_grads grads;
    struct tensor x, dx, teacher, teacher_x, other; /* other [ROWS, HIDDEN] */
    int32_t labels[ROWS];
    struct head_reference reference;
    double *teacher_logits;
};

static void new_numbers(const struct head_rig *rig, struct tensor *out, int rank, const int64_t *shape, double scale,
                        double mean, uint64_t seed)
{
    ck_assert_rc_ok(gpu_tensor_new(&rig->gpu, DTYPE_F32, rank, shape, out));
    for (int64_t i = 0; i < tensor_count(out); i++) {
        ((float *)out->data)[i] = (float)(mean + scale * (double)support_unit(&seed));
    }
}

static void head_rig_open(struct head_rig *rig, int row)
{
    const int64_t rows[] = {ROWS, HIDDEN}, matrix[] = {VOCABULARY, HIDDEN}, logits[] = {ROWS, VOCABULARY};

    memset(rig, 0, sizeof(*rig));
    ck_assert_rc_ok(small_config(heads[row].architecture, heads[row].more, &rig->c));
    ck_assert_rc_ok(gpu_open("cpu", 2, &rig->gpu));
    ck_assert_rc_ok(rig->gpu.ops->stream_new(rig->gpu.device, &rig->stream));
    new_numbers(rig, &rig->head.norm, 1, &rows[1], 0.4, 1, 3);
    new_numbers(rig, &rig->head.lm_head, 2, matrix, 0.3, 0, 4);
    if (heads[row].bias) {
        new_numbers(rig, &rig->head.head_bias, 1, &matrix[0], 0.5, 0, 5);
        new_numbers(rig, &rig->grads.bias, 1, &matrix[0], 0, 0, 1);
    }
    new_numbers(rig, &rig->grads.norm, 1, &rows[1], 0, 0, 1);
    new_numbers(rig, &rig->grads.lm_head, 2, matrix, 0, 0, 1);
    new_numbers(rig, &rig->x, 2, rows, 2, 0, 6);
    new_numbers(rig, &rig->dx, 2, rows, 2, 0, 7);
    new_numbers(rig, &rig->teacher_x, 2, rows, 2, 0, 8);
    new_numbers(rig, &rig->other, 2, rows, 2, 0, 8);
    new_numbers(rig, &rig->teacher, 2, logits, 0, 0, 9);
    ck_assert_rc_ok(head_logits(&rig->head, &rig->c, &rig->gpu, rig->stream, &rig->other, &rig->teacher));
    for (int t = 0; t < ROWS; t++) {
        rig->labels[t] = t % 4 == 1 ? -1 : t * 7 % VOCABULARY;
    }
    rig->teacher_logits = reference_copy(&rig->teacher);
    rig->reference = (struct head_reference){.c = &rig->c,
                                             .x = reference_copy(&rig->x),
                                             .norm = reference_copy(&rig->head.norm),
                                             .lm_head = reference_copy(&rig->head.lm_head),
                                             .bias = reference_copy(&rig->head.head_bias),
                                             .labels = rig->labels};
}

static void head_rig_close(struct head_rig *rig)
{
    struct tensor *const tensors[] = {&rig->x,     &rig->dx,         &rig->teacher,       &rig->teacher_x,
                                      &rig->other, &rig->grads.norm, &rig->grads.lm_head, &rig->grads.bias};

    for (size_t i = 0; i < sizeof(tensors) / sizeof(tensors[0]); i++) {
        gpu_tensor_free(&rig->gpu, tensors[i]);
    }
    free(rig->reference.x);
    free(rig->reference.norm);
    free(rig->reference.lm_head);
    free(rig->reference.bias);
    free(rig->teacher_logits);
    head_deinit(&rig->head, &rig->gpu);
    rig->gpu.ops->stream_free(rig->stream);
    gpu_close(&rig->gpu);
}

static void zero_numbers(const struct head_rig *rig, const struct tensor *tensor)
{
    if (tensor->data != NULL) {
        ck_assert_rc_ok(rig->gpu.ops->fill_zero(rig->stream, tensor->data, tensor_bytes(tensor)));
    }
}

/* Returns the loss. */
static double check_loss(struct head_rig *rig, const struct head_loss *loss, int64_t chunk)
{
    struct head_reference *r = &rig->reference;
    struct head_tape *tape;
    double sum = 0, again = 0;

    r->teacher = loss->labels != NULL ? NULL : rig->teacher_logits;
    zero_numbers(rig, &rig->grads.norm);
    zero_numbers(rig, &rig->grads.lm_head);
    zero_numbers(rig, &rig->grads.bias);
    ck_assert_rc_ok(head_tape_new(&rig->c, chunk, loss->teacher != NULL, &rig->gpu, rig->stream, &tape));
    ck_assert_rc_ok(head_backward(&rig->head, tape, &rig->x, loss, &rig->dx, &rig->grads, &sum));
    ck_assert_double_eq_tol(sum, head_loss_of(r), 1e-5 * sum);
    check_head(r, r->x, &rig->dx, loss->factor);
    check_head(r, r->norm, &rig->grads.norm, loss->factor);
    check_head(r, r->lm_head, &rig->grads.lm_head, loss->factor);
    if (r->bias != NULL) {
        check_head(r, r->bias, &rig->grads.bias, loss->factor);
    }
    ck_assert_rc_ok(head_backward(&rig->head, tape, &rig->x, loss, NULL, NULL, &again)); /* the loss alone */
    ck_assert_double_eq(again, sum);
    memcpy(rig->other.data, rig->x.data, tensor_bytes(&rig->x));
    ck_assert_rc_ok(head_backward(&rig->head, tape, &rig->other, loss, &rig->other, NULL, &again)); /* in place */
    ck_assert_double_eq(again, 2 * sum);
    ck_assert_mem_eq(rig->other.data, rig->dx.data, tensor_bytes(&rig->dx));
    head_tape_free(tape);
    return sum;
}

START_TEST(test_losses)
{
    struct head_rig rig;

    head_rig_open(&rig, _i);
    const struct head_loss labels = {.labels = rig.labels, .factor = 0.25};
    const struct head_loss logits = {.logits = &rig.teacher, .factor = 0.25};
    const struct head_loss teacher = {.teacher = &rig.head, .hidden = &rig.teacher_x, .factor = 0.25};
    check_loss(&rig, &labels, 4);
    double sum = check_loss(&rig, &logits, 3);
    ck_assert_double_eq_tol(check_loss(&rig, &teacher, 4), sum, 1e-6 * sum);
    head_rig_close(&rig);
}
END_TEST

START_TEST(test_refused)
{
    struct head_tape *tape = NULL;
    struct head_rig rig;
    double sum = 0;

    head_rig_open(&rig, 0);
    ck_assert_int_eq(head_tape_bytes(&rig.c, 0, false), -1);
    ck_assert_int_eq(head_tape_new(&rig.c, INT64_MAX, false, &rig.gpu, rig.stream, &tape), ERR_INTERNAL);
    ck_assert_ptr_null(tape);
    ck_assert_rc_ok(head_tape_new(&rig.c, 4, false, &rig.gpu, rig.stream, &tape));
    const struct head_loss wrong = {.labels = rig.labels}, both = {.labels = rig.labels, .logits = &rig.teacher};
    const struct head_loss none = {.factor = 1}, no_memory = {.teacher = &rig.head, .hidden = &rig.teacher_x};
    const struct tensor few = tensor_rows(&rig.teacher, 0, ROWS - 1);
    const struct head_loss short_one = {.logits = &few};
    ck_assert_int_eq(head_backward(&rig.head, tape, &rig.x, &both, NULL, NULL, &sum), ERR_INTERNAL);
    ck_assert_int_eq(head_backward(&rig.head, tape, &rig.x, &none, NULL, NULL, &sum), ERR_INTERNAL);
    ck_assert_int_eq(head_backward(&rig.head, tape, &rig.x, &no_memory, NULL, NULL, &sum), ERR_INTERNAL);
    ck_assert_int_eq(head_backward(&rig.head, tape, &rig.x, &short_one, NULL, NULL, &sum), ERR_INTERNAL);
    rig.labels[2] = VOCABULARY;
    ck_assert_int_eq(head_backward(&rig.head, tape, &rig.x, &wrong, NULL, NULL, &sum), ERR_INVALID_PARAMETER);
    ck_assert_ptr_nonnull(strstr(err_last()->message, "label 100 of token 2"));
    ck_assert_double_eq(sum, 0);
    head_tape_free(tape);
    head_tape_free(NULL);
    head_rig_close(&rig);
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
