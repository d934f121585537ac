/* quantd-forward MODEL_DIR IDS_FILE SEQUENCES LENGTH OUT_FILE [fold]
 *
 * The float forward pass alone, for tests that compare it with another implementation: raw little-endian int32 ids
 * [SEQUENCES, LENGTH] in, float32 logits [SEQUENCES * LENGTH, vocab] out. With `fold`, factors move from all linears
 * that have a fold to what makes their inputs, which leaves the logits as they are; their number goes to standard
 * output. */

#include "base/cleanup.h"
#include "base/err.h"
#include "base/fs.h"
#include "base/mem.h"
#include "models/block.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define IDS_MAX ((size_t)64 << 20)
#define SLICE 64 /* rows whose logits exist at once */

struct forward {
    struct model *model;
    struct gpu gpu;
    struct gpu_stream *stream;
    int64_t sequences, length;
    int32_t *ids;
    struct tensor x;
    struct tensor shared[PLAN_SHARED_MAX]; /* what layers gave to later ones; data NULL: nothing yet */
    int out_fd;
    bool fold;
    int folded; /* groups */
};

static int read_ids(struct forward *f, const char *path)
{
    char *text;
    size_t size;

    TRY(fs_read_file(path, IDS_MAX, &text, &size));
    f->ids = (int32_t *)(void *)text;
    if (size != (size_t)(f->sequences * f->length) * sizeof(int32_t)) {
        return err_raise(ERR_INVALID_PARAMETER, "%s has %zu bytes, not those of %lld x %lld ids", path, size,
                         (long long)f->sequences, (long long)f->length);
    }
    return 0;
}

static int open_model(struct forward *f, const char *directory)
{
    AUTO_CLOSE int root = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (root < 0) {
        return err_raise_errno(errno, "cannot open %s", directory);
    }
    TRY(model_open(root, ".", &f->model));
    TRY(gpu_open("cpu", 0, &f->gpu));
    return f->gpu.ops->stream_new(f->gpu.device, &f->stream);
}

static int embed(struct forward *f)
{
    const int64_t shape[2] = {f->sequences * f->length, model_config(f->model)->hidden_size};
    struct head head = {0};

    TRY(gpu_tensor_new(&f->gpu, DTYPE_F32, 2, shape, &f->x));
    int rc = head_load_embedding(f->model, &f->gpu, f->stream, &head);
    if (rc == 0) {
        rc = head_embed(&head, model_config(f->model), &f->gpu, f->stream, &f->x, f->ids, f->length);
    }
    head_deinit(&head, &f->gpu);
    return rc;
}

/* A value that crosses layers has one place in all of them. */
static int bind_shared(struct forward *f, struct block_values *values, int v)
{
    const struct plan_value *value = &values->plan->values[v];
    const int64_t shape[2] = {f->sequences * f->length, value->width};

    if (value->shared == 0) {
        return 0;
    }
    struct tensor *shared = &f->shared[value->shared - 1];
    if (shared->data == NULL) {
        TRY(gpu_tensor_new(&f->gpu, DTYPE_F32, 2, shape, shared));
    }
    block_value_bind(values, v, shared->data);
    return 0;
}

/* Powers of two, so that hardly anything is rounded. */
static int fold_all(struct forward *f, struct block *block)
{
    const struct plan *plan = block->plan;
    AUTO_FREE float *factors = NULL;

    TRY(mem_array(&factors, (size_t)plan->widest_input));
    for (int64_t i = 0; i < plan->widest_input; i++) {
        factors[i] = (float)(1 << (i * 7 % 5)) / 4;
    }
    for (int g = 0; g < plan->group_count; g++) {
        if (plan->groups[g].fold.kind != FOLD_NONE) {
            TRY(block_fold(block, &plan->groups[g], factors, DTYPE_F32, &f->gpu, f->stream));
            f->folded++;
        }
    }
    return 0;
}

static int forward(struct forward *f, struct block *block, struct block_scratch *scratch, int64_t layer)
{
    struct block_values values;

    TRY(block_load(f->model, layer, &f->gpu, f->stream, NULL, block));
    for (int i = 0; i < block->plan->module_count; i++) {
        if (block->plan->modules[i].expert >= 0) {
            TRY(block_load_module(f->model, &f->gpu, f->stream, block, i));
        }
    }
    TRY(f->fold ? fold_all(f, block) : 0);
    TRY(block_values_init(&values, block->plan, scratch, NULL));
    block_value_bind(&values, 0, f->x.data);
    values.ids = f->ids;
    for (int v = 0; v < block->plan->value_count; v++) {
        TRY(bind_shared(f, &values, v));
    }
    return block_run(block, &values, ~(plan_set)0);
}

static int run_blocks(struct forward *f)
{
    struct block_scratch *scratch;
    int rc = 0;

    TRY(block_scratch_new(model_plans(f->model), f->sequences, f->length, &f->gpu, f->stream, &scratch));
    for (int64_t i = 0; rc == 0 && i < model_config(f->model)->num_layers; i++) {
        struct block block = {0};
        rc = forward(f, &block, scratch, i);
        block_deinit(&block, &f->gpu);
    }
    block_scratch_free(scratch);
    return rc;
}

/* The head and the logits of a slice are the caller's to release, also after a failure. */
static int write_slices(struct forward *f, struct head *head, struct tensor *logits)
{
    const struct model_config *config = model_config(f->model);
    int64_t rows = f->sequences * f->length;
    size_t row_bytes = (size_t)config->vocab_size * sizeof(float);
    AUTO_FREE char *host = NULL;

    TRY(mem_buffer(&host, row_bytes * SLICE));
    TRY(head_load_output(f->model, &f->gpu, f->stream, head));
    TRY(gpu_tensor_new(&f->gpu, DTYPE_F32, 2, (const int64_t[]){SLICE, config->vocab_size}, logits));
    for (int64_t at = 0; at < rows; at += SLICE) {
        int64_t count = rows - at < SLICE ? rows - at : SLICE;
        struct tensor x = tensor_rows(&f->x, at, count), y = tensor_rows(logits, 0, count);
        TRY(head_logits(head, config, &f->gpu, f->stream, &x, &y));
        TRY(f->gpu.ops->download(f->stream, host, y.data, row_bytes * (size_t)count));
        TRY(fs_pwrite_full(f->out_fd, host, row_bytes * (size_t)count, at * (int64_t)row_bytes));
    }
    return 0;
}

static int write_logits(struct forward *f)
{
    struct tensor logits = {0};
    struct head head = {0};

    int rc = write_slices(f, &head, &logits);
    gpu_tensor_free(&f->gpu, &logits);
    head_deinit(&head, &f->gpu);
    return rc;
}

static int run(struct forward *f, char **argv)
{
    f->sequences = strtoll(argv[3], NULL, 10);
    f->length = strtoll(argv[4], NULL, 10);
    if (f->sequences < 1 || f->length < 1 || f->sequences > 65536 || f->length > 65536) {
        return err_raise(ERR_INVALID_PARAMETER, "SEQUENCES and LENGTH must be in [1, 65536]");
    }
    TRY(read_ids(f, argv[2]));
    TRY(open_model(f, argv[1]));
    TRY(embed(f));
    TRY(run_blocks(f));
    f->out_fd = open(argv[5], O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    return f->out_fd < 0 ? err_raise_errno(errno, "cannot create %s", argv[5]) : write_logits(f);
}

int main(int argc, char **argv)
{
    struct forward f = {.out_fd = -1, .fold = argc == 7 && strcmp(argv[6], "fold") == 0};

    if (argc != 6 && !f.fold) {
        fprintf(stderr, "usage: quantd-forward MODEL_DIR IDS_FILE SEQUENCES LENGTH OUT_FILE [fold]\n");
        return 2;
    }
    int rc = run(&f, argv);
    if (rc == 0 && f.fold) {
        printf("%d\n", f.folded);
    }
    if (rc != 0) {
        fprintf(stderr, "%s: %s\n", err_api_code(rc), err_last()->message);
    }
    if (f.out_fd >= 0) {
        close(f.out_fd);
    }
    if (f.gpu.ops != NULL) {
        gpu_tensor_free(&f.gpu, &f.x);
        for (int i = 0; i < PLAN_SHARED_MAX; i++) {
            gpu_tensor_free(&f.gpu, &f.shared[i]);
        }
        f.gpu.ops->stream_free(f.stream);
        gpu_close(&f.gpu);
    }
    model_close(f.model);
    free(f.ids);
    return rc == 0 ? 0 : 1;
}
