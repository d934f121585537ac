/* The plan of an export: which tensors the artifact has, in which shard, and where each comes from.
 *
 * Order is the source checkpoint's, with M.weight replaced by the tensors that M becomes, so the same job gives the
 * same bytes. A head that is the embedding is not written: the config's tie_word_embeddings says it all. One with
 * values of its own is, whatever the source's config said (model_tied). */

#include "formats/export.h"

#include "base/err.h"
#include "base/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct named {
    const char *name;
    int index;
};

static int export_plan_compare_names(const void *a, const void *b)
{
    return strcmp(((const struct named *)a)->name, ((const struct named *)b)->name);
}

static int export_plan_sort_modules(const struct format_config *config, struct named **out)
{
    TRY(mem_array(out, (size_t)config->count));
    for (int i = 0; i < config->count; i++) {
        (*out)[i] = (struct named){config->modules[i].name, i};
    }
    qsort(*out, (size_t)config->count, sizeof(**out), export_plan_compare_names);
    return 0;
}

/* -1 when no module has this name. */
static int export_plan_find_module_index(const struct named *sorted, int count, const char *name)
{
    const struct named key = {name, 0};
    const struct named *found = bsearch(&key, sorted, (size_t)count, sizeof(*sorted), export_plan_compare_names);

    return found == NULL ? -1 : found->index;
}

/* The module whose weight this tensor is, or -1. */
static int export_plan_module_of(const struct named *sorted, int count, const char *tensor)
{
    static const char suffix[] = ".weight";
    char name[128];
    size_t length = strlen(tensor);

    if (length < sizeof(suffix) || length - (sizeof(suffix) - 1) >= sizeof(name) ||
        strcmp(tensor + length - (sizeof(suffix) - 1), suffix) != 0) {
        return -1;
    }
    snprintf(name, sizeof(name), "%.*s", (int)(length - (sizeof(suffix) - 1)), tensor);
    return export_plan_find_module_index(sorted, count, name);
}

static int export_plan_measure(struct export_piece *piece)
{
    int64_t bytes = dtype_rows[piece->dtype].bytes;

    for (int d = 0; d < piece->rank; d++) {
        if (piece->shape[d] < 0 || __builtin_mul_overflow(bytes, piece->shape[d], &bytes)) {
            return err_raise(ERR_INVALID_MODEL, "tensor %s is too large", piece->name);
        }
    }
    piece->bytes = bytes;
    return 0;
}

/* *pieces = the next n, zeroed; plan->count is the caller's to raise. */
static int export_plan_grow(struct export_plan *plan, size_t *capacity, size_t n, struct export_piece **pieces)
{
    if (plan->count + n > *capacity) {
        size_t larger = (*capacity + n) * 2;
        TRY(mem_resize(&plan->pieces, larger));
        *capacity = larger;
    }
    memset(plan->pieces + plan->count, 0, n * sizeof(*plan->pieces));
    *pieces = plan->pieces + plan->count;
    return 0;
}

static int export_plan_name_piece(struct export_piece *piece, const char *module, const char *suffix)
{
    int length = snprintf(piece->name, sizeof(piece->name), "%s%s", module, suffix);

    return length < (int)sizeof(piece->name) ? 0 : err_raise(ERR_INVALID_MODEL, "a tensor name is too long");
}

static int export_plan_add_module(const struct format_export *request, int index, size_t *capacity,
                                  struct export_plan *plan)
{
    const struct format_module *module = &request->config.modules[index];
    struct format_tensor tensors[FORMAT_TENSORS_MAX];
    struct export_piece *pieces;
    int n = request->format->tensors(&module->scheme, module->rows, module->cols, tensors);

    TRY(export_plan_grow(plan, capacity, (size_t)n, &pieces));
    for (int i = 0; i < n; i++) {
        pieces[i].dtype = tensors[i].dtype;
        pieces[i].rank = tensors[i].rank;
        memcpy(pieces[i].shape, tensors[i].shape, sizeof(tensors[i].shape));
        pieces[i].module = index;
        pieces[i].dense = -1;
        pieces[i].index = i;
        pieces[i].ahead = dtype_rows[tensors[i].dtype].bytes > dtype_rows[tensors[0].dtype].bytes;
        TRY(export_plan_name_piece(&pieces[i], module->name, tensors[i].suffix));
        TRY(export_plan_measure(&pieces[i]));
    }
    plan->count += (size_t)n;
    return 0;
}

static bool export_plan_is_real(enum dtype dtype)
{
    return dtype == DTYPE_F32 || dtype == DTYPE_F16 || dtype == DTYPE_BF16;
}

static int export_plan_find_dense(const struct export_plan *plan, const char *name)
{
    for (size_t i = 0; i < plan->dense_count; i++) {
        if (strcmp(plan->dense[i].name, name) == 0) {
            return (int)i;
        }
    }
    return -1;
}

static int export_plan_add_copy(const struct format_export *request, size_t source, size_t *capacity,
                                struct export_plan *plan)
{
    const struct model_tensor tensor = model_tensor_at(request->config.model, source);
    struct export_piece *piece;

    TRY(export_plan_grow(plan, capacity, 1, &piece));
    piece->dtype = tensor.entry->dtype;
    piece->rank = tensor.entry->rank;
    memcpy(piece->shape, tensor.entry->shape, sizeof(piece->shape));
    piece->bytes = (int64_t)(tensor.entry->end - tensor.entry->begin);
    piece->module = -1;
    piece->dense = export_plan_find_dense(plan, tensor.name);
    piece->source = source;
    plan->count++;
    if (piece->dense >= 0) {
        struct export_dense *dense = &plan->dense[piece->dense];
        int64_t count = piece->bytes / dtype_rows[piece->dtype].bytes;
        dense->placed = true;
        if (count != dense->rows * dense->cols || !export_plan_is_real(piece->dtype)) {
            return err_raise(ERR_SOURCE_CORRUPT, "the changed %s does not have the source's shape", dense->name);
        }
    }
    return export_plan_name_piece(piece, tensor.name, "");
}

/* Tensors that the source does not have come last. */
static int export_plan_add_new(const struct format_export *request, struct export_plan *plan, size_t *capacity)
{
    for (size_t i = 0; i < plan->dense_count; i++) {
        const struct export_dense *dense = &plan->dense[i];
        struct export_piece *piece;
        if (dense->placed) {
            continue;
        }
        TRY(export_plan_grow(plan, capacity, 1, &piece));
        piece->dtype = dense->dtype;
        piece->rank = format_cache_shape(&request->config.cache, dense->name, dense->rows * dense->cols, piece->shape);
        if (piece->rank == 0) {
            piece->rank = dense->rows == 1 ? 1 : 2;
            piece->shape[0] = dense->rows == 1 ? dense->cols : dense->rows;
            piece->shape[1] = dense->rows == 1 ? 1 : dense->cols;
        }
        piece->module = -1;
        piece->dense = (int)i;
        plan->count++;
        TRY(export_plan_name_piece(piece, dense->name, ""));
        TRY(export_plan_measure(piece));
    }
    return 0;
}

static int export_plan_add_part(struct export_plan *plan, const struct model_part *stored, int module, int dense)
{
    TRY(mem_resize(&plan->parts, plan->part_count + 1));
    plan->parts[plan->part_count++] = (struct export_part){.stored = *stored, .module = module, .dense = dense};
    if (dense >= 0) {
        plan->dense[dense].placed = true;
    }
    return 0;
}

/* A vector of its own of a module that becomes one: its bias, which the source has with others'. */
static int export_plan_add_alone(struct export_plan *plan, const struct model_part *stored, const char *name, int dense,
                                 size_t *capacity)
{
    struct export_piece *piece;

    TRY(export_plan_grow(plan, capacity, 1, &piece));
    *piece = (struct export_piece){.dtype = stored->tensor.entry->dtype,
                                   .rank = 1,
                                   .shape = {stored->rows},
                                   .module = -1,
                                   .dense = -1,
                                   .first_part = plan->part_count,
                                   .part_count = 1,
                                   .alone = true};
    plan->count++;
    TRY(export_plan_name_piece(piece, name, ""));
    TRY(export_plan_measure(piece));
    piece->slice = piece->bytes;
    return export_plan_add_part(plan, stored, -1, dense);
}

/* A source tensor that holds modules with others, or turned. Float artifacts have it as it was found, with what was
 * made in its place; in others the modules that are quantized have their own tensors instead, all or none of them
 * (format_check_stored). */
static int export_plan_add_stored(const struct format_export *request, const struct named *sorted, size_t source,
                                  size_t *capacity, struct export_plan *plan, int *modules)
{
    const struct model *model = request->config.model;
    const struct model_tensor tensor = model_tensor_at(model, source);
    size_t first = plan->part_count;
    bool bias = false, apart = false;
    int64_t layer;

    for (int m = -1; (m = model_find_part(model, tensor.name, m, &layer, &bias)) >= 0;) {
        const struct plan_module *module = &plans_layer(model_plans(model), layer)->modules[m];
        const struct model_part stored = model_part(model, layer, module, bias);
        char name[PLAN_NAME_MAX], own[MODEL_NAME_MAX];
        model_module_name(model, layer, m, name);
        model_tensor_name(model, layer, module->path, bias ? "bias" : "weight", own);
        int index = export_plan_find_module_index(sorted, request->config.count, name);
        int dense = export_plan_find_dense(plan, own);
        if (index >= 0 && !request->format->plain) {
            apart = true;
            TRY(bias ? export_plan_add_alone(plan, &stored, own, dense, capacity)
                     : export_plan_add_module(request, index, capacity, plan));
        } else if (dense >= 0 || (index >= 0 && !bias)) {
            TRY(export_plan_add_part(plan, &stored, bias ? -1 : index, dense));
        }
        *modules += index >= 0 && !bias;
    }
    if (apart) {
        return 0;
    }
    TRY(export_plan_add_copy(request, source, capacity, plan));
    struct export_piece *piece = &plan->pieces[plan->count - 1];
    piece->first_part = first;
    piece->part_count = plan->part_count - first;
    piece->dense = -1;
    piece->slice = piece->rank == 3 || (piece->rank == 2 && bias) ? piece->bytes / piece->shape[0] : piece->bytes;
    return 0;
}

static int export_plan_list_pieces(const struct format_export *request, const struct named *sorted,
                                   struct export_plan *plan)
{
    const struct model *model = request->config.model;
    size_t capacity = 0;
    int modules = 0;
    bool tied;

    TRY(model_tied(model, &tied));
    for (size_t i = 0; i < model_tensor_count(model); i++) {
        const char *name = model_tensor_at(model, i).name;
        int module = export_plan_module_of(sorted, request->config.count, name);
        int64_t layer;
        bool bias;
        if (model_find_part(model, name, -1, &layer, &bias) >= 0) {
            TRY(export_plan_add_stored(request, sorted, i, &capacity, plan, &modules));
        } else if (module >= 0) {
            TRY(export_plan_add_module(request, module, &capacity, plan));
            modules++;
        } else if (!tied || strcmp(name, model_head_name(model)) != 0) {
            TRY(export_plan_add_copy(request, i, &capacity, plan));
        }
    }
    if (modules == request->config.count) {
        return export_plan_add_new(request, plan, &capacity);
    }
    return err_raise(ERR_INTERNAL, "%d of %d quantized modules have a weight in the model", modules,
                     request->config.count);
}

static void export_plan_assign_shards(struct export_plan *plan, int64_t max_bytes)
{
    int64_t filled = 0;

    plan->shards = 1;
    for (size_t i = 0; i < plan->count; i++) {
        struct export_piece *piece = &plan->pieces[i];
        if (max_bytes > 0 && filled > 0 && piece->bytes > max_bytes - filled) {
            plan->shards++;
            filled = 0;
        }
        piece->shard = plan->shards - 1;
        filled += piece->bytes;
        plan->total_bytes += piece->bytes;
    }
}

static int export_plan_add_dense(const struct qtensor *q, struct export_place place, struct export_plan *plan)
{
    TRY(mem_resize(&plan->dense, plan->dense_count + 1));
    struct export_dense *dense = &plan->dense[plan->dense_count++];
    *dense = (struct export_dense){
        .place = place, .rows = q->rows, .cols = q->cols, .dtype = q->scheme.scale_dtype, .placed = false};
    memcpy(dense->name, q->name, sizeof(q->name));
    return 0;
}

static int export_plan_place_block(const struct format_export *request, const struct named *sorted, int block,
                                   struct export_plan *plan)
{
    AUTO(qtensor_file) struct qtensor_file *file = NULL;

    int rc = qtensor_file_open(request->block_files[block], NULL, &file);
    if (rc != 0) {
        return err_pass(rc, "open the checkpoint of block %d", block);
    }
    for (int i = 0; i < qtensor_file_count(file); i++) {
        const struct qtensor *q = qtensor_file_meta(file, i);
        if (q->scheme.kind == QTENSOR_DENSE) {
            TRY(export_plan_add_dense(q, (struct export_place){block, i}, plan));
            continue;
        }
        int index = export_plan_find_module_index(sorted, request->config.count, q->name);
        const struct format_module *module = index < 0 ? NULL : &request->config.modules[index];
        if (module == NULL || plan->places[index].block >= 0 || q->rows != module->rows || q->cols != module->cols ||
            !format_same_geometry(&q->scheme, &module->scheme) || q->scheme.scale_dtype != module->scheme.scale_dtype) {
            return err_raise(ERR_SOURCE_CORRUPT, "checkpoint of block %d: %s is not what the job asked for", block,
                             q->name);
        }
        plan->places[index] = (struct export_place){block, i};
    }
    return 0;
}

static int export_plan_place_modules(const struct format_export *request, const struct named *sorted,
                                     struct export_plan *plan)
{
    TRY(mem_array(&plan->places, (size_t)request->config.count));
    for (int i = 0; i < request->config.count; i++) {
        plan->places[i].block = -1;
    }
    for (int block = 0; block < request->block_count; block++) {
        TRY(export_plan_place_block(request, sorted, block, plan));
    }
    for (int i = 0; i < request->config.count; i++) {
        if (plan->places[i].block < 0) {
            return err_raise(ERR_SOURCE_CORRUPT, "no checkpoint holds %s", request->config.modules[i].name);
        }
    }
    return 0;
}

int export_plan_make(const struct format_export *request, struct export_plan *plan)
{
    AUTO(export_plan) struct export_plan made = {0};
    AUTO_FREE struct named *sorted = NULL;

    if (request->config.count < 0 || (request->config.count == 0 && request->config.cache.element == DTYPE_F32)) {
        return err_raise(ERR_INTERNAL, "an export without quantized modules");
    }
    TRY(export_plan_sort_modules(&request->config, &sorted));
    TRY(export_plan_place_modules(request, sorted, &made));
    TRY(export_plan_list_pieces(request, sorted, &made));
    export_plan_assign_shards(&made, request->max_shard_bytes);
    *plan = made;
    made = (struct export_plan){0};
    return 0;
}

void export_plan_deinit(struct export_plan *plan)
{
    free(plan->pieces);
    free(plan->places);
    free(plan->dense);
    free(plan->parts);
    *plan = (struct export_plan){0};
}

void export_shard_name(const struct export_plan *plan, int shard, char out[64])
{
    if (plan->shards == 1) {
        snprintf(out, 64, "model.safetensors");
    } else {
        snprintf(out, 64, "model-%05d-of-%05d.safetensors", shard + 1, plan->shards);
    }
}
