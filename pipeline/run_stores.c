/* Stores of activations between blocks, within them, and between those that share keys and values. */

#include "pipeline/run_stores.h"

#include "base/err.h"
#include "base/log.h"

#include <stdio.h>
#include <string.h>

int run_new_store(struct run *run, const char *name, const struct microbatches *batches, int64_t width,
                  struct activations **out)
{
    return activations_new(run->p->directory, name, batches->set->sequences * batches->set->length, width, &run->budget,
                           out);
}

int run_open_value_stores(struct run *run, const struct microbatches *batches, const char *stem, enum stores_use use,
                          struct activations **out)
{
    int64_t columns[PLAN_VALUES_MAX];
    char name[32];

    stores_values(model_plans(run->p->model), use, columns);
    for (int i = 1; i < PLAN_VALUES_MAX; i++) {
        if (columns[i] > 0) {
            snprintf(name, sizeof(name), "%s-%d", stem, i);
            TRY(run_new_store(run, name, batches, columns[i], &out[i]));
        }
    }
    return 0;
}

int run_open_shared_stores(struct run *run, const struct microbatches *batches, const char *stem,
                           struct activations **out)
{
    int64_t columns[PLAN_SHARED_MAX];
    char name[40];

    stores_shared(model_plans(run->p->model), columns);
    for (int i = 0; i < PLAN_SHARED_MAX; i++) {
        if (columns[i] > 0) {
            snprintf(name, sizeof(name), "%s-shared-%d", stem, i);
            TRY(run_new_store(run, name, batches, columns[i], &out[i]));
            run->checkpoint->restarts = true;
        }
    }
    return 0;
}

int run_open_calibration(struct run *run)
{
    TRY(run_new_store(run, "calibration", &run->calibration, run->config->hidden_size, &run->stores[0]));
    TRY(run_open_shared_stores(run, &run->calibration, "values", run->stores + PLAN_SHARED_STORE));
    return run_open_value_stores(run, &run->calibration, "values", STORES_CALIBRATION, run->stores);
}

static int open_reference_stores(struct run *run)
{
    struct reference *reference = &run->reference;

    TRY(run_new_store(run, "reference", &reference->batches, run->config->hidden_size, &reference->stores[0]));
    TRY(run_open_shared_stores(run, &reference->batches, "reference", reference->stores + PLAN_SHARED_STORE));
    return run_open_value_stores(run, &reference->batches, "reference", STORES_REFERENCE, reference->stores);
}

int evaluation_open(struct run *run, const char *name, struct evaluation *e)
{
    char float_name[16], quantized_name[16];

    snprintf(float_name, sizeof(float_name), "%.10s_float", name);
    snprintf(quantized_name, sizeof(quantized_name), "%.10s_quant", name);
    TRY(run_new_store(run, float_name, &e->batches, run->config->hidden_size, &e->float_model));
    TRY(run_new_store(run, quantized_name, &e->batches, run->config->hidden_size, &e->quantized));
    TRY(run_open_shared_stores(run, &e->batches, float_name, e->shared[0]));
    TRY(run_open_shared_stores(run, &e->batches, quantized_name, e->shared[1]));
    return run_open_value_stores(run, &e->batches, name, STORES_EVALUATION, e->stores);
}

void evaluation_close(const struct run *run, struct evaluation *e)
{
    for (int i = 0; i < PLAN_VALUES_MAX; i++) {
        activations_free(e->stores[i]);
    }
    for (int i = 0; i < 2 * PLAN_SHARED_MAX; i++) {
        activations_free(e->shared[i / PLAN_SHARED_MAX][i % PLAN_SHARED_MAX]);
    }
    activations_free(e->float_model);
    activations_free(e->quantized);
    microbatches_deinit(&e->batches, run->p->gpu);
    *e = (struct evaluation){.kept = false};
}

/* What is damaged or gone is computed once more. */
static int load_float_model(struct run *run)
{
    const struct saved_activations *saved = &run->p->float_model;

    if (saved->file[0] == '\0') {
        return 0;
    }
    int rc = activations_load(run->evaluation.float_model, saved->file, saved->sha256);
    if (rc == ERR_SOURCE_CORRUPT || rc == ERR_NOT_FOUND) {
        log_err(LOG_WARN, "the float model's activations are computed once more", NULL);
        return 0;
    }
    run->evaluation.kept = rc == 0;
    return rc;
}

int run_open_stores(struct run *run)
{
    struct checkpoint *checkpoint = run->checkpoint;

    if (run->calibration.set != NULL) {
        TRY(run_open_calibration(run));
    }
    if (run->reference.batches.set != NULL) {
        TRY(open_reference_stores(run));
    }
    if (run->evaluation.batches.set != NULL) {
        TRY(evaluation_open(run, "eval", &run->evaluation));
        TRY(load_float_model(run));
    }
    checkpoint_add(checkpoint, "calibration", run->stores[0], false);
    checkpoint_add(checkpoint, "reference", run->reference.stores[0], false);
    checkpoint_add(checkpoint, "eval_float", run->evaluation.kept ? NULL : run->evaluation.float_model, true);
    checkpoint_add(checkpoint, "eval_quant", run->evaluation.quantized, true);
    return 0;
}
