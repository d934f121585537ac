/* How AWQ's candidates are compared at one input group: by the sum of squares of what the block's own output loses,
 * with the output of attention after o_proj (for q, k, v), of the MLP (gate, up) or of the linear itself (o, down).
 *
 * Where it is the linear's own output Y = X W^T, the loss is tr(D H D^T) with D = W - Q(W s) / s and H = sum x x^T: no
 * candidate needs a product with X. H is of MOMENT_TOKENS inputs. The first rows of W, a quarter of them, score every
 * candidate: rows lose independently of each other, so a part of them ranks candidates as all do. The MOMENT_SHORTLIST
 * best of these, and s = 1, are scored by all rows, exactly.
 *
 * Elsewhere the readers' outputs meet in attention or in an activation, and each candidate runs the branch over tokens.
 * It is done in stages, each on other tokens: the first scores every candidate, and after each the `keep` best so far
 * stay in, with s = 1. Losses of all stages are added up. Candidates are compared on the same tokens, and what differs
 * between them is far less than what differs between tokens: few tokens rank them well, neighbours lose nearly the
 * same, and what is misordered costs as little.
 *
 * Tokens are spread evenly over the calibration set, the same ones in every run: complete sequences, or the beginning
 * of one, where the branch looks along the sequence. s = 1 is never dropped, so no group loses to rounding on what is
 * scored last. */

#include "quantizers/awq_search.h"

#include "base/err.h"

#include <math.h>

#define MOMENT_TOKENS 4096
#define MOMENT_SHORTLIST 5
#define MOMENT_ROWS_MIN 128 /* that score every candidate at least */
#define CANDIDATES_MAX (AWQ_GRID_MAX + 1)

static const struct {
    int64_t tokens;
    int keep; /* 0: this is the last one */
} stages[] = {{512, 5}, {512, 2}, {1024, 0}};
#define STAGES ((int)(sizeof(stages) / sizeof(stages[0])))

/* Leave the best few in, the earlier of equals, and s = 1. */
static void awq_shorten_list(struct awq_search *search, int keep)
{
    bool in[CANDIDATES_MAX] = {true};

    for (int k = 0; k < keep; k++) {
        int best = -1;
        for (int i = 0; i < search->candidates; i++) {
            if (!in[i] && (best < 0 || search->losses[i] < search->losses[best])) {
                best = i;
            }
        }
        if (best >= 0) {
            in[best] = true;
        }
    }
    for (int i = 0; i < search->candidates; i++) {
        search->losses[i] = in[i] ? search->losses[i] : INFINITY;
    }
}

/* Micro-batches that give so many tokens, at least `least` of them where there are as many. */
static int64_t awq_batches(const struct awq_search *search, int64_t wanted, int64_t least)
{
    int64_t tokens = search->context->stats->tokens, batches = search->context->batches;
    int64_t count = tokens > 0 ? (batches * wanted + tokens - 1) / tokens : 1;

    count = count < least ? least : count;
    return count > batches ? batches : count;
}

/* --- a linear's own output */

/* Whether the only step from the input to the branch is that of the group's one module. */
static bool awq_is_linear(const struct awq_search *search)
{
    const struct plan_group *group = search->context->group;
    const struct plan *plan = plan_of_group(search->context->block->plan, group);

    for (int s = 0; s < plan->step_count; s++) {
        if (search->steps == PLAN_BIT(s)) {
            return plan->steps[s].kind == STEP_LINEAR && group->count == 1;
        }
    }
    return false;
}

/* H of some micro-batches; *any: they have tokens. */
static int awq_gather_moments(struct awq_search *search, bool *any)
{
    const struct rewrite_context *context = search->context;
    const int64_t shape[2] = {search->columns, search->columns};
    int64_t count = awq_batches(search, MOMENT_TOKENS, 1);

    *any = false;
    TRY(gpu_tensor_new(context->gpu, DTYPE_F32, 2, shape, &search->moments));
    for (int64_t k = 0; k < count; k++) {
        struct block_values values;
        TRY(context->tick != NULL ? context->tick(context->tick_data) : 0);
        TRY(context->input(context->input_data, k * context->batches / count, &values));
        if (block_values_rows(&values) > 0) {
            const struct tensor in = block_value(&values, context->group->input);
            TRY(context->gpu->ops->gram(context->stream, &search->moments, &in));
            *any = true;
        }
    }
    return context->gpu->ops->symmetrize(context->stream, &search->moments, 1.0);
}

/* Of the first `rows` rows, by every candidate that is still in. */
static int awq_score_rows(struct awq_search *search, int64_t rows)
{
    const struct rewrite_context *context = search->context;
    const struct gpu_ops *ops = context->gpu->ops;
    const struct tensor whole = *rewrite_weight(context, 0);
    const struct tensor w = tensor_rows(&whole, 0, rows), trial = tensor_rows(&search->readers[0], 0, rows);

    for (int candidate = 0; candidate < search->candidates; candidate++) {
        double lost;
        if (!isfinite(search->losses[candidate])) {
            continue;
        }
        TRY(context->tick != NULL ? context->tick(context->tick_data) : 0);
        TRY(awq_place_candidate(search, candidate, rows));
        TRY(ops->output_error(context->stream, &lost, NULL, &w, &trial, &search->moments));
        search->losses[candidate] = isfinite(lost) ? lost : INFINITY;
    }
    return 0;
}

static int64_t awq_first_rows(int64_t rows)
{
    int64_t first = rows / 4 > MOMENT_ROWS_MIN ? rows / 4 : MOMENT_ROWS_MIN;

    return first < rows ? first : rows;
}

static int awq_score_moments(struct awq_search *search)
{
    int64_t rows = search->readers[0].shape[0], first = awq_first_rows(rows);
    bool any;

    TRY(awq_gather_moments(search, &any));
    if (!any) {
        return 0;
    }
    TRY(awq_score_rows(search, first));
    if (first == rows) {
        return 0;
    }
    awq_shorten_list(search, MOMENT_SHORTLIST);
    return awq_score_rows(search, rows);
}

/* --- what a branch makes of several outputs */

/* Whether a token of the branch takes part in others. */
static bool awq_looks_back(const struct awq_search *search)
{
    const struct plan *plan = plan_of_group(search->context->block->plan, search->context->group);

    for (int s = 0; s < plan->step_count; s++) {
        if ((search->steps & PLAN_BIT(s)) == 0) {
            continue;
        }
        switch (plan->steps[s].kind) {
        case STEP_LINEAR:
        case STEP_NORM:
        case STEP_ACTIVATE:
        case STEP_SELECT:
        case STEP_JOIN:
        case STEP_ADD:
        case STEP_SCALE:
        case STEP_GATED_NORM:
            break;
        default:
            return true;
        }
    }
    return false;
}

/* What the group is judged by (plan_group.branch), to `out`: the output of attention with its last module, or of the
 * MLP. */
static int awq_branch_output(const struct awq_search *search, const struct block *block,
                             const struct block_values *values, const struct tensor *out)
{
    struct block_values own = *values;

    block_value_bind(&own, search->context->group->branch, out->data);
    return block_run(block, &own, search->steps);
}

static int awq_reserve_outputs(struct awq_search *search, int64_t tokens)
{
    const struct rewrite_context *context = search->context;
    const struct plan *plan = plan_of_group(context->block->plan, context->group);
    const int64_t shape[] = {tokens, plan->values[context->group->branch].width};

    if (search->target.data != NULL && search->target.shape[0] >= tokens) {
        return 0;
    }
    gpu_tensor_free(context->gpu, &search->target);
    gpu_tensor_free(context->gpu, &search->output);
    TRY(gpu_tensor_new(context->gpu, DTYPE_F32, 2, shape, &search->target));
    return gpu_tensor_new(context->gpu, DTYPE_F32, 2, shape, &search->output);
}

/* Run some tokens through every candidate that is still in. */
static int awq_score_tokens(struct awq_search *search, const struct block_values *values)
{
    const struct rewrite_context *context = search->context;
    int64_t tokens = block_values_rows(values);

    TRY(awq_reserve_outputs(search, tokens));
    struct tensor target = tensor_rows(&search->target, 0, tokens);
    struct tensor output = tensor_rows(&search->output, 0, tokens);
    TRY(awq_branch_output(search, context->block, values, &target));
    for (int candidate = 0; candidate < search->candidates; candidate++) {
        struct gpu_residual residual = {0};
        if (!isfinite(search->losses[candidate])) {
            continue;
        }
        TRY(context->tick != NULL ? context->tick(context->tick_data) : 0);
        TRY(awq_place_candidate(search, candidate, 0));
        TRY(awq_branch_output(search, &search->trial, values, &output));
        TRY(context->gpu->ops->residual(context->stream, &residual, &target, &output, NULL, NULL, NULL));
        search->losses[candidate] += residual.nonfinite > 0 ? INFINITY : residual.error_sq;
    }
    return 0;
}

/* The stage that the search is in, and the tokens that it has scored so far. */
struct awq_progress {
    int stage;
    int64_t scored;
};

/* Score tokens of a micro-batch from row *at on for the current stage, and move *at past them. */
static int awq_score_part(struct awq_search *search, const struct block_values *values, int64_t *at,
                          struct awq_progress *progress)
{
    const struct plan_group *group = search->context->group;
    const plan_set have = PLAN_BIT(group->input) | plan_taken(values->plan);
    int64_t left = block_values_rows(values) - *at, wanted = stages[progress->stage].tokens - progress->scored;
    int64_t length = block_values_length(values), sequences = 1, step;
    AUTO(block_values_part) struct block_values part = {.scratch = NULL};

    if (awq_looks_back(search) && length <= wanted) {
        sequences = wanted / length < left / length ? wanted / length : left / length;
        step = sequences * length;
    } else if (awq_looks_back(search)) { /* the beginning of a sequence */
        step = length;
        length = wanted;
    } else {
        step = length = wanted < left ? wanted : left;
    }
    TRY(block_values_part(values, have, *at, sequences, length, &part));
    TRY(awq_score_tokens(search, &part));
    progress->scored += sequences * length;
    *at += step;
    return 0;
}

/* A stage takes its tokens from as many micro-batches as it needs, and the next stage begins with the next of them; in
 * the last one, with what is left of it, or with its beginning. */
static int awq_score_batch(struct awq_search *search, const struct block_values *values, bool last,
                           struct awq_progress *progress)
{
    int64_t rows = block_values_rows(values), at = 0;

    while (progress->stage < STAGES && at < rows) {
        TRY(awq_score_part(search, values, &at, progress));
        if (progress->scored < stages[progress->stage].tokens) {
            continue;
        }
        if (stages[progress->stage].keep > 0) {
            awq_shorten_list(search, stages[progress->stage].keep);
        }
        progress->stage++;
        progress->scored = 0;
        if (!last) {
            break;
        }
        at = at < rows ? at : 0;
    }
    return 0;
}

static int awq_score_outputs(struct awq_search *search)
{
    const struct rewrite_context *context = search->context;
    struct awq_progress progress = {0, 0};
    int64_t wanted = 0;

    for (int s = 0; s < STAGES; s++) {
        wanted += stages[s].tokens;
    }
    int64_t count = awq_batches(search, wanted, STAGES);
    for (int64_t k = 0; k < count && progress.stage < STAGES; k++) {
        struct block_values values;
        TRY(context->input(context->input_data, k * context->batches / count, &values));
        TRY(awq_score_batch(search, &values, k + 1 == count, &progress));
    }
    return 0;
}

int awq_score(struct awq_search *search)
{
    return awq_is_linear(search) ? awq_score_moments(search) : awq_score_outputs(search);
}

/* --- what that costs */

#define PLACING 40 /* operations on a weight that is scaled, rounded and read back */

static double awq_batches_of(const struct quant_group *group, double wanted, double least)
{
    double tokens = (double)group->linear.tokens, batches = (double)group->batches;
    double count = tokens > 0 ? ceil(batches * wanted / tokens) : 1;

    count = count < least ? least : count;
    return count < batches ? count : batches;
}

static void awq_moments_cost(double candidates, const struct quant_group *group, struct quant_cost *out)
{
    double rows = (double)group->linear.rows, cols = (double)group->linear.cols;
    double first = (double)awq_first_rows(group->linear.rows), batches = awq_batches_of(group, MOMENT_TOKENS, 1);
    double scored = first < rows ? candidates * first + (MOMENT_SHORTLIST + 1) * rows : candidates * rows;
    double tokens = batches * (double)group->linear.tokens / (double)group->batches;

    out->solving += group->linear.cols * group->linear.cols * (int64_t)sizeof(float);
    out->operations = scored * cols * (cols + PLACING) + tokens * cols * cols + batches * group->input_flops;
}

static void awq_outputs_cost(double candidates, const struct quant_group *group, struct quant_cost *out)
{
    double left = (double)group->linear.tokens, wanted = 0, tokens = 0, in = candidates;
    int64_t largest = 0;

    for (int s = 0; s < STAGES && left > 0; s++) {
        double scored = (double)stages[s].tokens < left ? (double)stages[s].tokens : left;
        out->operations += (in + 1) * scored * group->branch_flops + in * PLACING * (double)group->elements;
        largest = stages[s].tokens > largest ? stages[s].tokens : largest;
        wanted += (double)stages[s].tokens;
        in = candidates < stages[s].keep + 1 ? candidates : stages[s].keep + 1;
        left -= scored;
        tokens += scored;
    }
    largest = (double)largest < tokens ? largest : (int64_t)tokens;
    out->solving += 2 * largest * group->branch * (int64_t)sizeof(float);
    out->operations += awq_batches_of(group, wanted, STAGES) * group->input_flops;
}

void awq_score_cost(double candidates, const struct quant_group *group, struct quant_cost *out)
{
    if (group->branch_flops <= 2.0 * (double)group->elements) { /* one product */
        awq_moments_cost(candidates, group, out);
    } else {
        awq_outputs_cost(candidates, group, out);
    }
}
