/* The step TOKENS: what a layer gets of its tokens next to its input. Of each token two rows are added up: its row of a
 * table that has columns for every layer, and the normed product of its embedding and a matrix of the layer.
 *
 *   out = (norm(W e[id] / sqrt(hidden)) + sqrt(columns) table[id]) / sqrt(2)
 *
 * Embedding and table are read on the host, the rows of a micro-batch at a time, since both are larger than a layer. */

#include "models/block_internal.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/mem.h"

#include <math.h>
#include <stdlib.h>

struct block_tokens {
    struct model_tensor embedding, table;
    int64_t first; /* the layer's columns of the table */
    double embedding_scale, table_scale;
    struct tensor projection, norm; /* F32 [columns, hidden], [columns] */
};

void block_tokens_free(struct block_tokens *tokens, const struct gpu *gpu)
{
    if (tokens != NULL) {
        gpu_tensor_free(gpu, &tokens->projection);
        gpu_tensor_free(gpu, &tokens->norm);
        free(tokens);
    }
}

static int load_tokens(const struct model *model, int64_t index, const struct gpu *gpu, struct gpu_stream *stream,
                       struct block_tokens *t)
{
    const struct model_config *c = model_config(model);
    struct model_part part = {.tensor = model_find(model, model_tokens_name(model, MODEL_TOKENS_PROJECTION)),
                              .rows = c->token_columns,
                              .cols = c->hidden_size,
                              .outputs = c->token_columns,
                              .first = index * c->token_columns * c->hidden_size};

    t->embedding = model_find(model, model_embedding_name(model));
    t->table = model_find(model, model_tokens_name(model, MODEL_TOKENS_TABLE));
    t->first = index * c->token_columns;
    t->embedding_scale = head_factor(c, t->embedding.entry->dtype);
    t->table_scale = (double)dtype_round((float)sqrt((double)c->token_columns), t->table.entry->dtype);
    TRY(model_load_part(&part, gpu, stream, &t->projection));
    return model_load_tensor(model, model_tokens_name(model, MODEL_TOKENS_NORM), DTYPE_F32, gpu, stream, &t->norm);
}

int block_tokens_load(const struct model *model, int64_t index, const struct gpu *gpu, struct gpu_stream *stream,
                      struct block_tokens **out)
{
    struct block_tokens *tokens = NULL;

    TRY(mem_new(&tokens));
    int rc = load_tokens(model, index, gpu, stream, tokens);
    if (rc != 0) {
        block_tokens_free(tokens, gpu);
        return rc;
    }
    *out = tokens;
    return 0;
}

/* Columns from `first` on of the tokens' rows of a table, with a factor, as F32. */
static int tokens_rows(const struct block_scratch *s, const struct model_tensor *table, int64_t first,
                       const int32_t *ids, double factor, const struct tensor *out)
{
    enum dtype dtype = table->entry->dtype;
    const int64_t shape[] = {out->shape[0], out->shape[1]};
    uint64_t element = dtype_rows[dtype].bytes, row = (uint64_t)shape[1] * element;
    AUTO_FREE char *host = NULL;
    AUTO_TENSOR(raw, s->gpu);

    TRY(mem_buffer(&host, (size_t)shape[0] * row));
    for (int64_t t = 0; t < shape[0]; t++) {
        uint64_t at = ((uint64_t)ids[t] * (uint64_t)table->entry->shape[1] + (uint64_t)first) * element;
        TRY(safetensors_read(table->file, table->entry, at, host + (size_t)t * row, (size_t)row));
    }
    TRY(gpu_tensor_from_host(s->gpu, s->stream, dtype, 2, shape, host, &raw));
    TRY(s->gpu->ops->convert(s->stream, out, &raw));
    return s->gpu->ops->combine(s->stream, out, factor, out, 0, NULL);
}

int block_run_tokens(const struct block_scratch *s, const struct block *block, const int32_t *ids,
                     const struct tensor *out)
{
    const struct gpu_ops *ops = s->gpu->ops;
    const struct model_config *c = block->config;
    const struct block_tokens *t = block->tokens;
    const struct gpu_norm norm = {.size = c->token_columns, .eps = (float)c->rms_norm_eps};
    const int64_t shape[] = {s->tokens, c->hidden_size}, product_shape[] = {s->tokens, c->token_columns};
    AUTO_TENSOR(embedded, s->gpu);
    AUTO_TENSOR(product, s->gpu);

    if (t == NULL || ids == NULL) {
        return err_raise(ERR_INTERNAL, "block %lld has no tokens", (long long)block->index);
    }
    TRY(gpu_tensor_uninitialized(s->gpu, DTYPE_F32, 2, shape, &embedded));
    TRY(gpu_tensor_uninitialized(s->gpu, DTYPE_F32, 2, product_shape, &product));
    TRY(tokens_rows(s, &t->embedding, 0, ids, t->embedding_scale, &embedded));
    TRY(ops->linear(s->stream, &product, &embedded, &t->projection, NULL));
    TRY(ops->combine(s->stream, &product, 1 / sqrt((double)c->hidden_size), &product, 0, NULL));
    TRY(ops->norm(s->stream, &product, &product, &t->norm, NULL, &norm));
    TRY(tokens_rows(s, &t->table, t->first, ids, t->table_scale, out));
    return ops->combine(s->stream, out, M_SQRT1_2, out, M_SQRT1_2, &product);
}
