/* Stored values seen on the host, in pieces of bounded size: what no device ever loads is checked as well.
 *
 * A checkpoint may say that the head is the embedding (tie_word_embeddings) and hold a head all the same, as a
 * fine-tune that untied it does. Loaders then keep the head, so the flag alone decides nothing: the values do. */

#include "base/cleanup.h"
#include "base/err.h"
#include "base/mem.h"
#include "models/model_internal.h"

#include <string.h>

#define PIECE_ELEMENTS ((uint64_t)1 << 20)

static int scan_read(const struct model_tensor *tensor, uint64_t at, uint64_t count, void *buffer)
{
    uint64_t width = dtype_rows[tensor->entry->dtype].bytes;

    return safetensors_read(tensor->file, tensor->entry, at * width, buffer, (size_t)(count * width));
}

/* From the type that the weights of a model may have (model_check_tensors). */
static void widen(enum dtype dtype, const void *from, float *to, uint64_t count)
{
    const uint16_t *halves = from;

    if (dtype == DTYPE_F32) {
        memcpy(to, from, (size_t)count * sizeof(*to));
        return;
    }
    for (uint64_t i = 0; i < count; i++) {
        to[i] = dtype == DTYPE_F16 ? dtype_f16_to_f32(halves[i]) : dtype_bf16_to_f32(halves[i]);
    }
}

/* Buffers for a piece of two tensors, as stored and as F32. */
struct pair {
    float stored[2][PIECE_ELEMENTS];
    float wide[2][PIECE_ELEMENTS];
};

/* Bit for bit as F32, so that a NaN is equal to itself. */
static int scan_compare(const struct model_tensor tensors[2], struct pair *pair, bool *equal)
{
    uint64_t count = model_elements(tensors[0].entry);
    bool alike = tensors[0].entry->dtype == tensors[1].entry->dtype;

    *equal = count == model_elements(tensors[1].entry);
    for (uint64_t at = 0; *equal && at < count; at += PIECE_ELEMENTS) {
        uint64_t n = count - at < PIECE_ELEMENTS ? count - at : PIECE_ELEMENTS;
        for (int i = 0; i < 2; i++) {
            TRY(scan_read(&tensors[i], at, n, pair->stored[i]));
            if (!alike) {
                widen(tensors[i].entry->dtype, pair->stored[i], pair->wide[i], n);
            }
        }
        *equal = alike ? memcmp(pair->stored[0], pair->stored[1], n * dtype_rows[tensors[0].entry->dtype].bytes) == 0
                       : memcmp(pair->wide[0], pair->wide[1], n * sizeof(float)) == 0;
    }
    return 0;
}

int model_tied(const struct model *model, bool *tied)
{
    const struct model_tensor tensors[2] = {model_find(model, model->embedding), model_find(model, model->head)};
    bool equal = false;

    if (!model->config.tie_word_embeddings || tensors[1].file == NULL) {
        *tied = model->config.tie_word_embeddings;
        return 0;
    }
    int known = atomic_load(&model->lazy->head);
    if (known == MODEL_HEAD_UNKNOWN) {
        AUTO_FREE struct pair *pair = NULL;
        TRY(mem_buffer(&pair, 1));
        int rc = scan_compare(tensors, pair, &equal);
        if (rc != 0) {
            return err_pass(rc, "compare %s with the embedding", model->head);
        }
        known = equal ? MODEL_HEAD_TIED : MODEL_HEAD_OWN;
        atomic_store(&model->lazy->head, known);
    }
    *tied = known == MODEL_HEAD_TIED;
    return 0;
}

int model_raise_nonfinite(const char *name, int64_t index)
{
    int rc = err_raise(ERR_NON_FINITE_VALUE, "tensor %.160s has a NaN or Inf at element %lld", name, (long long)index);
    return err_set_module(err_set_hint(rc, "the checkpoint is damaged, or its training diverged"), name);
}

static int scan_tensor(const struct model_tensor *tensor, void *buffer, model_tick tick, void *data)
{
    uint64_t count = model_elements(tensor->entry);

    for (uint64_t at = 0; at < count; at += PIECE_ELEMENTS) {
        uint64_t n = count - at < PIECE_ELEMENTS ? count - at : PIECE_ELEMENTS;
        int rc = scan_read(tensor, at, n, buffer);
        if (rc != 0) {
            return err_pass(rc, "look through %s", tensor->name);
        }
        int64_t found = dtype_find_nonfinite(tensor->entry->dtype, buffer, (int64_t)n);
        if (found >= 0) {
            return model_raise_nonfinite(tensor->name, (int64_t)at + found);
        }
        if (tick != NULL) {
            TRY(tick(data));
        }
    }
    return 0;
}

/* Of a bare model: whatever is not the weight of a module that is quantized unless the request says otherwise. */
static int check_bare(const struct model *model, void *buffer, model_tick tick, void *data)
{
    for (size_t i = 0; i < model->tensor_count; i++) {
        const struct model_tensor *tensor = &model->tensors[i];
        enum dtype dtype = tensor->entry->dtype;
        bool is_float = dtype == DTYPE_F32 || dtype == DTYPE_F16 || dtype == DTYPE_BF16;
        if (is_float && !bare_is_solved(model, tensor->name)) {
            TRY(scan_tensor(tensor, buffer, tick, data));
        }
    }
    return 0;
}

int model_check_outside(const struct model *model, model_tick tick, void *data)
{
    const char *const names[] = {model->norm,      model->embedding, model->norm_bias,
                                 model->positions, model->head_bias, model->tokens[0],
                                 model->tokens[1], model->tokens[2], model->head};
    size_t count = sizeof(names) / sizeof(names[0]);
    AUTO_FREE float *buffer = NULL;
    bool tied = true;

    TRY(model_tied(model, &tied));
    TRY(mem_buffer(&buffer, PIECE_ELEMENTS));
    if (model->bare != NULL) {
        return check_bare(model, buffer, tick, data);
    }
    for (size_t i = 0; i < (tied ? count - 1 : count); i++) {
        const struct model_tensor tensor = model_find(model, names[i]);
        TRY(tensor.file != NULL ? scan_tensor(&tensor, buffer, tick, data) : 0);
    }
    return 0;
}
