/* The tensors of a block, by the plan of its layer: loaded, listed, seen. */

#include "models/block_internal.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/mem.h"
#include "models/block_reader.h"

#include <stdlib.h>
#include <string.h>

/* What loads a tensor: where from, where to. */
struct source {
    const struct model *model;
    const struct gpu *gpu;
    struct gpu_stream *stream;
    struct block_reader *reader;
};

static int load_tensor(const struct source *source, const char *name, struct tensor *out)
{
    const void *bytes = source->reader != NULL ? block_reader_find(source->reader, name) : NULL;
    return model_load_bytes(source->model, name, bytes, DTYPE_F32, source->gpu, source->stream, out);
}

static int load_module_part(const struct source *source, const struct block *block, int i, bool bias,
                            struct tensor *out)
{
    const struct plan_module *module = &block->plan->modules[i];
    char name[MODEL_NAME_MAX];

    if (module->stored != NULL) {
        const struct model_part part = model_part(source->model, block->index, module, bias);
        return model_load_part(&part, source->gpu, source->stream, out);
    }
    model_part_name(source->model, block->index, module, bias, name);
    return load_tensor(source, name, out);
}

static int load_named_module(const struct source *source, struct block *block, int i)
{
    TRY(load_module_part(source, block, i, false, &block->modules[i].weight));
    return block->plan->modules[i].bias ? load_module_part(source, block, i, true, &block->modules[i].bias) : 0;
}

static int load_tensors(const struct source *source, struct block *block)
{
    char name[MODEL_NAME_MAX];

    for (int i = 0; i < block->plan->module_count && !plan_is_listed(block->plan); i++) {
        if (block->plan->modules[i].expert < 0) {
            TRY(load_named_module(source, block, i));
        }
    }
    for (int i = 0; i < block->plan->norm_count; i++) {
        const struct plan_norm *norm = &block->plan->norms[i];
        if (norm->path != NULL) {
            model_tensor_name(source->model, block->index, norm->path, "weight", name);
            TRY(load_tensor(source, name, &block->norms[i].weight));
        }
        if (norm->path != NULL && norm->bias) {
            model_tensor_name(source->model, block->index, norm->path, "bias", name);
            TRY(load_tensor(source, name, &block->norms[i].bias));
        }
    }
    for (int i = 0; i < block->plan->parameter_count; i++) {
        model_parameter_name(source->model, block->index, block->plan->parameters[i].path, name);
        TRY(load_tensor(source, name, &block->parameters[i]));
    }
    return 0;
}

/* The lists of a block, zeroed. */
static int new_lists(struct block *block)
{
    const struct plan *plan = block->plan;

    AUTO_FREE struct block_module *modules = NULL;

    TRY(mem_array(&modules, (size_t)plan->module_count));
    TRY(mem_array(&block->norms, (size_t)plan->norm_count));
    block->modules = MOVE(modules);
    return 0;
}

int block_load(const struct model *model, int64_t index, const struct gpu *gpu, struct gpu_stream *stream,
               struct block_reader *reader, struct block *out)
{
    const struct source source = {.model = model, .gpu = gpu, .stream = stream, .reader = reader};
    struct block block = {
        .index = index, .config = model_config(model), .plan = plans_layer(model_plans(model), index)};

    TRY(new_lists(&block));
    int rc = mem_array(&block.parameters, (size_t)block.plan->parameter_count);
    if (rc == 0) {
        rc = load_tensors(&source, &block);
    }
    if (rc == 0 && plan_find_step(block.plan, STEP_TOKENS) >= 0) {
        rc = block_tokens_load(model, index, gpu, stream, &block.tokens);
    }
    if (rc != 0) {
        block_deinit(&block, gpu);
        return err_pass(rc, "load block %lld", (long long)index);
    }
    *out = block;
    return 0;
}

int block_load_module(const struct model *model, const struct gpu *gpu, struct gpu_stream *stream, struct block *block,
                      int module)
{
    const struct source source = {.model = model, .gpu = gpu, .stream = stream};
    int rc = load_named_module(&source, block, module);

    if (rc == 0) {
        rc = block_apply_factors(block, module, gpu, stream);
    }
    if (rc != 0) {
        block_drop_module(block, module, gpu);
        const char *what = block->plan->modules[module].expert < 0 ? "a module" : "an expert";
        return err_pass(rc, "load %s of block %lld", what, (long long)block->index);
    }
    return 0;
}

void block_drop_module(struct block *block, int module, const struct gpu *gpu)
{
    gpu_tensor_free(gpu, &block->modules[module].weight);
    gpu_tensor_free(gpu, &block->modules[module].bias);
}

void block_deinit(struct block *block, const struct gpu *gpu)
{
    for (int i = 0; block->modules != NULL && i < block->plan->module_count; i++) {
        gpu_tensor_free(gpu, &block->modules[i].weight);
        gpu_tensor_free(gpu, &block->modules[i].bias);
        gpu_tensor_free(gpu, &block->modules[i].outliers);
    }
    for (int i = 0; block->norms != NULL && i < block->plan->norm_count; i++) {
        gpu_tensor_free(gpu, &block->norms[i].weight);
        gpu_tensor_free(gpu, &block->norms[i].bias);
    }
    for (int i = 0; block->parameters != NULL && i < block->plan->parameter_count; i++) {
        gpu_tensor_free(gpu, &block->parameters[i]);
    }
    free(block->parameters);
    block->parameters = NULL;
    block_tokens_free(block->tokens, gpu);
    block->tokens = NULL;
    gpu_tensor_free(gpu, &block->key_scale);
    gpu_tensor_free(gpu, &block->value_scale);
    block_free_factors(block);
    block_view_deinit(block);
}

int block_view(const struct block *block, struct block *out)
{
    struct block view = *block;
    int rc = new_lists(&view);

    if (rc == 0) {
        memcpy(view.modules, block->modules, (size_t)block->plan->module_count * sizeof(*view.modules));
        memcpy(view.norms, block->norms, (size_t)block->plan->norm_count * sizeof(*view.norms));
        *out = view;
    }
    return rc;
}

void block_view_deinit(struct block *view)
{
    free(view->modules);
    free(view->norms);
    view->modules = NULL;
    view->norms = NULL;
}

size_t block_tensors_max(const struct model *model)
{
    const struct plans *plans = model_plans(model);
    size_t max = 0;

    for (int kind = 0; kind < plans_kinds(plans); kind++) {
        const struct plan *plan = plans_kind(plans, kind);
        size_t count = 2 * ((size_t)plan->module_count + (size_t)plan->norm_count) + (size_t)plan->parameter_count;
        max = count > max ? count : max;
    }
    return max;
}

/* One that is missing is left out: loading it says so. member NULL: of a parameter. */
static size_t add_tensor(const struct model *model, int64_t index, const char *path, const char *member,
                         struct model_tensor *list, size_t count)
{
    char name[MODEL_NAME_MAX];

    if (member != NULL) {
        model_tensor_name(model, index, path, member, name);
    } else {
        model_parameter_name(model, index, path, name);
    }
    list[count] = model_find(model, name);
    if (list[count].file == NULL) {
        return count;
    }
    list[count].name = list[count].entry->name;
    return count + 1;
}

size_t block_tensors(const struct model *model, int64_t index, struct model_tensor *list)
{
    const struct plan *plan = plans_layer(model_plans(model), index);
    size_t count = 0;

    for (int i = 0; i < plan->module_count; i++) {
        if (plan->modules[i].expert >= 0 || plan->modules[i].stored != NULL || plan_is_listed(plan)) {
            continue;
        }
        count = add_tensor(model, index, plan->modules[i].path, "weight", list, count);
        if (plan->modules[i].bias) {
            count = add_tensor(model, index, plan->modules[i].path, "bias", list, count);
        }
    }
    for (int i = 0; i < plan->norm_count; i++) {
        if (plan->norms[i].path == NULL) {
            continue;
        }
        count = add_tensor(model, index, plan->norms[i].path, "weight", list, count);
        if (plan->norms[i].bias) {
            count = add_tensor(model, index, plan->norms[i].path, "bias", list, count);
        }
    }
    for (int i = 0; i < plan->parameter_count; i++) {
        count = add_tensor(model, index, plan->parameters[i].path, NULL, list, count);
    }
    return count;
}

/* Those that block_tensors leaves out because they are read row by row. */
static void prefetch_stored(const struct model *model, int64_t index)
{
    const struct plan *plan = plans_layer(model_plans(model), index);
    char name[MODEL_NAME_MAX];

    for (int i = 0; i < plan->module_count; i++) {
        if (plan->modules[i].expert < 0 && plan->modules[i].stored != NULL) {
            model_part_name(model, index, &plan->modules[i], false, name);
            model_prefetch_tensor(model, name);
        }
    }
}

void block_prefetch(const struct model *model, int64_t index)
{
    AUTO_FREE struct model_tensor *list =
        index < model_config(model)->num_layers ? calloc(block_tensors_max(model), sizeof(*list)) : NULL;
    size_t count = list != NULL ? block_tensors(model, index, list) : 0; /* without memory the system is not asked */

    for (size_t i = 0; i < count; i++) {
        model_prefetch_tensor(model, list[i].name);
    }
    if (index < model_config(model)->num_layers) {
        prefetch_stored(model, index);
    }
}
