/* Output moments on disk. */

#include "pipeline/moments_file.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/fs.h"
#include "base/json.h"
#include "base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MOMENTS_VERSION 1
#define MOMENTS_FILE_MAX ((size_t)1 << 16)

static int moments_path(const char *directory, int64_t layer, char *out, size_t size)
{
    return fs_path(out, size, "%s/moments-%lld.safetensors", directory, (long long)layer);
}

static int moments_open_file(const char *directory, int64_t layer, struct safetensors **out)
{
    char path[600];

    TRY(moments_path(directory, layer, path, sizeof(path)));
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return err_raise(ERR_SOURCE_CORRUPT, "%s: %s", path, strerror(errno));
    }
    return safetensors_open_fd_take(fd, "output moments", out);
}

int moments_key(const struct run *run, const struct calibration_set *set, const json_t *modules,
                char key[DIGEST_HEX_SIZE])
{
    const struct pipeline *p = run->p;
    char modification[DIGEST_HEX_SIZE];

    model_modification(p->model, modification);
    AUTO_JSON json_t *all =
        json_pack("{s:s, s:s, s:s, s:I, s:I, s:s, s:I, s:I, s:O?}", "model", model_digest(p->model), "modification",
                  modification, "calibration", p->calibration->digest, "sequences", (json_int_t)set->sequences,
                  "length", (json_int_t)set->length, "device", p->gpu->info.name, "micro_batch",
                  (json_int_t)run->batch_tokens, "seed", (json_int_t)p->seed, "modules", (json_t *)modules);
    AUTO_FREE char *text = all != NULL ? json_dumps(all, JSON_SORT_KEYS | JSON_COMPACT) : NULL;
    if (text == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a pass");
    }
    digest_bytes(text, strlen(text), key);
    return 0;
}

bool moments_are_there(const char *directory, int64_t layers, const char *key)
{
    const struct json_budget budget = {.depth = 2, .memory = MOMENTS_FILE_MAX};
    AUTO_FREE char *text = NULL;
    AUTO_JSON json_t *file = NULL;
    char path[600];
    size_t size = 0;

    if (fs_path(path, sizeof(path), "%s/%s", directory, MOMENTS_FILE) != 0 || access(path, R_OK) != 0 ||
        fs_read_file(path, MOMENTS_FILE_MAX, &text, &size) != 0 || json_parse_within(text, size, &budget, &file) != 0) {
        return false;
    }
    const char *made_under = json_get_string(file, "key");
    bool there = json_integer_value(json_object_get(file, "version")) == MOMENTS_VERSION && made_under != NULL &&
                 strcmp(made_under, key) == 0;
    for (int64_t i = 0; there && i < layers; i++) {
        AUTO(safetensors) struct safetensors *layer = NULL;
        there = moments_open_file(directory, i, &layer) == 0; /* a header, and as many bytes as it names */
    }
    return there;
}

int moments_finish(const char *directory, const char *key)
{
    AUTO_JSON json_t *file = json_pack("{s:i, s:s}", "version", MOMENTS_VERSION, "key", key);
    AUTO_FREE char *text = file != NULL ? json_dumps(file, JSON_COMPACT) : NULL;
    char path[600];

    if (text == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a pass");
    }
    TRY(fs_path(path, sizeof(path), "%s/%s", directory, MOMENTS_FILE));
    return fs_write_atomic(path, text, strlen(text));
}

/* The scale that brings the mean of the diagonal to 1. */
static int moments_scale(struct run *run, const char *name, const struct tensor *sums, double *scale)
{
    int64_t n = sums->shape[0];
    AUTO_FREE float *diagonal = NULL;
    double mean = 0;

    TRY(mem_buffer(&diagonal, (size_t)n));
    TRY(run->p->gpu->ops->diagonal(run->stream, diagonal, sums));
    for (int64_t i = 0; i < n; i++) {
        mean += (double)diagonal[i] / (double)n;
    }
    if (!isfinite(mean)) {
        return err_set_module(err_raise(ERR_NON_FINITE_VALUE, "gradients of the outputs of %s are not finite", name),
                              name);
    }
    *scale = mean > 0 ? 1 / mean : 1;
    return 0;
}

static int moments_put(struct run *run, struct safetensors_writer *writer, int module, const struct tensor *sums)
{
    const struct gpu *gpu = run->p->gpu;
    AUTO_FREE float *host = NULL;
    char name[PLAN_NAME_MAX];
    double scale = 1;

    model_module_name(run->p->model, run->block_index, module, name);
    TRY(moments_scale(run, name, sums, &scale));
    TRY(gpu->ops->symmetrize(run->stream, sums, scale));
    TRY(mem_buffer(&host, (size_t)tensor_count(sums)));
    TRY(gpu->ops->download(run->stream, host, sums->data, tensor_bytes(sums)));
    return safetensors_writer_put(writer, name, 0, host, tensor_bytes(sums));
}

int moments_write(struct run *run, const struct block *block, const struct block_grads *grads)
{
    AUTO(safetensors_writer) struct safetensors_writer *writer = NULL;
    char path[600], name[PLAN_NAME_MAX];

    TRY(moments_path(run->p->directory, block->index, path, sizeof(path)));
    TRY(safetensors_writer_new(path, &writer));
    for (int i = 0; i < block->plan->module_count; i++) {
        const struct tensor *sums = &grads->modules[i].moments;
        if (sums->data != NULL) {
            model_module_name(run->p->model, block->index, i, name);
            TRY(safetensors_writer_declare(writer, name, DTYPE_F32, 2, sums->shape));
        }
    }
    TRY(safetensors_writer_begin(writer));
    for (int i = 0; i < block->plan->module_count; i++) {
        if (grads->modules[i].moments.data != NULL) {
            TRY(moments_put(run, writer, i, &grads->modules[i].moments));
        }
    }
    TRY(safetensors_writer_finish(writer));
    run_end_phase(run, PHASE_CHECKPOINT, 0);
    return 0;
}

int moments_read(struct run *run, const struct linear_job *job, double keep, struct tensor *out)
{
    AUTO(safetensors) struct safetensors *file = NULL;
    AUTO_FREE float *host = NULL;
    int64_t n = job->weight->shape[0];

    TRY(moments_open_file(run->p->directory, run->block_index, &file));
    const struct safetensors_entry *entry = safetensors_find(file, job->name);
    if (entry == NULL || entry->dtype != DTYPE_F32 || entry->rank != 2 || entry->shape[0] != n ||
        entry->shape[1] != n) {
        return err_raise(ERR_SOURCE_CORRUPT, "there are no output moments of %s", job->name);
    }
    TRY(mem_buffer(&host, (size_t)(n * n)));
    TRY(safetensors_read(file, entry, 0, host, (size_t)(n * n) * sizeof(float)));
    for (int64_t i = 0; i < n * n; i++) {
        host[i] = (float)(keep * (double)host[i] + (i % (n + 1) == 0 ? 1 - keep : 0));
    }
    return gpu_tensor_from_host(run->p->gpu, run->stream, DTYPE_F32, 2, (const int64_t[]){n, n}, host, out);
}

void moments_remove(const char *directory, int64_t layers)
{
    char path[600];

    if (fs_path(path, sizeof(path), "%s/%s", directory, MOMENTS_FILE) != 0 || unlink(path) != 0) {
        return; /* there are none */
    }
    for (int64_t i = 0; i < layers; i++) {
        if (moments_path(directory, i, path, sizeof(path)) == 0) {
            (void)unlink(path);
        }
    }
}
