/* Token sets in micro-batches.
 *
 * A micro-batch is as many whole sequences as fit in the tokens that the device wants at once, at least one: a function
 * of the device and the sequence length alone, so that every run over a set does the same arithmetic in the same
 * order.
 */

#include "pipeline/microbatches.h"

#include "base/err.h"

#include <string.h>

static int64_t widest(const struct model_config *c)
{
    int64_t attention = c->num_heads * c->head_dim;
    return attention > c->intermediate_size ? attention : c->intermediate_size;
}

/* What micro-batches are computed in, its scratch aside. Not zeroed: where activations are in memory that the device
 * works on itself, most of it is never touched. */
static int microbatches_tensors(struct microbatches *batches, const struct model_config *config, const struct gpu *gpu)
{
    int64_t tokens = batches->batch * batches->set->length;
    const int64_t hidden[2] = {tokens, config->hidden_size};
    const int64_t wide[2] = {tokens, widest(config)};

    int rc = gpu_tensor_uninitialized(gpu, DTYPE_F32, 2, hidden, &batches->x);
    rc = rc != 0 ? rc : gpu_tensor_uninitialized(gpu, DTYPE_F32, 2, hidden, &batches->in);
    rc = rc != 0 ? rc : gpu_tensor_uninitialized(gpu, DTYPE_F32, 2, wide, &batches->wide);
    return rc != 0 ? err_pass(rc, "scratch for %lld tokens", (long long)tokens) : 0;
}

int microbatches_init(struct microbatches *batches, const struct calibration_set *set,
                      const struct model_config *config, int64_t tokens, const struct gpu *gpu,
                      struct gpu_stream *stream)
{
    memset(batches, 0, sizeof(*batches));
    batches->set = set;
    batches->batch = set->length >= tokens ? 1 : tokens / set->length;
    if (batches->batch > set->sequences) {
        batches->batch = set->sequences;
    }
    int64_t rest = set->sequences % batches->batch;
    int rc = block_scratch_new(config, batches->batch, set->length, gpu, stream, &batches->scratch);
    if (rc == 0 && rest > 0) {
        rc = block_scratch_new(config, rest, set->length, gpu, stream, &batches->rest_scratch);
    }
    return rc != 0 ? err_pass(rc, "scratch for %lld tokens", (long long)(batches->batch * set->length))
                   : microbatches_tensors(batches, config, gpu);
}

int microbatches_init_second(struct microbatches *batches, const struct microbatches *first,
                             const struct model_config *config, const struct gpu *gpu)
{
    *batches = (struct microbatches){.set = first->set,
                                     .batch = first->batch,
                                     .shares = true,
                                     .scratch = first->scratch,
                                     .rest_scratch = first->rest_scratch};
    return microbatches_tensors(batches, config, gpu);
}

void microbatches_deinit(struct microbatches *batches, const struct gpu *gpu)
{
    if (!batches->shares) {
        block_scratch_free(batches->scratch);
        block_scratch_free(batches->rest_scratch);
    }
    gpu_tensor_free(gpu, &batches->x);
    gpu_tensor_free(gpu, &batches->in);
    gpu_tensor_free(gpu, &batches->wide);
    memset(batches, 0, sizeof(*batches));
}

int64_t microbatches_count(const struct microbatches *batches)
{
    return (batches->set->sequences + batches->batch - 1) / batches->batch;
}

struct batch microbatches_at(const struct microbatches *batches, int64_t i)
{
    int64_t first = i * batches->batch;
    int64_t left = batches->set->sequences - first;
    int64_t sequences = left < batches->batch ? left : batches->batch;
    int64_t rows = sequences * batches->set->length;

    return (struct batch){
        .first = first * batches->set->length,
        .rows = rows,
        .scratch = sequences == batches->batch ? batches->scratch : batches->rest_scratch,
        .x = tensor_rows(&batches->x, 0, rows),
        .in = tensor_rows(&batches->in, 0, rows),
    };
}

struct tensor microbatches_wide(const struct microbatches *batches, const struct batch *batch, int64_t width)
{
    return tensor_2d(batches->wide.data, DTYPE_F32, batch->rows, width);
}

int microbatches_embed(const struct microbatches *batches, struct activations *store, const struct model *model,
                       const struct gpu *gpu, struct gpu_stream *stream)
{
    struct head head = {0};

    int rc = head_load_embedding(model, gpu, stream, &head);
    for (int64_t i = 0; rc == 0 && i < microbatches_count(batches); i++) {
        struct batch b = microbatches_at(batches, i);
        activations_place(store, b.first, &b.x, gpu);
        rc = gpu->ops->embed(stream, &b.x, &head.embedding, batches->set->ids + b.first);
        rc = rc != 0 ? rc : activations_write(store, b.first, &b.x, gpu, stream);
    }
    head_deinit(&head, gpu);
    rc = rc != 0 ? rc : activations_turn(store);
    return rc != 0 ? err_pass(rc, "embed") : 0;
}
