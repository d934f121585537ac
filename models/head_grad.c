/* The head and back: the final norm, the output projection, what the configuration does to logits, and a loss, for some
 * tokens at a time, since the logits of a micro-batch are larger than all of its hidden states. */

#include "models/block_grad.h"

#include "base/err.h"
#include "base/mem.h"

#include <stdlib.h>

/* Rows of `chunk` tokens. */
struct head_tape {
    const struct model_config *config;
    struct gpu gpu;
    struct gpu_stream *stream;
    int64_t chunk;
    struct tensor normed, dnormed, hidden; /* F32 [chunk, h] */
    struct tensor raw, draw;               /* F32 [chunk, V]: logits before the cap, and their gradient */
    struct tensor logits, dlogits;         /* the same after it; data NULL: there is none */
    struct tensor teacher;                 /* F32 [chunk, V]; data NULL: its logits are not computed here */
};

static bool head_has_cap(const struct model_config *config)
{
    return config->logit_cap > 0;
}

int64_t head_tape_bytes(const struct model_config *config, int64_t chunk, bool teacher)
{
    int64_t columns =
        config->vocab_size * (2 + (head_has_cap(config) ? 2 : 0) + (teacher ? 1 : 0)) + 3 * config->hidden_size;
    int64_t bytes;

    return chunk > 0 && !__builtin_mul_overflow(4 * columns, chunk, &bytes) ? bytes : -1;
}

static int head_allocate(struct head_tape *t, bool teacher)
{
    const int64_t hidden[] = {t->chunk, t->config->hidden_size}, logits[] = {t->chunk, t->config->vocab_size};

    TRY(gpu_tensor_uninitialized(&t->gpu, DTYPE_F32, 2, hidden, &t->normed));
    TRY(gpu_tensor_uninitialized(&t->gpu, DTYPE_F32, 2, hidden, &t->dnormed));
    TRY(gpu_tensor_uninitialized(&t->gpu, DTYPE_F32, 2, hidden, &t->hidden));
    TRY(gpu_tensor_uninitialized(&t->gpu, DTYPE_F32, 2, logits, &t->raw));
    TRY(gpu_tensor_uninitialized(&t->gpu, DTYPE_F32, 2, logits, &t->draw));
    if (head_has_cap(t->config)) {
        TRY(gpu_tensor_uninitialized(&t->gpu, DTYPE_F32, 2, logits, &t->logits));
        TRY(gpu_tensor_uninitialized(&t->gpu, DTYPE_F32, 2, logits, &t->dlogits));
    }
    return teacher ? gpu_tensor_uninitialized(&t->gpu, DTYPE_F32, 2, logits, &t->teacher) : 0;
}

int head_tape_new(const struct model_config *config, int64_t chunk, bool teacher, const struct gpu *gpu,
                  struct gpu_stream *stream, struct head_tape **out)
{
    AUTO(head_tape) struct head_tape *tape = NULL;

    if (head_tape_bytes(config, chunk, teacher) < 0) {
        return err_raise(ERR_INTERNAL, "a head's tape for %lld tokens", (long long)chunk);
    }
    TRY(mem_new(&tape));
    *tape = (struct head_tape){.config = config, .gpu = *gpu, .stream = stream, .chunk = chunk};
    int rc = head_allocate(tape, teacher);
    if (rc != 0) {
        return err_pass(rc, "the backward pass of the head for %lld tokens at a time", (long long)chunk);
    }
    *out = MOVE(tape);
    return 0;
}

void head_tape_free(struct head_tape *tape)
{
    if (tape != NULL) {
        struct tensor *const tensors[] = {&tape->normed, &tape->dnormed, &tape->hidden,  &tape->raw,
                                          &tape->draw,   &tape->logits,  &tape->dlogits, &tape->teacher};
        for (size_t i = 0; i < sizeof(tensors) / sizeof(tensors[0]); i++) {
            gpu_tensor_free(&tape->gpu, tensors[i]);
        }
        free(tape);
    }
}

/* Some tokens on their way through the head. */
struct head_pass {
    const struct head *head;
    const struct head_tape *t;
    const struct head_loss *loss;
    const struct head_grads *grads; /* never NULL */
    struct gpu_norm norm;
    int64_t first, count;
    struct tensor normed, dnormed, hidden, raw, draw, logits, dlogits;
};

static const struct tensor *head_present(const struct tensor *tensor)
{
    return tensor->data != NULL ? tensor : NULL;
}

static int head_zero(const struct head_pass *p, const struct tensor *tensor)
{
    return p->t->gpu.ops->fill_zero(p->t->stream, tensor->data, tensor_bytes(tensor));
}

/* As head_logits, with what the way back needs kept. */
static int head_pass_forward(const struct head_pass *p, const struct tensor *x)
{
    const struct gpu_ops *ops = p->t->gpu.ops;
    const struct model_config *c = p->t->config;
    const struct head *head = p->head;

    TRY(ops->norm(p->t->stream, &p->normed, x, &head->norm, head_present(&head->norm_bias), &p->norm));
    TRY(ops->linear(p->t->stream, &p->raw, &p->normed, &head->lm_head, head_present(&head->head_bias)));
    TRY(c->logit_scale != 1 ? ops->combine(p->t->stream, &p->raw, c->logit_scale, &p->raw, 0, NULL) : 0);
    return head_has_cap(c) ? ops->soft_cap(p->t->stream, &p->logits, &p->raw, c->logit_cap) : 0;
}

/* The teacher's logits of these tokens. */
static int head_pass_teacher(const struct head_pass *p, struct tensor *out)
{
    const struct head_loss *loss = p->loss;

    if (loss->teacher == NULL) {
        *out = tensor_rows(loss->logits, p->first, p->count);
        return 0;
    }
    const struct tensor x = tensor_rows(loss->hidden, p->first, p->count);
    *out = tensor_rows(&p->t->teacher, 0, p->count);
    TRY(p->t->gpu.ops->convert(p->t->stream, &p->hidden, &x));
    return head_logits(loss->teacher, p->t->config, &p->t->gpu, p->t->stream, &p->hidden, out);
}

/* *loss of these tokens, and the gradient of the logits unless `forward`. */
static int head_pass_loss(const struct head_pass *p, bool forward, double *loss)
{
    const struct gpu_ops *ops = p->t->gpu.ops;
    const struct tensor *gradient = forward ? NULL : &p->dlogits;
    struct tensor teacher;

    TRY(head_zero(p, &p->dlogits));
    if (p->loss->labels != NULL) {
        return ops->nll_grad(p->t->stream, gradient, &p->logits, p->loss->labels + p->first, p->loss->factor, loss);
    }
    TRY(head_pass_teacher(p, &teacher));
    return ops->kl_grad(p->t->stream, gradient, &p->logits, &teacher, p->loss->factor, loss);
}

/* From the gradient of the logits to that of the hidden states x, which may be overwritten by it. */
static int head_pass_backward(const struct head_pass *p, const struct tensor *x, const struct tensor *dx)
{
    const struct gpu_ops *ops = p->t->gpu.ops;
    const struct model_config *c = p->t->config;
    const struct head_grads *grads = p->grads;
    struct gpu_stream *stream = p->t->stream;

    if (head_has_cap(c)) {
        TRY(head_zero(p, &p->draw));
        TRY(ops->soft_cap_grad(stream, &p->draw, &p->dlogits, &p->raw, c->logit_cap));
    }
    TRY(c->logit_scale != 1 ? ops->combine(stream, &p->draw, c->logit_scale, &p->draw, 0, NULL) : 0);
    TRY(grads->bias.data != NULL ? ops->column_sums(stream, &grads->bias, &p->draw) : 0);
    TRY(grads->lm_head.data != NULL ? ops->cross(stream, &grads->lm_head, &p->draw, &p->normed) : 0);
    if (dx == NULL && grads->norm.data == NULL && grads->norm_bias.data == NULL) {
        return 0;
    }
    TRY(head_zero(p, &p->dnormed));
    TRY(ops->linear_grad(stream, &p->dnormed, &p->draw, &p->head->lm_head));
    TRY(head_zero(p, &p->hidden));
    TRY(ops->norm_grad(stream, &p->hidden, head_present(&grads->norm), head_present(&grads->norm_bias), &p->dnormed, x,
                       &p->head->norm, &p->norm));
    return dx != NULL ? ops->convert(stream, dx, &p->hidden) : 0;
}

/* Whether the loss is one of the three, for so many tokens, and the tape has what it takes. */
static int head_check_loss(const struct head_tape *tape, const struct head_loss *loss, int64_t tokens)
{
    bool teacher = loss->teacher != NULL && loss->hidden != NULL && loss->hidden->shape[0] == tokens;
    bool logits = loss->teacher == NULL && loss->logits != NULL && loss->logits->shape[0] == tokens;

    if ((loss->labels != NULL) + (loss->teacher != NULL) + (loss->logits != NULL) != 1 ||
        (loss->labels == NULL && !teacher && !logits)) {
        return err_raise(ERR_INTERNAL, "a loss has labels, or a teacher with hidden states or logits of %lld tokens",
                         (long long)tokens);
    }
    return teacher && tape->teacher.data == NULL ? err_raise(ERR_INTERNAL, "the tape has no memory for a teacher") : 0;
}

/* Labels in the vocabulary, or -1. */
static int head_check_labels(const struct head_tape *tape, const int32_t *labels, int64_t tokens)
{
    for (int64_t i = 0; labels != NULL && i < tokens; i++) {
        if (labels[i] < -1 || labels[i] >= tape->config->vocab_size) {
            return err_raise(ERR_INVALID_PARAMETER, "label %ld of token %lld: the vocabulary has %lld", (long)labels[i],
                             (long long)i, (long long)tape->config->vocab_size);
        }
    }
    return 0;
}

static struct head_pass head_pass(const struct head *head, const struct head_tape *t, const struct head_loss *loss,
                                  const struct head_grads *grads, int64_t first, int64_t count)
{
    struct head_pass p = {.head = head,
                          .t = t,
                          .loss = loss,
                          .grads = grads,
                          .norm = head_norm(head, t->config),
                          .first = first,
                          .count = count,
                          .normed = tensor_rows(&t->normed, 0, count),
                          .dnormed = tensor_rows(&t->dnormed, 0, count),
                          .hidden = tensor_rows(&t->hidden, 0, count),
                          .raw = tensor_rows(&t->raw, 0, count),
                          .draw = tensor_rows(&t->draw, 0, count)};

    p.logits = head_has_cap(t->config) ? tensor_rows(&t->logits, 0, count) : p.raw;
    p.dlogits = head_has_cap(t->config) ? tensor_rows(&t->dlogits, 0, count) : p.draw;
    return p;
}

int head_backward(const struct head *head, struct head_tape *tape, const struct tensor *x, const struct head_loss *loss,
                  const struct tensor *dx, const struct head_grads *grads, double *total)
{
    static const struct head_grads none;
    int64_t tokens = x->shape[0];
    bool forward = dx == NULL && grads == NULL;
    double sum = 0;

    TRY(head_check_loss(tape, loss, tokens));
    TRY(head_check_labels(tape, loss->labels, tokens));
    for (int64_t at = 0; at < tokens; at += tape->chunk) {
        int64_t count = tokens - at < tape->chunk ? tokens - at : tape->chunk;
        const struct head_pass p = head_pass(head, tape, loss, grads != NULL ? grads : &none, at, count);
        const struct tensor rows = tensor_rows(x, at, count);
        struct tensor drows;
        double own = 0;
        if (dx != NULL) {
            drows = tensor_rows(dx, at, count);
        }
        TRY(head_pass_forward(&p, &rows));
        TRY(head_pass_loss(&p, forward, &own));
        TRY(forward ? 0 : head_pass_backward(&p, &rows, dx != NULL ? &drows : NULL));
        sum += own;
    }
    *total += sum;
    return 0;
}
