/* A block held to the formulas written out in double, one number at a time: grouped keys, biases, q/k norm, windows. */

#include "models/block.h"
#include "models/block_reader.h"
#include "tests/unit/models/support.h"

#define SEQUENCES 2
#define LENGTH 13
#define TOKENS (SEQUENCES * LENGTH)
#define WIDE 64 /* at least every width below */

static const char *const configs[] = {
    "{\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":24,\"intermediate_size\":40,\"num_hidden_layers\":2,"
    "\"num_attention_heads\":4,\"num_key_value_heads\":2,\"vocab_size\":10,\"head_dim\":6}",
    "{\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":24,\"intermediate_size\":40,\"num_hidden_layers\":2,"
    "\"num_attention_heads\":4,\"num_key_value_heads\":1,\"vocab_size\":10,\"head_dim\":10,\"attention_bias\":true,"
    "\"mlp_bias\":true,\"rope_scaling\":{\"type\":\"linear\",\"factor\":3}}",
    "{\"architectures\":[\"MistralForCausalLM\"],\"hidden_size\":24,\"intermediate_size\":40,\"num_hidden_layers\":2,"
    "\"num_attention_heads\":4,\"num_key_value_heads\":4,\"vocab_size\":10,\"sliding_window\":5}",
    "{\"architectures\":[\"Qwen2ForCausalLM\"],\"hidden_size\":24,\"intermediate_size\":16,\"num_hidden_layers\":2,"
    "\"num_attention_heads\":6,\"num_key_value_heads\":2,\"vocab_size\":10,\"tie_word_embeddings\":true}",
    "{\"architectures\":[\"Qwen3ForCausalLM\"],\"hidden_size\":24,\"intermediate_size\":40,\"num_hidden_layers\":2,"
    "\"num_attention_heads\":4,\"num_key_value_heads\":2,\"vocab_size\":10,\"head_dim\":12,\"use_sliding_window\":true,"
    "\"sliding_window\":4,\"max_window_layers\":1}",
    "{\"architectures\":[\"Olmo2ForCausalLM\"],\"hidden_size\":24,\"intermediate_size\":40,\"num_hidden_layers\":2,"
    "\"num_attention_heads\":4,\"num_key_value_heads\":2,\"vocab_size\":10,\"attention_bias\":true}",
    "{\"architectures\":[\"Exaone4ForCausalLM\"],\"hidden_size\":24,\"intermediate_size\":40,\"num_hidden_layers\":2,"
    "\"num_attention_heads\":4,\"num_key_value_heads\":2,\"vocab_size\":10,\"head_dim\":10,\"sliding_window\":5,"
    "\"sliding_window_pattern\":2}",
};

struct reference {
    struct support *s;
    const struct model_config *c;
    int64_t layer;
};

static const float *weights(const struct reference *r, const char *path, const char *suffix, float *out)
{
    char name[128];

    snprintf(name, sizeof(name), "model.layers.%lld.%s.%s", (long long)r->layer, path, suffix);
    const struct support_tensor *t = support_find(r->s, name);
    support_fill(t, out, t->shape[0] * (t->rank == 2 ? t->shape[1] : 1));
    return out;
}

static void linear(const struct reference *r, const char *path, bool has_bias, int64_t rows, int64_t cols,
                   double (*x)[WIDE], double (*y)[WIDE])
{
    float w[WIDE * WIDE], bias[WIDE] = {0};

    weights(r, path, "weight", w);
    if (has_bias) {
        weights(r, path, "bias", bias);
    }
    for (int t = 0; t < TOKENS; t++) {
        for (int64_t n = 0; n < rows; n++) {
            y[t][n] = (double)bias[n];
            for (int64_t k = 0; k < cols; k++) {
                y[t][n] += x[t][k] * (double)w[n * cols + k];
            }
        }
    }
}

/* Each run of `size` columns by itself. */
static void norm(const struct reference *r, const char *path, int64_t cols, int64_t size, double (*x)[WIDE],
                 double (*y)[WIDE])
{
    float w[WIDE];

    weights(r, path, "weight", w);
    for (int t = 0; t < TOKENS; t++) {
        for (int64_t at = 0; at < cols; at += size) {
            double mean = 0;
            for (int64_t i = 0; i < size; i++) {
                mean += x[t][at + i] * x[t][at + i] / (double)size;
            }
            for (int64_t i = 0; i < size; i++) {
                y[t][at + i] = x[t][at + i] / sqrt(mean + r->c->rms_norm_eps) * (double)w[i];
            }
        }
    }
}

static void rotate(const struct reference *r, int64_t heads, double (*x)[WIDE])
{
    int64_t dim = r->c->head_dim, half = dim / 2;

    for (int t = 0; t < TOKENS; t++) {
        for (int64_t h = 0; h < heads; h++) {
            for (int64_t i = 0; i < half; i++) {
                double angle = t % LENGTH * pow(r->c->ropes[0].theta, -2.0 * (double)i / (double)dim);
                angle /= r->c->ropes[0].type == ROPE_LINEAR ? r->c->ropes[0].factor : 1;
                double a = x[t][h * dim + i], b = x[t][h * dim + half + i];
                x[t][h * dim + i] = a * cos(angle) - b * sin(angle);
                x[t][h * dim + half + i] = b * cos(angle) + a * sin(angle);
            }
        }
    }
}

static void attend(const struct reference *r, int64_t head, int t, double (*q)[WIDE], double (*k)[WIDE],
                   double (*v)[WIDE], double *o)
{
    int64_t dim = r->c->head_dim, kv = head / (r->c->num_heads / r->c->num_kv_heads);
    int64_t window = arch_window(r->c, r->layer);
    double sum = 0;

    for (int64_t d = 0; d < dim; d++) {
        o[head * dim + d] = 0;
    }
    for (int s = t - t % LENGTH; s <= t; s++) {
        double score = 0;
        if (window > 0 && s <= t - window) {
            continue;
        }
        for (int64_t d = 0; d < dim; d++) {
            score += q[t][head * dim + d] * k[s][kv * dim + d] / sqrt((double)dim);
        }
        sum += exp(score);
        for (int64_t d = 0; d < dim; d++) {
            o[head * dim + d] += exp(score) * v[s][kv * dim + d];
        }
    }
    for (int64_t d = 0; d < dim; d++) {
        o[head * dim + d] /= sum;
    }
}

static void add(double (*x)[WIDE], double (*y)[WIDE], int64_t cols)
{
    for (int t = 0; t < TOKENS; t++) {
        for (int64_t i = 0; i < cols; i++) {
            x[t][i] += y[t][i];
        }
    }
}

static void forward(const struct reference *r, double (*x)[WIDE])
{
    static double in[TOKENS][WIDE], q[TOKENS][WIDE], k[TOKENS][WIDE], v[TOKENS][WIDE], o[TOKENS][WIDE],
        up[TOKENS][WIDE];
    const struct model_config *c = r->c;
    int64_t hidden = c->hidden_size, wide = c->intermediate_size;
    int64_t heads = c->num_heads * c->head_dim, kv = c->num_kv_heads * c->head_dim;
    bool row_norms = strcmp(c->arch->name, "Olmo2ForCausalLM") == 0; /* norms of q and k over all heads */
    bool exaone = strcmp(c->arch->name, "Exaone4ForCausalLM") == 0, post_norms = row_norms || exaone;
    bool head_norms = strcmp(c->arch->name, "Qwen3ForCausalLM") == 0 || exaone;

    memcpy(in, x, sizeof(in));
    if (!post_norms) {
        norm(r, "input_layernorm", hidden, hidden, x, in);
    }
    linear(r, "self_attn.q_proj", c->qkv_bias, heads, hidden, in, q);
    linear(r, "self_attn.k_proj", c->qkv_bias, kv, hidden, in, k);
    linear(r, "self_attn.v_proj", c->qkv_bias, kv, hidden, in, v);
    if (head_norms || row_norms) {
        norm(r, "self_attn.q_norm", heads, row_norms ? heads : c->head_dim, q, q);
        norm(r, "self_attn.k_norm", kv, row_norms ? kv : c->head_dim, k, k);
    }
    if (!exaone || arch_window(c, r->layer) > 0) {
        rotate(r, c->num_heads, q);
        rotate(r, c->num_kv_heads, k);
    }
    for (int t = 0; t < TOKENS; t++) {
        for (int64_t head = 0; head < c->num_heads; head++) {
            attend(r, head, t, q, k, v, o[t]);
        }
    }
    linear(r, "self_attn.o_proj", c->o_bias, hidden, heads, o, in);
    if (post_norms) {
        norm(r, "post_attention_layernorm", hidden, hidden, in, in);
    }
    add(x, in, hidden);
    memcpy(in, x, sizeof(in));
    if (!post_norms) {
        norm(r, "post_attention_layernorm", hidden, hidden, x, in);
    }
    linear(r, "mlp.gate_proj", c->mlp_bias, wide, hidden, in, q);
    linear(r, "mlp.up_proj", c->mlp_bias, wide, hidden, in, up);
    for (int t = 0; t < TOKENS; t++) {
        for (int64_t i = 0; i < c->intermediate_size; i++) {
            q[t][i] = q[t][i] / (1 + exp(-q[t][i])) * up[t][i];
        }
    }
    linear(r, "mlp.down_proj", c->mlp_bias, hidden, wide, q, in);
    if (post_norms) {
        norm(r, "post_feedforward_layernorm", hidden, hidden, in, in);
    }
    add(x, in, hidden);
}

struct rig {
    struct support s;
    struct model *model;
    struct gpu gpu;
    struct gpu_stream *stream;
};

/* own_head: a head of its own, whatever the config says. */
static void rig_open_head(struct rig *rig, const char *config, enum dtype dtype, bool own_head)
{
    support_init(&rig->s, config);
    rig->s.dtype = dtype;
    if (own_head) {
        support_add(&rig->s, "lm_head.weight", 10, 24);
    }
    support_write(&rig->s);
    ck_assert_rc_ok(support_open(&rig->s, ".", &rig->model));
    ck_assert_rc_ok(gpu_open("cpu", 2, &rig->gpu));
    ck_assert_rc_ok(rig->gpu.ops->stream_new(rig->gpu.device, &rig->stream));
}

static void rig_open(struct rig *rig, const char *config, enum dtype dtype)
{
    rig_open_head(rig, config, dtype, false);
}

static void rig_close(struct rig *rig)
{
    rig->gpu.ops->stream_free(rig->stream);
    gpu_close(&rig->gpu);
    model_close(rig->model);
    support_deinit(&rig->s);
}

/* A block with all of its experts. */
static void load_all(const struct rig *rig, int64_t layer, struct block_reader *reader, struct block *block)
{
    ck_assert_rc_ok(block_load(rig->model, layer, &rig->gpu, rig->stream, reader, block));
    for (int i = 0; i < block->plan->module_count; i++) {
        bool expert = block->plan->modules[i].expert >= 0;
        ck_assert((block->modules[i].weight.data == NULL) == expert);
        if (expert) {
            ck_assert_rc_ok(block_load_module(rig->model, &rig->gpu, rig->stream, block, i));
        }
    }
}

static struct tensor new_tensor(const struct rig *rig, int64_t cols)
{
    struct tensor tensor;
    ck_assert_rc_ok(gpu_tensor_new(&rig->gpu, DTYPE_F32, 2, (const int64_t[]){TOKENS, cols}, &tensor));
    return tensor;
}

static void compare(const struct tensor *x, double (*wanted)[WIDE])
{
    for (int t = 0; t < TOKENS; t++) {
        for (int64_t i = 0; i < x->shape[1]; i++) {
            double found = (double)((const float *)x->data)[t * x->shape[1] + i];
            ck_assert_msg(fabs(found - wanted[t][i]) <= 2e-5 * (1 + fabs(wanted[t][i])), "[%d, %d]: %.9g, not %.9g", t,
                          (int)i, found, wanted[t][i]);
        }
    }
}

/* x becomes the block's output. */
static void run_all(const struct block *block, struct block_scratch *scratch, const struct tensor *x)
{
    struct block_values values;

    ck_assert_rc_ok(block_values_init(&values, block->plan, scratch, NULL));
    block_value_bind(&values, 0, x->data);
    ck_assert_rc_ok(block_run(block, &values, ~(plan_set)0));
}

START_TEST(test_forward)
{
    static double wanted[TOKENS][WIDE];
    struct block_scratch *scratch;
    struct rig rig;
    uint64_t seed = 11;

    rig_open(&rig, configs[_i], DTYPE_F32);
    const struct model_config *c = model_config(rig.model);
    struct tensor x = new_tensor(&rig, c->hidden_size);
    for (int t = 0; t < TOKENS; t++) {
        for (int64_t i = 0; i < c->hidden_size; i++) {
            float value = 2 * support_unit(&seed);
            ((float *)x.data)[t * c->hidden_size + i] = value;
            wanted[t][i] = (double)value;
        }
    }
    ck_assert_rc_ok(block_scratch_new(model_plans(rig.model), SEQUENCES, LENGTH, &rig.gpu, rig.stream, &scratch));
    for (int64_t layer = 0; layer < 2; layer++) {
        struct reference reference = {&rig.s, c, layer};
        struct block block;
        forward(&reference, wanted);
        load_all(&rig, layer, NULL, &block);
        run_all(&block, scratch, &x);
        compare(&x, wanted);
        block_deinit(&block, &rig.gpu);
    }
    block_scratch_free(scratch);
    gpu_tensor_free(&rig.gpu, &x);
    rig_close(&rig);
}
END_TEST

static void expect_same_tensor(const struct tensor *a, const struct tensor *b)
{
    ck_assert((a->data == NULL) == (b->data == NULL));
    if (a->data != NULL) {
        ck_assert_mem_eq(a->data, b->data, tensor_bytes(a));
    }
}

/* A block that was read ahead is the block, also when the reader was given another, none, or one that there is not. */
START_TEST(test_read_ahead)
{
    static const int64_t started[] = {0, 1, 1, 2, -1};
    struct block_reader *reader;
    struct rig rig;

    rig_open(&rig, configs[_i], _i % 2 == 0 ? DTYPE_BF16 : DTYPE_F32);
    int64_t bytes = 0;
    ck_assert_rc_ok(block_reader_bytes(rig.model, &bytes));
    ck_assert_int_gt(bytes, 0);
    ck_assert_rc_ok(block_reader_new(rig.model, &rig.gpu, &reader));
    for (size_t k = 0; k < sizeof(started) / sizeof(started[0]); k++) {
        int64_t layer = (int64_t)k % 2;
        struct block plain, read;
        if (started[k] >= 0) {
            block_reader_start(reader, started[k], rig.stream);
        }
        struct model_tensor list[32];
        ck_assert_uint_le(block_tensors_max(rig.model), 32);
        size_t count = block_tensors(rig.model, layer, list);
        ck_assert_uint_ge(count, 7);
        const void *there = block_reader_find(reader, list[count - 1].name);
        ck_assert((there != NULL) == (started[k] == layer));
        load_all(&rig, layer, NULL, &plain);
        load_all(&rig, layer, reader, &read);
        for (int i = 0; i < plain.plan->module_count; i++) {
            expect_same_tensor(&plain.modules[i].weight, &read.modules[i].weight);
            expect_same_tensor(&plain.modules[i].bias, &read.modules[i].bias);
        }
        for (int i = 0; i < plain.plan->norm_count; i++) {
            expect_same_tensor(&plain.norms[i].weight, &read.norms[i].weight);
        }
        block_deinit(&plain, &rig.gpu);
        block_deinit(&read, &rig.gpu);
    }
    block_reader_start(reader, 0, rig.stream); /* and is not waited for */
    block_reader_free(reader);
    block_reader_free(NULL);
    rig_close(&rig);
}
END_TEST

/* The passes in a row, each from what the one before it kept, over the caller's memory, are the forward to the bit. */
START_TEST(test_passes)
{
    struct block_scratch *scratch;
    struct block block;
    struct rig rig;
    uint64_t seed = 3;

    rig_open(&rig, configs[_i], DTYPE_BF16);
    const struct model_config *c = model_config(rig.model);
    struct tensor x = new_tensor(&rig, c->hidden_size), y = new_tensor(&rig, c->hidden_size), kept[PLAN_VALUES_MAX];
    for (int64_t i = 0; i < tensor_count(&x); i++) {
        ((float *)x.data)[i] = support_unit(&seed);
    }
    memcpy(y.data, x.data, tensor_bytes(&x));
    ck_assert_rc_ok(block_scratch_new(model_plans(rig.model), SEQUENCES, LENGTH, &rig.gpu, rig.stream, &scratch));
    load_all(&rig, 1, NULL, &block);
    const struct plan *plan = block.plan;
    run_all(&block, scratch, &x);
    for (int i = 0; i < plan->store_count; i++) {
        kept[i] = i == 0 ? y : new_tensor(&rig, plan->store_columns[i]);
    }
    plan_set have = PLAN_BIT(0), steps, used;
    for (int g = 0; g <= plan->group_count; g++) {
        bool end = g == plan->group_count;
        plan_set keep = end ? PLAN_BIT(plan->output) : plan->groups[g].kept;
        plan_set want = keep | (end ? 0 : PLAN_BIT(plan->groups[g].input));
        struct block_values values;
        ck_assert(plan_steps(plan, have, want, &steps, &used));
        ck_assert_rc_ok(block_values_init(&values, plan, scratch, NULL));
        for (int v = 0; v < plan->value_count; v++) {
            int store = plan->storages[plan->values[v].storage].store;
            if (store >= 0 && ((have | keep) & PLAN_BIT(v)) != 0) {
                block_value_bind(&values, v, kept[store].data);
            }
        }
        ck_assert_rc_ok(block_run(&block, &values, steps));
        have = keep;
    }
    ck_assert_int_eq(memcmp(x.data, y.data, tensor_bytes(&x)), 0);
    block_deinit(&block, &rig.gpu);
    block_deinit(&block, &rig.gpu); /* again is fine */
    block_scratch_free(scratch);
    gpu_tensor_free(&rig.gpu, &x);
    for (int i = 0; i < plan->store_count; i++) {
        gpu_tensor_free(&rig.gpu, &kept[i]);
    }
    rig_close(&rig);
}
END_TEST

/* Steps over a part of the rows, from values that are there, make what they make over all of them. */
static void check_part(const struct block *block, const struct block_values *values, int64_t first, int64_t sequences,
                       int64_t length)
{
    const struct plan *plan = block->plan;
    const struct plan_group *group = &plan->groups[0];
    AUTO(block_values_part) struct block_values part = {.scratch = NULL};
    plan_set steps, used;
    float wanted[TOKENS * WIDE];

    ck_assert(plan_steps(plan, PLAN_BIT(group->input), PLAN_BIT(group->branch), &steps, &used));
    ck_assert_rc_ok(block_run(block, values, steps));
    struct tensor all = block_value(values, group->branch);
    memcpy(wanted, all.data, tensor_bytes(&all));
    memset(all.data, 0, tensor_bytes(&all));
    ck_assert_rc_ok(block_values_part(values, PLAN_BIT(group->input), first, sequences, length, &part));
    ck_assert_rc_ok(block_run(block, &part, steps));
    struct tensor out = block_value(&part, group->branch);
    ck_assert_int_eq(out.shape[0], sequences * length);
    for (int64_t i = 0; i < tensor_count(&out); i++) {
        double expected = (double)wanted[first * out.shape[1] + i], found = (double)((float *)out.data)[i];
        ck_assert_double_eq_tol(found, expected, 1e-5 * (1 + fabs(expected)));
    }
}

START_TEST(test_part)
{
    struct block_scratch *scratch;
    struct block_values values;
    struct block block;
    struct rig rig;
    uint64_t seed = 8;
    plan_set steps, used;

    rig_open(&rig, configs[_i], DTYPE_BF16);
    struct tensor x = new_tensor(&rig, model_config(rig.model)->hidden_size);
    for (int64_t i = 0; i < tensor_count(&x); i++) {
        ((float *)x.data)[i] = support_unit(&seed);
    }
    ck_assert_rc_ok(block_scratch_new(model_plans(rig.model), SEQUENCES, LENGTH, &rig.gpu, rig.stream, &scratch));
    load_all(&rig, 0, NULL, &block);
    ck_assert_rc_ok(block_values_init(&values, block.plan, scratch, NULL));
    block_value_bind(&values, 0, x.data);
    ck_assert_int_eq(block_values_length(&values), LENGTH);
    ck_assert(plan_steps(block.plan, PLAN_BIT(0), PLAN_BIT(block.plan->groups[0].input), &steps, &used));
    ck_assert_rc_ok(block_run(&block, &values, steps));
    check_part(&block, &values, 0, 1, LENGTH);
    check_part(&block, &values, LENGTH, 1, LENGTH);
    check_part(&block, &values, 0, 2, LENGTH);
    check_part(&block, &values, LENGTH, 1, 5); /* the beginning of a sequence */
    struct block_values part;
    ck_assert_int_eq(block_values_part(&values, PLAN_BIT(0), 1, 2, LENGTH, &part), ERR_INTERNAL);
    ck_assert_int_eq(block_values_part(&values, PLAN_BIT(0), 0, 1, 0, &part), ERR_INTERNAL);
    block_deinit(&block, &rig.gpu);
    block_scratch_free(scratch);
    gpu_tensor_free(&rig.gpu, &x);
    rig_close(&rig);
}
END_TEST

/* A linear's input may change between two runs of its step. */
static void check_input_changed(const struct block *block, struct block_scratch *scratch, const struct tensor *x)
{
    struct block_values values;
    int s = plan_find_step(block->plan, STEP_LINEAR);
    float first[8];

    ck_assert_rc_ok(block_values_init(&values, block->plan, scratch, NULL));
    block_value_bind(&values, 0, x->data);
    ck_assert_rc_ok(block_run(block, &values, PLAN_BIT(s + 1) - 1));
    struct tensor in = block_value(&values, block->plan->steps[s].in[0]);
    struct tensor out = block_value(&values, block->plan->steps[s].out);
    memcpy(first, out.data, sizeof(first));
    for (int64_t i = 0; i < in.shape[1]; i++) {
        ((float *)in.data)[i] *= i % 2 == 0 ? 1.0f : -1.0f;
    }
    ck_assert_rc_ok(block_run(block, &values, PLAN_BIT(s)));
    ck_assert_mem_ne(first, out.data, sizeof(first));
}

/* Inputs that linears share are rounded once, but for those that round them otherwise, and again where other inputs
 * come to the same place, in a run or in the next: as where every step has a run of its own. */
START_TEST(test_shared_rounding)
{
    static const struct gpu_input inputs[] = {
        {.element = DTYPE_I8, .dynamic = true},
        {.element = DTYPE_I8, .dynamic = true},
        {.element = DTYPE_F8_E4M3, .dynamic = true},
        {.element = DTYPE_F8_E4M3, .scale = 0.01f},
    };
    struct block_scratch *scratch;
    struct block block;
    struct rig rig;
    uint64_t seed = 5;

    rig_open(&rig, configs[0], DTYPE_BF16);
    const struct model_config *c = model_config(rig.model);
    struct tensor x = new_tensor(&rig, c->hidden_size), y = new_tensor(&rig, c->hidden_size);
    ck_assert_rc_ok(block_scratch_new(model_plans(rig.model), SEQUENCES, LENGTH, &rig.gpu, rig.stream, &scratch));
    load_all(&rig, 0, NULL, &block);
    for (int i = 0; i < block.plan->module_count; i++) {
        bool alone = strstr(block.plan->modules[i].path, "o_proj") != NULL;
        block.modules[i].input = _i < 4  ? inputs[(i + _i) % 4]
                                 : alone ? (struct gpu_input){.element = DTYPE_F32}
                                         : inputs[0];
    }
    for (int round = 0; round < 2; round++) {
        struct block_values values;
        for (int64_t i = 0; i < tensor_count(&x); i++) {
            ((float *)x.data)[i] = support_unit(&seed);
        }
        memcpy(y.data, x.data, tensor_bytes(&x));
        run_all(&block, scratch, &x);
        ck_assert_rc_ok(block_values_init(&values, block.plan, scratch, NULL));
        block_value_bind(&values, 0, y.data);
        for (int s = 0; s < block.plan->step_count; s++) {
            ck_assert_rc_ok(block_run(&block, &values, PLAN_BIT(s)));
        }
        ck_assert_mem_eq(x.data, y.data, tensor_bytes(&x));
    }
    check_input_changed(&block, scratch, &x);
    block_deinit(&block, &rig.gpu);
    block_scratch_free(scratch);
    gpu_tensor_free(&rig.gpu, &x);
    gpu_tensor_free(&rig.gpu, &y);
    rig_close(&rig);
}
END_TEST

START_TEST(test_head)
{
    static const int32_t ids[TOKENS] = {9, 0, 3};
    int which = _i == 0 ? 0 : 3; /* own lm_head; tied */
    bool beside = _i == 3;       /* an lm_head with other values, and a config that says tied */
    const char *output = _i == 0 || beside ? "lm_head.weight" : "model.embed_tokens.weight";
    float table[240], matrix[240], scale[24];
    struct head head = {0};
    struct rig rig;

    rig_open_head(&rig, configs[which], DTYPE_F32, beside);
    const struct model_config *c = model_config(rig.model);
    struct tensor x = new_tensor(&rig, 24), logits = new_tensor(&rig, 10);
    ck_assert_rc_ok(head_load_embedding(rig.model, &rig.gpu, rig.stream, &head));
    ck_assert_rc_ok(rig.gpu.ops->embed(rig.stream, &x, &head.embedding, ids));
    support_fill(support_find(&rig.s, "model.embed_tokens.weight"), table, 240);
    support_fill(support_find(&rig.s, output), matrix, 240);
    support_fill(support_find(&rig.s, "model.norm.weight"), scale, 24);
    ck_assert_float_eq(((const float *)x.data)[0], table[9 * 24]);
    if (_i == 2) {
        head_deinit(&head, &rig.gpu); /* the output alone, without the embedding before it */
    }
    ck_assert_rc_ok(head_load_output(rig.model, &rig.gpu, rig.stream, &head));
    ck_assert_int_eq(head.tied, which == 3 && !beside);
    ck_assert_rc_ok(head_logits(&head, c, &rig.gpu, rig.stream, &x, &logits));
    for (int t = 0; t < TOKENS; t++) {
        double mean = 0;
        for (int i = 0; i < 24; i++) {
            mean += (double)table[ids[t] * 24 + i] * (double)table[ids[t] * 24 + i] / 24;
        }
        for (int v = 0; v < 10; v++) {
            double wanted = 0;
            for (int i = 0; i < 24; i++) {
                wanted +=
                    (double)(table[ids[t] * 24 + i] * scale[i] * matrix[v * 24 + i]) / sqrt(mean + c->rms_norm_eps);
            }
            ck_assert_double_eq_tol((double)((const float *)logits.data)[t * 10 + v], wanted, 1e-5);
        }
    }
    head_deinit(&head, &rig.gpu);
    gpu_tensor_free(&rig.gpu, &x);
    gpu_tensor_free(&rig.gpu, &logits);
    rig_close(&rig);
}
END_TEST

START_TEST(test_nan_in_a_block)
{
    struct block block = {.index = 77};
    struct rig rig;

    support_init(&rig.s, configs[1]);
    support_find(&rig.s, "model.layers.1.mlp.down_proj.bias")->value = NAN;
    support_write(&rig.s);
    ck_assert_rc_ok(support_open(&rig.s, ".", &rig.model));
    ck_assert_rc_ok(gpu_open("cpu", 1, &rig.gpu));
    ck_assert_rc_ok(rig.gpu.ops->stream_new(rig.gpu.device, &rig.stream));
    ck_assert_int_eq(block_load(rig.model, 1, &rig.gpu, rig.stream, NULL, &block), ERR_NON_FINITE_VALUE);
    ck_assert_ptr_nonnull(strstr(err_last()->message, "model.layers.1.mlp.down_proj.bias"));
    ck_assert_int_eq(block.index, 77);
    rig_close(&rig);
}
END_TEST

START_TEST(test_scratch_refuses)
{
    struct block_scratch *scratch = NULL;
    struct rig rig;

    rig_open(&rig, configs[0], DTYPE_F16);
    const struct plans *plans = model_plans(rig.model);
    ck_assert_int_eq(block_scratch_new(plans, 0, 8, &rig.gpu, rig.stream, &scratch), ERR_INTERNAL);
    ck_assert_int_eq(block_scratch_new(plans, INT64_MAX, 8, &rig.gpu, rig.stream, &scratch), ERR_INTERNAL);
    ck_assert_ptr_null(scratch);
    block_scratch_free(NULL);
    rig_close(&rig);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("block");
    TCase *tcase = tcase_create("all");

    tcase_add_loop_test(tcase, test_forward, 0, (int)(sizeof(configs) / sizeof(configs[0])));
    tcase_add_loop_test(tcase, test_read_ahead, 0, (int)(sizeof(configs) / sizeof(configs[0])));
    tcase_add_loop_test(tcase, test_passes, 0, (int)(sizeof(configs) / sizeof(configs[0])));
    tcase_add_loop_test(tcase, test_shared_rounding, 0, 5);
    tcase_add_loop_test(tcase, test_part, 0, 5); /* those whose norms come first */
    tcase_add_loop_test(tcase, test_head, 0, 4);
    tcase_add_test(tcase, test_nan_in_a_block);
    tcase_add_test(tcase, test_scratch_refuses);
    tcase_set_timeout(tcase, 120);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
