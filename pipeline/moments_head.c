/* The head in the pass for output moments. A label is drawn for each token, also a sequence's last, from softmax of the
 * logits, by a number that depends on the seed and the token's place alone. */

#include "pipeline/moments_parts.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/mem.h"
#include "base/random.h"
#include "pipeline/memory_plan.h"

#include <math.h>
#include <stdlib.h>

int moments_labels_init(struct run *run, int64_t tokens, struct moments_labels *l)
{
    const struct gpu *gpu = run->p->gpu;
    const struct model_config *c = run->config;

    *l = (struct moments_labels){.run = run, .chunk = memory_plan_labels(c, gpu->info.host_memory, tokens)};
    const int64_t hidden[2] = {l->chunk, c->hidden_size}, logits[2] = {l->chunk, c->vocab_size};
    TRY(head_load_output(run->p->model, gpu, run->stream, &l->head));
    TRY(head_tape_new(c, l->chunk, false, gpu, run->stream, &l->tape));
    TRY(gpu_tensor_uninitialized(gpu, DTYPE_F32, 2, hidden, &l->hidden));
    TRY(gpu_tensor_uninitialized(gpu, DTYPE_F32, 2, logits, &l->logits));
    return mem_buffer(&l->host, (size_t)(l->chunk * c->vocab_size));
}

void moments_labels_deinit(struct moments_labels *l)
{
    const struct gpu *gpu = l->run->p->gpu;

    head_deinit(&l->head, gpu);
    head_tape_free(l->tape);
    gpu_tensor_free(gpu, &l->hidden);
    gpu_tensor_free(gpu, &l->logits);
    free(l->host);
}

/* Overwrites the logits [n]. share: uniform in [0, 1). */
static int32_t moments_draw(float *logits, int64_t n, double share)
{
    float largest = logits[0];
    double sum = 0, reached = 0;

    for (int64_t i = 1; i < n; i++) {
        largest = logits[i] > largest ? logits[i] : largest;
    }
    for (int64_t i = 0; i < n; i++) {
        logits[i] = expf(logits[i] - largest);
        sum += (double)logits[i];
    }
    for (int64_t i = 0; i < n; i++) {
        reached += (double)logits[i];
        if (reached > share * sum) {
            return (int32_t)i;
        }
    }
    return (int32_t)(n - 1); /* NaN, which the gradient shows */
}

static int moments_draw_labels(struct moments_labels *l, int64_t first, const struct tensor *x, int32_t *labels)
{
    struct run *run = l->run;
    const struct gpu *gpu = run->p->gpu;
    int64_t tokens = x->shape[0], vocab = run->config->vocab_size;

    for (int64_t at = 0; at < tokens; at += l->chunk) {
        int64_t count = tokens - at < l->chunk ? tokens - at : l->chunk;
        const struct tensor rows = tensor_rows(x, at, count), hidden = tensor_rows(&l->hidden, 0, count);
        const struct tensor logits = tensor_rows(&l->logits, 0, count);
        TRY(gpu->ops->convert(run->stream, &hidden, &rows));
        TRY(head_logits(&l->head, run->config, gpu, run->stream, &hidden, &logits));
        TRY(gpu->ops->download(run->stream, l->host, logits.data, tensor_bytes(&logits)));
        for (int64_t i = 0; i < count; i++) {
            uint64_t state = run->p->seed ^ (uint64_t)(first + at + i + 1) * 0xd1342543de82ef95u;
            labels[at + i] = moments_draw(l->host + i * vocab, vocab, (double)(random_next(&state) >> 11) * 0x1p-53);
        }
    }
    return 0;
}

int moments_labels_backward(struct moments_labels *l, int64_t first, const struct tensor *x)
{
    AUTO_FREE int32_t *labels = NULL;
    double loss = 0;

    TRY(mem_buffer(&labels, (size_t)x->shape[0]));
    TRY(moments_draw_labels(l, first, x, labels));
    const struct head_loss by = {.labels = labels, .factor = 1};
    return head_backward(&l->head, l->tape, x, &by, x, NULL, &loss);
}
