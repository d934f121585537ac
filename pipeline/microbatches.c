/* Token sets in micro-batches.
 *
 * A micro-batch is as many complete sequences as fit into the device's number of tokens, at least one: a function of
 * the device and the sequence length alone, so that every run over a set does the same arithmetic in the same order. */

#include "pipeline/microbatches.h"

#include "base/err.h"

#include <string.h>

/* The memory of a micro-batch's values, without scratch. Not zeroed: where the device computes in the stores
 * themselves, nearly all of it is never touched. */
static int new_kept(struct microbatches *batches, const struct plans *plans, const struct gpu *gpu)
{
    int64_t tokens = batches->batch * batches->set->length, elements = block_kept_elements(plans, tokens);
    int rc = gpu_tensor_uninitialized(gpu, DTYPE_F32, 1, &elements, &batches->kept);

    return rc != 0 ? err_pass(rc, "values of %lld tokens", (long long)tokens) : 0;
}

int microbatches_init(struct microbatches *batches, const struct calibration_set *set, const struct plans *plans,
                      int64_t tokens, const struct gpu *gpu, struct gpu_stream *stream)
{
    memset(batches, 0, sizeof(*batches));
    batches->set = set;
    batches->batch = set->length >= tokens ? 1 : tokens / set->length;
    if (batches->batch > set->sequences) {
        batches->batch = set->sequences;
    }
    int64_t rest = set->sequences % batches->batch;
    int rc = block_scratch_new(plans, batches->batch, set->length, gpu, stream, &batches->scratch);
    if (rc == 0 && rest > 0) {
        rc = block_scratch_new(plans, rest, set->length, gpu, stream, &batches->rest_scratch);
    }
    return rc != 0 ? err_pass(rc, "scratch for %lld tokens", (long long)(batches->batch * set->length))
                   : new_kept(batches, plans, gpu);
}

int microbatches_init_second(struct microbatches *batches, const struct microbatches *first, const struct plans *plans,
                             const struct gpu *gpu)
{
    *batches = (struct microbatches){.set = first->set,
                                     .batch = first->batch,
                                     .shares = true,
                                     .scratch = first->scratch,
                                     .rest_scratch = first->rest_scratch};
    return new_kept(batches, plans, gpu);
}

void microbatches_deinit(struct microbatches *batches, const struct gpu *gpu)
{
    if (!batches->shares) {
        block_scratch_free(batches->scratch);
        block_scratch_free(batches->rest_scratch);
    }
    gpu_tensor_free(gpu, &batches->kept);
    memset(batches, 0, sizeof(*batches));
}

int64_t microbatches_count(const struct microbatches *batches)
{
    return (batches->set->sequences + batches->batch - 1) / batches->batch;
}

struct microbatch microbatches_at(const struct microbatches *batches, const struct plan *plan, int64_t i)
{
    int64_t first = i * batches->batch;
    int64_t left = batches->set->sequences - first;
    int64_t sequences = left < batches->batch ? left : batches->batch;
    struct microbatch batch = {.first = first * batches->set->length, .rows = sequences * batches->set->length};

    (void)block_values_init(&batch.values, plan, sequences == batches->batch ? batches->scratch : batches->rest_scratch,
                            &batches->kept);
    batch.values.ids = batches->set->ids + batch.first;
    return batch;
}

int microbatch_open(struct microbatch *batch, int value, struct activations *store, enum activations_side side,
                    const struct gpu *gpu, struct gpu_stream *stream)
{
    struct tensor rows = block_value(&batch->values, value);
    int rc = activations_open(store, side, batch->first, &rows, gpu, stream);

    block_value_bind(&batch->values, value, rows.data);
    return rc;
}

int microbatch_read(const struct microbatch *batch, int value, struct activations *store, enum activations_side side,
                    const struct gpu *gpu, struct gpu_stream *stream)
{
    const struct tensor rows = block_value(&batch->values, value);

    return activations_read(store, side, batch->first, &rows, gpu, stream);
}

void microbatch_place(struct microbatch *batch, int value, const struct activations *store, const struct gpu *gpu)
{
    struct tensor rows = block_value(&batch->values, value);

    activations_place(store, batch->first, &rows, gpu);
    block_value_bind(&batch->values, value, rows.data);
}

int microbatch_write(const struct microbatch *batch, int value, struct activations *store, const struct gpu *gpu,
                     struct gpu_stream *stream)
{
    const struct tensor rows = block_value(&batch->values, value);

    return activations_write(store, batch->first, &rows, gpu, stream);
}

static int embed_batches(const struct microbatches *batches, struct activations *store, const struct plan *plan,
                         const struct head *head, const struct model_config *config, const struct gpu *gpu,
                         struct gpu_stream *stream)
{
    for (int64_t i = 0; i < microbatches_count(batches); i++) {
        struct microbatch b = microbatches_at(batches, plan, i);
        microbatch_place(&b, 0, store, gpu);
        const struct tensor x = block_value(&b.values, 0);
        TRY(head_embed(head, config, gpu, stream, &x, batches->set->ids + b.first, batches->set->length));
        TRY(microbatch_write(&b, 0, store, gpu, stream));
    }
    return activations_turn(store);
}

int microbatches_embed(const struct microbatches *batches, struct activations *store, const struct model *model,
                       const struct gpu *gpu, struct gpu_stream *stream)
{
    struct head head = {0};

    int rc = head_load_embedding(model, gpu, stream, &head);
    if (rc == 0) {
        rc = embed_batches(batches, store, plans_layer(model_plans(model), 0), &head, model_config(model), gpu, stream);
    }
    head_deinit(&head, gpu);
    return rc != 0 ? err_pass(rc, "embed") : 0;
}
