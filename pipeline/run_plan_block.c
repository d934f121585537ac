/* One block's stay on the device, as pipeline.c, rewrite.c, block_pass.c and solve.c have it: its weights, the
 * statistics of one input group at a time, what the methods say that they take, and what its results leave. */

#include "pipeline/run_plan_parts.h"

#include "base/err.h"
#include "gpu/scratch.h"
#include "pipeline/slices.h"

#include <math.h>
#include <string.h>

#define FLOAT ((int64_t)sizeof(float))
#define PIECE_BYTES ((int64_t)4 << 20) /* of a tensor on its way from the file */
#define STARVED_SEEN 0.05              /* of experts: some of them are there in any layer */

static int64_t layer_larger(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

static int64_t module_elements(const struct plan_module *module)
{
    return module->rows * module->cols;
}

static int64_t layer_turn(const struct layer_walk *l)
{
    int64_t bytes = 0;

    for (int s = 0; s < l->plan->step_count; s++) {
        bytes = layer_larger(bytes, run_walk_turn(l->w, l->plan->steps[s].experts));
    }
    return bytes;
}

/* --- one input group */

int64_t run_layer_tokens(const struct layer_walk *l, const struct plan_group *group)
{
    const struct plan_experts *e = group->expert >= 0 ? l->plan->steps[group->step].experts : NULL;

    return e == NULL ? l->w->tokens : l->w->tokens * e->top_k / e->count;
}

struct quant_shape run_layer_shape(const struct layer_walk *l, const struct group_walk *g, int module)
{
    const struct plan_module *m = &l->plan->modules[module];

    return (struct quant_shape){.rows = m->rows,
                                .cols = m->cols,
                                .tokens = g->tokens,
                                .aimed = g->aimed,
                                .scores = m->scores,
                                .threads = l->w->threads};
}

double run_layer_inner(const struct layer_walk *l, const struct plan_group *group, int64_t rows)
{
    const struct plan *inner = plan_of_group(l->plan, group);
    plan_set steps = 0, used = 0;

    if (group->expert < 0 ||
        !plan_steps(inner, PLAN_BIT(0) | plan_taken(inner), PLAN_BIT(group->input), &steps, &used)) {
        return 0;
    }
    return plan_flops(inner, steps, rows, 1);
}

/* Routers do not spread tokens evenly: the logarithm of what an expert gets is taken to have this deviation (0.41 and
 * 0.51 were measured where weights are random), and a mean such that all get their share together. */
#define ROUTED_DEVIATION 0.5

double run_layer_starved(const struct plan_group *group, const struct expert_calibration *experts, int64_t tokens)
{
    if (group->expert < 0 || experts->all || tokens == 0) {
        return 0;
    }
    double mean = log((double)tokens) - ROUTED_DEVIATION * ROUTED_DEVIATION / 2;
    return 0.5 * erfc((mean - log((double)experts->min_tokens)) / (ROUTED_DEVIATION * sqrt(2)));
}

static bool searches_range(const struct qscheme *scheme)
{
    return scheme->input.element != DTYPE_F32 && !scheme->input.dynamic && scheme->input_search;
}

/* Rows of a sample that stands for all inputs. */
static int64_t sampled_inputs(const struct run_walk *w)
{
    return w->tokens < INPUT_SAMPLE_ROWS ? w->tokens : INPUT_SAMPLE_ROWS;
}

/* As group_needs and stats_init have it, for one candidate; false: none of its modules is solved. */
static bool group_statistics_of(const struct layer_walk *l, struct group_walk *g)
{
    const struct run_walk *w = l->w;
    const struct plan_group *group = g->group;
    int64_t columns = group->columns, sample = 0, target = 0, ranges = 0;
    bool any = false;

    for (int i = 0; i < group->count; i++) {
        struct qscheme scheme;
        const struct recipe_stage *solver = run_walk_solver(w, l->layer, group->modules[i], &scheme);
        if (solver == NULL) {
            continue;
        }
        unsigned wants = quantizer_stats(solver->quantizer, solver->params);
        const struct expert_calibration experts = quant_experts(solver->params);
        bool fixed = scheme.input.element != DTYPE_F32 && !scheme.input.dynamic;
        any = true;
        ranges = (wants & STATS_RANGE) != 0 || fixed ? 2 * columns : ranges;
        sample = (wants & STATS_SAMPLE) != 0 ? layer_larger(sample, STATS_SAMPLE_TOKENS * columns) : sample;
        sample = searches_range(&scheme) ? layer_larger(sample, sampled_inputs(w) * columns) : sample;
        g->starved = w->reports ? 0 : run_layer_starved(group, &experts, g->tokens);
        g->pooled = g->starved > STARVED_SEEN ? columns * columns * FLOAT : g->pooled;
        g->all = group->expert >= 0 && experts.all;
        g->aimed = g->aimed ||
                   (w->targets && group->expert < 0 && recipe_stage_has_targets(solver, w->tokens, group->columns));
    }
    if (g->aimed) {
        target = columns * (group->residual >= 0 ? l->plan->modules[group->residual].rows : columns);
    }
    int64_t bytes = any && w->tokens > 0 ? (columns * columns + ranges + sample + target) * FLOAT : 0;
    g->stats = layer_larger(g->stats, bytes);
    return any;
}

/* Of a pass those that its candidates need together. */
static bool group_statistics(struct layer_walk *l, struct group_walk *g)
{
    const struct sensitivity_candidates *candidates = l->w->candidates;
    bool any = candidates == NULL && group_statistics_of(l, g);

    for (int c = 0; candidates != NULL && c < candidates->count; c++) {
        l->w->trial = &candidates->list[c].solver;
        any = group_statistics_of(l, g) || any;
    }
    return any;
}

/* What a method that leaves nothing on the device has there while the result is measured (dequantize). */
static int64_t measure_bytes(const struct run_walk *w, const struct qscheme *scheme, const struct plan_module *m)
{
    int64_t elements = module_elements(m);
    bool tiles = scheme->kind == QTENSOR_NF4 || scheme->kind == QTENSOR_FLOAT8 || scheme->kind == QTENSOR_INT;

    return elements * FLOAT + (tiles && !w->device->host_memory ? elements : 0);
}

/* packed: codes have their own bits alone. */
static int result_bytes(const struct qscheme *scheme, const struct plan_module *m, bool packed, int64_t *bytes)
{
    struct qtensor_part parts[QTENSOR_PARTS_MAX];
    struct qtensor q;

    *bytes = 0;
    TRY(qtensor_describe("", scheme, m->rows, m->cols, 0, &q));
    int count = qtensor_parts(&q, parts);
    for (int i = 0; i < count; i++) {
        int64_t cols = packed ? qtensor_stored_cols(&q, &parts[i]) : parts[i].cols;
        *bytes += parts[i].rows * cols * (int64_t)dtype_rows[parts[i].dtype].bytes;
    }
    return 0;
}

/* Of an expert that is starved by its statistics of all tokens. */
static double solve_operations(const struct run_walk *w, const struct group_walk *g, const struct recipe_stage *solver,
                               const struct quant_shape *shape)
{
    struct quant_shape all = *shape;

    all.tokens = w->tokens;
    return (1 - g->starved) * quantizer_cost(solver->quantizer, solver->params, shape).operations +
           g->starved * quantizer_cost(solver->quantizer, solver->params, &all).operations;
}

/* Its modules are solved one after the other, and measured one after the other. */
static int group_solve_walk(struct layer_walk *l, const struct group_walk *g)
{
    struct run_walk *w = l->w;
    const struct plan_group *group = g->group;
    int64_t live = l->weights + l->floats + g->experts + g->stats, left = 0, peak = 0, host = 0, results = 0;
    int64_t judged = 0, measured = 0; /* scratch of output errors, and what is measured */

    for (int i = 0; i < group->count; i++) {
        const struct plan_module *m = &l->plan->modules[group->modules[i]];
        const struct quant_shape shape = run_layer_shape(l, g, group->modules[i]);
        double product = (double)m->rows * (double)m->cols * (double)m->cols;
        struct qscheme scheme;
        int64_t bytes;
        const struct recipe_stage *solver = run_walk_solver(w, l->layer, group->modules[i], &scheme);
        if (solver == NULL) {
            continue;
        }
        const struct quant_cost cost = quantizer_cost(solver->quantizer, solver->params, &shape);
        TRY(result_bytes(&scheme, m, false, &bytes));
        int64_t searched = searches_range(&scheme) ? sampled_inputs(w) * (m->cols + m->rows) * FLOAT : 0;
        int64_t working = layer_larger(cost.shared + cost.solving, cost.solved + searched);
        measured = layer_larger(measured, cost.solved > 0 ? 0 : measure_bytes(w, &scheme, m));
        judged = layer_larger(judged, w->tokens > 0 ? gpu_scratch_output_error(w->threads, m->rows, m->cols) : 0);
        peak = layer_larger(peak, left + layer_larger(working, measured));
        run_walk_scratch(w, STAGE_QUANTIZING, live + left + cost.shared + cost.solving, cost.scratch);
        left += cost.solved;
        results += bytes;
        host = layer_larger(host, results + cost.host);
        w->plan->codes += w->device->host_memory ? 0 : module_elements(m);
        w->plan->work[PHASE_SOLVE] += g->times * solve_operations(w, g, solver, &shape);
        w->plan->work[PHASE_MEASURE] +=
            g->times * ((w->tokens > 0 ? 4 * product : 0) + 40 * (double)module_elements(m));
    }
    if (w->trial != NULL) { /* all results stay while each is measured, and copies of the streams are made */
        peak = layer_larger(peak, left + layer_larger(measured, w->batch_rows * w->config->hidden_size * FLOAT));
        results = 0;
    }
    run_walk_note(w, STAGE_QUANTIZING, live + peak, host);
    run_walk_scratch(w, STAGE_QUANTIZING, live + layer_larger(left, measured), judged);
    w->outputs += group->expert < 0 ? results : 0;
    return 0;
}

static int group_try_walk(struct layer_walk *l, const struct group_walk *g)
{
    const struct sensitivity_candidates *candidates = l->w->candidates;

    if (candidates == NULL) {
        return group_solve_walk(l, g);
    }
    for (int c = 0; c < candidates->count; c++) {
        l->w->trial = &candidates->list[c].solver;
        TRY(group_solve_walk(l, g));
    }
    return 0;
}

/* Of an expert group's statistics, those of its own tokens and those of all: where they are asked for, and where an
 * expert has too few. Experts that read the same rows share the latter. */
static double group_gather_flops(const struct layer_walk *l, const struct group_walk *g)
{
    double columns = (double)g->group->columns, all = (double)l->w->tokens * columns * (columns + 1);
    double own = (double)g->tokens * columns * (columns + 1) + run_layer_inner(l, g->group, g->tokens);
    bool shared = g->all && g->group->input == 0 && !l->plan->steps[g->group->step].experts->scale_input;

    if (shared) {
        return all;
    }
    all += run_layer_inner(l, g->group, l->w->tokens);
    return g->times * ((g->all ? 0 : own) + (g->all ? all : g->starved * all));
}

static void group_calibrate_walk(struct layer_walk *l, const struct group_walk *g)
{
    struct run_walk *w = l->w;
    double columns = (double)g->group->columns, tokens = (double)g->tokens;

    if (w->tokens == 0) {
        return;
    }
    run_walk_note(w, STAGE_CALIBRATING, l->weights + l->floats + g->experts + g->stats + g->pooled, 0);
    if (g->stats > 0) {
        double target =
            g->aimed ? 2 * tokens * columns *
                           (g->group->residual >= 0 ? (double)l->plan->modules[g->group->residual].rows : columns)
                     : 0;
        w->plan->work[PHASE_STATISTICS] += group_gather_flops(l, g) + g->times * target;
    }
}

/* From its solve to the next sum of the residual stream the float path reads the float weights. */
static void group_keep_floats(struct layer_walk *l, int g)
{
    const struct plan_group *group = &l->plan->groups[g];
    struct qscheme scheme;

    for (int i = 0; l->w->targets && group->expert < 0 && i < group->count; i++) {
        bool solved = run_walk_solver(l->w, l->layer, group->modules[i], &scheme) != NULL;
        l->floats += solved ? module_elements(&l->plan->modules[group->modules[i]]) * FLOAT : 0;
    }
    if (plan_residual_before(l->plan, g + 1) != plan_residual_before(l->plan, g)) {
        l->floats = 0;
    }
}

static int layer_solve_groups(struct layer_walk *l)
{
    const struct plan *plan = l->plan;

    for (int g = 0; g < plan->group_count; g++) {
        const struct plan_experts *e = plan->groups[g].expert >= 0 ? plan->steps[plan->groups[g].step].experts : NULL;
        struct group_walk walk = {.group = &plan->groups[g],
                                  .tokens = run_layer_tokens(l, &plan->groups[g]),
                                  .experts = run_walk_turn(l->w, e),
                                  .times = e != NULL ? (double)e->count : 1};
        if (plan->groups[g].expert > 0) {
            continue; /* like the first */
        }
        bool solved = group_statistics(l, &walk);
        group_calibrate_walk(l, &walk);
        TRY(solved ? group_try_walk(l, &walk) : 0);
        group_keep_floats(l, g);
    }
    return 0;
}

/* --- the layer */

static void layer_analyse(const struct layer_walk *l)
{
    struct run_walk *w = l->w;
    const struct recipe_stage *stage = &w->load->recipe->stages[0];
    int step = plan_find_step(l->plan, STEP_ATTENTION);
    struct quant_cost cost = {0};

    if (!recipe_analyses(w->load->recipe) || step < 0 || stage->quantizer->rewrite_cost == NULL) {
        return;
    }
    const struct plan_attention *a = &l->plan->steps[step].attention;
    const struct quant_group shape = {
        .linear = {.tokens = w->tokens, .threads = w->threads},
        .batch_tokens = w->batch_rows,
        .branch = a->kv_heads * (a->head_dim + a->value_dim),
        .branch_flops = plan_flops(l->plan, PLAN_BIT(step), 1, w->load->length),
    };
    stage->quantizer->rewrite_cost(stage->params, &shape, &cost);
    run_walk_note(w, STAGE_QUANTIZING, l->weights + cost.solving, cost.host);
    w->plan->work[PHASE_MEASURE] += cost.operations;
}

static void layer_work(struct layer_walk *l)
{
    const struct run_walk *w = l->w;
    bool last = l->layer + 1 == w->config->num_layers;
    double experts, passes = 1 + (w->tokens > 0 && recipe_rewrites(w->load->recipe) ? 1 : 0);
    double modules = run_walk_stored(w, l->layer, &experts);

    w->plan->work[PHASE_LOAD] += modules + (passes + (w->eval_tokens > 0 ? 2 : 0)) * experts;
    if (w->tokens > 0) {
        w->plan->work[PHASE_FORWARD] +=
            (w->targets ? 2 : 1) * run_walk_forward(w, l->layer, w->tokens, w->load->length, last);
    }
    if (w->eval_tokens > 0) {
        w->plan->work[PHASE_EVALUATE] += 2 * plan_flops(l->plan, ~(plan_set)0, w->eval_tokens, w->load->eval_length);
    }
}

static void layer_attention_scratch(const struct layer_walk *l)
{
    for (int s = 0; s < l->plan->step_count; s++) {
        const struct plan_attention *a = &l->plan->steps[s].attention;
        int64_t length = layer_larger(l->w->load->length, l->w->load->eval_length);
        int64_t reach = a->window > 0 && a->window < length ? a->window : length;
        if (l->plan->steps[s].kind == STEP_ATTENTION && length > 0) {
            run_walk_scratch(l->w, STAGE_CALIBRATING, l->weights, gpu_scratch_attention(l->w->threads, length, reach));
        }
    }
}

/* Of a device that rounds what it multiplies. */
static void layer_rounded_scratch(const struct layer_walk *l)
{
    for (int m = 0; m < l->plan->module_count && strcmp(l->w->device->products, "bfloat16") == 0; m++) {
        const struct plan_module *module = &l->plan->modules[m];
        int64_t tokens = l->w->batch_rows, linear, gram;
        linear = gpu_scratch_rounded_linear(l->w->threads, tokens, module->rows, module->cols);
        gram = gpu_scratch_rounded_gram(l->w->threads, tokens, module->cols);
        run_walk_scratch(l->w, STAGE_CALIBRATING, l->weights, layer_larger(linear, gram));
    }
}

/* Of a bare model: one module at a time. */
static int layer_listed(struct run_walk *w, int64_t layer, int64_t stored)
{
    const struct plan *plan = plans_layer(model_plans(w->model), layer);

    for (int g = 0; g < plan->group_count; g++) {
        int64_t bytes = module_elements(&plan->modules[plan->groups[g].modules[0]]);
        struct layer_walk l = {.w = w, .layer = layer, .plan = plan, .weights = bytes * FLOAT};
        struct group_walk walk = {.group = &plan->groups[g], .times = 1};
        if (!group_statistics(&l, &walk)) {
            continue;
        }
        run_walk_note(w, STAGE_LOADING, l.weights + (bytes * stored < PIECE_BYTES ? bytes * stored : PIECE_BYTES), 0);
        TRY(group_solve_walk(&l, &walk));
        w->plan->work[PHASE_LOAD] += (double)(bytes * stored);
    }
    return 0;
}

/* Nothing passes through it, and it is solved a slice of rows at a time (slices.c). */
static bool layer_slices(const struct run_walk *w, int64_t layer)
{
    const struct plan *plan = plans_layer(model_plans(w->model), layer);
    bool fits = w->tokens == 0 && w->eval_tokens == 0 && w->device->host_memory && w->candidates == NULL &&
                !recipe_analyses(w->load->recipe);

    for (int i = 0; fits && i < plan->module_count; i++) {
        struct qscheme scheme;
        const struct recipe_stage *solver = run_walk_solver(w, layer, i, &scheme);
        fits = solver == NULL || slices_take(solver, &scheme, plan->modules[i].cols);
    }
    return fits;
}

/* A slice of one module is on the device; results of the block before are still being written. */
static int layer_sliced_module(struct run_walk *w, int64_t layer, int i, int64_t *results)
{
    const struct plan *plan = plans_layer(model_plans(w->model), layer);
    const struct plan_module *m = &plan->modules[i];
    struct plan_module slice = *m;
    struct qscheme scheme;
    int64_t bytes;

    const struct recipe_stage *solver = run_walk_solver(w, layer, i, &scheme);
    if (solver == NULL) {
        return 0;
    }
    slice.rows = slices_rows(m->rows, m->cols);
    const struct quant_shape part = {.rows = slice.rows, .cols = m->cols, .threads = w->threads};
    const struct quant_shape all = {.rows = m->rows, .cols = m->cols, .threads = w->threads};
    const struct quant_cost cost = quantizer_cost(solver->quantizer, solver->params, &part);
    int64_t weight = module_elements(&slice) * FLOAT, working = layer_larger(cost.shared + cost.solving, cost.solved);
    int64_t measured = cost.solved > 0 ? 0 : measure_bytes(w, &scheme, &slice);
    TRY(result_bytes(&scheme, m, true, &bytes));
    bool stays = m->expert < 0 || !memory_plan_takes_turns(plan, w->expert_bytes);
    int64_t host = 2 * *results + (stays ? 2 : 1) * bytes + weight + cost.host;
    *results += stays ? bytes : 0;
    run_walk_note(w, STAGE_QUANTIZING, weight + layer_larger(working, measured), host);
    run_walk_scratch(w, STAGE_QUANTIZING, weight + cost.shared + cost.solving, cost.scratch);
    w->plan->work[PHASE_LOAD] += (double)(module_elements(m) * (int64_t)dtype_rows[model_dtype(w->model)].bytes);
    w->plan->work[PHASE_SOLVE] += quantizer_cost(solver->quantizer, solver->params, &all).operations;
    w->plan->work[PHASE_MEASURE] += 40 * (double)module_elements(m);
    return 0;
}

static int layer_sliced(struct run_walk *w, int64_t layer)
{
    int64_t results = 0;

    for (int i = 0; i < plans_layer(model_plans(w->model), layer)->module_count; i++) {
        TRY(layer_sliced_module(w, layer, i, &results));
    }
    w->plan->work[PHASE_CHECKPOINT] += (double)results;
    return 0;
}

int run_walk_layer(struct run_walk *w, int64_t layer)
{
    int64_t stored = (int64_t)dtype_rows[model_dtype(w->model)].bytes, largest;
    struct layer_walk l = {.w = w, .layer = layer, .plan = plans_layer(model_plans(w->model), layer)};

    w->outputs = 0;
    if (layer_slices(w, layer)) {
        return layer_sliced(w, layer);
    }
    if (plan_is_listed(l.plan)) {
        return layer_listed(w, layer, stored);
    }
    l.weights = run_walk_weights(l.plan, stored, &largest);
    l.piece = largest < PIECE_BYTES ? largest : PIECE_BYTES;
    layer_attention_scratch(&l);
    layer_rounded_scratch(&l);
    run_walk_note(w, STAGE_LOADING, l.weights + l.piece, l.piece);
    layer_work(&l);
    layer_analyse(&l);
    run_layer_rewrite(&l);
    TRY(layer_solve_groups(&l));
    int64_t tuned = run_walk_tuning(w, l.plan);
    if (tuned > 0) {
        run_walk_note(w, STAGE_QUANTIZING, l.weights + layer_turn(&l) + tuned, 0);
    }
    if (w->eval_tokens > 0) {
        run_walk_note(w, STAGE_EVALUATING, l.weights + layer_turn(&l), 0);
    }
    w->plan->work[PHASE_CHECKPOINT] += (double)w->outputs;
    return 0;
}

int run_walk_passed(struct run_walk *w, int64_t layer, bool tried)
{
    int64_t stored = (int64_t)dtype_rows[model_dtype(w->model)].bytes, largest;
    struct layer_walk l = {.w = w, .layer = layer, .plan = plans_layer(model_plans(w->model), layer)};

    w->outputs = 0;
    l.weights = run_walk_weights(l.plan, stored, &largest);
    l.piece = largest < PIECE_BYTES ? largest : PIECE_BYTES;
    layer_attention_scratch(&l);
    layer_rounded_scratch(&l);
    run_walk_note(w, STAGE_LOADING, l.weights + l.piece, l.piece);
    run_walk_note(w, STAGE_EVALUATING, l.weights + layer_turn(&l), 0);
    return tried ? layer_solve_groups(&l) : 0;
}
