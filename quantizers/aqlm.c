/* AQLM (Egiazarian et al. 2024, arXiv 2401.06118): each group of g inputs of a row is its row's scale times a sum of M
 * codebook vectors, chosen to keep W X^T.
 *
 * The objective is tr((W - W^) H (W - W^)^T), H = (2/T) sum x x^T: exactly what the layer's output loses on the
 * calibration set. From a start by residual k-means, weighed by diag H, epochs of three steps:
 *   tables   least squares with codes fixed, by conjugate gradients through H, in place of the paper's Adam;
 *   scales   the best one of each row;
 *   codes    a beam over the M codes of each group with all other groups fixed, for one group after the other.
 * Each step has what is there among its candidates, so the loss falls from epoch to epoch, until it falls by less than
 * relative_mse_tolerance. With `output_moments` O further epochs of tables and codes are on tr(O (W - W^) H (W - W^)^T)
 * (codebooks_both.c). Last, scales and tables are rounded to what the artifact stores, and codes are chosen for what is
 * stored; the loss that is reported is the one after that. */

#include "quantizers/codebooks.h"

#include "base/err.h"
#include "base/ids.h"
#include "base/log.h"
#include "base/mem.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define KMEANS_ITERATIONS 30
#define FIT_STEPS 12      /* of conjugate gradients in an epoch: it goes on in the next */
#define LAST_FIT_STEPS 40 /* before the tables are rounded */
#define EXACT 1e-9        /* of the signal: what is lost to single precision */

struct aqlm_params {
    struct quant_base base;
    int64_t num_codebooks;
    int64_t nbits_per_codebook;
    int64_t in_group_size;
    int64_t out_group_size;
    double relative_mse_tolerance;
    int64_t max_epochs;
    int64_t beam_size;
    bool output_moments;
    int64_t output_tokens;
};

static int aqlm_scheme(const void *values, int64_t rows, int64_t cols, struct qscheme *out)
{
    const struct aqlm_params *params = values;

    TRY(quant_check_shape(rows, cols));
    TRY(codebooks_check_group(params->in_group_size, cols));
    *out = (struct qscheme){.kind = QTENSOR_CODEBOOKS,
                            .bits = (int)params->nbits_per_codebook,
                            .group_size = params->in_group_size,
                            .group_rows = 1,
                            .codebooks = (int)params->num_codebooks,
                            .scale_dtype = DTYPE_F32};
    return 0;
}

/* One epoch; *loss is read and lowered. */
static int aqlm_epoch(struct codebooks *c, const struct tensor *h, double *loss)
{
    double gain = 0;

    TRY(codebooks_fit_tables(c, h, FIT_STEPS, loss));
    TRY(codebooks_fit_scales(c, h, loss));
    TRY(codebooks_search(c, h, &gain));
    TRY(codebooks_residual(c));
    return codebooks_loss(c, h, loss);
}

/* Epochs until they gain too little. Returns their number in *epochs, the first loss in *first. */
static int aqlm_refine(struct codebooks *c, const struct tensor *h, const struct linear_job *job, double *first,
                       double *loss, int *epochs)
{
    const struct aqlm_params *params = job->params;
    double before, signal = 0;

    TRY(c->context->gpu->ops->output_error(c->context->stream, loss, &signal, job->weight, &c->d, h));
    TRY(codebooks_loss(c, h, loss));
    *first = *loss;
    *epochs = 0;
    while (*epochs<params->max_epochs && * loss> EXACT * signal) {
        before = *loss;
        TRY(quant_tick(c->context));
        TRY(aqlm_epoch(c, h, loss));
        ++*epochs;
        log_debug("epoch of codebooks", LOG_S("module", job->name), LOG_I("epoch", *epochs), LOG_F("loss", *loss));
        if (*loss > (1 - params->relative_mse_tolerance) * before) {
            break;
        }
    }
    return 0;
}

/* Rows weighed against each other by what their outputs cost the model. */
static int aqlm_both_sides(struct codebooks *c, const struct tensor *h, struct linear_job *job, int *epochs)
{
    const struct aqlm_params *params = job->params;
    AUTO_TENSOR(o, c->context->gpu);
    double loss = 0;

    if (!params->output_moments || c->context->output_moments == NULL) {
        return 0;
    }
    TRY(quant_tick(c->context));
    TRY(c->context->output_moments(c->context->output_data, job, QUANT_OUTPUT_KEPT, &o));
    TRY(codebooks_couple(c, &o));
    job->two_sided = true;
    return aqlm_refine(c, h, job, &job->two_sided_start, &loss, epochs);
}

/* What the artifact stores, and what it loses. */
static int aqlm_end(struct codebooks *c, const struct tensor *h, struct linear_job *job)
{
    TRY(codebooks_store(c, h));
    if (job->two_sided) {
        TRY(codebooks_loss(c, h, &job->two_sided_loss));
        gpu_tensor_free(c->context->gpu, &c->o);
    }
    return codebooks_loss(c, h, &job->loss);
}

static int aqlm_solve_linear(const struct solve_context *context, const struct layer_stats *stats,
                             const float *diagonal, struct linear_job *job)
{
    const struct aqlm_params *params = job->params;
    const struct gpu_codebook spec = {.codebooks = (int)params->num_codebooks,
                                      .bits = (int)params->nbits_per_codebook,
                                      .group_size = params->in_group_size,
                                      .beam = (int)params->beam_size};
    AUTO(codebooks) struct codebooks c = {0};
    struct qscheme scheme;
    const struct tensor *h = &stats->hessian;
    double first = 0, loss = 0;
    int epochs = 0, both = 0;

    TRY(aqlm_scheme(params, job->weight->shape[0], job->weight->shape[1], &scheme));
    scheme.scale_dtype = context->scale_dtype;
    TRY(codebooks_init(context, job, &spec, diagonal, &c));
    TRY(codebooks_start(&c, KMEANS_ITERATIONS));
    TRY(aqlm_refine(&c, h, job, &first, &loss, &epochs));
    TRY(aqlm_both_sides(&c, h, job, &both));
    if (epochs + both > 0) {
        TRY(codebooks_loss(&c, h, &loss));
        TRY(codebooks_fit_tables(&c, h, LAST_FIT_STEPS, &loss));
    }
    TRY(aqlm_end(&c, h, job));
    TRY(codebooks_take(&c, &scheme, job));
    snprintf(job->note, sizeof(job->note), "loss %.4g -> %.4g in %d epochs", first, job->loss, epochs + both);
    return 0;
}

/* Epochs end when they gain too little; on trained weights that is after EPOCHS_USUAL of them. */
#define EPOCHS_USUAL 20
#define EPOCHS_BOTH 6
/* What an operation of each kind takes, next to those of other solvers: scans of tables read more than they compute,
 * and gradients mostly end before their last step. By jobs of 1x8 on inputs of 512 to 2048, on the CPU. */
#define SCAN_WEIGHT 2.0
#define PRODUCT_WEIGHT (1.0 / 3)

static void aqlm_cost(const void *values, const struct quant_shape *shape, struct quant_cost *out)
{
    const struct aqlm_params *params = values;
    const struct gpu_codebook spec = {.codebooks = (int)params->num_codebooks,
                                      .bits = (int)params->nbits_per_codebook,
                                      .group_size = params->in_group_size,
                                      .beam = (int)params->beam_size};
    double epochs = (double)(params->max_epochs < EPOCHS_USUAL ? params->max_epochs : EPOCHS_USUAL);
    double elements = (double)shape->rows * (double)shape->cols, codes = (double)((int64_t)1 << spec.bits);
    double product = PRODUCT_WEIGHT * 2 * elements * (double)shape->cols;
    double search = SCAN_WEIGHT * 2 * elements * codes * (double)(spec.codebooks * spec.beam);

    codebooks_cost(&spec, shape, KMEANS_ITERATIONS, out);
    int64_t fit = (spec.codebooks * ((int64_t)1 << spec.bits) * spec.group_size) * 6 * (int64_t)sizeof(float);
    out->host = fit > out->host ? fit : out->host;
    out->operations *= SCAN_WEIGHT; /* k-means */
    out->operations += epochs * ((FIT_STEPS + 3) * product + search) + LAST_FIT_STEPS * product;
    if (params->output_moments) {
        codebooks_cost_both(&spec, shape, (double)EPOCHS_BOTH * (FIT_STEPS + 3), out);
        out->operations += EPOCHS_BOTH * search;
    }
}

static void aqlm_check(const void *values, const char *pointer, struct validation_errors *errors)
{
    const struct aqlm_params *params = values;

    quant_base_check(values, pointer, errors);
    quant_output_check(params->output_moments, params->output_tokens, pointer, errors);
}

static int64_t aqlm_output_tokens(const void *values)
{
    const struct aqlm_params *params = values;

    return !params->output_moments ? 0 : params->output_tokens > 0 ? params->output_tokens : -1;
}

static int aqlm_solve(const struct solve_context *context, const struct layer_stats *stats, struct linear_job *jobs,
                      int count)
{
    AUTO_FREE float *diagonal = NULL;

    if (count == 0) {
        return 0;
    }
    TRY(quant_tick(context));
    TRY(quant_check_hessian(context, stats, "aqlm", jobs[0].name));
    TRY(codebooks_diagonal(context, stats, &diagonal));
    for (int i = 0; i < count; i++) {
        double start = clock_monotonic_seconds();
        TRY(i > 0 ? quant_tick(context) : 0);
        TRY(quant_fail(&jobs[i], aqlm_solve_linear(context, stats, diagonal, &jobs[i])));
        jobs[i].seconds = clock_monotonic_seconds() - start;
    }
    return 0;
}

static const char *const group_choices[] = {"2", "4", "8", "16", "32", NULL};
static const char *const one[] = {"1", NULL};
static const struct params_row aqlm_rows[] = {
    QUANT_ROW(PARAMS_INT, aqlm_params, num_codebooks, "1", .min = 1, .max = GPU_CODE_BOOKS_MAX,
              .help = "Codebooks whose vectors are added. Runtimes are fast at 1 of 16 bits and 2 of 8."),
    QUANT_ROW(PARAMS_INT, aqlm_params, nbits_per_codebook, "16", .min = 1, .max = 16,
              .help =
                  "Bits of a code: a codebook has 2^bits vectors. Two of 8 solve hundreds of times as fast as one of "
                  "16."),
    QUANT_ROW(PARAMS_INT, aqlm_params, in_group_size, "8", .choices = group_choices,
              .help = "Inputs that share a code; num_codebooks * nbits_per_codebook / in_group_size bits a weight."),
    QUANT_ROW(PARAMS_INT, aqlm_params, out_group_size, "1", .choices = one,
              .help = "Outputs that share a code: always one."),
    QUANT_ROW(PARAMS_NUMBER, aqlm_params, relative_mse_tolerance, "0.01", .min = 0, .max = 1,
              .help = "An epoch that gains less than this share of the loss is the last."),
    QUANT_ROW(PARAMS_INT, aqlm_params, max_epochs, "100", .min = 1, .max = 1000,
              .help = "Epochs of tables, scales and codes, at most."),
    QUANT_ROW(PARAMS_INT, aqlm_params, beam_size, "1", .min = 1, .max = GPU_CODE_BEAM_MAX,
              .help = "Ways of coding a group that are followed through its codebooks; with one codebook it changes "
                      "nothing."),
    QUANT_OUTPUT_ROWS(aqlm_params, "tables and codes"),
    {.name = NULL},
};

static const struct params_row *const aqlm_tables[] = {quant_base_rows, aqlm_rows, NULL};

const struct quantizer quantizer_aqlm = {
    .name = "aqlm",
    .title = "AQLM",
    .help = "Codes groups of weights as sums of learned vectors that keep the layer's outputs on the calibration set "
            "(Egiazarian et al. 2024, arXiv 2401.06118). The best choice at 2 bits, and the slowest; needs calibration "
            "data, and a runtime with its kernels.",
    .stats = STATS_HESSIAN,
    .output_tokens = aqlm_output_tokens,
    .params = aqlm_tables,
    .params_size = sizeof(struct aqlm_params),
    .check = aqlm_check,
    .scheme = aqlm_scheme,
    .solve = aqlm_solve,
    .cost = aqlm_cost,
};
