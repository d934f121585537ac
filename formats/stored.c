/* Modules whose weight the checkpoint has in another form than a linear's (struct plan_stored): which formats their
 * loaders read for them. Float artifacts keep the form.
 *
 * By inputs ([in, out], Conv1D of GPT-2): loaders that replace such modules want a linear's tensors.
 * Several matrices in one tensor, as experts are stored: runtimes that quantize experts want each one's own tensors,
 * and read either those or the one tensor. */

#include "formats/common.h"

#include "base/cleanup.h"
#include "base/err.h"

#include <string.h>

static int stored_check_turned(const struct format *format, const struct plan_module *module,
                               const struct format_module *quantized)
{
    if (quantized == NULL || !module->stored->transposed || module->stored->entries > 0 || format->conv1d) {
        return 0;
    }
    int rc = err_raise(ERR_INCOMPATIBLE_OPTIONS,
                       "%.100s is stored by inputs (Conv1D), and no loader of %s replaces such a module",
                       quantized->name, format->name);
    return err_set_hint(rc, "format gptq, bitsandbytes or dense");
}

/* The first module of the layer that is in the same tensor as module i. */
static int stored_first_with(const struct plan *plan, int i)
{
    const char *tensor = plan->modules[i].stored->weight;
    int first = 0;

    while (plan->modules[first].stored == NULL || plan->modules[first].stored->weight == NULL ||
           strcmp(plan->modules[first].stored->weight, tensor) != 0) {
        first++;
    }
    return first;
}

static int stored_check_layer(const struct format *format, const struct plan *plan,
                              const struct format_module *const *table)
{
    int with = -1; /* the last first: neighbours are mostly in one tensor */

    for (int i = 0; i < plan->module_count; i++) {
        const struct plan_stored *stored = plan->modules[i].stored;
        if (stored == NULL) {
            continue;
        }
        TRY(stored_check_turned(format, &plan->modules[i], table[i]));
        if (stored->weight == NULL) {
            continue;
        }
        bool same = with >= 0 && strcmp(plan->modules[with].stored->weight, stored->weight) == 0;
        with = same ? with : stored_first_with(plan, i);
        if ((table[with] == NULL) != (table[i] == NULL)) {
            int rc = err_raise(ERR_INCOMPATIBLE_OPTIONS, "%s and %s are in one tensor, %s, and are not both quantized",
                               plan->modules[with].path, plan->modules[i].path, stored->weight);
            return err_set_hint(rc, "quantize all modules of that tensor, or none; or format dense");
        }
    }
    return 0;
}

int format_check_stored(const struct format *format, const struct format_config *config)
{
    AUTO_FREE const struct format_module **table = NULL;
    const struct plans *plans = model_plans(config->model);

    if (format->plain) {
        return 0;
    }
    TRY(format_module_table(config, &table));
    for (int64_t layer = 0; layer < plans_config(plans)->num_layers; layer++) {
        TRY(stored_check_layer(format, plans_layer(plans, layer),
                               (const struct format_module *const *)table + plans_first_module(plans, layer)));
    }
    return 0;
}
