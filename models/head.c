/* What surrounds the blocks: the embedding before them, the final norm and the output projection after them. Both
 * matrices stay in the checkpoint's own type, since they are the largest tensors of a small model and are read, not
 * solved. */

#include "base/err.h"
#include "gpu/shared/dtype.h"
#include "models/block.h"

int head_load_embedding(const struct model *model, const struct gpu *gpu, struct gpu_stream *stream, struct head *out)
{
    const char *positions = model_positions_name(model);

    if (out->embedding.data != NULL) {
        return 0;
    }
    if (positions != NULL && out->positions.data == NULL) {
        TRY(model_load_tensor(model, positions, DTYPE_F32, gpu, stream, &out->positions));
    }
    return model_load_tensor(model, model_embedding_name(model), DTYPE_COUNT, gpu, stream, &out->embedding);
}

double head_factor(const struct model_config *config, enum dtype dtype)
{
    double scale = config->embedding_scale;

    return config->arch->embedding_root ? (double)dtype_round((float)scale, dtype) : scale;
}

static int head_scale(const struct head *head, const struct model_config *config, const struct gpu *gpu,
                      struct gpu_stream *stream, const struct tensor *x)
{
    double scale = head_factor(config, head->embedding.dtype);

    return scale == 1 ? 0 : gpu->ops->combine(stream, x, scale, x, 0, NULL);
}

int head_embed(const struct head *head, const struct model_config *config, const struct gpu *gpu,
               struct gpu_stream *stream, const struct tensor *x, const int32_t *ids, int64_t length)
{
    TRY(gpu->ops->embed(stream, x, &head->embedding, ids));
    TRY(head_scale(head, config, gpu, stream, x));
    if (head->positions.data == NULL) {
        return 0;
    }
    int64_t first = config->arch->position_row;
    if (length > head->positions.shape[0] - first) {
        return err_raise(ERR_INVALID_PARAMETER, "sequences of %lld tokens: the model has %lld positions",
                         (long long)length, (long long)(head->positions.shape[0] - first));
    }
    const struct tensor positions = tensor_rows(&head->positions, first, length);
    for (int64_t at = 0; at < x->shape[0]; at += length) {
        const struct tensor rows = tensor_rows(x, at, length);
        TRY(gpu->ops->add(stream, &rows, &positions));
    }
    return 0;
}

int head_load_output(const struct model *model, const struct gpu *gpu, struct gpu_stream *stream, struct head *out)
{
    const char *bias = model_norm_bias_name(model), *head_bias_name = model_head_bias_name(model);
    AUTO_TENSOR(norm, gpu);
    AUTO_TENSOR(norm_bias, gpu);
    AUTO_TENSOR(head_bias, gpu);
    struct tensor lm_head = {0};
    bool tied = false;

    TRY(model_tied(model, &tied));
    TRY(model_load_tensor(model, model_norm_name(model), DTYPE_F32, gpu, stream, &norm));
    if (bias != NULL) {
        TRY(model_load_tensor(model, bias, DTYPE_F32, gpu, stream, &norm_bias));
    }
    if (head_bias_name != NULL) {
        TRY(model_load_tensor(model, head_bias_name, DTYPE_F32, gpu, stream, &head_bias));
    }
    int rc = tied ? head_load_embedding(model, gpu, stream, out)
                  : model_load_tensor(model, model_head_name(model), DTYPE_COUNT, gpu, stream, &lm_head);
    if (rc != 0) {
        return err_pass(rc, "load the output head");
    }
    out->norm = tensor_move(&norm);
    out->norm_bias = tensor_move(&norm_bias);
    out->head_bias = tensor_move(&head_bias);
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
    gpu_tensor_free(gpu, &head->positions);
    gpu_tensor_free(gpu, &head->norm);
    gpu_tensor_free(gpu, &head->norm_bias);
    gpu_tensor_free(gpu, &head->head_bias);
    *head = (struct head){0};
}

struct gpu_norm head_norm(const struct head *head, const struct model_config *config)
{
    return (struct gpu_norm){.size = tensor_count(&head->norm),
                             .layer = config->arch->layer_norms,
                             .unit_offset = config->arch->unit_offset,
                             .eps = (float)config->rms_norm_eps};
}

int head_logits(const struct head *head, const struct model_config *config, const struct gpu *gpu,
                struct gpu_stream *stream, const struct tensor *x, const struct tensor *logits)
{
    const struct gpu_norm norm = head_norm(head, config);

    TRY(gpu->ops->norm(stream, x, x, &head->norm, head->norm_bias.data != NULL ? &head->norm_bias : NULL, &norm));
    TRY(gpu->ops->linear(stream, logits, x, &head->lm_head, head->head_bias.data != NULL ? &head->head_bias : NULL));
    if (config->logit_scale != 1) {
        TRY(gpu->ops->combine(stream, logits, config->logit_scale, logits, 0, NULL));
    }
    return config->logit_cap > 0 ? gpu->ops->soft_cap(stream, logits, logits, config->logit_cap) : 0;
}
