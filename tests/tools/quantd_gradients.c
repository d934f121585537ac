/* quantd-gradients MODEL_DIR IDS_FILE SEQUENCES LENGTH TARGETS_FILE OUT_FILE
 *
 * The backward pass alone, for tests that compare it with another implementation: raw little-endian int32 ids
 * [SEQUENCES, LENGTH] in, and targets: int32 labels of as many tokens (-1: none), for the cross-entropy, or float32
 * logits [SEQUENCES * LENGTH, vocab] of a teacher, for the KL divergence; both as sums over tokens. Out: safetensors
 * with the gradient of every tensor of the blocks and of the final norm, and of an output projection that is not tied,
 * under their names in the checkpoint and as they are stored there, that of what enters the first block as "hidden",
 * and the "loss". The blocks run forward once for their inputs, then again one by one as they are taken in reverse. */

#include "base/cleanup.h"
#include "base/err.h"
#include "base/fs.h"
#include "base/mem.h"
#include "models/block_grad.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FILE_MAX ((size_t)256 << 20)
#define CHUNK 16 /* tokens whose logits exist at once */
#define SEQUENCES_AT_ONCE 1

/* The gradient of a tensor of the checkpoint, on the host. */
struct gradient {
    char name[MODEL_NAME_MAX];
    int rank;
    int64_t shape[TENSOR_RANK_MAX], count;
    float *numbers;
};

/* What enters a block, and what crosses layers: the hidden state and the values under their numbers. */
struct crossing {
    struct tensor at[PLAN_SHARED_MAX + 1]; /* 0: the hidden state; data NULL: nothing yet */
};

struct gradients {
    struct model *model;
    struct gpu gpu;
    struct gpu_stream *stream;
    int64_t sequences, length;
    int32_t *ids;
    char *targets;
    size_t targets_size;
    struct block_tape *tape;
    struct tensor *inputs; /* hidden states before each block, [layers] */
    struct crossing values, derivatives;
    struct gradient *list;
    size_t count;
    double loss;
};

static int new_rows(const struct gradients *g, int64_t width, struct tensor *out)
{
    return gpu_tensor_new(&g->gpu, DTYPE_F32, 2, (const int64_t[]){g->sequences * g->length, width}, out);
}

/* Zeros under this name, if there is none yet. */
static int find_gradient(struct gradients *g, const char *name, int rank, const int64_t *shape, struct gradient **out)
{
    for (size_t i = 0; i < g->count; i++) {
        if (strcmp(g->list[i].name, name) == 0) {
            *out = &g->list[i];
            return 0;
        }
    }
    TRY(mem_resize(&g->list, g->count + 1));
    struct gradient *new = &g->list[g->count];
    *new = (struct gradient){.rank = rank, .count = 1};
    snprintf(new->name, sizeof(new->name), "%s", name);
    for (int i = 0; i < rank; i++) {
        new->shape[i] = shape[i];
        new->count *= shape[i];
    }
    TRY(mem_array(&new->numbers, (size_t) new->count));
    g->count++;
    *out = new;
    return 0;
}

static int add_gradient(struct gradients *g, const char *name, const struct tensor *tensor)
{
    struct gradient *to;

    if (tensor->data == NULL) {
        return 0;
    }
    TRY(find_gradient(g, name, tensor->rank, tensor->shape, &to));
    return g->gpu.ops->download(g->stream, to->numbers, tensor->data, tensor_bytes(tensor));
}

/* A module's, where its weight or its bias is stored. */
static int add_part(struct gradients *g, int64_t layer, const struct plan_module *module, bool bias,
                    const struct tensor *tensor)
{
    const struct model_part part = model_part(g->model, layer, module, bias);
    AUTO_FREE float *host = NULL;
    struct gradient *to;

    if (tensor->data == NULL) {
        return 0;
    }
    TRY(find_gradient(g, part.tensor.name, part.tensor.entry->rank, part.tensor.entry->shape, &to));
    TRY(mem_buffer(&host, (size_t)(part.rows * part.cols)));
    TRY(g->gpu.ops->download(g->stream, host, tensor->data, tensor_bytes(tensor)));
    for (int64_t i = 0; i < part.rows * part.cols; i++) {
        to->numbers[model_part_element(&part, i / part.cols, i % part.cols)] = host[i];
    }
    return 0;
}

/* --- a block */

static int load_block(const struct gradients *g, int64_t layer, struct block *block)
{
    TRY(block_load(g->model, layer, &g->gpu, g->stream, NULL, block));
    for (int i = 0; i < block->plan->module_count; i++) {
        if (block->plan->modules[i].expert >= 0) {
            TRY(block_load_module(g->model, &g->gpu, g->stream, block, i));
        }
    }
    return 0;
}

static int like(const struct gradients *g, const struct tensor *tensor, struct tensor *out)
{
    return tensor->data == NULL ? 0 : gpu_tensor_new(&g->gpu, DTYPE_F32, tensor->rank, tensor->shape, out);
}

static int new_grads(const struct gradients *g, const struct block *block, struct block_grads *grads)
{
    const struct plan *plan = block->plan;

    TRY(mem_array(&grads->modules, (size_t)plan->module_count));
    TRY(mem_array(&grads->norms, (size_t)plan->norm_count));
    TRY(mem_array(&grads->sinks, (size_t)plan->parameter_count));
    for (int i = 0; i < plan->module_count; i++) {
        TRY(like(g, &block->modules[i].weight, &grads->modules[i].weight));
        TRY(like(g, &block->modules[i].bias, &grads->modules[i].bias));
    }
    for (int i = 0; i < plan->norm_count; i++) {
        TRY(like(g, &block->norms[i].weight, &grads->norms[i].weight));
        TRY(like(g, &block->norms[i].bias, &grads->norms[i].bias));
    }
    for (int s = 0; s < plan->step_count; s++) {
        const struct plan_step *step = &plan->steps[s];
        if (step->kind == STEP_ATTENTION && step->attention.has_sinks) {
            TRY(like(g, &block->parameters[step->attention.sinks], &grads->sinks[step->attention.sinks]));
        }
    }
    return 0;
}

static void free_grads(const struct gradients *g, const struct plan *plan, struct block_grads *grads)
{
    for (int i = 0; grads->modules != NULL && i < plan->module_count; i++) {
        gpu_tensor_free(&g->gpu, &grads->modules[i].weight);
        gpu_tensor_free(&g->gpu, &grads->modules[i].bias);
    }
    for (int i = 0; grads->norms != NULL && i < plan->norm_count; i++) {
        gpu_tensor_free(&g->gpu, &grads->norms[i].weight);
        gpu_tensor_free(&g->gpu, &grads->norms[i].bias);
    }
    for (int i = 0; grads->sinks != NULL && i < plan->parameter_count; i++) {
        gpu_tensor_free(&g->gpu, &grads->sinks[i]);
    }
    free(grads->modules);
    free(grads->norms);
    free(grads->sinks);
}

static int keep_grads(struct gradients *g, const struct block *block, const struct block_grads *grads)
{
    const struct plan *plan = block->plan;
    char name[MODEL_NAME_MAX];

    for (int i = 0; i < plan->module_count; i++) {
        TRY(add_part(g, block->index, &plan->modules[i], false, &grads->modules[i].weight));
        TRY(add_part(g, block->index, &plan->modules[i], true, &grads->modules[i].bias));
    }
    for (int i = 0; i < plan->norm_count; i++) {
        if (plan->norms[i].path != NULL) {
            model_tensor_name(g->model, block->index, plan->norms[i].path, "weight", name);
            TRY(add_gradient(g, name, &grads->norms[i].weight));
            model_tensor_name(g->model, block->index, plan->norms[i].path, "bias", name);
            TRY(add_gradient(g, name, &grads->norms[i].bias));
        }
    }
    for (int i = 0; i < plan->parameter_count; i++) {
        model_parameter_name(g->model, block->index, plan->parameters[i].path, name);
        TRY(add_gradient(g, name, &grads->sinks[i]));
    }
    return 0;
}

/* Rows of some sequences of a value that crosses layers, to the tape or from it; `add`: to what is there. */
static int move_rows(const struct gradients *g, struct tensor *all, const struct tensor *own, int64_t first, bool to,
                     bool add)
{
    TRY(all->data == NULL ? new_rows(g, own->shape[1], all) : 0);

    const struct tensor rows = tensor_rows(all, first * g->length, own->shape[0]);
    const struct tensor *y = to ? own : &rows, *x = to ? &rows : own;
    return add ? g->gpu.ops->add(g->stream, y, x) : g->gpu.ops->convert(g->stream, y, x);
}

static bool is_in(plan_set set, int value)
{
    return (set & PLAN_BIT(value)) != 0;
}

static int number_of(const struct plan *plan, int value)
{
    return value == 0 ? 0 : plan->values[value].shared;
}

/* Forward from `first` on; the block's input is input 0. */
static int tape_forward(struct gradients *g, const struct block *block, struct tensor *input, int64_t first,
                        int64_t count)
{
    const struct plan *plan = block->plan;

    TRY(block_tape_begin(g->tape, plan, count, g->ids + first * g->length));
    for (int v = 0; v < plan->value_count; v++) {
        if (is_in(plan->inputs, v)) {
            const struct tensor own = block_tape_value(g->tape, v);
            struct tensor *all = v == 0 ? input : &g->values.at[number_of(plan, v)];
            TRY(move_rows(g, all, &own, first, true, false));
        }
    }
    return block_tape_forward(block, g->tape);
}

static int block_forward(struct gradients *g, const struct block *block, int64_t first, int64_t count)
{
    const struct plan *plan = block->plan;
    struct tensor *input = &g->inputs[block->index];

    const struct tensor x = tensor_rows(&g->values.at[0], first * g->length, count * g->length);
    TRY(move_rows(g, input, &x, first, false, false));
    TRY(tape_forward(g, block, input, first, count));
    for (int v = 0; v < plan->value_count; v++) {
        if (is_in(plan->given, v) || v == plan->output) {
            const struct tensor own = block_tape_value(g->tape, v);
            TRY(move_rows(g, &g->values.at[v == plan->output ? 0 : number_of(plan, v)], &own, first, false, false));
        }
    }
    return 0;
}

/* What later layers made of what this one gives is there; what it makes of its inputs is added up for earlier ones. */
static int block_backward(struct gradients *g, const struct block *block, const struct block_grads *grads,
                          int64_t first, int64_t count)
{
    const struct plan *plan = block->plan;

    TRY(tape_forward(g, block, &g->inputs[block->index], first, count));
    for (int v = 0; v < plan->value_count; v++) {
        if (is_in(plan->given, v) || v == plan->output) {
            const struct tensor own = block_tape_gradient(g->tape, v);
            struct tensor *all = &g->derivatives.at[v == plan->output ? 0 : number_of(plan, v)];
            TRY(move_rows(g, all, &own, first, true, false));
        }
    }
    TRY(block_tape_backward(block, g->tape, grads, plan->inputs));
    for (int v = 0; v < plan->value_count; v++) {
        if (is_in(plan->inputs, v)) {
            const struct tensor own = block_tape_gradient(g->tape, v);
            TRY(move_rows(g, &g->derivatives.at[number_of(plan, v)], &own, first, false, v != 0));
        }
    }
    return 0;
}

static int run_block(struct gradients *g, int64_t layer, bool backward)
{
    struct block_grads grads = {0};
    struct block block = {0};

    int rc = load_block(g, layer, &block);
    if (rc == 0 && backward) {
        rc = new_grads(g, &block, &grads);
    }
    for (int64_t first = 0; rc == 0 && first < g->sequences; first += SEQUENCES_AT_ONCE) {
        rc = backward ? block_backward(g, &block, &grads, first, SEQUENCES_AT_ONCE)
                      : block_forward(g, &block, first, SEQUENCES_AT_ONCE);
    }
    if (rc == 0 && backward) {
        rc = keep_grads(g, &block, &grads);
    }
    free_grads(g, block.plan, &grads);
    block_deinit(&block, &g->gpu);
    return rc;
}

/* --- around the blocks */

static int embed(struct gradients *g, struct head *head)
{
    const struct model_config *c = model_config(g->model);

    TRY(new_rows(g, c->hidden_size, &g->values.at[0]));
    TRY(head_load_embedding(g->model, &g->gpu, g->stream, head));
    return head_embed(head, c, &g->gpu, g->stream, &g->values.at[0], g->ids, g->length);
}

/* The gradients of the head's tensors, which the caller frees. */
static int head_gradients(struct gradients *g, const struct head *head, struct head_tape *tape,
                          struct head_grads *grads)
{
    const struct model_config *c = model_config(g->model);
    int64_t tokens = g->sequences * g->length;
    const int64_t shape[] = {tokens, c->vocab_size};
    AUTO_TENSOR(teacher, &g->gpu);
    struct head_loss loss = {.factor = 1};

    if (g->targets_size == (size_t)tokens * sizeof(int32_t)) {
        loss.labels = (const int32_t *)(const void *)g->targets;
    } else if (g->targets_size == (size_t)(tokens * c->vocab_size) * sizeof(float)) {
        TRY(gpu_tensor_from_host(&g->gpu, g->stream, DTYPE_F32, 2, shape, g->targets, &teacher));
        loss.logits = &teacher;
    } else {
        return err_raise(ERR_INVALID_PARAMETER, "targets of %zu bytes", g->targets_size);
    }
    const int64_t matrix[] = {c->vocab_size, c->hidden_size};
    TRY(like(g, &head->norm, &grads->norm));
    TRY(like(g, &head->norm_bias, &grads->norm_bias));
    TRY(like(g, &head->head_bias, &grads->bias));
    TRY(head->tied ? 0 : gpu_tensor_new(&g->gpu, DTYPE_F32, 2, matrix, &grads->lm_head));
    TRY(new_rows(g, c->hidden_size, &g->derivatives.at[0]));
    TRY(head_backward(head, tape, &g->values.at[0], &loss, &g->derivatives.at[0], grads, &g->loss));
    TRY(add_gradient(g, model_norm_name(g->model), &grads->norm));
    TRY(grads->norm_bias.data != NULL ? add_gradient(g, model_norm_bias_name(g->model), &grads->norm_bias) : 0);
    TRY(grads->bias.data != NULL ? add_gradient(g, model_head_bias_name(g->model), &grads->bias) : 0);
    return add_gradient(g, model_head_name(g->model), &grads->lm_head);
}

static int run_head(struct gradients *g, struct head *head)
{
    AUTO(head_tape) struct head_tape *tape = NULL;
    struct head_grads grads = {0};

    TRY(head_load_output(g->model, &g->gpu, g->stream, head));
    TRY(head_tape_new(model_config(g->model), CHUNK, false, &g->gpu, g->stream, &tape));
    int rc = head_gradients(g, head, tape, &grads);
    gpu_tensor_free(&g->gpu, &grads.norm);
    gpu_tensor_free(&g->gpu, &grads.norm_bias);
    gpu_tensor_free(&g->gpu, &grads.lm_head);
    gpu_tensor_free(&g->gpu, &grads.bias);
    return rc;
}

static int run_model(struct gradients *g, struct head *head)
{
    int64_t layers = model_config(g->model)->num_layers;
    const struct block_tape_spec spec = {
        .plans = model_plans(g->model), .sequences = SEQUENCES_AT_ONCE, .length = g->length};

    TRY(block_tape_new(&spec, &g->gpu, g->stream, &g->tape));
    TRY(mem_array(&g->inputs, (size_t)layers));
    TRY(embed(g, head));
    for (int64_t i = 0; i < layers; i++) {
        TRY(run_block(g, i, false));
    }
    TRY(run_head(g, head));
    for (int64_t i = layers - 1; i >= 0; i--) {
        TRY(run_block(g, i, true));
    }
    return add_gradient(g, "hidden", &g->derivatives.at[0]);
}

static int write_gradients(struct gradients *g, const char *path)
{
    AUTO(safetensors_writer) struct safetensors_writer *writer = NULL;
    const float loss = (float)g->loss;
    struct gradient *of_loss;

    TRY(find_gradient(g, "loss", 0, NULL, &of_loss));
    of_loss->numbers[0] = loss;
    TRY(safetensors_writer_new(path, &writer));
    for (size_t i = 0; i < g->count; i++) {
        TRY(safetensors_writer_declare(writer, g->list[i].name, DTYPE_F32, g->list[i].rank, g->list[i].shape));
    }
    TRY(safetensors_writer_begin(writer));
    for (size_t i = 0; i < g->count; i++) {
        TRY(safetensors_writer_put(writer, g->list[i].name, 0, g->list[i].numbers,
                                   (size_t)g->list[i].count * sizeof(float)));
    }
    return safetensors_writer_finish(writer);
}

static int read_files(struct gradients *g, char **argv)
{
    char *text;
    size_t size;

    g->sequences = strtoll(argv[3], NULL, 10);
    g->length = strtoll(argv[4], NULL, 10);
    if (g->sequences < 1 || g->length < 1 || g->sequences > 65536 || g->length > 65536) {
        return err_raise(ERR_INVALID_PARAMETER, "SEQUENCES and LENGTH must be in [1, 65536]");
    }
    TRY(fs_read_file(argv[2], FILE_MAX, &text, &size));
    g->ids = (int32_t *)(void *)text;
    if (size != (size_t)(g->sequences * g->length) * sizeof(int32_t)) {
        return err_raise(ERR_INVALID_PARAMETER, "%s has %zu bytes", argv[2], size);
    }
    return fs_read_file(argv[5], FILE_MAX, &g->targets, &g->targets_size);
}

static int open_model(struct gradients *g, const char *directory)
{
    AUTO_CLOSE int root = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (root < 0) {
        return err_raise_errno(errno, "cannot open %s", directory);
    }
    TRY(model_open(root, ".", &g->model));
    TRY(gpu_open("cpu", 0, &g->gpu));
    return g->gpu.ops->stream_new(g->gpu.device, &g->stream);
}

static int run(struct gradients *g, char **argv)
{
    struct head head = {0};

    TRY(read_files(g, argv));
    TRY(open_model(g, argv[1]));
    int rc = run_model(g, &head);
    head_deinit(&head, &g->gpu);
    return rc != 0 ? rc : write_gradients(g, argv[6]);
}

static void close_all(struct gradients *g)
{
    if (g->gpu.ops != NULL) {
        block_tape_free(g->tape);
        for (int i = 0; i <= PLAN_SHARED_MAX; i++) {
            gpu_tensor_free(&g->gpu, &g->values.at[i]);
            gpu_tensor_free(&g->gpu, &g->derivatives.at[i]);
        }
        for (int64_t i = 0; g->inputs != NULL && i < model_config(g->model)->num_layers; i++) {
            gpu_tensor_free(&g->gpu, &g->inputs[i]);
        }
        g->gpu.ops->stream_free(g->stream);
        gpu_close(&g->gpu);
    }
    for (size_t i = 0; i < g->count; i++) {
        free(g->list[i].numbers);
    }
    free(g->list);
    free(g->inputs);
    free(g->ids);
    free(g->targets);
    model_close(g->model);
}

int main(int argc, char **argv)
{
    struct gradients g = {0};

    if (argc != 7) {
        fprintf(stderr, "usage: quantd-gradients MODEL_DIR IDS_FILE SEQUENCES LENGTH TARGETS_FILE OUT_FILE\n");
        return 2;
    }
    int rc = run(&g, argv);
    if (rc != 0) {
        fprintf(stderr, "%s: %s\n", err_api_code(rc), err_last()->message);
    }
    close_all(&g);
    return rc == 0 ? 0 : 1;
}
