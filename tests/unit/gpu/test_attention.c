/* Attention and rope against the definitions in double. */

#include "tests/unit/gpu/support.h"

static bool sees(const struct gpu_attention *s, int64_t position, int64_t key)
{
    return key <= position && (s->window == 0 || key > position - s->window) &&
           (s->chunk == 0 || key / s->chunk == position / s->chunk);
}

/* o for one query of one head. */
static void reference(double *o, const struct tensor *q, const struct tensor *k, const struct tensor *v,
                      const struct gpu_attention *s, int64_t sequence, int64_t position, int64_t head)
{
    int64_t kv = head / (s->heads / s->kv_heads), width = gpu_value_dim(s);
    const float *query = floats(q) + ((sequence * s->length + position) * s->heads + head) * s->head_dim;
    double total = s->sinks != NULL ? exp((double)floats(s->sinks)[head]) : 0;

    memset(o, 0, (size_t)width * sizeof(double));
    for (int64_t t = 0; t <= position; t++) {
        int64_t at = (sequence * s->length + t) * s->kv_heads + kv;
        double score = 0;
        for (int64_t d = 0; d < s->head_dim; d++) {
            score += (double)query[d] * (double)floats(k)[at * s->head_dim + d] * (double)s->scale;
        }
        score = s->cap > 0 ? (double)s->cap * tanh(score / (double)s->cap) : score;
        double weight = sees(s, position, t) ? exp(score) : 0;
        total += weight;
        for (int64_t d = 0; d < width; d++) {
            o[d] += weight * (double)floats(v)[at * width + d];
        }
    }
    for (int64_t d = 0; d < width; d++) {
        o[d] /= total;
    }
}

static void check_attention(struct gpu_attention spec, bool has_sinks)
{
    struct rig rig;
    double want[256];
    int64_t rows = spec.sequences * spec.length, width = gpu_value_dim(&spec);
    rig_open(&rig, 2);
    struct tensor q = rig_random(&rig, rows, spec.heads * spec.head_dim, 1);
    struct tensor k = rig_random(&rig, rows, spec.kv_heads * spec.head_dim, 2);
    struct tensor v = rig_random(&rig, rows, spec.kv_heads * width, 3);
    struct tensor o = rig_tensor(&rig, DTYPE_F32, rows, spec.heads * width);
    struct tensor sinks = rig_random(&rig, 1, spec.heads, 4);

    memset(o.data, 0xff, tensor_bytes(&o));
    spec.sinks = has_sinks ? &sinks : NULL;
    ck_assert_rc_ok(rig.ops->attention(rig.stream, &o, &q, &k, &v, &spec));
    for (int64_t i = 0; i < rows * spec.heads; i++) {
        int64_t row = i / spec.heads, head = i % spec.heads;
        reference(want, &q, &k, &v, &spec, row / spec.length, row % spec.length, head);
        for (int64_t d = 0; d < width; d++) {
            ck_assert_near(floats(&o)[i * width + d], want[d], 2e-6);
        }
    }
    gpu_tensor_free(&rig.gpu, &q);
    gpu_tensor_free(&rig.gpu, &k);
    gpu_tensor_free(&rig.gpu, &v);
    gpu_tensor_free(&rig.gpu, &o);
    gpu_tensor_free(&rig.gpu, &sinks);
    rig_close(&rig);
}

#define ATTENTION(b, s, h, kv, d, w, c, ...)  \
    ((struct gpu_attention){.sequences = (b), \
                            .length = (s),    \
                            .heads = (h),     \
                            .kv_heads = (kv), \
                            .head_dim = (d),  \
                            .window = (w),    \
                            .scale = (c),     \
                            __VA_ARGS__})

START_TEST(attention_is_right)
{
    check_attention(ATTENTION(1, 1, 1, 1, 1, 0, 1.0f), false);
    check_attention(ATTENTION(2, 7, 2, 2, 8, 0, 0.35f), false);
    check_attention(ATTENTION(3, 70, 4, 2, 16, 0, 0.25f), false);
    check_attention(ATTENTION(1, 200, 6, 1, 32, 0, 0.18f), false);
    check_attention(ATTENTION(2, 300, 2, 1, 8, 33, 0.35f), false);
    check_attention(ATTENTION(1, 130, 2, 2, 8, 1, 0.35f), false);
    check_attention(ATTENTION(1, 65, 1, 1, 8, 1000, 0.35f), false);
}
END_TEST

START_TEST(attention_of_other_families_is_right)
{
    check_attention(ATTENTION(2, 70, 4, 2, 24, 0, 0.2f, .value_dim = 16), false);
    check_attention(ATTENTION(1, 70, 2, 2, 8, 0, 0.35f, .value_dim = 20), true);
    check_attention(ATTENTION(2, 200, 2, 1, 8, 0, 0.35f, .chunk = 32), false);
    check_attention(ATTENTION(1, 200, 2, 1, 8, 20, 0.35f, .chunk = 50), false);
    check_attention(ATTENTION(1, 90, 2, 1, 8, 0, 0.9f, .cap = 1.5f), false);
    check_attention(ATTENTION(1, 90, 2, 1, 8, 7, 0.9f, .cap = 0.3f), true);
    check_attention(ATTENTION(2, 90, 4, 2, 8, 0, 0.35f), true);
    check_attention(ATTENTION(1, 90, 4, 4, 8, 9, 0.35f), true);
}
END_TEST

/* A sink far above all scores takes all weight; one far below takes none. */
START_TEST(sinks_at_the_extremes)
{
    struct rig rig;
    rig_open(&rig, 1);
    struct tensor q = rig_random(&rig, 40, 16, 1), o = rig_tensor(&rig, DTYPE_F32, 40, 16);
    struct tensor plain = rig_tensor(&rig, DTYPE_F32, 40, 16), sinks = rig_tensor(&rig, DTYPE_F32, 1, 2);
    struct gpu_attention spec = ATTENTION(1, 40, 2, 2, 8, 0, 0.35f);

    floats(&sinks)[0] = 1e4f;
    floats(&sinks)[1] = -1e4f;
    ck_assert_rc_ok(rig.ops->attention(rig.stream, &plain, &q, &q, &q, &spec));
    spec.sinks = &sinks;
    ck_assert_rc_ok(rig.ops->attention(rig.stream, &o, &q, &q, &q, &spec));
    for (int i = 0; i < 40 * 16; i++) {
        ck_assert_float_eq(floats(&o)[i], i % 16 < 8 ? 0.0f : floats(&plain)[i]);
    }
    gpu_tensor_free(&rig.gpu, &q);
    gpu_tensor_free(&rig.gpu, &o);
    gpu_tensor_free(&rig.gpu, &plain);
    gpu_tensor_free(&rig.gpu, &sinks);
    rig_close(&rig);
}
END_TEST

START_TEST(large_scores_do_not_overflow)
{
    struct gpu_attention spec = ATTENTION(1, 64, 1, 1, 8, 0, 1.0f);
    struct rig rig;
    rig_open(&rig, 1);
    struct tensor q = rig_random(&rig, 64, 8, 1), k = rig_random(&rig, 64, 8, 2), v = rig_random(&rig, 64, 8, 3);
    struct tensor o = rig_tensor(&rig, DTYPE_F32, 64, 8);
    int64_t index;

    for (int i = 0; i < 512; i++) {
        floats(&q)[i] *= 100;
        floats(&k)[i] *= 100;
    }
    ck_assert_rc_ok(rig.ops->attention(rig.stream, &o, &q, &k, &v, &spec));
    ck_assert_rc_ok(rig.ops->find_nonfinite(rig.stream, &index, &o));
    ck_assert_int_eq(index, -1);
    gpu_tensor_free(&rig.gpu, &q);
    gpu_tensor_free(&rig.gpu, &k);
    gpu_tensor_free(&rig.gpu, &v);
    gpu_tensor_free(&rig.gpu, &o);
    rig_close(&rig);
}
END_TEST

START_TEST(attention_is_equal_for_any_threads)
{
    struct gpu_attention spec = ATTENTION(2, 150, 4, 2, 16, 0, 0.25f);
    void *first = NULL;
    for (int threads = 1; threads <= 3; threads++) {
        struct rig rig;
        rig_open(&rig, threads);
        struct tensor q = rig_random(&rig, 300, 64, 1), k = rig_random(&rig, 300, 32, 2);
        struct tensor o = rig_tensor(&rig, DTYPE_F32, 300, 64);
        ck_assert_rc_ok(rig.ops->attention(rig.stream, &o, &q, &k, &k, &spec));
        if (first == NULL) {
            first = malloc(tensor_bytes(&o));
            memcpy(first, o.data, tensor_bytes(&o));
        }
        ck_assert_int_eq(memcmp(first, o.data, tensor_bytes(&o)), 0);
        gpu_tensor_free(&rig.gpu, &q);
        gpu_tensor_free(&rig.gpu, &k);
        gpu_tensor_free(&rig.gpu, &o);
        rig_close(&rig);
    }
    free(first);
}
END_TEST

/* Heads of 10 of which `rotated` columns turn. */
static void check_rope(int64_t rotated, bool interleaved)
{
    struct rig rig;
    rig_open(&rig, 2);
    int64_t length = 21, heads = 3, dim = 10, half = rotated / 2;
    const struct gpu_rope spec = {.length = length, .head_dim = dim, .rotated = rotated, .interleaved = interleaved};
    struct tensor x = rig_random(&rig, 2 * length, heads * dim, 1), was = rig_random(&rig, 2 * length, heads * dim, 1);
    struct tensor c = rig_tensor(&rig, DTYPE_F32, 32, half), s = rig_tensor(&rig, DTYPE_F32, 32, half);
    for (int64_t i = 0; i < 32 * half; i++) {
        floats(&c)[i] = (float)cos(0.1 * (double)i);
        floats(&s)[i] = (float)sin(0.1 * (double)i);
    }
    ck_assert_rc_ok(rig.ops->rope(rig.stream, &x, &c, &s, &spec));
    for (int64_t i = 0; i < 2 * length * heads * half; i++) {
        int64_t row = i / half, pair = i % half, angle = row / heads % length * half + pair;
        int64_t low = row * dim + (interleaved ? 2 * pair : pair), high = low + (interleaved ? 1 : half);
        double a = (double)floats(&was)[low], b = (double)floats(&was)[high];
        double cosine = cos(0.1 * (double)angle), sine = sin(0.1 * (double)angle);
        ck_assert_near(floats(&x)[low], a * cosine - b * sine, 1e-6);
        ck_assert_near(floats(&x)[high], b * cosine + a * sine, 1e-6);
    }
    for (int64_t i = 0; i < 2 * length * heads * dim; i++) {
        ck_assert(i % dim < rotated || floats(&x)[i] == floats(&was)[i]);
    }
    gpu_tensor_free(&rig.gpu, &x);
    gpu_tensor_free(&rig.gpu, &was);
    gpu_tensor_free(&rig.gpu, &c);
    gpu_tensor_free(&rig.gpu, &s);
    rig_close(&rig);
}

START_TEST(rope_turns_pairs)
{
    check_rope(10, false);
    check_rope(10, true);
    check_rope(6, false);
    check_rope(4, true);
}
END_TEST

START_TEST(rope_refuses)
{
    struct rig rig;
    rig_open(&rig, 1);
    struct tensor x = rig_random(&rig, 42, 30, 1), table = rig_tensor(&rig, DTYPE_F32, 32, 5);
    static const struct gpu_rope bad[] = {{33, 10, 10, false, false},
                                          {21, 9, 8, false, false},
                                          {21, 10, 12, false, false},
                                          {21, 10, 9, false, false},
                                          {21, 10, 6, false, false}};

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        ck_assert_int_eq(rig.ops->rope(rig.stream, &x, &table, &table, &bad[i]), ERR_INTERNAL);
    }
    gpu_tensor_free(&rig.gpu, &x);
    gpu_tensor_free(&rig.gpu, &table);
    rig_close(&rig);
}
END_TEST

START_TEST(attention_refuses)
{
    struct rig rig;
    rig_open(&rig, 1);
    struct tensor q = rig_random(&rig, 8, 16, 1), o = rig_tensor(&rig, DTYPE_F32, 8, 16);
    const struct gpu_attention bad[] = {ATTENTION(1, 8, 4, 3, 4, 0, 1.0f),
                                        ATTENTION(1, 9, 4, 4, 4, 0, 1.0f),
                                        ATTENTION(1, 8, 4, 4, 4, 0, 1.0f, .value_dim = 5),
                                        ATTENTION(1, 8, 4, 4, 4, 0, 1.0f, .chunk = -1),
                                        ATTENTION(1, 8, 4, 4, 4, 0, 1.0f, .cap = NAN),
                                        ATTENTION(1, 8, 4, 4, 4, 0, 1.0f, .sinks = &q)};

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        ck_assert_int_eq(rig.ops->attention(rig.stream, &o, &q, &q, &q, &bad[i]), ERR_INTERNAL);
    }
    gpu_tensor_free(&rig.gpu, &q);
    gpu_tensor_free(&rig.gpu, &o);
    rig_close(&rig);
}
END_TEST

UNIT_MAIN("gpu/attention", attention_is_right, attention_of_other_families_is_right, sinks_at_the_extremes,
          large_scores_do_not_overflow, attention_is_equal_for_any_threads, rope_turns_pairs, rope_refuses,
          attention_refuses)
