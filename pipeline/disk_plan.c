/* Sums over the modules of a recipe: what the format's rows and the parts of a qtensor say of each. */

#include "pipeline/disk_plan.h"

#include "base/err.h"

static int64_t tensors_bytes(const struct format_tensor *tensors, int count)
{
    int64_t bytes = 0;

    for (int i = 0; i < count; i++) {
        int64_t size = (int64_t)dtype_rows[tensors[i].dtype].bytes;
        for (int axis = 0; axis < tensors[i].rank; axis++) {
            size *= tensors[i].shape[axis];
        }
        bytes += size;
    }
    return bytes;
}

int64_t disk_plan_module(const struct format *format, const struct format_module *module)
{
    struct format_tensor tensors[FORMAT_TENSORS_MAX];

    return tensors_bytes(tensors, format->tensors(&module->scheme, module->rows, module->cols, tensors));
}

/* In files next to the model's own. */
static int64_t extra_bytes(const struct format *format, const struct format_module *module)
{
    struct format_tensor tensors[FORMAT_TENSORS_MAX];

    return format->extra_tensors != NULL ? tensors_bytes(tensors, format->extra_tensors(module, tensors)) : 0;
}

/* Outliers that only a solve finds are not counted. */
static int block_bytes(const struct format_module *module, int64_t *bytes)
{
    struct qtensor_part parts[QTENSOR_PARTS_MAX];
    struct qtensor q;

    TRY(qtensor_describe(module->name, &module->scheme, module->rows, module->cols, module->outliers, &q));
    int count = qtensor_parts(&q, parts);
    for (int i = 0; i < count; i++) {
        *bytes += parts[i].rows * qtensor_stored_cols(&q, &parts[i]) * (int64_t)dtype_rows[parts[i].dtype].bytes;
    }
    return 0;
}

int disk_plan(const struct recipe *recipe, const struct format *format, const struct model *model,
              const struct format_module *modules, int count, struct disk_plan *out)
{
    int64_t element = (int64_t)dtype_rows[model_dtype(model)].bytes, source = 0;
    struct disk_plan plan = {.known = true};

    if (!recipe_analyses(recipe)) {
        for (int i = 0; i < count; i++) {
            int64_t elements = modules[i].rows * modules[i].cols;
            plan.parameters += elements;
            plan.quantized += disk_plan_module(format, &modules[i]);
            plan.extra += extra_bytes(format, &modules[i]);
            source += elements * element;
            TRY(block_bytes(&modules[i], &plan.blocks));
        }
        int64_t bytes = model_bytes(model) - source + plan.quantized + plan.extra;
        plan.artifact = bytes > 0 ? bytes : 0;
        plan.last = plan.blocks / model_config(model)->num_layers;
    }
    *out = plan;
    return 0;
}

double disk_plan_bits(const struct disk_plan *plan)
{
    return plan->parameters > 0 ? 8.0 * (double)plan->quantized / (double)plan->parameters : 0;
}

int64_t disk_plan_max(const struct disk_plan *plan)
{
    const int64_t moments[] = {plan->blocks - plan->last + plan->activations, plan->blocks + plan->ending,
                               plan->blocks + plan->artifact + plan->kept};
    int64_t most = 0;

    for (size_t i = 0; i < sizeof(moments) / sizeof(moments[0]); i++) {
        most = moments[i] > most ? moments[i] : most;
    }
    return most;
}
