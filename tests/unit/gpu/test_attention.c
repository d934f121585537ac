/* Attention and rope against the definitions in double. */

#include "tests/unit/gpu/support.h"

/* o for one query of one head. */
static void reference(double *o, const struct tensor *q, const struct tensor *k, const struct tensor *v,
                      const struct gpu_attention *s, int64_t sequence, int64_t position, int64_t head)
{
    int64_t kv = head / (s->heads / s->kv_heads), first = s->window > 0 ? position - s->window + 1 : 0;
    const float *query = floats(q) + ((sequence * s->length + position) * s->heads + head) * s->head_dim;
    double total = 0;

    memset(o, 0, (size_t)s->head_dim * sizeof(double));
    for (int64_t t = first > 0 ? first : 0; t <= position; t++) {
        int64_t at = ((sequence * s->length + t) * s->kv_heads + kv) * s->head_dim;
        double score = 0;
        for (int64_t d = 0; d < s->head_dim; d++) {
            score += (double)query[d] * (double)floats(k)[at + d];
        }
        double weight = exp(score * (double)s->scale);
        total += weight;
        for (int64_t d = 0; d < s->head_dim; d++) {
            o[d] += weight * (double)floats(v)[at + d];
        }
    }
    for (int64_t d = 0; d < s->head_dim; d++) {
        o[d] /= total;
    }
}

static void check_attention(const struct gpu_attention *spec)
{
    struct rig rig;
    double want[256];
    int64_t rows = spec->sequences * spec->length;
    rig_open(&rig, 2);
    struct tensor q = rig_random(&rig, rows, spec->heads * spec->head_dim, 1);
    struct tensor k = rig_random(&rig, rows, spec->kv_heads * spec->head_dim, 2);
    struct tensor v = rig_random(&rig, rows, spec->kv_heads * spec->head_dim, 3);
    struct tensor o = rig_tensor(&rig, DTYPE_F32, rows, spec->heads * spec->head_dim);

    memset(o.data, 0xff, tensor_bytes(&o));
    ck_assert_rc_ok(rig.ops->attention(rig.stream, &o, &q, &k, &v, spec));
    for (int64_t i = 0; i < rows * spec->heads; i++) {
        int64_t row = i / spec->heads, head = i % spec->heads;
        reference(want, &q, &k, &v, spec, row / spec->length, row % spec->length, head);
        for (int64_t d = 0; d < spec->head_dim; d++) {
            ck_assert_near(floats(&o)[i * spec->head_dim + d], want[d], 2e-6);
        }
    }
    gpu_tensor_free(&rig.gpu, &q);
    gpu_tensor_free(&rig.gpu, &k);
    gpu_tensor_free(&rig.gpu, &v);
    gpu_tensor_free(&rig.gpu, &o);
    rig_close(&rig);
}

START_TEST(attention_is_right)
{
    check_attention(&(struct gpu_attention){1, 1, 1, 1, 1, 0, 1.0f});
    check_attention(&(struct gpu_attention){2, 7, 2, 2, 8, 0, 0.35f});
    check_attention(&(struct gpu_attention){3, 70, 4, 2, 16, 0, 0.25f});
    check_attention(&(struct gpu_attention){1, 200, 6, 1, 32, 0, 0.18f});
    check_attention(&(struct gpu_attention){2, 300, 2, 1, 8, 33, 0.35f});
    check_attention(&(struct gpu_attention){1, 130, 2, 2, 8, 1, 0.35f});
    check_attention(&(struct gpu_attention){1, 65, 1, 1, 8, 1000, 0.35f});
}
END_TEST

START_TEST(large_scores_do_not_overflow)
{
    struct gpu_attention spec = {1, 64, 1, 1, 8, 0, 1.0f};
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
    struct gpu_attention spec = {2, 150, 4, 2, 16, 0, 0.25f};
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

START_TEST(rope_turns_pairs)
{
    struct rig rig;
    rig_open(&rig, 2);
    int64_t length = 21, heads = 3, dim = 10, half = 5;
    struct tensor x = rig_random(&rig, 2 * length, heads * dim, 1), was = rig_random(&rig, 2 * length, heads * dim, 1);
    struct tensor c = rig_tensor(&rig, DTYPE_F32, 32, half), s = rig_tensor(&rig, DTYPE_F32, 32, half);
    for (int64_t i = 0; i < 32 * half; i++) {
        floats(&c)[i] = (float)cos(0.1 * (double)i);
        floats(&s)[i] = (float)sin(0.1 * (double)i);
    }
    ck_assert_rc_ok(rig.ops->rope(rig.stream, &x, &c, &s, length, dim));
    for (int64_t i = 0; i < 2 * length * heads * half; i++) {
        int64_t row = i / half, at = row * dim + i % half, angle = row / heads % length * half + i % half;
        double a = (double)floats(&was)[at], b = (double)floats(&was)[at + half];
        double cosine = cos(0.1 * (double)angle), sine = sin(0.1 * (double)angle);
        ck_assert_near(floats(&x)[at], a * cosine - b * sine, 1e-6);
        ck_assert_near(floats(&x)[at + half], b * cosine + a * sine, 1e-6);
    }
    ck_assert_int_eq(rig.ops->rope(rig.stream, &x, &c, &s, 33, dim), ERR_INTERNAL);
    ck_assert_int_eq(rig.ops->rope(rig.stream, &x, &c, &s, length, 9), ERR_INTERNAL);
    gpu_tensor_free(&rig.gpu, &x);
    gpu_tensor_free(&rig.gpu, &was);
    gpu_tensor_free(&rig.gpu, &c);
    gpu_tensor_free(&rig.gpu, &s);
    rig_close(&rig);
}
END_TEST

START_TEST(attention_refuses)
{
    struct rig rig;
    rig_open(&rig, 1);
    struct tensor q = rig_random(&rig, 8, 16, 1);
    struct gpu_attention heads = {1, 8, 4, 3, 4, 0, 1.0f}, rows = {1, 9, 4, 4, 4, 0, 1.0f};

    ck_assert_int_eq(rig.ops->attention(rig.stream, &q, &q, &q, &q, &heads), ERR_INTERNAL);
    ck_assert_int_eq(rig.ops->attention(rig.stream, &q, &q, &q, &q, &rows), ERR_INTERNAL);
    gpu_tensor_free(&rig.gpu, &q);
    rig_close(&rig);
}
END_TEST

UNIT_MAIN("gpu/attention", attention_is_right, large_scores_do_not_overflow, attention_is_equal_for_any_threads,
          rope_turns_pairs, attention_refuses)
