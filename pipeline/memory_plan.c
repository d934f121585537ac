/* Sizes of what run_block, a group's solve, a micro-batch and evaluate_finish allocate, from the model's shapes alone.
 * The test of the block loop on a small device holds what is measured against it. */

#include "pipeline/memory_plan.h"

#include "models/block_grad.h"
#include "quantizers/tune.h"

#define LOGITS_BYTES ((int64_t)96 << 20) /* of both models' logits at once: in the host's memory, and in a device's */
#define DEVICE_LOGITS_BYTES ((int64_t)1 << 30)
#define LOGITS_ROWS 2048 /* at most */
#define RESERVE_SHARE 16 /* of the device's memory */
#define EXPERTS_SHARE 8  /* likewise */

/* The largest of any layer. */
struct sizes {
    int64_t weights, largest;  /* elements of a block, of a module */
    int64_t widest, narrowest; /* inputs of a module */
    int64_t tallest;           /* outputs of a module */
    int64_t branch;            /* elements of the modules between two sums of the residual stream */
    int64_t moments;           /* elements of an input's or an output's target */
    int64_t kept, work;        /* columns of a micro-batch's values, an expert's rows among them */
    bool pools;                /* there are experts, whose statistics may need those of all tokens */
};

static int64_t plan_larger(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

int64_t memory_plan_turn(const struct plan_experts *experts, int64_t expert_bytes)
{
    int64_t bytes = 0;

    for (int i = 0; i < experts->plan->module_count; i++) {
        bytes += experts->plan->modules[i].rows * experts->plan->modules[i].cols * (int64_t)sizeof(float);
    }
    int64_t count = expert_bytes / bytes;
    return count < 1 ? 1 : count < experts->count ? count : experts->count;
}

bool memory_plan_takes_turns(const struct plan *plan, int64_t expert_bytes)
{
    for (int s = 0; s < plan->step_count; s++) {
        const struct plan_step *step = &plan->steps[s];
        if (step->kind == STEP_EXPERTS && memory_plan_turn(step->experts, expert_bytes) < step->experts->count) {
            return true;
        }
    }
    return false;
}

static void add_plan(const struct plan *plan, int64_t expert_bytes, struct sizes *s)
{
    int64_t weights = 0, branch = 0, experts = 0, tokens = 0;

    for (int g = 0; g < plan->group_count; g++) {
        const struct plan_group *group = &plan->groups[g];
        const struct plan_experts *of = plan->steps[group->step].experts;
        if (group->expert >= 0 && group->expert >= memory_plan_turn(of, expert_bytes)) {
            continue; /* like those of the first turn, and not there with them */
        }
        for (int i = 0; i < group->count; i++) {
            const struct plan_module *module = &plan->modules[group->modules[i]];
            weights += module->rows * module->cols;
            branch += module->rows * module->cols;
            s->largest = plan_larger(s->largest, module->rows * module->cols);
        }
        s->narrowest = group->columns < s->narrowest ? group->columns : s->narrowest;
        s->moments = plan_larger(s->moments, group->residual >= 0 ? 0 : group->columns * group->columns);
        s->branch = plan_larger(s->branch, branch);
        branch = plan_residual_before(plan, g) != plan_residual_before(plan, g + 1) ? 0 : branch;
    }
    for (int i = 0; i < plan->step_count; i++) {
        const struct plan_experts *e = plan->steps[i].experts;
        experts = e == NULL ? experts
                            : plan_larger(experts, e->plan->columns[REGION_KEPT] + e->plan->columns[REGION_WORK] +
                                                       3 * e->top_k); /* who goes where */
        if (plan->steps[i].kind == STEP_TOKENS) {
            int64_t width = plan->values[0].width, columns = plan->values[plan->steps[i].out].width;
            tokens = 2 * (width + columns); /* embeddings and rows, as stored and as F32 */
            weights += width * columns;
        }
    }
    s->pools = s->pools || experts > 0;
    s->weights = plan_larger(s->weights, weights);
    s->widest = plan_larger(s->widest, plan->widest_input);
    s->tallest = plan_larger(s->tallest, plan->tallest);
    s->kept = plan_larger(s->kept, plan->columns[REGION_KEPT]);
    s->work = plan_larger(s->work, plan->columns[REGION_WORK] + experts + tokens);
}

static struct sizes sizes_of(const struct plans *plans, int64_t expert_bytes)
{
    struct sizes s = {.narrowest = INT64_MAX};

    for (int kind = 0; kind < plans_kinds(plans); kind++) {
        add_plan(plans_kind(plans, kind), expert_bytes, &s);
    }
    s.moments = plan_larger(s.moments, s.largest);
    return s;
}

/* Of a bare model: what is quantized of it, one module loaded at a time, with the codes of its run. */
static struct sizes sizes_listed(const struct recipe *recipe, const struct model *model)
{
    const struct plans *plans = model_plans(model);
    struct sizes s = {.narrowest = INT64_MAX};
    int64_t last = -1, run = 0;

    for (size_t i = 0; i < plans_modules(plans); i++) {
        int number;
        int64_t layer = plans_module_at(plans, i, &number);
        const struct plan_module *m = &plans_layer(plans, layer)->modules[number];
        if (recipe_module_solver(recipe, m, m->path) == NULL) {
            continue;
        }
        run = layer == last ? run + m->rows * m->cols : m->rows * m->cols;
        last = layer;
        s.weights = plan_larger(s.weights, run);
        s.largest = plan_larger(s.largest, m->rows * m->cols);
        s.widest = plan_larger(s.widest, m->cols);
        s.tallest = plan_larger(s.tallest, m->rows);
    }
    return s;
}

/* The values of one micro-batch, scratch also for a last one that is shorter, and what operations take for themselves:
 * as much as the values other than the residual stream. */
static int64_t microbatch_bytes(const struct sizes *s, const struct model_config *c, int64_t tokens)
{
    int64_t scratch = s->work + s->widest + plan_larger(c->head_dim, c->full_head_dim);
    int64_t operations = s->kept - c->hidden_size;

    return tokens * (s->kept + 2 * scratch + operations) * (int64_t)sizeof(float);
}

int64_t memory_plan_logits(const struct model_config *config, bool host_memory)
{
    int64_t bytes = host_memory ? LOGITS_BYTES : DEVICE_LOGITS_BYTES;
    int64_t rows = bytes / (2 * config->vocab_size * (int64_t)sizeof(float));

    return rows < 16 ? 16 : rows > LOGITS_ROWS ? LOGITS_ROWS : rows;
}

int64_t memory_plan_labels(const struct model_config *config, bool host_memory, int64_t tokens)
{
    int64_t rows = memory_plan_logits(config, host_memory);

    return rows < tokens ? rows : tokens;
}

static int64_t head_bytes(const struct model *model, bool host_memory)
{
    const struct model_config *c = model_config(model);
    int64_t table = c->vocab_size * c->hidden_size * (int64_t)dtype_rows[model_dtype(model)].bytes;
    int64_t row = 2 * (c->vocab_size + c->hidden_size) * (int64_t)sizeof(float);

    return 2 * table + memory_plan_logits(c, host_memory) * row;
}

/* What targets from the float model add (reference.c): the float weights between two sums of the residual stream, the
 * moments and the target of a module, and the path's own values by the scratch of the calibration set. */
static void plan_targets(const struct model_config *c, const struct sizes *s, int64_t tokens, struct memory_plan *plan)
{
    plan->blocks += s->branch * (int64_t)sizeof(float);
    plan->solve += (s->moments + s->largest) * (int64_t)sizeof(float);
    plan->microbatches += tokens * (s->kept + c->hidden_size) * (int64_t)sizeof(float);
}

/* Some linear may take its target from the float model; how many sequences there are may not be known yet. */
static bool has_targets(const struct memory_load *load, const struct sizes *s)
{
    int64_t tokens = load->sequences > 0 ? load->sequences * load->sequence_length : INT64_MAX;

    return load->calibrates && recipe_has_targets(load->recipe, tokens, s->narrowest);
}

/* All experts of a block are there while it learns. */
static bool learns(const struct memory_load *load)
{
    return load->calibrates && recipe_tuner(load->recipe) != NULL;
}

/* What learning adds: states of the largest block, where groups are no longer solved; a tape of the sequences that it
 * takes at once. */
static void plan_learning(const struct memory_load *load, const struct model *model, bool host_memory,
                          struct memory_plan *plan)
{
    const struct plans *plans = model_plans(model);
    int64_t length = load->sequence_length > 0 ? load->sequence_length : 1, states = 0;
    int64_t lane = tune_lane(load->sequences > 0 ? load->sequences : INT64_MAX, length);

    struct tune_model_plan complete;
    int64_t batch = recipe_end_to_end(load->recipe, &complete) ? complete.batch * length : 0;

    for (int kind = 0; kind < plans_kinds(plans); kind++) {
        states = plan_larger(states, memory_plan_tuned(load->recipe, plans_kind(plans, kind), load->sequences));
    }
    plan->solve = plan_larger(plan->solve, states);
    plan->microbatches += memory_plan_tape(plans, lane, length) +
                          memory_plan_end_to_end(load->recipe, model, host_memory, batch, lane * length);
}

/* All experts of a block are there in the pass for output moments. */
static bool has_moments(const struct memory_load *load)
{
    return load->calibrates && recipe_output_tokens(load->recipe) != 0;
}

/* The pass has the moments of a block where groups are not solved yet, and a tape; later those of one linear are there,
 * on the device and on the host, with four copies of the largest. */
static void plan_moments(const struct memory_load *load, const struct model *model, const struct sizes *s,
                         int64_t tokens, bool host_memory, struct memory_plan *plan)
{
    const struct model_config *c = model_config(model);
    const struct plans *plans = model_plans(model);
    int64_t length = load->sequence_length > 0 ? load->sequence_length : 1, most = 0;

    for (int kind = 0; kind < plans_kinds(plans); kind++) {
        most = plan_larger(most, memory_plan_moments(load->recipe, plans_kind(plans, kind)));
    }
    plan->solve += (2 * s->tallest * s->tallest + 4 * s->largest) * (int64_t)sizeof(float);
    plan->solve = plan_larger(plan->solve, most);
    plan->head +=
        plan_larger(0, head_tape_bytes(c, memory_plan_labels(c, host_memory, plan_larger(tokens, length)), false));
    plan->microbatches =
        plan_larger(plan->microbatches, memory_plan_tape(plans, plan_larger(tokens / length, 1), length));
}

static bool searches_inputs(const struct recipe *recipe, const struct recipe_stage *solver,
                            const struct plan_module *module)
{
    struct qscheme scheme;

    return solver->quantizer != NULL && solver->quantizer->solve != NULL &&
           recipe_amended_scheme(recipe, solver, module->rows, module->cols, &scheme) == 0 && scheme.input_search;
}

/* What a search for static inputs' ranges takes: a sample of inputs, one more of its size, and their outputs. */
static int64_t range_bytes(const struct recipe *recipe, const struct plans *plans, const struct sizes *s)
{
    const struct plan_module *module = &plans_kind(plans, 0)->modules[0];
    bool any = searches_inputs(recipe, &recipe->stages[recipe->count - 1], module);

    for (int i = 0; !any && i < recipe->override_count; i++) {
        any = searches_inputs(recipe, &recipe->overrides[i].solver, module);
    }
    for (int i = 0; recipe->mixture != NULL && !any && i < recipe->mixture->candidates.count; i++) {
        any = searches_inputs(recipe, &recipe->mixture->candidates.list[i].solver, module);
    }
    return any ? INPUT_SAMPLE_ROWS * (2 * s->widest + s->tallest) * (int64_t)sizeof(float) : 0;
}

/* Elements of a block's modules outside its experts, of the largest layer: what is loaded at once and read ahead. */
static int64_t shared_elements(const struct plans *plans)
{
    int64_t largest = 0;

    for (int kind = 0; kind < plans_kinds(plans); kind++) {
        const struct plan *plan = plans_kind(plans, kind);
        int64_t elements = 0;
        for (int i = 0; i < plan->module_count; i++) {
            const struct plan_module *module = &plan->modules[i];
            elements += module->expert < 0 ? module->rows * module->cols : 0;
        }
        largest = plan_larger(largest, elements);
    }
    return largest;
}

int64_t memory_plan_experts(const struct model *model, const struct gpu_info *device)
{
    int64_t share = device->host_memory ? 0 : device->memory_total / EXPERTS_SHARE;

    return plan_larger(share, shared_elements(model_plans(model)) * (int64_t)sizeof(float));
}

struct memory_plan memory_plan(const struct memory_load *load, const struct model *model, const struct gpu_info *device,
                               int64_t tokens)
{
    const struct model_config *c = model_config(model);
    const struct sizes s = model_is_bare(model)
                               ? sizes_listed(load->recipe, model)
                               : sizes_of(model_plans(model), learns(load) || has_moments(load) ? INT64_MAX
                                                              : tokens == 0                     ? 0
                                                                            : memory_plan_experts(model, device));
    bool runs = load->calibrates || load->evaluates;
    int64_t batch = plan_larger(tokens, load->longest);
    int64_t square = s.widest * s.widest * (int64_t)sizeof(float);
    int64_t copy = s.largest * (int64_t)sizeof(float), microbatch = runs ? microbatch_bytes(&s, c, batch) : 0;
    bool single = tokens == 0;

    struct memory_plan plan = {
        .blocks = single ? 5 * s.weights : 9 * s.weights,
        .solve =
            (load->calibrates ? (s.pools ? 4 : 3) * square + range_bytes(load->recipe, model_plans(model), &s) : 0) +
            5 * copy,
        .microbatches = single ? microbatch : 2 * microbatch,
        .reader = single || device->host_memory || model_is_bare(model)
                      ? 0
                      : shared_elements(model_plans(model)) * (int64_t)dtype_rows[model_dtype(model)].bytes,
        .head = runs ? head_bytes(model, device->host_memory) : 0,
        .reserve = single || device->host_memory ? 0 : device->memory_total / RESERVE_SHARE,
    };
    if (has_targets(load, &s)) {
        plan_targets(c, &s, batch, &plan);
    }
    if (learns(load)) {
        plan_learning(load, model, device->host_memory, &plan);
    }
    if (has_moments(load)) {
        plan_moments(load, model, &s, tokens, device->host_memory, &plan);
    }
    return plan;
}

int64_t memory_plan_rest(const struct memory_plan *plan)
{
    return plan->blocks + plan->solve + plan->reserve;
}

int64_t memory_plan_max(const struct memory_plan *plan)
{
    int64_t with_head = plan->head + plan->microbatches + plan->reader + plan->reserve;
    return plan_larger(memory_plan_rest(plan) + plan->microbatches + plan->reader, with_head);
}

int64_t memory_plan_min(const struct memory_plan *plan)
{
    return plan_larger(plan->blocks + plan->solve + plan->microbatches, plan->head + plan->microbatches);
}
