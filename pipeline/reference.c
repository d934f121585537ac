/* The float model's activations of the calibration set, next to the quantized ones: what a linear should give, X_f W^T,
 * where the quantized linears before it make the inputs X (asymmetric calibration: Li et al. 2025, arXiv 2504.02692).
 * The weight that comes nearest, T = W + W (X_f - X)^T X (X^T X)^-1, is for the method to find; its numerator is summed
 * here, over micro-batches.
 *
 * o_proj and down_proj are alone in reading their inputs, and they add to the residual stream. For these the numerator
 * is what their output lacks, (X_f - X) W^T, and with it a share of what the stream has lost before the addition, which
 * they can make up for in part. Elsewhere several linears read the inputs, and what those lack serves all of them.
 *
 * The path is always a step ahead: attention and MLP are added to its stream as soon as the quantized path has reached
 * what they read, so nothing but the stream is kept, and float linears only from the site that solves them to the next
 * one. */

#include "pipeline/reference.h"

#include "base/ids.h"
#include "pipeline/solve.h"

/* The linear that adds a site's part to the residual stream; LINEAR_COUNT: none. */
static const enum linear_role writers[SITE_COUNT] = {
    [SITE_ATTENTION] = LINEAR_COUNT,
    [SITE_OUTPUT] = LINEAR_O,
    [SITE_MLP] = LINEAR_COUNT,
    [SITE_DOWN] = LINEAR_DOWN,
};

int reference_open(struct run *run)
{
    const struct calibration_set *set = run->calibration.set;
    int64_t narrowest = INT64_MAX;

    for (int site = 0; site < SITE_COUNT; site++) {
        int64_t columns = block_site_columns(run->config, (enum site)site);
        narrowest = columns < narrowest ? columns : narrowest;
    }
    return recipe_has_targets(run->p->recipe, set->sequences * set->length, narrowest)
               ? microbatches_init_second(&run->reference.batches, &run->calibration, run->config, run->p->gpu)
               : 0;
}

int reference_init(struct run *run, enum site site, struct layer_stats *stats)
{
    int64_t outputs = 0, inputs;

    if (writers[site] != LINEAR_COUNT) {
        arch_linear_shape(run->config, writers[site], &outputs, &inputs);
    }
    return stats_init_target(stats, outputs, run->p->gpu);
}

struct block reference_block(const struct run *run, const struct block *block)
{
    struct block reference = *block;

    for (int role = 0; role < LINEAR_COUNT; role++) {
        if (run->reference.float_linears[role].data != NULL) {
            reference.linears[role] = run->reference.float_linears[role];
        }
        reference.inputs[role] = (struct gpu_input){.element = DTYPE_F32};
        reference.kept[role] = (struct tensor){0};
    }
    reference.key_cache = reference.value_cache = (struct gpu_cache){0};
    return reference;
}

void reference_release(struct run *run, enum site site)
{
    for (int role = 0; role < LINEAR_COUNT; role++) {
        if (arch_linear_site[role] == site) {
            gpu_tensor_free(run->p->gpu, &run->reference.float_linears[role]);
        }
    }
}

/* The site's input on this path, and in b->x its residual stream. */
static int reference_input(struct run *run, const struct block *block, enum site site, struct batch *b,
                           struct tensor *in)
{
    const struct model_config *c = run->config;
    enum activations_side side = site == SITE_ATTENTION || site == SITE_OUTPUT ? ACTIVATIONS_IN : ACTIVATIONS_OUT;
    int rc = activations_open(run->reference.hidden, side, b->first, &b->x, run->p->gpu, run->stream);

    *in = b->in;
    switch (site) {
    case SITE_ATTENTION:
        return rc != 0 ? rc : block_attention_input(block, b->scratch, &b->x, in);
    case SITE_OUTPUT:
        *in = microbatches_wide(&run->reference.batches, b, c->num_heads * c->head_dim);
        rc = rc != 0 ? rc : block_attention_input(block, b->scratch, &b->x, &b->in);
        return rc != 0 ? rc : block_attention(block, b->scratch, &b->in, in);
    case SITE_MLP:
        return rc != 0 ? rc : block_mlp_input(block, b->scratch, &b->x, in);
    default:
        *in = microbatches_wide(&run->reference.batches, b, c->intermediate_size);
        rc = rc != 0 ? rc : block_mlp_input(block, b->scratch, &b->x, &b->in);
        return rc != 0 ? rc : block_mlp(block, b->scratch, &b->in, in);
    }
}

/* x += the writer's output, by way of scratch [T, hidden]. */
static int reference_advance(struct run *run, const struct block *block, enum linear_role role, const struct tensor *in,
                             const struct tensor *scratch, struct batch *b)
{
    const struct gpu *gpu = run->p->gpu;
    const struct tensor *bias = block->biases[role].data != NULL ? &block->biases[role] : NULL;

    int rc = gpu->ops->linear(run->stream, scratch, in, &block->linears[role], bias);
    rc = rc != 0 ? rc : gpu->ops->add(run->stream, &b->x, scratch);
    return rc != 0 ? rc : activations_write(run->reference.hidden, b->first, &b->x, gpu, run->stream);
}

/* The share of the residual stream's loss that the site's linear is to make up for. */
static double residual_share(struct run *run, enum linear_role role)
{
    struct qscheme scheme;
    struct quant_targets targets = {.residual_share = 0};
    const struct recipe_stage *solver = site_solver(run, role, &scheme);

    if (solver != NULL && solver->quantizer->targets != NULL) {
        (void)solver->quantizer->targets(solver->params, &targets);
    }
    return targets.residual_share;
}

int reference_pass(struct run *run, const struct block *block, enum site site, int64_t i, struct batch *quantized,
                   const struct tensor *in, struct layer_stats *stats)
{
    const struct gpu *gpu = run->p->gpu;
    enum linear_role role = writers[site];
    bool targets = stats != NULL && (stats->flags & STATS_TARGET) != 0;
    struct batch b = microbatches_at(&run->reference.batches, i);
    struct tensor reference, *lacks = &quantized->in; /* [T, hidden]: nobody reads that batch's norm any more */
    double mark = clock_monotonic_seconds();

    if (role == LINEAR_COUNT && !targets) {
        return 0;
    }
    int rc = reference_input(run, block, site, &b, &reference);
    if (rc == 0 && role != LINEAR_COUNT && targets) {
        double share = residual_share(run, role);
        rc = gpu->ops->combine(run->stream, lacks, share, &b.x, -share, &quantized->x);
    }
    bool last = site == SITE_DOWN && run->block_index + 1 == run->config->num_layers; /* nobody reads its output */
    if (rc == 0 && role != LINEAR_COUNT && !last) {
        rc = reference_advance(run, block, role, &reference, &b.in, &b);
    }
    run_add_time(run, PHASE_FORWARD, &mark, 0);
    if (rc != 0 || !targets) {
        return rc;
    }
    rc = gpu->ops->combine(run->stream, &reference, 1, &reference, -1, in);
    if (role == LINEAR_COUNT) {
        rc = rc != 0 ? rc : stats_add_target(stats, gpu, run->stream, in, &reference);
    } else {
        rc = rc != 0 ? rc : gpu->ops->linear(run->stream, &b.in, &reference, &block->linears[role], NULL);
        rc = rc != 0 ? rc : gpu->ops->add(run->stream, lacks, &b.in);
        rc = rc != 0 ? rc : stats_add_target(stats, gpu, run->stream, in, lacks);
    }
    run_add_time(run, PHASE_STATISTICS, &mark, 2.0 * (double)b.rows * (double)tensor_count(&stats->target));
    return rc;
}
