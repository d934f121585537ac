/* Modules that have no tensors of their own: rows of a matrix with others, one matrix of several, inputs before
 * outputs. Read row by row as a linear has them, in the type that they are stored in; the host holds what is asked for,
 * and for matrices that are stored by inputs a few of their lines.
 */

#include "base/cleanup.h"
#include "base/err.h"
#include "base/mem.h"
#include "models/model_internal.h"

#include <stdio.h>
#include <string.h>

#define LINES 32 /* of a matrix stored by inputs, read at a time: as many elements of a row lie side by side then */

void model_part_name(const struct model *model, int64_t layer, const struct plan_module *module, bool bias,
                     char out[MODEL_NAME_MAX])
{
    const char *stored = module->stored == NULL ? NULL : bias ? module->stored->bias : module->stored->weight;

    if (stored != NULL) {
        snprintf(out, MODEL_NAME_MAX, "%s%lld.%s", model->layers, (long long)layer, stored);
    } else {
        model_tensor_name(model, layer, module->path, bias ? "bias" : "weight", out);
    }
}

int model_part_shape(const struct plan_module *module, bool bias, int64_t shape[3])
{
    const struct plan_stored *stored = module->stored;
    int64_t outputs = plan_stored_outputs(module);
    bool turned = stored != NULL && stored->transposed;
    int rank = 0;

    if (stored != NULL && stored->entries > 0) {
        shape[rank++] = stored->entries;
    }
    if (bias) {
        shape[rank++] = outputs;
        return rank;
    }
    shape[rank++] = turned ? module->cols : outputs;
    shape[rank++] = turned ? outputs : module->cols;
    return rank;
}

struct model_part model_part(const struct model *model, int64_t layer, const struct plan_module *module, bool bias)
{
    const struct plan_stored *stored = module->stored;
    char name[MODEL_NAME_MAX];

    model_part_name(model, layer, module, bias, name);
    struct model_part part = {.tensor = model_find(model, name),
                              .rows = module->rows,
                              .cols = bias ? 1 : module->cols,
                              .vector = bias,
                              .outputs = plan_stored_outputs(module)};
    if (part.tensor.file == NULL) {
        part.tensor.name = module->path;
    }
    if (stored != NULL) {
        part.select = stored->rows;
        part.transposed = bias || stored->transposed; /* a vector is one line of outputs */
        part.first = stored->entries > 0 ? stored->entry * part.outputs * part.cols : 0;
    }
    return part;
}

/* Whether both tensors of a layer's experts have the shapes of one form. */
static bool experts_fit(const struct model *model, int64_t layer, bool turned)
{
    const struct model_config *c = &model->config;
    const int64_t outputs[2] = {2 * c->expert_size, c->hidden_size}, inputs[2] = {c->hidden_size, c->expert_size};
    char name[MODEL_NAME_MAX];

    for (int i = 0; i < 2; i++) {
        model_parameter_name(model, layer, c->arch->experts->stacked[i], name);
        const struct model_tensor tensor = model_find(model, name);
        bool fits = tensor.file != NULL && tensor.entry->rank == 3 && tensor.entry->shape[0] == c->num_experts &&
                    tensor.entry->shape[1] == (turned ? inputs : outputs)[i] &&
                    tensor.entry->shape[2] == (turned ? outputs : inputs)[i];
        if (!fits) {
            return false;
        }
    }
    return true;
}

int model_stored_find(struct model *model)
{
    struct model_config *c = &model->config;
    const struct arch_experts *row = c->arch->experts;
    char name[MODEL_NAME_MAX];
    int64_t layer = 0;

    if (row == NULL || row->stacked[0] == NULL) {
        return 0;
    }
    while (layer < c->num_layers && !arch_has_experts(c, layer)) {
        layer++;
    }
    model_parameter_name(model, layer, row->stacked[0], name);
    if (layer == c->num_layers || model_find(model, name).file == NULL) {
        return 0;
    }
    bool turned = row->turned && !experts_fit(model, layer, false) && experts_fit(model, layer, true);
    c->experts_storage = turned ? EXPERTS_TURNED : EXPERTS_STACKED;
    plans_free(model->plans);
    model->plans = NULL;
    return plans_new(c, &model->plans);
}

static bool part_is_in(const struct plan_module *module, const char *path, bool bias)
{
    const struct plan_stored *stored = module->stored;
    const char *name = bias ? stored->bias : stored->weight;
    size_t length = strlen(module->path);

    if (name != NULL) {
        return (!bias || module->bias) && strcmp(name, path) == 0;
    }
    return !bias && strncmp(path, module->path, length) == 0 && strcmp(path + length, ".weight") == 0;
}

int model_find_part(const struct model *model, const char *tensor, int after, int64_t *layer, bool *bias)
{
    const char *path;
    int64_t found = model_find_layer(model, tensor, &path);
    const struct plan *plan = found >= 0 ? plans_layer(model->plans, found) : NULL;

    for (int i = after + 1; plan != NULL && i < plan->module_count; i++) {
        for (int k = 0; plan->modules[i].stored != NULL && k < 2; k++) {
            if (part_is_in(&plan->modules[i], path, k == 1)) {
                *layer = found;
                *bias = k == 1;
                return i;
            }
        }
    }
    return -1;
}

/* Which of the stored outputs is row n. */
static int64_t part_output(const struct model_part *part, int64_t n)
{
    const struct plan_select *s = &part->select;

    return s->stride == 0 ? n : n / s->count * s->stride + s->first + n % s->count;
}

int64_t model_part_element(const struct model_part *part, int64_t row, int64_t col)
{
    int64_t output = part_output(part, row);

    return part->first + (part->transposed ? col * part->outputs + output : output * part->cols + col);
}

static int part_read(const struct model_part *part, int64_t element, int64_t count, void *out)
{
    uint64_t width = dtype_rows[part->tensor.entry->dtype].bytes;

    return safetensors_read(part->tensor.file, part->tensor.entry, (uint64_t)element * width, out,
                            (size_t)((uint64_t)count * width));
}

/* Runs of rows that follow each other. */
static int read_straight(const struct model_part *part, int64_t first, int64_t count, char *out)
{
    int64_t row_bytes = part->cols * dtype_rows[part->tensor.entry->dtype].bytes;

    for (int64_t n = first, run; n < first + count; n += run) {
        int64_t left = first + count - n;
        run = part->select.stride == 0 ? left : part->select.count - n % part->select.count;
        run = run < left ? run : left;
        TRY(part_read(part, model_part_element(part, n, 0), run * part->cols, out + (n - first) * row_bytes));
    }
    return 0;
}

/* Element [line, output] of some lines becomes [row, line]. */
static void turn_lines(const struct model_part *part, const void *lines, int64_t span, int64_t line, int64_t number,
                       int64_t first, int64_t count, void *out)
{
    bool wide = dtype_rows[part->tensor.entry->dtype].bytes == sizeof(uint32_t);
    int64_t begin = part_output(part, first);

    for (int64_t n = 0; n < count; n++) {
        int64_t at = part_output(part, first + n) - begin, to = n * part->cols + line;
        for (int64_t i = 0; i < number; i++) {
            if (wide) {
                ((uint32_t *)out)[to + i] = ((const uint32_t *)lines)[i * span + at];
            } else {
                ((uint16_t *)out)[to + i] = ((const uint16_t *)lines)[i * span + at];
            }
        }
    }
}

static int read_turned(const struct model_part *part, int64_t first, int64_t count, void *out)
{
    int64_t width = dtype_rows[part->tensor.entry->dtype].bytes;
    int64_t span = part_output(part, first + count - 1) - part_output(part, first) + 1;
    int64_t held = part->cols < LINES ? part->cols : LINES;
    AUTO_FREE char *lines = NULL;

    TRY(mem_buffer(&lines, (size_t)(held * span * width)));
    for (int64_t line = 0; line < part->cols; line += held) {
        int64_t number = part->cols - line < held ? part->cols - line : held;
        for (int64_t i = 0; i < number; i++) {
            TRY(part_read(part, model_part_element(part, first, line + i), span, lines + i * span * width));
        }
        turn_lines(part, lines, span, line, number, first, count, out);
    }
    return 0;
}

int model_part_read(const struct model_part *part, int64_t first, int64_t count, void *out)
{
    if (count == 0) {
        return 0;
    }
    return part->transposed ? read_turned(part, first, count, out) : read_straight(part, first, count, out);
}
