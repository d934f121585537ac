/* What the pass for output moments takes (moments.c): the inputs of all blocks for as long as it has, a tape, one block
 * with all of its experts and the moments of its linears; then the files. It ends before the run's own sets are opened.
 */

#include "models/block_grad.h"
#include "pipeline/run_plan_parts.h"
#include "pipeline/stores.h"

#define FLOAT ((int64_t)sizeof(float))

int64_t memory_plan_moments(const struct recipe *recipe, const struct plan *plan)
{
    int64_t bytes = 0;

    for (int i = 0; recipe_output_tokens(recipe) != 0 && i < plan->module_count; i++) {
        bytes += plan->modules[i].fixed ? 0 : plan->modules[i].rows * plan->modules[i].rows * FLOAT;
    }
    return bytes;
}

int64_t memory_plan_moments_sequences(const struct recipe *recipe, int64_t sequences, int64_t length)
{
    int64_t tokens = recipe_output_tokens(recipe), most = tokens / length;

    return tokens < 0 || most > sequences ? sequences : most < 1 ? 1 : most;
}

static int64_t moments_weights(const struct plan *plan)
{
    int64_t elements = 0;

    for (int i = 0; i < plan->module_count; i++) {
        elements += plan->modules[i].rows * plan->modules[i].cols;
    }
    return elements * FLOAT;
}

static int64_t moments_plan_labels(const struct run_walk *w)
{
    return memory_plan_labels(w->config, w->device->host_memory, w->batch_rows);
}

/* Of the device while labels are drawn: the table, a micro-batch, logits and what the head's way back takes. */
static int64_t moments_plan_head(const struct run_walk *w)
{
    int64_t chunk = moments_plan_labels(w), hidden = w->config->hidden_size;
    int64_t tape = head_tape_bytes(w->config, chunk, false);

    return run_walk_table(w) + (tape > 0 ? tape : 0) +
           (w->batch_rows * hidden + chunk * (hidden + w->config->vocab_size)) * FLOAT;
}

void run_walk_moments(struct run_walk *w)
{
    const struct run_load *load = w->load;
    const struct plans *plans = model_plans(w->model);
    int64_t layers = w->config->num_layers, columns = (layers + 2) * w->config->hidden_size, block = 0;
    int64_t shared[PLAN_SHARED_MAX];

    if (recipe_output_tokens(load->recipe) == 0 || w->tokens == 0) {
        return;
    }
    int64_t sequences = memory_plan_moments_sequences(load->recipe, load->sequences, load->length);
    stores_shared(plans, shared);
    for (int i = 0; i < PLAN_SHARED_MAX; i++) {
        columns += 2 * shared[i];
    }
    int64_t stores = sequences * load->length * columns * FLOAT;
    int64_t held = stores < load->host_memory_bytes ? stores : load->host_memory_bytes;
    w->plan->moments += 2 * (stores - held);
    for (int64_t layer = 0; layer < layers; layer++) {
        const struct plan *plan = plans_layer(plans, layer);
        int64_t files = memory_plan_moments(load->recipe, plan), open = moments_weights(plan) + files;
        double forward = plan_flops(plan, ~(plan_set)0, load->length, load->length) * (double)sequences;
        w->plan->moments += files;
        w->plan->work[PHASE_FORWARD] += 2 * forward;
        w->plan->work[PHASE_STATISTICS] += 2 * forward + (double)files / FLOAT * (double)(sequences * load->length);
        block = open > block ? open : block;
    }
    const struct block_tape_spec spec = {
        .plans = plans, .sequences = w->batch_rows / load->length, .length = load->length};
    int64_t tape = block_tape_bytes(&spec);
    struct run_walk before = *w; /* of the run's sets, which are not there yet */
    before.always = before.kept = before.stores_host = 0;
    run_walk_note(&before, STAGE_CALIBRATING, block + tape, held);
    before.kept = w->device->host_memory ? block_tape_gradient_bytes(&spec) : 0; /* no block was gone back through */
    run_walk_note(&before, STAGE_CALIBRATING, moments_plan_head(w) + tape,
                  held + moments_plan_labels(w) * w->config->vocab_size * FLOAT);
}
