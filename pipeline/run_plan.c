/* The frame of a run: micro-batches and stores that are there all the time, the embedding before the blocks, the head
 * after them, the packing of the artifact. What operations take for themselves stays once it was needed, so that the
 * largest counts from the second block on. */

#include "pipeline/run_plan.h"

#include "base/err.h"
#include "gpu/scratch.h"
#include "pipeline/run_plan_parts.h"
#include "pipeline/stores.h"
#include "quantizers/tune.h"

#define FLOAT ((int64_t)sizeof(float))
#define EXPORT_THREADS 8               /* at most, as formats/export_pool.c has it */
#define EXPORT_RING ((int64_t)4 << 20) /* pieces on their way to the hash */
/* What libraries, stacks of threads and the allocator keep of a job; measured. */
#define PROCESS_KEEPS ((int64_t)10 << 20)
#define COPY_PIECE ((int64_t)4 << 20)
#define COUNTABLE 1e18 /* bytes */

const char *const run_stage_names[STAGE_COUNT] = {"loading", "calibrating", "quantizing", "evaluating", "packing"};

static int64_t run_larger(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

void run_walk_note(struct run_walk *w, enum run_stage stage, int64_t device, int64_t host)
{
    struct run_memory *m = &w->plan->stages[stage];
    int64_t all = device + w->always + w->scratch;
    int64_t touched = w->device->host_memory ? all - w->kept : 0;

    m->device = run_larger(m->device, all);
    m->host = run_larger(m->host, touched + w->stores_host + w->outputs + host + PROCESS_KEEPS);
}

void run_walk_scratch(struct run_walk *w, enum run_stage stage, int64_t device, int64_t bytes)
{
    if (bytes > w->scratch) {
        run_walk_note(w, stage, device + bytes, 0);
        w->scratch = bytes;
    }
}

const struct recipe_stage *run_walk_solver(const struct run_walk *w, int64_t layer, int module, struct qscheme *scheme)
{
    const struct plan_module *m = &plans_layer(model_plans(w->model), layer)->modules[module];
    char name[PLAN_NAME_MAX];

    model_module_name(w->model, layer, module, name);
    if (w->trial != NULL) {
        bool possible = !recipe_decides(w->load->recipe, m, name) &&
                        w->trial->quantizer->scheme(w->trial->params, m->rows, m->cols, scheme) == 0;
        return possible ? w->trial : NULL;
    }
    if (recipe_analyses(w->load->recipe)) {
        return NULL;
    }
    const struct recipe_stage *solver = recipe_module_solver(w->load->recipe, m, name);
    if (solver == NULL || solver->quantizer->solve == NULL ||
        recipe_scheme(w->load->recipe, solver, name, m->rows, m->cols, scheme) != 0) {
        return NULL;
    }
    return solver;
}

/* --- micro-batches */

/* Columns of all experts' rows, and of who goes where: of the largest. */
static int64_t experts_columns(const struct plans *plans, int64_t *chosen)
{
    int64_t columns = 0;

    *chosen = 0;
    for (int kind = 0; kind < plans_kinds(plans); kind++) {
        const struct plan *plan = plans_kind(plans, kind);
        for (int s = 0; s < plan->step_count; s++) {
            const struct plan_experts *e = plan->steps[s].experts;
            if (e != NULL) {
                columns = run_larger(columns, e->plan->columns[REGION_KEPT] + e->plan->columns[REGION_WORK]);
                *chosen = run_larger(*chosen, e->top_k);
            }
        }
    }
    return columns;
}

static int64_t region_columns(const struct plans *plans, enum plan_region region)
{
    int64_t columns = 1;

    for (int kind = 0; kind < plans_kinds(plans); kind++) {
        columns = run_larger(columns, plans_kind(plans, kind)->columns[region]);
    }
    return columns;
}

static int64_t widest_input(const struct plans *plans)
{
    int64_t columns = 0;

    for (int kind = 0; kind < plans_kinds(plans); kind++) {
        columns = run_larger(columns, plans_kind(plans, kind)->widest_input);
    }
    return columns;
}

/* block_scratch_new for so many tokens, with what it makes on first use. */
static int64_t scratch_bytes(const struct run_walk *w, int64_t tokens, int64_t length, bool rounds)
{
    const struct plans *plans = model_plans(w->model);
    int64_t chosen, experts = experts_columns(plans, &chosen), tables = 0;

    if (tokens == 0) {
        return 0;
    }
    for (int i = 0; i < w->config->rope_count; i++) {
        tables += length * w->config->ropes[i].dims;
    }
    return (tokens * (region_columns(plans, REGION_WORK) + experts + (rounds ? widest_input(plans) : 0) + 3 * chosen) +
            tables) *
           FLOAT;
}

/* microbatches_init. *rows: tokens of a micro-batch. */
int64_t run_walk_batches(const struct run_walk *w, int64_t sequences, int64_t length, bool rounds, int64_t *rows)
{
    int64_t most = w->device->batch_tokens > 0 ? w->device->batch_tokens : 2048;
    int64_t batch = length >= most ? 1 : most / length;

    batch = batch < sequences ? batch : sequences;
    *rows = batch * length;
    int64_t kept = *rows * region_columns(model_plans(w->model), REGION_KEPT) * FLOAT;
    return kept + scratch_bytes(w, *rows, length, rounds) +
           scratch_bytes(w, sequences % batch * length, length, rounds);
}

/* Of the tape the sequences that a batch has not are never touched. */
static void place_tape(struct run_walk *w)
{
    const struct run_load *load = w->load;
    const struct recipe_stage *tuner = recipe_tuner(load->recipe);
    int64_t batch = tune_lane(load->sequences, load->length);
    int64_t tape = memory_plan_tape(model_plans(w->model), batch, load->length);
    struct tune_cost cost;

    tuner->quantizer->tune_cost(tuner->params, load->sequences, &cost);
    int64_t used = run_larger(cost.at_once, run_walk_end_batch(load));
    w->always += tape;
    if (used < batch && w->device->host_memory) {
        w->kept += tape / batch * (batch - used);
    }
}

static void place_sets(struct run_walk *w)
{
    const struct run_load *load = w->load;
    int64_t rows;

    if (w->tokens > 0) {
        w->always += run_walk_batches(w, load->sequences, load->length, w->rounds, &w->batch_rows);
        w->kept = w->stores_host > 0 ? w->batch_rows * region_columns(model_plans(w->model), REGION_KEPT) * FLOAT : 0;
    }
    if (w->targets) {
        int64_t kept = w->batch_rows * region_columns(model_plans(w->model), REGION_KEPT) * FLOAT;
        w->always += kept + w->batch_rows * w->config->hidden_size * FLOAT;
    }
    if (w->tokens > 0 && recipe_tuner(load->recipe) != NULL) {
        place_tape(w);
    }
    if (w->eval_tokens > 0) {
        w->always += run_walk_batches(w, load->eval_sequences, load->eval_length, w->rounds || w->rounds_late, &rows);
    }
}

/* --- stores */

void run_walk_store(struct run_walk_stores *stores, int64_t tokens, int64_t columns, bool stream)
{
    int64_t bytes = tokens * columns * FLOAT;

    stores->activations += bytes;
    if (bytes <= stores->left) {
        stores->left -= bytes;
        stores->in_memory += bytes;
    } else {
        stores->spilled += stream ? 2 * bytes : bytes;
    }
}

void run_walk_values(const struct run_walk *w, struct run_walk_stores *stores, int64_t tokens, enum stores_use use)
{
    int64_t columns[PLAN_VALUES_MAX], shared[PLAN_SHARED_MAX];

    stores_shared(model_plans(w->model), shared);
    for (int path = 0; path < (use == STORES_EVALUATION ? 2 : 1); path++) {
        for (int i = 0; i < PLAN_SHARED_MAX; i++) {
            run_walk_store(stores, tokens, shared[i], false);
        }
    }
    stores_values(model_plans(w->model), use, columns);
    for (int i = 1; i < PLAN_VALUES_MAX; i++) {
        run_walk_store(stores, tokens, columns[i], false);
    }
}

/* Blocks that give values to later ones: such a run begins again when it resumes. */
static bool shares_values(const struct plans *plans)
{
    int64_t columns[PLAN_SHARED_MAX], all = 0;

    stores_shared(plans, columns);
    for (int i = 0; i < PLAN_SHARED_MAX; i++) {
        all += columns[i];
    }
    return all > 0;
}

/* In the order of open_stores. A device's own memory comes first: what fits there is neither in files nor in the
 * host's memory, which is not counted on here. */
static void place_stores(struct run_walk *w)
{
    struct run_walk_stores b = {.left = w->load->host_memory_bytes};
    int64_t hidden = w->config->hidden_size, streams = 0;

    if (w->tokens > 0) {
        run_walk_store(&b, w->tokens, hidden, true);
        run_walk_values(w, &b, w->tokens, STORES_CALIBRATION);
        streams += w->tokens;
    }
    if (w->targets) {
        run_walk_store(&b, w->tokens, hidden, true);
        run_walk_values(w, &b, w->tokens, STORES_REFERENCE);
        streams += w->tokens;
    }
    if (w->eval_tokens > 0) {
        run_walk_store(&b, w->eval_tokens, hidden, true);
        run_walk_store(&b, w->eval_tokens, hidden, true);
        run_walk_values(w, &b, w->eval_tokens, STORES_EVALUATION);
        streams += 2 * w->eval_tokens;
    }
    if (w->tokens > 0 && recipe_tuner(w->load->recipe) != NULL) {
        run_walk_store(&b, w->tokens, hidden, true); /* blocks' inputs */
        run_walk_store(&b, w->tokens, hidden, true); /* the float path */
        if (run_walk_end_batch(w->load) > 0) {
            run_walk_store(&b, run_walk_end_batch(w->load) * w->load->length * w->config->num_layers, hidden, false);
        }
        streams += w->tokens;
    }
    w->plan->activations = run_larger(w->plan->activations, b.activations);
    w->plan->in_memory = run_larger(w->plan->in_memory, b.in_memory);
    w->plan->spilled = run_larger(w->plan->spilled, b.spilled);
    if (b.spilled == 0 && !shares_values(model_plans(w->model))) {
        w->plan->saved = streams * hidden * FLOAT;
        int64_t teacher = run_walk_end_batch(w->load) > 0 ? w->tokens : 0;
        w->plan->saved_evaluation = (2 * w->eval_tokens + teacher) * hidden * FLOAT;
    }
    w->stores_host = b.in_memory;
}

/* --- before the blocks, and after them */

static int64_t tensor_stored(const struct run_walk *w, int64_t elements)
{
    return elements * (int64_t)dtype_rows[model_dtype(w->model)].bytes;
}

int64_t run_walk_table(const struct run_walk *w)
{
    return tensor_stored(w, w->config->vocab_size * w->config->hidden_size);
}

static void walk_embedding(struct run_walk *w)
{
    const struct model_config *c = w->config;

    if (w->tokens > 0 || w->eval_tokens > 0) {
        int64_t positions = c->arch->positions != NULL ? c->max_position * c->hidden_size * FLOAT : 0;
        run_walk_note(w, STAGE_LOADING, run_walk_table(w) + positions, 0);
        w->plan->work[PHASE_LOAD] += (double)run_walk_table(w);
    }
}

static void walk_head(struct run_walk *w)
{
    const struct model_config *c = w->config;

    if (w->eval_tokens == 0) {
        return; /* nor may the model have a head */
    }
    int64_t rows = memory_plan_logits(c, w->device->host_memory);
    rows = rows < w->eval_tokens ? rows : w->eval_tokens;
    int64_t bytes = run_walk_table(w) + 2 * rows * (c->hidden_size + c->vocab_size) * FLOAT;
    run_walk_note(w, STAGE_EVALUATING, bytes, 0);
    run_walk_scratch(w, STAGE_EVALUATING, bytes,
                     model_dtype(w->model) != DTYPE_F32 ? gpu_scratch_linear(w->threads, c->hidden_size) : 0);
    w->plan->work[PHASE_LOAD] += (double)run_walk_table(w);
    w->plan->work[PHASE_EVALUATE] += 4 * (double)w->eval_tokens * (double)c->vocab_size * (double)c->hidden_size;
}

/* Passes that a continuation of so many tokens takes, which depends on what the models say: guesses of the text's own
 * continuation fix more than one token in a pass, those of the float model's for the quantized one more (generate.c).
 */
#define FLOAT_PASSES 0.75
#define QUANTIZED_PASSES 0.5

/* Continuations of both models, next to the evaluation set's stores. */
static void walk_generation(struct run_walk *w)
{
    const struct run_load *load = w->load;
    const struct model_config *c = w->config;
    int64_t prompts = load->prompts < load->eval_sequences ? load->prompts : load->eval_sequences, batch_rows;
    int64_t prompt = load->prompt_tokens < load->eval_length ? load->prompt_tokens : load->eval_length;
    int64_t length = prompt + load->generated;
    double passes = (FLOAT_PASSES + QUANTIZED_PASSES) * (double)load->generated;
    double *work = w->plan->work;

    if (prompts == 0 || w->eval_tokens == 0) {
        return;
    }
    w->always += run_walk_batches(w, prompts, length, w->rounds || w->rounds_late, &batch_rows);
    int64_t rows = memory_plan_logits(c, w->device->host_memory); /* a bare model has none, and no prompts */
    rows = rows < load->generated ? rows : load->generated;
    int64_t logits = rows * (c->hidden_size + c->vocab_size) * FLOAT;
    run_walk_note(w, STAGE_EVALUATING, run_walk_table(w) + logits, rows * c->vocab_size * FLOAT);
    work[PHASE_LOAD] += 2 * passes * (double)run_walk_table(w);
    work[PHASE_EVALUATE] +=
        2 * passes * (double)(prompts * load->generated) * (double)c->vocab_size * (double)c->hidden_size;
    for (int64_t layer = 0; layer < c->num_layers; layer++) {
        double experts, modules = run_walk_stored(w, layer, &experts);
        (void)run_walk_passed(w, layer, false); /* which cannot fail */
        work[PHASE_LOAD] += passes * (modules + experts);
        work[PHASE_EVALUATE] += passes * run_walk_forward(w, layer, prompts * length, length, false);
    }
}

/* Each thread has a module's codes and the tensor that is made of them. */
static void walk_packing(struct run_walk *w, int64_t artifact_bytes)
{
    const struct plans *plans = model_plans(w->model);
    int64_t largest = 0, threads = w->device->threads;

    if (artifact_bytes == 0) {
        return;
    }
    threads = threads < 1 ? 1 : threads < EXPORT_THREADS ? threads : EXPORT_THREADS;
    for (int kind = 0; kind < plans_kinds(plans); kind++) {
        const struct plan *plan = plans_kind(plans, kind);
        for (int i = 0; i < plan->module_count; i++) {
            int64_t elements = plan->modules[i].rows * plan->modules[i].cols;
            largest = run_larger(largest, elements);
        }
    }
    w->plan->stages[STAGE_PACKING].host = threads * (run_larger(COPY_PIECE, largest + largest / 2)) + EXPORT_RING;
    w->plan->work[PHASE_EXPORT] = (double)artifact_bytes;
}

/* Whether inputs are rounded: while the calibration set passes, or for the evaluation alone. */
static void walk_inputs(struct run_walk *w)
{
    const struct plans *plans = model_plans(w->model);

    for (size_t i = 0; i < plans_modules(plans) && !w->rounds; i++) {
        struct qscheme scheme;
        int module;
        int64_t layer = plans_module_at(plans, i, &module);
        if (run_walk_solver(w, layer, module, &scheme) == NULL) {
            continue;
        }
        const struct format *format = w->load->format;
        w->rounds = scheme.input.element != DTYPE_F32;
        w->rounds_late = w->rounds_late || (format != NULL && format->runtime_input != NULL &&
                                            format->runtime_input(&scheme).element != DTYPE_F32);
    }
}

static bool walk_has_targets(const struct run_walk *w)
{
    const struct plans *plans = model_plans(w->model);
    int64_t narrowest = INT64_MAX;

    for (int kind = 0; kind < plans_kinds(plans); kind++) {
        const struct plan *plan = plans_kind(plans, kind);
        for (int g = 0; g < plan->group_count; g++) {
            narrowest = plan->groups[g].columns < narrowest ? plan->groups[g].columns : narrowest;
        }
    }
    return w->tokens > 0 && recipe_has_targets(w->load->recipe, w->tokens, narrowest);
}

static int walk_layers(struct run_walk *w)
{
    for (int64_t layer = 0; layer < w->config->num_layers; layer++) {
        TRY(run_walk_layer(w, layer));
    }
    w->outputs = 0;
    return 0;
}

/* Sums of bytes below are exact as long as no set is larger than any disk. */
static int check_countable(const struct run_walk *w)
{
    const struct plans *plans = model_plans(w->model);
    int64_t columns[PLAN_VALUES_MAX];
    double width = (double)(w->config->num_layers + 8) * (double)w->config->hidden_size;

    stores_values(plans, STORES_EVALUATION, columns);
    for (int i = 0; i < PLAN_VALUES_MAX; i++) {
        width += 8 * (double)columns[i];
    }
    double bytes = ((double)w->tokens + (double)w->eval_tokens) * width * FLOAT;
    if (bytes < COUNTABLE) {
        return 0;
    }
    int rc = err_raise(ERR_INSUFFICIENT_MEMORY, "%lld tokens of calibration and evaluation are more than can be kept",
                       (long long)(w->tokens + w->eval_tokens));
    return err_set_param(rc, "/calibration/num_samples");
}

int run_plan_make(const struct run_load *load, const struct model *model, const struct gpu_info *device,
                  int64_t artifact_bytes, struct run_plan *out)
{
    struct run_plan plan = {.activations = 0};
    bool bare = model_is_bare(model);
    struct run_walk w = {.load = load,
                         .model = model,
                         .config = model_config(model),
                         .device = device,
                         .threads = device->host_memory ? device->threads : 0,
                         .tokens = bare ? 0 : load->sequences * load->length,
                         .eval_tokens = bare ? 0 : load->eval_sequences * load->eval_length,
                         .expert_bytes = bare                                 ? 0
                                         : recipe_tuner(load->recipe) != NULL ? INT64_MAX
                                                                              : memory_plan_experts(model, device),
                         .plan = &plan};

    TRY(bare ? 0 : check_countable(&w));
    run_walk_widths(&w);
    TRY(run_walk_pass(&w));
    if (recipe_measures(load->recipe)) {
        *out = plan;
        return 0;
    }
    w.targets = !bare && walk_has_targets(&w);
    w.reports = recipe_data_free(load->recipe);
    if (!bare) {
        walk_inputs(&w);
        place_stores(&w);
        place_sets(&w);
    }
    run_walk_moments(&w);
    walk_embedding(&w);
    TRY(walk_layers(&w));
    run_walk_end(&w);
    walk_head(&w);
    walk_generation(&w);
    walk_packing(&w, artifact_bytes);
    plan.codes /= w.config->num_layers;
    plan.work[PHASE_CHECKPOINT] += (double)plan.saved * (double)(w.config->num_layers - 1);
    plan.work[PHASE_CHECKPOINT] += (double)plan.saved_evaluation;
    *out = plan;
    return 0;
}

void run_plan_disk(const struct run_plan *plan, int64_t layers, struct disk_plan *disk)
{
    int64_t before = layers > 1 ? plan->saved : 0;

    disk->activations = plan->moments + plan->spilled + (layers > 2 ? 2 : 1) * before;
    disk->ending = plan->moments + plan->spilled + before + plan->saved_evaluation;
    disk->kept = plan->saved_evaluation;
}

struct run_memory run_plan_peak(const struct run_plan *plan)
{
    struct run_memory peak = {0};

    for (int i = 0; i < STAGE_COUNT; i++) {
        peak.device = run_larger(peak.device, plan->stages[i].device);
        peak.host = run_larger(peak.host, plan->stages[i].host);
    }
    return peak;
}
