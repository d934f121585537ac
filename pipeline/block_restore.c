/* What a solve leaves in the open block (solve.c, rewrite.c, cache_scales.c), from the block's file. */

#include "pipeline/block_restore.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/fs.h"
#include "models/cache.h"
#include "pipeline/memory_plan.h"
#include "pipeline/solve.h"

#include <string.h>

/* A result in place of the float weight; an expert's is made of its codes when its turn comes. */
static int restore_module(struct run *run, struct block *block, struct block_outputs *outputs, int item)
{
    const struct qtensor *q = &outputs->list[item];
    int64_t layer;
    int i = model_find_module(run->p->model, q->name, &layer);

    if (i < 0 || layer != run->block_index) {
        return err_raise(ERR_SOURCE_CORRUPT, "a block's file has %s, which is no module of block %lld", q->name,
                         (long long)run->block_index);
    }
    struct block_module *module = &block->modules[i];
    TRY(solved_input(run, module, q));
    if (block->plan->modules[i].expert < 0) {
        gpu_tensor_free(run->p->gpu, &module->weight);
        return solved_weight(run, outputs, item, &module->weight);
    }
    return memory_plan_takes_turns(block->plan, run->expert_bytes)
               ? block_outputs_spill(outputs, item, run->p->directory, run->p->gpu, run->stream)
               : 0;
}

static bool is_tensor_of(struct run *run, const char *path, const char *member, const char *name)
{
    char full[MODEL_NAME_MAX];

    model_tensor_name(run->p->model, run->block_index, path, member, full);
    return strcmp(full, name) == 0;
}

static int restore_expert(struct run *run, struct block *block, struct block_outputs *outputs, int i)
{
    struct block_module *module = &block->modules[i];
    char name[PLAN_NAME_MAX];

    if (module->weight.data != NULL) {
        return 0;
    }
    TRY(block_load_module(run->p->model, run->p->gpu, run->stream, block, i));
    model_module_name(run->p->model, run->block_index, i, name);
    int solved = block_outputs_find(outputs, name);
    if (solved < 0) {
        return 0;
    }
    gpu_tensor_free(run->p->gpu, &module->weight);
    return solved_weight(run, outputs, solved, &module->weight);
}

/* The block's tensor of this name, NULL when it has none. An expert's is loaded, with its module. */
static int find_tensor(struct run *run, struct block *block, struct block_outputs *outputs, const char *name,
                       struct tensor **out)
{
    const struct plan *plan = block->plan;

    *out = NULL;
    for (int i = 0; i < plan->module_count; i++) {
        bool weight = is_tensor_of(run, plan->modules[i].path, "weight", name);
        if (weight || is_tensor_of(run, plan->modules[i].path, "bias", name)) {
            TRY(restore_expert(run, block, outputs, i));
            *out = weight ? &block->modules[i].weight : &block->modules[i].bias;
            return 0;
        }
    }
    for (int i = 0; i < plan->norm_count; i++) {
        if (is_tensor_of(run, plan->norms[i].path, "weight", name)) {
            *out = &block->norms[i].weight;
        } else if (is_tensor_of(run, plan->norms[i].path, "bias", name)) {
            *out = &block->norms[i].bias;
        }
    }
    return 0;
}

/* A float tensor that a rewrite changed, or a scale of the cache. */
static int restore_tensor(struct run *run, struct block *block, struct block_outputs *outputs, int item,
                          struct cache_scales *cache)
{
    const struct qtensor *q = &outputs->list[item];
    const char *attention = run->config->arch->attention;
    struct tensor *tensor;

    if (is_tensor_of(run, attention, "k_scale", q->name) || is_tensor_of(run, attention, "v_scale", q->name)) {
        float **scales = is_tensor_of(run, attention, "k_scale", q->name) ? &cache->keys : &cache->values;
        *scales = q->tables;
        cache->count = q->rows;
        return 0;
    }
    TRY(find_tensor(run, block, outputs, q->name, &tensor));
    if (tensor == NULL || tensor->data == NULL || tensor_count(tensor) != q->rows * q->cols) {
        return err_raise(ERR_SOURCE_CORRUPT, "a block's file has %s, which is no tensor of block %lld", q->name,
                         (long long)run->block_index);
    }
    return gpu_tensor_upload(run->p->gpu, run->stream, tensor, q->tables);
}

static int restore_items(struct run *run, struct qtensor_file *file, struct block *block, struct block_outputs *outputs)
{
    struct cache_scales cache = {.count = 0}; /* the arrays are those of outputs */
    const struct tensor no_codes = {.data = NULL};

    for (int i = 0; i < qtensor_file_count(file); i++) {
        struct qtensor q;
        TRY(block_outputs_reserve(outputs));
        TRY(qtensor_file_read(file, i, &q));
        block_outputs_add_take(outputs, &q, &no_codes);
        TRY(q.scheme.kind == QTENSOR_DENSE ? restore_tensor(run, block, outputs, i, &cache)
                                           : restore_module(run, block, outputs, i));
    }
    return cache.keys != NULL && cache.values != NULL
               ? cache_place(block, &run->p->recipe->cache, &cache, run->p->gpu, run->stream)
               : 0;
}

int block_restore(struct run *run, const struct saved_block *saved, struct block *block, struct block_outputs *outputs)
{
    AUTO(qtensor_file) struct qtensor_file *file = NULL;
    char path[600];

    TRY(fs_path(path, sizeof(path), "%s/%s", run->p->directory, saved->file));
    TRY(qtensor_file_open(path, NULL, &file));
    int rc = restore_items(run, file, block, outputs);
    return rc != 0 ? err_pass(rc, "read block %lld", (long long)saved->index) : 0;
}
