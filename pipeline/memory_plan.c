/* Sizes of what run_block, a site's solve, a flow and evaluate_finish allocate, from the model's shapes alone. The test
 * of the block loop on a small device holds what is measured against it. */

#include "pipeline/memory_plan.h"

#define LOGITS_BYTES ((int64_t)96 << 20) /* of both models' logits at once: in the host's memory, and in a device's */
#define DEVICE_LOGITS_BYTES ((int64_t)1 << 30)
#define LOGITS_ROWS 2048 /* at most */
#define RESERVE_SHARE 16 /* of the device's memory */

struct sizes {
    int64_t weights, largest;  /* elements of a block, of a linear */
    int64_t widest, narrowest; /* inputs of a linear */
    int64_t tallest;           /* outputs of a linear */
    int64_t half;              /* elements of the larger of attention and MLP */
};

static int64_t larger(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

static struct sizes sizes_of(const struct model_config *config)
{
    struct sizes s = {.narrowest = INT64_MAX};
    int64_t attention = 0;

    for (int role = 0; role < LINEAR_COUNT; role++) {
        int64_t rows, cols;
        arch_linear_shape(config, (enum linear_role)role, &rows, &cols);
        s.weights += rows * cols;
        s.largest = larger(s.largest, rows * cols);
        s.widest = larger(s.widest, cols);
        s.narrowest = cols < s.narrowest ? cols : s.narrowest;
        bool in_mlp = arch_linear_site[role] == SITE_MLP || arch_linear_site[role] == SITE_DOWN;
        attention += in_mlp ? 0 : rows * cols;
        s.tallest = larger(s.tallest, rows);
    }
    s.half = larger(attention, s.weights - attention);
    return s;
}

/* One flow's tensors. */
static int64_t flow_tensor_bytes(const struct model_config *c, int64_t tokens)
{
    int64_t wide = larger(c->num_heads * c->head_dim, c->intermediate_size);

    return tokens * (2 * c->hidden_size + wide) * (int64_t)sizeof(float);
}

/* The same, with scratch, also for a last batch that is shorter. */
static int64_t flow_bytes(const struct model_config *c, int64_t tokens)
{
    int64_t heads = c->num_heads * c->head_dim, kv = c->num_kv_heads * c->head_dim;
    int64_t wide = larger(heads, c->intermediate_size);
    int64_t work = larger(heads + 2 * kv, larger(c->intermediate_size, c->hidden_size));
    int64_t scratch = work + 2 * wide + c->hidden_size + c->head_dim;

    return flow_tensor_bytes(c, tokens) + 2 * tokens * scratch * (int64_t)sizeof(float);
}

int64_t memory_plan_logits(const struct model_config *config, bool host_memory)
{
    int64_t bytes = host_memory ? LOGITS_BYTES : DEVICE_LOGITS_BYTES;
    int64_t rows = bytes / (2 * config->vocab_size * (int64_t)sizeof(float));

    return rows < 16 ? 16 : rows > LOGITS_ROWS ? LOGITS_ROWS : rows;
}

static int64_t head_bytes(const struct model *model, bool host_memory)
{
    const struct model_config *c = model_config(model);
    int64_t table = c->vocab_size * c->hidden_size * (int64_t)dtype_rows[model_dtype(model)].bytes;
    int64_t row = 2 * (c->vocab_size + c->hidden_size) * (int64_t)sizeof(float);

    return 2 * table + memory_plan_logits(c, host_memory) * row;
}

/* What targets from the float model add (reference.c): the float linears of the half of a block that is being solved,
 * the moments and the target of a linear, and a second flow by the scratch of the first. */
static void add_targets(const struct model_config *c, const struct sizes *s, int64_t tokens, struct memory_plan *plan)
{
    int64_t moments = larger(s->largest, c->hidden_size * c->hidden_size);

    plan->blocks += s->half * (int64_t)sizeof(float);
    plan->solve += (moments + s->largest) * (int64_t)sizeof(float);
    plan->flows += flow_tensor_bytes(c, tokens);
}

/* Some linear may take its target from the float model; how many sequences there are may not be known yet. */
static bool has_targets(const struct memory_load *load, const struct sizes *s)
{
    int64_t tokens = load->sequences > 0 ? load->sequences * load->sequence_length : INT64_MAX;

    return load->calibrates && recipe_has_targets(load->recipe, tokens, s->narrowest);
}

static bool searches_inputs(const struct recipe *recipe, const struct recipe_stage *solver,
                            const struct model_config *config)
{
    struct qscheme scheme;
    int64_t rows, cols;

    arch_linear_shape(config, LINEAR_Q, &rows, &cols);
    return solver->quantizer != NULL && solver->quantizer->solve != NULL &&
           recipe_amended_scheme(recipe, solver, rows, cols, &scheme) == 0 && scheme.input_search;
}

/* What a search for static inputs' ranges takes: a sample of inputs, one more of its size, and their outputs. */
static int64_t range_bytes(const struct recipe *recipe, const struct model_config *config, const struct sizes *s)
{
    bool any = searches_inputs(recipe, &recipe->stages[recipe->count - 1], config);

    for (int i = 0; !any && i < recipe->override_count; i++) {
        any = searches_inputs(recipe, &recipe->overrides[i].solver, config);
    }
    return any ? INPUT_SAMPLE_ROWS * (2 * s->widest + s->tallest) * (int64_t)sizeof(float) : 0;
}

struct memory_plan memory_plan(const struct memory_load *load, const struct model *model, const struct gpu_info *device,
                               int64_t tokens)
{
    const struct model_config *c = model_config(model);
    const struct sizes s = sizes_of(c);
    bool runs = load->calibrates || load->evaluates;
    int64_t batch = larger(tokens, load->longest);
    int64_t square = s.widest * s.widest * (int64_t)sizeof(float);
    int64_t copy = s.largest * (int64_t)sizeof(float), flow = runs ? flow_bytes(c, batch) : 0;
    bool single = tokens == 0;

    struct memory_plan plan = {
        .blocks = single ? 5 * s.weights : 9 * s.weights,
        .solve = (load->calibrates ? 3 * square + range_bytes(load->recipe, c, &s) : 0) + 5 * copy,
        .flows = single ? flow : 2 * flow,
        .reader = single || device->host_memory ? 0 : s.weights * (int64_t)dtype_rows[model_dtype(model)].bytes,
        .head = runs ? head_bytes(model, device->host_memory) : 0,
        .reserve = single || device->host_memory ? 0 : device->memory_total / RESERVE_SHARE,
    };
    if (has_targets(load, &s)) {
        add_targets(c, &s, batch, &plan);
    }
    return plan;
}

int64_t memory_plan_rest(const struct memory_plan *plan)
{
    return plan->blocks + plan->solve + plan->reserve;
}

int64_t memory_plan_max(const struct memory_plan *plan)
{
    int64_t with_head = plan->head + plan->flows + plan->reader + plan->reserve;
    return larger(memory_plan_rest(plan) + plan->flows + plan->reader, with_head);
}

int64_t memory_plan_min(const struct memory_plan *plan)
{
    return larger(plan->blocks + plan->solve + plan->flows, plan->head + plan->flows);
}
