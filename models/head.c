/* What surrounds the blocks: the embedding before them, the final norm and the output projection after them. Both
 * matrices stay in the checkpoint's own type, since they are the largest tensors of a small model and are read, not
 * solved. */

#include "base/err.h"
#include "models/block.h"

int head_load_embedding(const struct model *model, const struct gpu *gpu, struct gpu_stream *stream, struct head *out)
{
    if (out->embedding.data != NULL) {
        return 0;
    }
    return model_load_tensor(model, model_embedding_name(model), DTYPE_COUNT, gpu, stream, &out->embedding);
}

int head_load_output(const struct model *model, const struct gpu *gpu, struct gpu_stream *stream, struct head *out)
{
    AUTO_TENSOR(norm, gpu);
    struct tensor lm_head = {0};
    bool tied = false;

    TRY(model_tied(model, &tied));
    TRY(model_load_tensor(model, model_norm_name(model), DTYPE_F32, gpu, stream, &norm));
    int rc = tied ? head_load_embedding(model, gpu, stream, out)
                  : model_load_tensor(model, model_head_name(model), DTYPE_COUNT, gpu, stream, &lm_head);
    if (rc != 0) {
        return err_pass(rc, "load the output head");
    }
    out->norm = tensor_move(&norm);
    out->tied = tied;
    out->lm_head = tied ? out->embedding : lm_head;
    return 0;
}

void head_deinit(struct head *head, const struct gpu *gpu)
{
    if (!head->tied) {
        gpu_tensor_free(gpu, &head->lm_head);
    }
    gpu_tensor_free(gpu, &head->embedding);
    gpu_tensor_free(gpu, &head->norm);
    *head = (struct head){0};
}

int head_logits(const struct head *head, const struct model_config *config, const struct gpu *gpu,
                struct gpu_stream *stream, const struct tensor *x, const struct tensor *logits)
{
    TRY(gpu->ops->rmsnorm(stream, x, x, &head->norm, (float)config->rms_norm_eps));
    return gpu->ops->linear(stream, logits, x, &head->lm_head, NULL);
}
