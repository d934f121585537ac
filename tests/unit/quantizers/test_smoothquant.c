/* SmoothQuant on a block of the small trained model: the function stays, ranges move as alpha says, the search does not
 * lose. */

#include "tests/unit/llama_layer.h"
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
    struct plans *plans; /* of config */
    struct block block;
    struct block_scratch *scratch;
    struct tensor x;
    struct layer_stats stats;
    struct qscheme scheme; /* of every linear; bits 0 = all stay in float */
    int group;
};

/* k and v of its own for each query head. */
static void ungroup(struct bench *b)
{
    int64_t size = b->config.head_dim, heads = b->config.num_heads, group = heads / b->config.num_kv_heads;

    for (int module = LLAMA_K; module <= LLAMA_V; module++) {
        struct tensor *w = &b->block.modules[module].weight,
                      more = rig_tensor(&b->rig, DTYPE_F32, heads * size, w->shape[1]);
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
    ck_assert_rc_ok(block_load(b->model, 1, &b->rig.gpu, b->rig.stream, NULL, &b->block));
    b->config = *model_config(b->model);
    b->block.config = &b->config;
    if (!grouped) {
        ungroup(b);
    }
    ck_assert_rc_ok(plans_new(&b->config, &b->plans));
    b->block.plan = plans_layer(b->plans, 1);
    ck_assert_rc_ok(block_scratch_new(b->plans, 1, LENGTH, &b->rig.gpu, b->rig.stream, &b->scratch));
    int64_t hidden = model_config(b->model)->hidden_size;
    b->x = rig_random(&b->rig, LENGTH, hidden, 3);
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
    block_scratch_free(b->scratch);
    block_deinit(&b->block, &b->rig.gpu);
    plans_free(b->plans);
    model_close(b->model);
    rig_close(&b->rig);
}

/* What a group reads, from x as the residual stream before it, and after attention, too. */
static int group_input(void *data, int64_t i, struct block_values *values)
{
    struct bench *b = data;
    const struct plan *plan = b->block.plan;
    int stream = plan_residual_before(plan, b->group);
    plan_set steps, used;

    ck_assert_int_eq(i, 0);
    ck_assert(plan_steps(plan, PLAN_BIT(stream), PLAN_BIT(plan->groups[b->group].input), &steps, &used));
    ck_assert_rc_ok(block_values_init(values, plan, b->scratch, NULL));
    block_value_bind(values, stream, b->x.data);
    return block_run(&b->block, values, steps);
}

/* x becomes the block's output. */
static void run_all(struct bench *b, const struct tensor *x)
{
    struct block_values values;

    ck_assert_rc_ok(block_values_init(&values, b->block.plan, b->scratch, NULL));
    block_value_bind(&values, 0, x->data);
    ck_assert_rc_ok(block_run(&b->block, &values, ~(plan_set)0));
}

static const struct qscheme *scheme_of(void *data, int module)
{
    struct bench *b = data;
    static struct qscheme schemes[LLAMA_MODULES];

    if (b->scheme.bits == 0) {
        return NULL;
    }
    schemes[module] = b->scheme;
    schemes[module].group_size = b->block.modules[module].weight.shape[1];
    return &schemes[module];
}

static int go_on(void *data)
{
    (void)data;
    return 0;
}

static void observe(struct bench *b, struct tensor *in)
{
    struct block_values values;

    stats_deinit(&b->stats, &b->rig.gpu);
    ck_assert_rc_ok(group_input(b, 0, &values));
    *in = block_value(&values, b->block.plan->groups[b->group].input);
    ck_assert_rc_ok(stats_init(&b->stats, STATS_RANGE, in->shape[1], &b->rig.gpu));
    ck_assert_rc_ok(stats_add(&b->stats, &b->rig.gpu, b->rig.stream, in));
    ck_assert_rc_ok(stats_finish(&b->stats, &b->rig.gpu, b->rig.stream));
}

static void rewrite(struct bench *b, int group, const char *text)
{
    const struct quantizer *method = quantizer_find("smoothquant");
    void *params = params_new(method, text);
    struct tensor in;

    b->group = group;
    observe(b, &in);
    const struct rewrite_context context = {.gpu = &b->rig.gpu,
                                            .stream = b->rig.stream,
                                            .params = params,
                                            .weight_dtype = DTYPE_F32,
                                            .group = &b->block.plan->groups[group],
                                            .block = &b->block,
                                            .stats = &b->stats,
                                            .batches = 1,
                                            .input = group_input,
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
    run_all(&b, &before);
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        for (int group = 0; group < LLAMA_GROUPS; group++) {
            rewrite(&b, group, texts[i]);
        }
        ck_assert(b.block.norms[INPUT_NORM].changed && b.block.modules[LLAMA_UP].changed);
        ck_assert_int_eq(b.block.modules[LLAMA_O].changed, !grouped);
        double error = 0, signal = 0;
        memcpy(after.data, b.x.data, tensor_bytes(&after));
        run_all(&b, &after);
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

/* Every group that can be folded, every kind of alpha: the block's output is what it was. */
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
    rewrite(&b, READ_BY_QKV, "{\"smoothing_strength\":1}");
    for (int64_t j = 0; j < b.stats.columns; j++) {
        ck_assert_near((double)floats(&b.stats.absmax)[j], 1, 1e-4);
    }
    rewrite(&b, READ_BY_QKV, "{\"smoothing_strength\":0}");
    for (int64_t j = 0; j < b.stats.columns; j++) {
        double max = 0;
        for (int module = LLAMA_Q; module <= LLAMA_V; module++) {
            const struct tensor *w = &b.block.modules[module].weight;
            for (int64_t n = 0; n < w->shape[0]; n++) {
                max = fmax(max, fabs((double)floats(w)[n * w->shape[1] + j]));
            }
        }
        ck_assert_near(max, 1, 1e-4);
    }
    bench_close(&b);
}
END_TEST

/* Dead columns keep their factor, groups of float inputs and groups not asked for stay as they are. */
START_TEST(what_is_left_alone)
{
    struct bench b;
    bench_open(&b);
    b.scheme = int8_inputs;
    floats(&b.block.norms[INPUT_NORM].weight)[9] = 0;
    float before = floats(&b.block.modules[LLAMA_Q].weight)[9];
    rewrite(&b, READ_BY_QKV, "{}");
    ck_assert(floats(&b.block.modules[LLAMA_Q].weight)[9] == before);
    ck_assert(b.block.norms[INPUT_NORM].changed);
    rewrite(&b, READ_BY_DOWN, "{\"smooth_down\":false}");
    rewrite(&b, READ_BY_O, "{\"smooth_output\":true}"); /* grouped key heads */
    rewrite(&b, READ_BY_O, "{}");
    ck_assert(!b.block.modules[LLAMA_DOWN].changed && !b.block.modules[LLAMA_O].changed);
    b.scheme.input.element = DTYPE_F32;
    rewrite(&b, READ_BY_GATE_UP, "{}");
    rewrite(&b, READ_BY_DOWN, "{}");
    b.scheme.bits = 0;
    rewrite(&b, READ_BY_GATE_UP, "{}");
    ck_assert(!b.block.norms[POST_ATTENTION_NORM].changed && !b.block.modules[LLAMA_DOWN].changed);
    bench_close(&b);
}
END_TEST

/* Error of q's output with its weight and input rounded, one scale for all inputs. */
static double rounded_error(struct bench *b, const struct tensor *in)
{
    const struct tensor *w = &b->block.modules[LLAMA_Q].weight;
    struct linear_job job = solve_one(&b->rig, "rtn", "{\"bits\":8,\"group_size\":-1}", DTYPE_F32, NULL, w);
    float *wq = dequantized(&job.result);
    double scale = 0, error = 0, signal = 0;
    int64_t cols = w->shape[1];

    for (int64_t j = 0; j < cols; j++) {
        scale = fmax(scale, (double)floats(&b->stats.absmax)[j] / 127);
    }
    for (int64_t t = 0; t < LENGTH; t++) {
        for (int64_t n = 0; n < w->shape[0]; n++) {
            double expected = 0, actual = 0;
            for (int64_t k = 0; k < cols; k++) {
                double x = (double)floats(in)[t * cols + k];
                expected += x * (double)floats(w)[n * cols + k];
                actual += rint(x / scale) * scale * (double)wq[n * cols + k];
            }
            error += (expected - actual) * (expected - actual);
            signal += expected * expected;
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
            rewrite(&b, READ_BY_QKV, texts[i]);
        }
        b.group = READ_BY_QKV;
        observe(&b, &in);
        errors[i] = rounded_error(&b, &in);
        bench_close(&b);
    }
    ck_assert_msg(errors[2] <= errors[0] * 1.05 && errors[2] <= errors[1] * 1.05 && errors[2] * 2 < errors[3],
                  "searched %g; .5 %g, .9 %g, none %g", errors[2], errors[0], errors[1], errors[3]);
}
END_TEST

static float first_factor(const char *text, int group, int module)
{
    struct bench b;
    bench_open(&b);
    b.scheme = int8_inputs;
    float before = floats(&b.block.modules[module].weight)[7];
    rewrite(&b, group, text);
    float factor = floats(&b.block.modules[module].weight)[7] / before;
    bench_close(&b);
    return factor;
}

/* All that can be smoothed is, by a searched alpha, unless the request says otherwise. */
START_TEST(defaults)
{
    static const int groups[] = {READ_BY_QKV, READ_BY_DOWN};
    static const int modules[] = {LLAMA_Q, LLAMA_DOWN};

    for (int i = 0; i < 2; i++) {
        float usual = first_factor("{}", groups[i], modules[i]);
        float half = first_factor("{\"smoothing_strength\":0.5}", groups[i], modules[i]);
        ck_assert_float_ne(usual, 1.0f);
        ck_assert_float_ne(half, 1.0f);
        ck_assert_float_ne(usual, half);
        ck_assert_float_eq(usual, first_factor("{\"alpha_search\":true,\"smooth_down\":true}", groups[i], modules[i]));
        ck_assert_float_eq(usual, first_factor("{\"alpha_search\":true,\"alpha\":0.5}", groups[i], modules[i]));
        ck_assert_float_eq(half, first_factor("{\"alpha_search\":false}", groups[i], modules[i]));
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
