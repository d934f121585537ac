/* One block, site by site (methods.md §0.3; performance.md §3.1, the incremental true-sequential block):
 *
 *   A  x -> norm            -> statistics -> solve q, k, v
 *   B  quantized q,k,v      -> attention  -> statistics -> solve o          keeps the attention output
 *   C  x + o(attention) = m -> norm       -> statistics -> solve gate, up   keeps m
 *   D  quantized gate, up   -> silu*mul   -> statistics -> solve down       keeps the product
 *   E  m + down(product)    = the next block's input
 *
 * Each linear sees inputs that the already quantized ones before it made, and every product is computed once. */

#include "jobs/run.h"

#include "base/err.h"
#include "base/ids.h"
#include "jobs/report.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static double linear_flops(const struct run *run, enum linear_role role, int64_t tokens)
{
    int64_t rows;
    int64_t cols;
    arch_linear_shape(run->config, role, &rows, &cols);
    return 2.0 * (double)tokens * (double)rows * (double)cols;
}

/* Statistics of x, charged to their own phase. */
static int observe(struct run *run, struct layer_stats *stats, const struct tensor *x, double *mark)
{
    if (stats == NULL) {
        return 0;
    }
    int rc = stats_add(stats, run->p->gpu, run->stream, x);
    double n = (double)stats->columns;
    run_charge(run, PHASE_STATISTICS, mark,
               (stats->flags & STATS_HESSIAN) != 0 ? (double)x->shape[0] * n * (n + 1) : 0);
    return rc;
}

static int pass_attention(struct run *run, struct block *block, struct batch *b, struct layer_stats *stats)
{
    double mark = clock_monotonic_seconds();
    int rc = chain_read(run->hidden, CHAIN_IN, b->first, &b->x, run->p->gpu, run->stream);
    rc = rc != 0 ? rc : block_attention_input(block, b->scratch, &b->x, &b->in);
    run_charge(run, PHASE_FORWARD, &mark, 0);
    return rc != 0 ? rc : observe(run, stats, &b->in, &mark);
}

static int pass_output(struct run *run, struct block *block, struct batch *b, struct layer_stats *stats)
{
    double mark = clock_monotonic_seconds();
    const struct model_config *c = run->config;
    struct tensor out = flow_wide(&run->calibration, b, c->num_heads * c->head_dim);
    double length = (double)run->calibration.set->length;

    int rc = chain_read(run->hidden, CHAIN_IN, b->first, &b->x, run->p->gpu, run->stream);
    rc = rc != 0 ? rc : block_attention_input(block, b->scratch, &b->x, &b->in);
    rc = rc != 0 ? rc : block_attention(block, b->scratch, &b->in, &out);
    rc = rc != 0 ? rc : chain_write(run->attention, b->first, &out, run->p->gpu, run->stream);
    double flops = linear_flops(run, LINEAR_Q, b->rows) + linear_flops(run, LINEAR_K, b->rows) +
                   linear_flops(run, LINEAR_V, b->rows) +
                   2.0 * (double)b->rows * length * (double)(c->num_heads * c->head_dim);
    run_charge(run, PHASE_FORWARD, &mark, flops);
    return rc != 0 ? rc : observe(run, stats, &out, &mark);
}

static int pass_mlp(struct run *run, struct block *block, struct batch *b, struct layer_stats *stats)
{
    double mark = clock_monotonic_seconds();
    struct tensor out = flow_wide(&run->calibration, b, run->config->num_heads * run->config->head_dim);

    int rc = chain_read(run->hidden, CHAIN_IN, b->first, &b->x, run->p->gpu, run->stream);
    rc = rc != 0 ? rc : chain_read(run->attention, CHAIN_OUT, b->first, &out, run->p->gpu, run->stream);
    rc = rc != 0 ? rc : block_attention_output(block, b->scratch, &out, &b->x);
    rc = rc != 0 ? rc : chain_write(run->hidden, b->first, &b->x, run->p->gpu, run->stream);
    rc = rc != 0 ? rc : block_mlp_input(block, b->scratch, &b->x, &b->in);
    run_charge(run, PHASE_FORWARD, &mark, linear_flops(run, LINEAR_O, b->rows));
    return rc != 0 ? rc : observe(run, stats, &b->in, &mark);
}

static int pass_down(struct run *run, struct block *block, struct batch *b, struct layer_stats *stats)
{
    double mark = clock_monotonic_seconds();
    struct tensor act = flow_wide(&run->calibration, b, run->config->intermediate_size);

    int rc = chain_read(run->hidden, CHAIN_OUT, b->first, &b->x, run->p->gpu, run->stream);
    rc = rc != 0 ? rc : block_mlp_input(block, b->scratch, &b->x, &b->in);
    rc = rc != 0 ? rc : block_mlp(block, b->scratch, &b->in, &act);
    rc = rc != 0 ? rc : chain_write(run->mlp, b->first, &act, run->p->gpu, run->stream);
    run_charge(run, PHASE_FORWARD, &mark,
               linear_flops(run, LINEAR_GATE, b->rows) + linear_flops(run, LINEAR_UP, b->rows));
    return rc != 0 ? rc : observe(run, stats, &act, &mark);
}

static int pass_end(struct run *run, struct block *block, struct batch *b)
{
    double mark = clock_monotonic_seconds();
    struct tensor act = flow_wide(&run->calibration, b, run->config->intermediate_size);

    int rc = chain_read(run->hidden, CHAIN_OUT, b->first, &b->x, run->p->gpu, run->stream);
    rc = rc != 0 ? rc : chain_read(run->mlp, CHAIN_OUT, b->first, &act, run->p->gpu, run->stream);
    rc = rc != 0 ? rc : block_mlp_output(block, b->scratch, &act, &b->x);
    rc = rc != 0 ? rc : chain_write(run->hidden, b->first, &b->x, run->p->gpu, run->stream);
    run_charge(run, PHASE_FORWARD, &mark, linear_flops(run, LINEAR_DOWN, b->rows));
    return rc;
}

typedef int (*site_pass)(struct run *, struct block *, struct batch *, struct layer_stats *);
static const site_pass site_passes[SITE_COUNT] = {
    [SITE_ATTENTION] = pass_attention,
    [SITE_OUTPUT] = pass_output,
    [SITE_MLP] = pass_mlp,
    [SITE_DOWN] = pass_down,
};

static int64_t site_columns(const struct model_config *c, enum site site)
{
    switch (site) {
    case SITE_OUTPUT:
        return c->num_heads * c->head_dim;
    case SITE_DOWN:
        return c->intermediate_size;
    default:
        return c->hidden_size;
    }
}

/* All micro-batches of the calibration set through one site; stats NULL = nobody looks. */
static int site_gather(struct run *run, struct block *block, enum site site, struct layer_stats *stats)
{
    int64_t batches = flow_batches(&run->calibration);
    int rc = 0;

    for (int64_t i = 0; rc == 0 && i < batches; i++) {
        struct batch b = flow_batch(&run->calibration, i);
        double share = ((double)site + 0.5 * (double)i / (double)batches) / (double)SITE_COUNT;
        rc = run_tick(run, share, "calibrating");
        rc = rc != 0 ? rc : site_passes[site](run, block, &b, stats);
    }
    double mark = clock_monotonic_seconds();
    if (rc == 0 && stats != NULL) {
        rc = stats_finish(stats, run->p->gpu, run->stream);
    }
    run_charge(run, PHASE_STATISTICS, &mark, 0);
    return rc;
}

/* The solved linear on the device: wq = dequantized result, with its scales and zeros for the clip split. */
struct solved {
    struct tensor wq, codes, scale, zero;
};

static void solved_deinit(struct solved *s, const struct gpu *gpu)
{
    gpu_tensor_free(gpu, &s->wq);
    gpu_tensor_free(gpu, &s->codes);
    gpu_tensor_free(gpu, &s->scale);
    gpu_tensor_free(gpu, &s->zero);
}

static int upload_zeros(struct run *run, const struct qtensor *q, const struct tensor *zero)
{
    int64_t count = q->rows * q->groups;
    float *zeros = malloc((size_t)count * sizeof(float));

    if (zeros == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for %lld zero points", (long long)count);
    }
    for (int64_t i = 0; i < count; i++) {
        zeros[i] = q->zeros[i];
    }
    int rc = run->p->gpu->ops->upload(run->stream, zero->data, zeros, (size_t)count * sizeof(float));
    rc = rc != 0 ? rc : run->p->gpu->ops->stream_sync(run->stream);
    free(zeros);
    return rc;
}

static int solved_init(struct run *run, const struct qtensor *q, const struct gpu_grid *grid, struct solved *s)
{
    const struct gpu *gpu = run->p->gpu;
    const int64_t shape[2] = {q->rows, q->cols};
    const int64_t groups[2] = {q->rows, q->groups};

    int rc = gpu_tensor_new(gpu, DTYPE_F32, 2, shape, &s->wq);
    rc = rc != 0 ? rc : gpu_tensor_new(gpu, DTYPE_U8, 2, shape, &s->codes);
    rc = rc != 0 ? rc : gpu_tensor_new(gpu, DTYPE_F32, 2, groups, &s->scale);
    rc = rc != 0 ? rc : gpu_tensor_new(gpu, DTYPE_F32, 2, groups, &s->zero);
    rc = rc != 0 ? rc : gpu->ops->upload(run->stream, s->codes.data, q->codes, tensor_bytes(&s->codes));
    rc = rc != 0 ? rc : gpu->ops->upload(run->stream, s->scale.data, q->scales, tensor_bytes(&s->scale));
    rc = rc != 0 ? rc : upload_zeros(run, q, &s->zero);
    rc = rc != 0 ? rc : gpu->ops->dequantize(run->stream, &s->wq, &s->codes, &s->scale, &s->zero, grid);
    return rc;
}

/* Measure what the linear lost, write its row, and put the quantized weight in the float one's place. */
static int take_result(struct run *run, struct tensor *weight, const struct linear_job *job,
                       const struct layer_stats *stats, json_t *rows)
{
    const struct gpu *gpu = run->p->gpu;
    const struct qtensor *q = &job->result;
    const struct gpu_grid grid = {.bits = q->scheme.bits,
                                  .group_size = q->scheme.group_size,
                                  .sym = q->scheme.sym,
                                  .scale_dtype = q->scheme.scale_dtype};
    struct solved solved = {0};
    struct report_facts facts = {
        .index = run->next_row, .layer = run->block_index, .method = run->p->spec->method, .job = job};

    int rc = solved_init(run, q, &grid, &solved);
    rc = rc != 0
             ? rc
             : gpu->ops->residual(run->stream, &facts.residual, weight, &solved.wq, &solved.scale, &solved.zero, &grid);
    if (rc == 0 && stats != NULL && (stats->flags & STATS_HESSIAN) != 0) {
        facts.has_output = true;
        facts.samples = run->calibration.set->sequences;
        facts.tokens = stats->tokens;
        rc = gpu->ops->output_error(run->stream, &facts.output_error, &facts.output_signal, weight, &solved.wq,
                                    &stats->hessian);
    }
    rc = rc != 0 ? rc : gpu->ops->convert(run->stream, weight, &solved.wq);
    rc = rc != 0 ? rc : gpu->ops->stream_sync(run->stream);
    solved_deinit(&solved, gpu);
    if (rc != 0) {
        return err_pass(rc, "measure %s", job->name);
    }
    if (facts.residual.nonfinite > 0) {
        return err_raise(ERR_NON_FINITE_VALUE, "the quantized %s has %lld values that are not finite", job->name,
                         (long long)facts.residual.nonfinite);
    }
    if (json_array_append_new(rows, report_row(&facts)) != 0) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for the report row of %s", job->name);
    }
    run->next_row++;
    return 0;
}

struct tick_context {
    struct run *run;
    double share;
};

static int solve_tick(void *data)
{
    struct tick_context *context = data;
    return run_tick(context->run, context->share, "quantizing");
}

/* The linears of a site that are to be quantized. */
static int site_jobs(struct run *run, struct block *block, enum site site, struct linear_job jobs[LINEAR_COUNT],
                     enum linear_role roles[LINEAR_COUNT], char names[LINEAR_COUNT][128])
{
    int count = 0;

    for (int role = 0; role < LINEAR_COUNT; role++) {
        if (arch_linear_site[role] != site) {
            continue;
        }
        model_linear_name(run->p->model, run->block_index, (enum linear_role)role, names[count]);
        if (spec_skips(run->p->spec, names[count])) {
            continue;
        }
        jobs[count] = (struct linear_job){
            .name = names[count], .weight = &block->linears[role], .params = run->p->spec->params, .loss = NAN};
        roles[count] = (enum linear_role)role;
        count++;
    }
    return count;
}

static double solve_flops(const struct linear_job *jobs, int count)
{
    double n = (double)jobs[0].result.cols;
    double flops = 2.0 / 3.0 * n * n * n;

    for (int i = 0; i < count; i++) {
        flops += (double)jobs[i].result.rows * n * n;
    }
    return flops;
}

static int site_solve(struct run *run, struct block *block, enum site site, const struct layer_stats *stats,
                      struct qtensor *qtensors, json_t *rows)
{
    struct linear_job jobs[LINEAR_COUNT];
    enum linear_role roles[LINEAR_COUNT];
    char names[LINEAR_COUNT][128];
    struct tick_context tick = {run, ((double)site + 0.5) / (double)SITE_COUNT};
    const struct solve_context context = {
        .gpu = run->p->gpu,
        .stream = run->stream,
        .scale_dtype = run->p->spec->format->scale_dtype(model_dtype(run->p->model)),
        .seed = (uint64_t)run->p->spec->seed,
        .tick = solve_tick,
        .tick_data = &tick,
    };

    int count = site_jobs(run, block, site, jobs, roles, names);
    if (count == 0) {
        return 0;
    }
    double mark = clock_monotonic_seconds();
    int rc = run->p->spec->quantizer->solve(&context, stats, jobs, count);
    bool second_order = rc == 0 && (run->p->spec->quantizer->stats & STATS_HESSIAN) != 0;
    run_charge(run, PHASE_SOLVE, &mark, second_order ? solve_flops(jobs, count) : 0);
    for (int i = 0; i < count; i++) {
        if (rc == 0) {
            rc = take_result(run, &block->linears[roles[i]], &jobs[i], stats, rows);
        }
        qtensors[roles[i]] = jobs[i].result; /* zeroed where solve did not come to it */
    }
    run_charge(run, PHASE_MEASURE, &mark, 0);
    return rc != 0 ? err_pass(rc, "block %lld site %d", (long long)run->block_index, (int)site) : 0;
}

static bool site_wanted(struct run *run, enum site site)
{
    struct linear_job jobs[LINEAR_COUNT];
    enum linear_role roles[LINEAR_COUNT];
    char names[LINEAR_COUNT][128];
    struct block unused = {0};
    return site_jobs(run, &unused, site, jobs, roles, names) > 0;
}

static int site_run(struct run *run, struct block *block, enum site site, struct qtensor *qtensors, json_t *rows)
{
    struct layer_stats stats = {0};
    bool calibrated = run->calibration.set != NULL;
    bool wanted = site_wanted(run, site);
    int rc = 0;

    if (calibrated && wanted) {
        /* The Hessian is what output error is measured with, so every method gets it when there are inputs. */
        rc = stats_init(&stats, run->p->spec->quantizer->stats | STATS_HESSIAN, site_columns(run->config, site),
                        run->p->gpu);
    }
    if (rc == 0 && calibrated) {
        rc = site_gather(run, block, site, wanted ? &stats : NULL);
    }
    if (rc == 0 && wanted) {
        rc = site_solve(run, block, site, calibrated ? &stats : NULL, qtensors, rows);
    }
    stats_deinit(&stats, run->p->gpu);
    return rc;
}

int sites_solve(struct run *run, struct block *block, struct qtensor *qtensors, json_t *rows)
{
    int rc = 0;

    for (int site = 0; rc == 0 && site < SITE_COUNT; site++) {
        rc = site_run(run, block, (enum site)site, qtensors, rows);
    }
    bool last = run->block_index + 1 == run->config->num_layers; /* nobody reads what it would give */
    if (rc != 0 || run->calibration.set == NULL || last) {
        return rc;
    }
    for (int64_t i = 0; rc == 0 && i < flow_batches(&run->calibration); i++) {
        struct batch b = flow_batch(&run->calibration, i);
        rc = run_tick(run, 1.0, "calibrating");
        rc = rc != 0 ? rc : pass_end(run, block, &b);
    }
    return rc;
}
