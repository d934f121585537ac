/* Modules that are stored among others: rows of a matrix, one matrix of several, inputs before outputs. */

#include "tests/unit/models/small_models.h"

struct view_case {
    const char *tensor; /* after the layer's number */
    struct plan_stored stored;
    int64_t rows, cols;
    bool bias;
};

/* Of up [12, 8], down [8, 12] and a norm [8], read as something else. */
static const struct view_case cases[] = {
    {"mlp.up_proj.weight", {.rows = {6, 1, 2}}, 4, 8, false},
    {"mlp.up_proj.weight", {.entries = 3, .entry = 1, .rows = {2, 1, 1}}, 2, 8, false},
    {"mlp.up_proj.weight", {.entries = 3, .entry = 2}, 4, 8, false},
    {"mlp.down_proj.weight", {.transposed = true}, 12, 8, false},
    {"mlp.down_proj.weight", {.transposed = true, .rows = {4, 1, 2}}, 6, 8, false},
    {"mlp.down_proj.weight", {.transposed = true, .entries = 2, .entry = 1, .rows = {12, 6, 6}}, 6, 4, false},
    {"post_attention_layernorm.weight", {.entries = 2, .entry = 1, .rows = {4, 2, 2}}, 2, 8, true},
    {"post_attention_layernorm.weight", {.rows = {2, 1, 1}}, 4, 8, true},
};

/* Where [row, col] of the view is in the tensor, written out. */
static int64_t element_of(const struct view_case *c, int64_t row, int64_t col)
{
    const struct plan_stored *s = &c->stored;
    int64_t outputs = s->rows.stride > 0 ? c->rows / s->rows.count * s->rows.stride : c->rows, output = row;
    int64_t cols = c->bias ? 1 : c->cols;

    if (s->rows.stride > 0) {
        output = row / s->rows.count * s->rows.stride + s->rows.first + row % s->rows.count;
    }
    return s->entry * outputs * cols + (s->transposed ? col * outputs + output : output * cols + col);
}

static float widened(enum dtype dtype, const void *stored, int64_t i)
{
    return dtype == DTYPE_F32    ? ((const float *)stored)[i]
           : dtype == DTYPE_BF16 ? dtype_bf16_to_f32(((const uint16_t *)stored)[i])
                                 : dtype_f16_to_f32(((const uint16_t *)stored)[i]);
}

static void check_view(const struct model *model, const struct view_case *c, const struct gpu *gpu,
                       struct gpu_stream *stream)
{
    struct plan_stored stored = c->stored;
    struct plan_module module = {.path = "view", .rows = c->rows, .cols = c->cols, .bias = c->bias, .stored = &stored};
    int64_t cols = c->bias ? 1 : c->cols;
    float all[96], found[96], narrow[96];
    char name[MODEL_NAME_MAX];
    struct tensor whole, view;

    *(c->bias ? &stored.bias : &stored.weight) = c->tensor;
    snprintf(name, sizeof(name), "model.layers.1.%s", c->tensor);
    ck_assert_rc_ok(model_load_tensor(model, name, DTYPE_F32, gpu, stream, &whole));
    ck_assert_rc_ok(gpu->ops->download(stream, all, whole.data, tensor_bytes(&whole)));
    const struct model_part part = model_part(model, 1, &module, c->bias);
    ck_assert_str_eq(part.tensor.name, name);
    ck_assert_rc_ok(model_load_part(&part, gpu, stream, &view));
    ck_assert_int_eq(view.rank, c->bias ? 1 : 2);
    ck_assert_rc_ok(gpu->ops->download(stream, found, view.data, tensor_bytes(&view)));
    ck_assert_rc_ok(model_part_read(&part, 1, c->rows - 1, narrow));
    for (int64_t i = 0; i < c->rows * cols; i++) {
        int64_t element = element_of(c, i / cols, i % cols);
        ck_assert_int_eq(model_part_element(&part, i / cols, i % cols), element);
        ck_assert_float_eq(found[i], all[element]);
        if (i >= cols) {
            ck_assert_float_eq(widened(part.tensor.entry->dtype, narrow, i - cols), all[element]);
        }
    }
    gpu_tensor_free(gpu, &whole);
    gpu_tensor_free(gpu, &view);
}

static void check_views(enum dtype dtype)
{
    struct gpu gpu;
    struct gpu_stream *stream;
    struct model *model;
    struct support s;

    support_init(&s, config);
    s.dtype = dtype;
    support_write(&s);
    ck_assert_rc_ok(support_open(&s, ".", &model));
    ck_assert_rc_ok(gpu_open("cpu", 2, &gpu));
    ck_assert_rc_ok(gpu.ops->stream_new(gpu.device, &stream));
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        check_view(model, &cases[i], &gpu, stream);
    }
    gpu.ops->stream_free(stream);
    gpu_close(&gpu);
    model_close(model);
    support_deinit(&s);
}

START_TEST(test_views)
{
    check_views(DTYPE_F32);
    check_views(DTYPE_BF16);
    check_views(DTYPE_F16);
}
END_TEST

/* A NaN is named by its place in the stored tensor. */
START_TEST(test_view_not_finite)
{
    const struct plan_stored stored = {.weight = "mlp.down_proj.weight", .transposed = true};
    const struct plan_module module = {.path = "view", .rows = 12, .cols = 8, .stored = &stored};
    struct gpu gpu;
    struct gpu_stream *stream;
    struct model *model;
    struct tensor view;
    struct support s;

    support_init(&s, config);
    support_find(&s, "model.layers.0.mlp.down_proj.weight")->value = NAN;
    support_write(&s);
    ck_assert_rc_ok(support_open(&s, ".", &model));
    ck_assert_rc_ok(gpu_open("cpu", 2, &gpu));
    ck_assert_rc_ok(gpu.ops->stream_new(gpu.device, &stream));
    const struct model_part part = model_part(model, 0, &module, false);
    ck_assert_int_eq(model_load_part(&part, &gpu, stream, &view), ERR_NON_FINITE_VALUE);
    ck_assert_ptr_nonnull(strstr(err_last()->message, "model.layers.0.mlp.down_proj.weight"));
    ck_assert_ptr_nonnull(strstr(err_last()->message, "element 1"));
    gpu.ops->stream_free(stream);
    gpu_close(&gpu);
    model_close(model);
    support_deinit(&s);
}
END_TEST

#define STACKED_SIZES                                                                                           \
    "\"hidden_size\":8,\"intermediate_size\":12,\"num_hidden_layers\":2,\"num_attention_heads\":2,"             \
    "\"num_key_value_heads\":1,\"head_dim\":8,\"vocab_size\":10,\"max_position_embeddings\":32,\"num_experts\"" \
    ":3,\"num_experts_per_tok\":2,\"moe_intermediate_size\":6,\"layer_types\":[\"full_attention\",\"full_"      \
    "attention\"]}"

/* Experts as the configuration has them, or a layer's in two tensors. */
static const struct stacked_case {
    const char *config;
    bool stacked, turned;
    const char *says; /* NULL: it opens */
} stacked_cases[] = {
    {"{\"architectures\":[\"Qwen3_5MoeForCausalLM\"],\"shared_expert_intermediate_size\":4," STACKED_SIZES, false,
     false, NULL},
    {"{\"architectures\":[\"Qwen3_5MoeForCausalLM\"],\"shared_expert_intermediate_size\":4," STACKED_SIZES, true, false,
     NULL},
    {"{\"architectures\":[\"Qwen3_5MoeForCausalLM\"],\"shared_expert_intermediate_size\":4," STACKED_SIZES, true, true,
     "gate_up_proj has shape [3, 8, 12]; config.json asks for [3, 12, 8]"},
    {"{\"architectures\":[\"Qwen3VLMoeTextModel\"]," STACKED_SIZES, false, false, NULL},
    {"{\"architectures\":[\"Qwen3VLMoeTextModel\"]," STACKED_SIZES, true, false, NULL},
    {"{\"architectures\":[\"Qwen3VLMoeTextModel\"]," STACKED_SIZES, true, true, NULL},
    {"{\"architectures\":[\"Qwen3MoeForCausalLM\"]," STACKED_SIZES, false, false, NULL},
    {"{\"architectures\":[\"Qwen3MoeForCausalLM\"]," STACKED_SIZES, true, false, NULL},
    {"{\"architectures\":[\"Qwen2MoeForCausalLM\"],\"shared_expert_intermediate_size\":4," STACKED_SIZES, true, false,
     NULL},
    {"{\"architectures\":[\"Ernie4_5_MoeForCausalLM\"],\"moe_num_experts\":3,\"moe_k\":2,\"moe_num_shared_experts\":0,"
     "\"moe_layer_start_index\":0," STACKED_SIZES,
     true, false, "tensor model.layers.0.mlp.experts.0.gate_proj.weight is missing"},
};

static void stack_experts(struct support *s, bool turned)
{
    char name[128];

    support_drop(s, ".mlp.experts.");
    for (int layer = 0; layer < 2; layer++) {
        snprintf(name, sizeof(name), "model.layers.%d.mlp.experts.gate_up_proj", layer);
        support_add_matrices(s, name, 3, turned ? 8 : 12, turned ? 12 : 8);
        snprintf(name, sizeof(name), "model.layers.%d.mlp.experts.down_proj", layer);
        support_add_matrices(s, name, 3, turned ? 6 : 8, turned ? 8 : 6);
    }
}

static void check_stacked(const struct stacked_case *c)
{
    struct model *model = NULL;
    struct support s;
    int64_t layer;

    support_init(&s, c->config);
    if (c->stacked) {
        stack_experts(&s, c->turned);
    }
    support_write(&s);
    int rc = support_open(&s, ".", &model);
    if (c->says != NULL) {
        ck_assert_int_eq(rc, ERR_INVALID_MODEL);
        ck_assert_msg(strstr(err_last()->message, c->says) != NULL, "says: %s", err_last()->message);
        support_deinit(&s);
        return;
    }
    ck_assert_rc_ok(rc);
    int up = model_find_module(model, "model.layers.1.mlp.experts.2.up_proj", &layer);
    int down = model_find_module(model, "model.layers.1.mlp.experts.2.down_proj", &layer);
    ck_assert(up >= 0 && down >= 0);
    const struct plan_module *modules = plans_layer(model_plans(model), 1)->modules;
    const struct model_part one = model_part(model, 1, &modules[up], false);
    const struct model_part other = model_part(model, 1, &modules[down], false);
    ck_assert_ptr_nonnull(one.tensor.file);
    ck_assert_ptr_nonnull(other.tensor.file);
    if (c->stacked) {
        ck_assert_int_eq(model_part_element(&one, 5, 7), 2 * 96 + (c->turned ? 7 * 12 + 6 + 5 : (6 + 5) * 8 + 7));
        ck_assert_int_eq(model_part_element(&other, 7, 5), 2 * 48 + (c->turned ? 5 * 8 + 7 : 7 * 6 + 5));
    }
    model_close(model);
    support_deinit(&s);
}

START_TEST(test_stacked)
{
    for (size_t i = 0; i < sizeof(stacked_cases) / sizeof(stacked_cases[0]); i++) {
        check_stacked(&stacked_cases[i]);
    }
}
END_TEST

UNIT_MAIN("model_stored", test_views, test_view_not_finite, test_stacked)
