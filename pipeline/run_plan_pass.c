/* A pass that measures sensitivities, planned as it runs (sensitivity_pass.c): waves over the blocks, in each of which
 * the head of the calibration set advances, every candidate is solved in the wave's own blocks, and streams go from
 * there to the head of the model. */

#include "base/err.h"
#include "formats/common.h"
#include "pipeline/mixture.h"
#include "pipeline/run_plan_parts.h"
#include "pipeline/sensitivity_parts.h"
#include "quantizers/sensitivity.h"

#define FLOAT ((int64_t)sizeof(float))

struct pass_walk {
    struct run_walk w;
    const struct sensitivity *s;
    int64_t length;       /* of a sequence */
    int64_t stream_rows;  /* tokens of a micro-batch of the streams */
    int64_t streams_most; /* of a wave */
};

static int pass_request(const struct run_load *load, const struct model *model, struct sensitivity_request *out)
{
    const struct recipe *recipe = load->recipe;

    if (!recipe_measures(recipe)) {
        return mixture_pass_request(recipe, load->format, model, out);
    }
    const struct sensitivity_params *params = recipe->stages[0].params;
    *out = (struct sensitivity_request){.candidates = recipe->candidates,
                                        .max_tokens = params->max_tokens,
                                        .kl_tokens = params->kl_tokens,
                                        .max_streams = params->max_streams};
    return 0;
}

/* Streams that begin in the blocks [first, end). */
static int64_t pass_streams(const struct sensitivity *s, int64_t first, int64_t end)
{
    int64_t streams = 0;

    for (int64_t b = first; b < end; b++) {
        streams += sensitivity_planned(s, b);
    }
    return streams;
}

static void pass_layer_work(struct pass_walk *p, int64_t layer, int64_t first, int64_t end)
{
    const struct run_walk *w = &p->w;
    int64_t until = layer + 1 < end ? layer + 1 : end;
    double streams = 1 + (double)pass_streams(p->s, first, until > first ? until : first);
    double experts, modules = run_walk_stored(w, layer, &experts);
    double *work = w->plan->work;

    work[PHASE_LOAD] += modules + experts * (streams + (layer < end ? 1 : 0));
    work[PHASE_EVALUATE] += streams * run_walk_forward(w, layer, w->eval_tokens, p->length, false);
    if (layer < end) {
        bool ends = layer + 1 == w->config->num_layers;
        work[PHASE_FORWARD] += run_walk_forward(w, layer, w->tokens, p->length, ends);
    }
}

static int pass_wave(struct pass_walk *p, int64_t first, int64_t end)
{
    struct run_walk *w = &p->w;
    const struct model_config *c = w->config;
    double streams = (double)pass_streams(p->s, first, end);

    for (int64_t layer = 0; layer < c->num_layers; layer++) {
        pass_layer_work(p, layer, first, end);
        TRY(run_walk_passed(w, layer, layer >= first && layer < end));
    }
    w->plan->work[PHASE_LOAD] += 2 * (double)run_walk_table(w);
    w->plan->work[PHASE_EVALUATE] +=
        2 * (1 + streams) * (double)w->eval_tokens * (double)c->vocab_size * (double)c->hidden_size;
    return 0;
}

/* The float path, the streams of the largest wave, and the calibration set's head. */
static void pass_stores(struct pass_walk *p)
{
    struct run_walk_stores stores = {.left = p->w.load->host_memory_bytes};
    struct run_plan *plan = p->w.plan;
    int64_t hidden = p->w.config->hidden_size;

    run_walk_store(&stores, p->w.tokens, hidden, true);
    run_walk_values(&p->w, &stores, p->w.tokens, STORES_CALIBRATION);
    run_walk_values(&p->w, &stores, p->w.eval_tokens, STORES_EVALUATION);
    for (int64_t i = 0; i <= p->streams_most; i++) {
        run_walk_store(&stores, p->w.eval_tokens, hidden, true);
    }
    plan->activations = stores.activations;
    plan->in_memory = stores.in_memory;
    plan->spilled = stores.spilled;
    p->w.stores_host = stores.in_memory;
}

static void pass_frame(struct pass_walk *p)
{
    struct run_walk *w = &p->w;
    const struct model_config *c = w->config;

    w->always = run_walk_batches(w, w->tokens / p->length, p->length, false, &w->batch_rows) +
                run_walk_batches(w, w->eval_tokens / p->length, p->length, false, &p->stream_rows);
    run_walk_note(w, STAGE_LOADING, run_walk_table(w), 0);
    int64_t rows = memory_plan_logits(c, w->device->host_memory);
    rows = rows < w->eval_tokens ? rows : w->eval_tokens;
    run_walk_note(w, STAGE_EVALUATING, run_walk_table(w) + 2 * rows * (c->hidden_size + c->vocab_size) * FLOAT, 0);
}

static int pass_walk_waves(struct pass_walk *p)
{
    int64_t layers = p->w.config->num_layers;

    for (int64_t first = 0, end; first < layers; first = end) {
        end = sensitivity_wave_end(p->s, first, layers);
        int64_t streams = pass_streams(p->s, first, end);
        p->streams_most = streams > p->streams_most ? streams : p->streams_most;
    }
    pass_stores(p);
    pass_frame(p);
    for (int64_t first = 0, end; first < layers; first = end) {
        end = sensitivity_wave_end(p->s, first, layers);
        TRY(pass_wave(p, first, end));
    }
    return 0;
}

int run_walk_pass(const struct run_walk *w)
{
    const struct recipe *recipe = w->load->recipe;
    struct sensitivity_request request;
    struct sensitivity s = {.request = &request};
    struct pass_walk p = {.w = *w, .s = &s, .length = w->load->length};
    const struct pipeline pipeline = {
        .recipe = recipe, .format = w->load->format != NULL ? w->load->format : &format_dense, .model = w->model};
    struct run run = {.p = &pipeline, .config = w->config, .sensitivity = &s};
    int64_t statistics, streams;

    if (w->tokens == 0 || !(recipe_measures(recipe) || (recipe->mixture != NULL && !recipe->mixture->chosen))) {
        return 0;
    }
    TRY(pass_request(w->load, w->model, &request));
    sensitivity_divide(&request, w->load->sequences, p.length, &statistics, &streams);
    p.w.tokens = statistics * p.length;
    p.w.eval_tokens = streams * p.length;
    p.w.candidates = request.candidates;
    p.w.expert_bytes = memory_plan_experts(w->model, w->device);
    int rc = sensitivity_plan(&run, &s);
    rc = rc == 0 ? pass_walk_waves(&p) : rc;
    sensitivity_plan_deinit(&s);
    return rc != 0 ? err_pass(rc, "plan a pass") : 0;
}
