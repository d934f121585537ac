/* Scales of a cache are what the inputs reach, and a block that has one attends through it. */

#include "models/cache.h"
#include "tests/unit/models/support.h"

#define SEQUENCES 2
#define LENGTH 12
#define TOKENS (SEQUENCES * LENGTH)
#define KV 2
#define DIM 6

static const char config[] =
    "{\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":24,\"intermediate_size\":40,\"num_hidden_layers\":1,"
    "\"num_attention_heads\":4,\"num_key_value_heads\":2,\"vocab_size\":10,\"head_dim\":6}";

struct rig {
    struct support s;
    struct model *model;
    struct gpu gpu;
    struct gpu_stream *stream;
    struct block block;
    struct block_scratch *scratch;
    struct block_values values; /* with the attention group's input */
    struct tensor out;
    struct cache_ranges ranges;
};

static struct tensor tensor_new(const struct rig *rig)
{
    struct tensor tensor;
    ck_assert_rc_ok(gpu_tensor_new(&rig->gpu, DTYPE_F32, 2, (const int64_t[]){TOKENS, 24}, &tensor));
    return tensor;
}

static const struct plan_attention *attention_of(const struct rig *rig)
{
    return &rig->block.plan->steps[plan_find_step(rig->block.plan, STEP_ATTENTION)].attention;
}

static void rig_open(struct rig *rig)
{
    uint64_t seed = 7;
    support_init(&rig->s, config);
    rig->s.dtype = DTYPE_F32;
    support_write(&rig->s);
    ck_assert_rc_ok(support_open(&rig->s, ".", &rig->model));
    ck_assert_rc_ok(gpu_open("cpu", 2, &rig->gpu));
    ck_assert_rc_ok(rig->gpu.ops->stream_new(rig->gpu.device, &rig->stream));
    ck_assert_rc_ok(block_load(rig->model, 0, &rig->gpu, rig->stream, NULL, &rig->block));
    ck_assert_rc_ok(
        block_scratch_new(model_plans(rig->model), SEQUENCES, LENGTH, &rig->gpu, rig->stream, &rig->scratch));
    ck_assert_rc_ok(cache_ranges_init(&rig->ranges, attention_of(rig), &rig->gpu));
    rig->out = tensor_new(rig);
    ck_assert_rc_ok(block_values_init(&rig->values, rig->block.plan, rig->scratch, NULL));
    float *in = block_value(&rig->values, rig->block.plan->groups[0].input).data;
    for (int i = 0; i < TOKENS * 24; i++) {
        in[i] = support_unit(&seed);
    }
}

static void rig_close(struct rig *rig)
{
    cache_ranges_deinit(&rig->ranges, &rig->gpu);
    cache_ranges_deinit(&rig->ranges, &rig->gpu); /* zeroed is fine */
    gpu_tensor_free(&rig->gpu, &rig->out);
    block_scratch_free(rig->scratch);
    block_deinit(&rig->block, &rig->gpu);
    rig->gpu.ops->stream_free(rig->stream);
    gpu_close(&rig->gpu);
    model_close(rig->model);
    support_deinit(&rig->s);
}

static float absmax(const struct tensor *x, int64_t first, int64_t count)
{
    float most = 0;
    for (int64_t t = 0; t < TOKENS; t++) {
        for (int64_t i = first; i < first + count; i++) {
            most = fmaxf(most, fabsf(((const float *)x->data)[t * KV * DIM + i]));
        }
    }
    return most;
}

START_TEST(scales_are_what_was_reached)
{
    const enum dtype dtypes[] = {DTYPE_F32, DTYPE_BF16, DTYPE_F16};
    struct block_heads heads;
    struct rig rig;
    rig_open(&rig);
    ck_assert_rc_ok(block_attention_heads(&rig.block, &rig.values, PLAN_BIT(rig.block.plan->groups[0].input), &heads));
    ck_assert_rc_ok(cache_ranges_add(&rig.ranges, &heads, &rig.gpu, rig.stream));
    for (int i = 0; i < 12; i++) {
        const struct cache_scheme scheme = {i % 2 == 0 ? DTYPE_F8_E4M3 : DTYPE_I8, i / 2 % 2 == 1};
        enum dtype dtype = dtypes[i / 4];
        float largest = i % 2 == 0 ? 448.0f : 127.0f;
        struct cache_scales scales;
        ck_assert_rc_ok(
            cache_scales_make(&rig.ranges, attention_of(&rig), &scheme, dtype, &rig.gpu, rig.stream, &scales));
        ck_assert_int_eq(scales.count, scheme.per_head ? KV : 1);
        for (int64_t h = 0; h < scales.count; h++) {
            int64_t width = KV * DIM / scales.count;
            ck_assert(scales.keys[h] == dtype_round(absmax(&heads.k, h * width, width) / largest, dtype));
            ck_assert(scales.values[h] == dtype_round(absmax(&heads.v, h * width, width) / largest, dtype));
        }
        cache_scales_deinit(&scales);
    }
    rig_close(&rig);
}
END_TEST

/* The attention's output, of the input that the values have. */
static void attend(struct rig *rig, const struct tensor *out)
{
    const struct plan *plan = rig->block.plan;
    int to = plan->groups[1].input;
    plan_set steps, used;

    ck_assert(plan_steps(plan, PLAN_BIT(plan->groups[0].input), PLAN_BIT(to), &steps, &used));
    block_value_bind(&rig->values, to, out->data);
    ck_assert_rc_ok(block_run(&rig->block, &rig->values, steps));
}

START_TEST(attention_reads_through_the_cache)
{
    struct block_heads heads;
    struct rig rig;
    rig_open(&rig);
    struct tensor plain = tensor_new(&rig), scale[2];
    const struct cache_scheme scheme = {DTYPE_F8_E4M3, true};
    struct cache_scales scales;
    attend(&rig, &plain);
    ck_assert_rc_ok(block_attention_heads(&rig.block, &rig.values, PLAN_BIT(rig.block.plan->groups[0].input), &heads));
    ck_assert_rc_ok(cache_ranges_add(&rig.ranges, &heads, &rig.gpu, rig.stream));
    ck_assert_rc_ok(
        cache_scales_make(&rig.ranges, attention_of(&rig), &scheme, DTYPE_F32, &rig.gpu, rig.stream, &scales));
    ck_assert_rc_ok(cache_place(&rig.block, &scheme, &scales, &rig.gpu, rig.stream));
    ck_assert_rc_ok(cache_place(&rig.block, &scheme, &scales, &rig.gpu, rig.stream)); /* replaces the first */
    attend(&rig, &rig.out);
    ck_assert_int_ne(memcmp(plain.data, rig.out.data, tensor_bytes(&plain)), 0);

    /* by hand, from the heads as they come */
    ck_assert_rc_ok(block_attention_heads(&rig.block, &rig.values, PLAN_BIT(rig.block.plan->groups[0].input), &heads));
    float *const lists[] = {scales.keys, scales.values};
    struct tensor *const parts[] = {&heads.k, &heads.v};
    for (int i = 0; i < 2; i++) {
        scale[i] = tensor_2d(lists[i], DTYPE_F32, 1, KV);
        const struct gpu_cache cache = {.element = DTYPE_F8_E4M3, .scale = &scale[i], .group_size = DIM};
        ck_assert_rc_ok(rig.gpu.ops->quantize_cache(rig.stream, parts[i], parts[i], &cache));
    }
    ck_assert_rc_ok(rig.gpu.ops->attention(rig.stream, &plain, &heads.q, &heads.k, &heads.v, &heads.spec));
    ck_assert_int_eq(memcmp(plain.data, rig.out.data, tensor_bytes(&plain)), 0);
    cache_scales_deinit(&scales);
    gpu_tensor_free(&rig.gpu, &plain);
    rig_close(&rig);
}
END_TEST

/* Nothing seen but zeros gives scale 1; what is not finite, or beyond the stored type, is said. */
START_TEST(ranges_without_a_scale)
{
    const struct cache_scheme scheme = {DTYPE_I8, true};
    struct cache_scales scales;
    struct rig rig;
    rig_open(&rig);
    const struct plan_attention *c = attention_of(&rig);
    ck_assert_rc_ok(cache_scales_make(&rig.ranges, c, &scheme, DTYPE_BF16, &rig.gpu, rig.stream, &scales));
    for (int h = 0; h < KV; h++) {
        ck_assert(scales.keys[h] == 1.0f && scales.values[h] == 1.0f);
    }
    cache_scales_deinit(&scales);
    const float bad[] = {NAN, INFINITY, 1e8f};
    for (int i = 0; i < 3; i++) {
        ((float *)rig.ranges.values.data)[3] = bad[i];
        ck_assert_int_eq(cache_scales_make(&rig.ranges, c, &scheme, DTYPE_F16, &rig.gpu, rig.stream, &scales),
                         ERR_NON_FINITE_VALUE);
    }
    rig_close(&rig);
}
END_TEST

UNIT_MAIN("models/cache", scales_are_what_was_reached, attention_reads_through_the_cache, ranges_without_a_scale)
