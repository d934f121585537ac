/* Reading and computing overlap: the longer of the two is what a step takes. */

#include "jobs/roofline.h"

#define CACHE_BYTES 2 /* of a key or value in 16 bits */

const char *const roofline_bounds[] = {
    [BOUND_WEIGHTS] = "weights", [BOUND_CACHE] = "kv_cache", [BOUND_ARITHMETIC] = "arithmetic"};

static double of_layers(const struct plan *plan, double *experts, double *chosen)
{
    double shared = 0;

    for (int i = 0; i < plan->module_count; i++) {
        const struct plan_module *module = &plan->modules[i];
        double elements = (double)module->rows * (double)module->cols;
        *(module->expert < 0 ? &shared : experts) += elements;
    }
    for (int i = 0; i < plan->step_count; i++) {
        const struct plan_experts *e = plan->steps[i].experts;
        *chosen = e != NULL ? (double)e->top_k / (double)e->count : *chosen;
    }
    return shared;
}

/* Columns of keys and values of one layer, and how many positions it keeps. */
static double cache_of(const struct model_config *c, const struct plan *plan, int64_t context)
{
    double bytes = 0;

    for (int i = 0; i < plan->step_count; i++) {
        const struct plan_attention *a = &plan->steps[i].attention;
        if (plan->steps[i].kind != STEP_ATTENTION) {
            continue;
        }
        int64_t limit = a->window > 0 ? a->window : a->chunk > 0 ? a->chunk : context;
        int64_t value = a->value_dim > 0 ? a->value_dim : a->head_dim;
        double columns = (double)a->kv_heads * (double)(a->head_dim + value);
        /* the row that keys and values are made from */
        columns = c->latent.rank > 0 ? (double)(c->latent.rank + c->latent.rope) : columns;
        bytes += columns * CACHE_BYTES * (double)(context < limit ? context : limit);
    }
    return bytes;
}

struct roofline_model roofline_model(const struct model *model, const struct roofline_load *load)
{
    const struct model_config *c = model_config(model);
    const struct plans *plans = model_plans(model);
    struct roofline_model out = {.chosen = 1, .shared = (double)c->vocab_size * (double)c->hidden_size};

    for (int64_t layer = 0; layer < c->num_layers; layer++) {
        const struct plan *plan = plans_layer(plans, layer);
        out.shared += of_layers(plan, &out.experts, &out.chosen);
        out.cache += layer < c->num_layers - c->taking_layers ? cache_of(c, plan, load->context) : 0;
    }
    return out;
}

/* Weights that so many tokens need, each expert once. */
static double weights_read(const struct roofline_model *m, const struct roofline_form *form, double tokens)
{
    double met = tokens * m->chosen < 1 ? tokens * m->chosen : 1;

    return form->weights * (m->shared + met * m->experts) / (m->shared + m->experts);
}

static struct roofline_time roofline_time(double weights, double cache, double arithmetic)
{
    struct roofline_time t = {.weights = weights, .cache = cache, .arithmetic = arithmetic, .bound = BOUND_ARITHMETIC};

    t.seconds = weights + cache > arithmetic ? weights + cache : arithmetic;
    if (weights + cache > arithmetic) {
        t.bound = weights > cache ? BOUND_WEIGHTS : BOUND_CACHE;
    }
    return t;
}

struct roofline_time roofline_decode(const struct roofline_model *model, const struct roofline_form *form,
                                     const struct roofline_device *device, const struct roofline_load *load)
{
    double batch = (double)load->batch, products = 2 * batch * (model->shared + model->chosen * model->experts);

    return roofline_time(weights_read(model, form, batch) / device->bandwidth,
                         batch * model->cache * form->cache_share / device->bandwidth,
                         products / (form->operations * 1e12));
}

struct roofline_time roofline_prefill(const struct roofline_model *model, const struct roofline_form *form,
                                      const struct roofline_device *device, const struct roofline_load *load)
{
    double tokens = (double)load->context, products = 2 * tokens * (model->shared + model->chosen * model->experts);

    return roofline_time(weights_read(model, form, tokens) / device->bandwidth, 0,
                         products / (form->operations * 1e12));
}
