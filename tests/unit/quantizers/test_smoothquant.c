/* SmoothQuant on a block of the small trained model: the function stays, ranges move as alpha says, the search does not
 * lose. */

#include "tests/unit/quantizers/support.h"

#include "models/block.h"

#include <fcntl.h>
#include <math.h>
#include <unistd.h>

#define LENGTH 64

struct bench {
    struct rig rig;
    struct model *model;
    struct model_config config;
    struct block block;
    struct block_scratch *scratch;
    struct tensor x, in;
    struct layer_stats stats;
    struct qscheme scheme; /* of every linear; bits 0 = all stay in float */
    enum site site;
};

/* k and v of its own for each query head. */
static void ungroup(struct bench *b)
{
    int64_t size = b->config.head_dim, heads = b->config.num_heads, group = heads / b->config.num_kv_heads;

    for (int role = LINEAR_K; role <= LINEAR_V; role++) {
        struct tensor *w = &b->block.linears[role], more = rig_tensor(&b->rig, DTYPE_F32, heads * size, w->shape[1]);
        size_t bytes = (size_t)(size * w->shape[1]) * sizeof(float);
        for (int64_t head = 0; head < heads; head++) {
            memcpy(floats(&more) + head * size * w->shape[1], floats(w) + head / group * size * w->shape[1], bytes);
        }
        gpu_tensor_free(&b->rig.gpu, w);
        *w = more;
    }
    b->config.num_kv_heads = heads;
}

static void bench_open_heads(struct bench *b, bool grouped)
{
    int root = open(TEST_DATA, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    *b = (struct bench){0};
    rig_open(&b->rig, 2);
    ck_assert_int_ge(root, 0);
    ck_assert_rc_ok(model_open(root, "tiny-llama", &b->model));
    close(root);
    ck_assert_rc_ok(block_load(b->model, 1, &b->rig.gpu, b->rig.stream, &b->block));
    b->config = *model_config(b->model);
    b->block.config = &b->config;
    if (!grouped) {
        ungroup(b);
    }
    ck_assert_rc_ok(block_scratch_new(&b->config, 1, LENGTH, &b->rig.gpu, b->rig.stream, &b->scratch));
    int64_t hidden = model_config(b->model)->hidden_size, wide = model_config(b->model)->intermediate_size;
    b->x = rig_random(&b->rig, LENGTH, hidden, 3);
    b->in = rig_tensor(&b->rig, DTYPE_F32, LENGTH, wide);
    for (int64_t t = 0; t < LENGTH; t++) { /* channels as large models have them */
        floats(&b->x)[t * hidden + 7] *= 60;
        floats(&b->x)[t * hidden + 100] *= 30;
    }
}

static void bench_open(struct bench *b)
{
    bench_open_heads(b, true);
}

static void bench_close(struct bench *b)
{
    stats_deinit(&b->stats, &b->rig.gpu);
    gpu_tensor_free(&b->rig.gpu, &b->x);
    gpu_tensor_free(&b->rig.gpu, &b->in);
    block_scratch_free(b->scratch);
    block_deinit(&b->block, &b->rig.gpu);
    model_close(b->model);
    rig_close(&b->rig);
}

/* What a site reads, from x. */
static int site_input(void *data, int64_t i, struct tensor *in, struct block_scratch **scratch)
{
    struct bench *b = data;
    struct tensor hidden = tensor_2d(b->in.data, DTYPE_F32, LENGTH, b->x.shape[1]),
                  norm = rig_tensor(&b->rig, DTYPE_F32, LENGTH, b->x.shape[1]);
    int rc = 0;

    ck_assert_int_eq(i, 0);
    *scratch = b->scratch;
    *in = hidden;
    if (b->site == SITE_ATTENTION) {
        rc = block_attention_input(&b->block, b->scratch, &b->x, &hidden);
    } else if (b->site == SITE_MLP) {
        rc = block_mlp_input(&b->block, b->scratch, &b->x, &hidden);
    } else if (b->site == SITE_OUTPUT) {
        rc = block_attention_input(&b->block, b->scratch, &b->x, &norm);
        rc = rc != 0 ? rc : block_attention(&b->block, b->scratch, &norm, &hidden);
    } else {
        *in = b->in;
        rc = block_mlp_input(&b->block, b->scratch, &b->x, &norm);
        rc = rc != 0 ? rc : block_mlp(&b->block, b->scratch, &norm, &b->in);
    }
    gpu_tensor_free(&b->rig.gpu, &norm);
    return rc;
}

static const struct qscheme *scheme_of(void *data, enum linear_role role)
{
    struct bench *b = data;
    static struct qscheme schemes[LINEAR_COUNT];

    if (b->scheme.bits == 0) {
        return NULL;
    }
    schemes[role] = b->scheme;
    schemes[role].group_size = b->block.linears[role].shape[1];
    return &schemes[role];
}

static int go_on(void *data)
{
    (void)data;
    return 0;
}

static void observe(struct bench *b, struct tensor *in)
{
    struct block_scratch *scratch;

    stats_deinit(&b->stats, &b->rig.gpu);
    ck_assert_rc_ok(site_input(b, 0, in, &scratch));
    ck_assert_rc_ok(stats_init(&b->stats, STATS_RANGE, in->shape[1], &b->rig.gpu));
    ck_assert_rc_ok(stats_add(&b->stats, &b->rig.gpu, b->rig.stream, in));
    ck_assert_rc_ok(stats_finish(&b->stats, &b->rig.gpu, b->rig.stream));
}

static void rewrite(struct bench *b, enum site site, const char *text)
{
    const struct quantizer *method = quantizer_find("smoothquant");
    void *params = params_new(method, text);
    struct tensor in;

    b->site = site;
    observe(b, &in);
    const struct rewrite_context context = {.gpu = &b->rig.gpu,
                                            .stream = b->rig.stream,
                                            .params = params,
                                            .weight_dtype = DTYPE_F32,
                                            .site = site,
                                            .block = &b->block,
                                            .stats = &b->stats,
                                            .batches = 1,
                                            .input = site_input,
                                            .input_data = b,
                                            .scheme = scheme_of,
                                            .scheme_data = b,
                                            .tick = go_on};
    ck_assert_rc_ok(method->rewrite(&context));
    params_free(method, params);
    observe(b, &in);
}

static const struct qscheme int8_inputs = {.kind = QTENSOR_INT,
                                           .bits = 8,
                                           .per_channel = true,
                                           .sym = true,
                                           .scale_dtype = DTYPE_F32,
                                           .input = {DTYPE_I8, false, 0, 0}};

static void keeps_function(bool grouped)
{
    static const char *const texts[] = {
        "{}",
        "{\"smooth_down\":true,\"smooth_output\":true,\"alpha_search\":false}",
        "{\"smooth_down\":true,\"smooth_output\":true,\"alpha_search\":true}",
        "{\"smooth_down\":true,\"smooth_output\":true,\"smoothing_strength\":0}",
        "{\"smooth_down\":true,\"smooth_output\":true,\"smoothing_strength\":1}",
    };
    struct bench b;
    bench_open_heads(&b, grouped);
    b.scheme = int8_inputs;
    struct tensor before = rig_tensor(&b.rig, DTYPE_F32, LENGTH, b.x.shape[1]);
    struct tensor after = rig_tensor(&b.rig, DTYPE_F32, LENGTH, b.x.shape[1]);
    int64_t count = tensor_count(&before);

    memcpy(before.data, b.x.data, tensor_bytes(&before));
    ck_assert_rc_ok(block_forward(&b.block, b.scratch, &before));
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        for (int site = 0; site < SITE_COUNT; site++) {
            rewrite(&b, (enum site)site, texts[i]);
        }
        ck_assert(b.block.changed_norms[NORM_ATTENTION] && b.block.changed_linears[LINEAR_UP]);
        ck_assert_int_eq(b.block.changed_linears[LINEAR_O], !grouped);
        double error = 0, signal = 0;
        memcpy(after.data, b.x.data, tensor_bytes(&after));
        ck_assert_rc_ok(block_forward(&b.block, b.scratch, &after));
        for (int64_t k = 0; k < count; k++) {
            double d = (double)floats(&after)[k] - (double)floats(&before)[k];
            error += d * d;
            signal += (double)floats(&before)[k] * (double)floats(&before)[k];
        }
        ck_assert_near(sqrt(error / signal), 0, 1e-5);
    }
    gpu_tensor_free(&b.rig.gpu, &before);
    gpu_tensor_free(&b.rig.gpu, &after);
    bench_close(&b);
}

/* Every site that can be folded, every kind of alpha: the block's output is what it was. */
START_TEST(function_is_kept)
{
    keeps_function(true);
    keeps_function(false);
}
END_TEST

/* alpha 1 brings every input range to 1, alpha 0 every weight range. */
START_TEST(ranges_follow_alpha)
{
    struct bench b;
    bench_open(&b);
    b.scheme = int8_inputs;
    rewrite(&b, SITE_ATTENTION, "{\"smoothing_strength\":1}");
    for (int64_t j = 0; j < b.stats.columns; j++) {
        ck_assert_near((double)floats(&b.stats.absmax)[j], 1, 1e-4);
    }
    rewrite(&b, SITE_ATTENTION, "{\"smoothing_strength\":0}");
    for (int64_t j = 0; j < b.stats.columns; j++) {
        double most = 0;
        for (int role = LINEAR_Q; role <= LINEAR_V; role++) {
            const struct tensor *w = &b.block.linears[role];
            for (int64_t n = 0; n < w->shape[0]; n++) {
                most = fmax(most, fabs((double)floats(w)[n * w->shape[1] + j]));
            }
        }
        ck_assert_near(most, 1, 1e-4);
    }
    bench_close(&b);
}
END_TEST

/* Dead columns keep their factor, sites of float inputs and sites not asked for stay as they are. */
START_TEST(what_is_left_alone)
{
    struct bench b;
    bench_open(&b);
    b.scheme = int8_inputs;
    floats(&b.block.norms[NORM_ATTENTION])[9] = 0;
    float before = floats(&b.block.linears[LINEAR_Q])[9];
    rewrite(&b, SITE_ATTENTION, "{}");
    ck_assert(floats(&b.block.linears[LINEAR_Q])[9] == before);
    ck_assert(b.block.changed_norms[NORM_ATTENTION]);
    rewrite(&b, SITE_DOWN, "{\"smooth_down\":false}");
    rewrite(&b, SITE_OUTPUT, "{\"smooth_output\":true}"); /* grouped key heads */
    rewrite(&b, SITE_OUTPUT, "{}");
    ck_assert(!b.block.changed_linears[LINEAR_DOWN] && !b.block.changed_linears[LINEAR_O]);
    b.scheme.input.element = DTYPE_F32;
    rewrite(&b, SITE_MLP, "{}");
    rewrite(&b, SITE_DOWN, "{}");
    b.scheme.bits = 0;
    rewrite(&b, SITE_MLP, "{}");
    ck_assert(!b.block.changed_norms[NORM_MLP] && !b.block.changed_linears[LINEAR_DOWN]);
    bench_close(&b);
}
END_TEST

/* Error of q's output with its weight and input rounded, one scale for all inputs. */
static double rounded_error(struct bench *b, const struct tensor *in)
{
    const struct tensor *w = &b->block.linears[LINEAR_Q];
    struct linear_job job = solve_one(&b->rig, "rtn", "{\"bits\":8,\"group_size\":-1}", DTYPE_F32, NULL, w);
    float *wq = dequantized(&job.result);
    double scale = 0, error = 0, signal = 0;
    int64_t cols = w->shape[1];

    for (int64_t j = 0; j < cols; j++) {
        scale = fmax(scale, (double)floats(&b->stats.absmax)[j] / 127);
    }
    for (int64_t t = 0; t < LENGTH; t++) {
        for (int64_t n = 0; n < w->shape[0]; n++) {
            double wanted = 0, got = 0;
            for (int64_t k = 0; k < cols; k++) {
                double x = (double)floats(in)[t * cols + k];
                wanted += x * (double)floats(w)[n * cols + k];
                got += rint(x / scale) * scale * (double)wq[n * cols + k];
            }
            error += (wanted - got) * (wanted - got);
            signal += wanted * wanted;
        }
    }
    free(wq);
    qtensor_deinit(&job.result);
    return error / signal;
}

START_TEST(search_wins)
{
    static const char *const texts[] = {"{\"smoothing_strength\":0.5}", "{\"smoothing_strength\":0.9}",
                                        "{\"alpha_search\":true}"};
    double errors[4];

    for (int i = 0; i < 4; i++) {
        struct bench b;
        struct tensor in;
        bench_open(&b);
        b.scheme = int8_inputs;
        if (i < 3) {
            rewrite(&b, SITE_ATTENTION, texts[i]);
        }
        b.site = SITE_ATTENTION;
        observe(&b, &in);
        errors[i] = rounded_error(&b, &in);
        bench_close(&b);
    }
    ck_assert_msg(errors[2] <= errors[0] * 1.05 && errors[2] <= errors[1] * 1.05 && errors[2] * 2 < errors[3],
                  "searched %g; .5 %g, .9 %g, none %g", errors[2], errors[0], errors[1], errors[3]);
}
END_TEST

static float first_factor(const char *text, enum site site, int role)
{
    struct bench b;
    bench_open(&b);
    b.scheme = int8_inputs;
    float before = floats(&b.block.linears[role])[7];
    rewrite(&b, site, text);
    float factor = floats(&b.block.linears[role])[7] / before;
    bench_close(&b);
    return factor;
}

/* All that can be smoothed is, by a searched alpha, unless the request says otherwise. */
START_TEST(defaults)
{
    static const enum site sites[] = {SITE_ATTENTION, SITE_DOWN};
    static const int roles[] = {LINEAR_Q, LINEAR_DOWN};

    for (int i = 0; i < 2; i++) {
        float usual = first_factor("{}", sites[i], roles[i]);
        float half = first_factor("{\"smoothing_strength\":0.5}", sites[i], roles[i]);
        ck_assert_float_ne(usual, 1.0f);
        ck_assert_float_ne(half, 1.0f);
        ck_assert_float_ne(usual, half);
        ck_assert_float_eq(usual, first_factor("{\"alpha_search\":true,\"smooth_down\":true}", sites[i], roles[i]));
        ck_assert_float_eq(usual, first_factor("{\"alpha_search\":true,\"alpha\":0.5}", sites[i], roles[i]));
        ck_assert_float_eq(half, first_factor("{\"alpha_search\":false}", sites[i], roles[i]));
    }
}
END_TEST

/* In a recipe the solver's grid gets the inputs; one that cannot go with INT8 inputs is refused. */
START_TEST(schemes_are_amended)
{
    const struct quantizer *method = quantizer_find("smoothquant");
    void *fixed = params_new(method, "{\"activation_dynamic\":false}"),
         *none = params_new(method, "{\"activation_bits\":16}");
    struct qscheme grid = {.kind = QTENSOR_INT, .bits = 4, .group_size = 32, .sym = true}, asym = grid, nf4 = grid;

    asym.sym = false;
    nf4.kind = QTENSOR_NF4;
    ck_assert_rc_ok(method->amend(fixed, &grid));
    ck_assert(grid.input.element == DTYPE_I8 && !grid.input.dynamic && grid.bits == 4);
    ck_assert_int_eq(method->amend(fixed, &asym), ERR_INCOMPATIBLE_OPTIONS);
    ck_assert_int_eq(method->amend(fixed, &nf4), ERR_INCOMPATIBLE_OPTIONS);
    ck_assert_rc_ok(method->amend(none, &asym));
    ck_assert_int_eq(asym.input.element, DTYPE_F32);
    params_free(method, fixed);
    params_free(method, none);
}
END_TEST

UNIT_MAIN("smoothquant", function_is_kept, ranges_follow_alpha, what_is_left_alone, search_wins, defaults,
          schemes_are_amended)
