/* Keys and values through a quantized cache, and what attention loses by it, against plain loops in double. */

#include "tests/unit/gpu/support.h"

#define DIM 8

static struct gpu_cache tokens_of(int bits, int64_t run, int64_t tokens, int64_t length)
{
    return (struct gpu_cache){.element = DTYPE_U8, .group_size = run, .bits = bits, .tokens = tokens, .length = length};
}

START_TEST(symmetric_scales_belong_to_their_runs)
{
    struct rig rig;
    rig_open(&rig, 2);
    struct tensor x = rig_random(&rig, 50, 24, 3), y = rig_tensor(&rig, DTYPE_F32, 50, 24);
    struct tensor scale = rig_tensor(&rig, DTYPE_F32, 1, 3);
    for (int i = 0; i < 3; i++) {
        floats(&scale)[i] = 0.001f * (float)(i + 1);
    }
    const enum dtype elements[] = {DTYPE_I8, DTYPE_F8_E4M3};
    for (int n = 0; n < 2; n++) {
        const struct gpu_cache spec = {.element = elements[n], .scale = &scale, .group_size = 8};
        ck_assert_rc_ok(rig.ops->quantize_cache(rig.stream, &y, &x, &spec));
        for (int i = 0; i < 50 * 24; i++) {
            float s = floats(&scale)[i % 24 / 8], code = floats(&x)[i] / s;
            float wanted =
                n == 0 ? fminf(fmaxf(rintf(code), -127.0f), 127.0f) : dtype_e4m3_to_f32(dtype_f32_to_e4m3(code));
            ck_assert(floats(&y)[i] == wanted * s);
        }
    }
    gpu_tensor_free(&rig.gpu, &x);
    gpu_tensor_free(&rig.gpu, &y);
    gpu_tensor_free(&rig.gpu, &scale);
    rig_close(&rig);
}
END_TEST

/* Every group's extremes come back within half precision's error, everything else within half a step. */
START_TEST(asymmetric_groups_have_their_own_range)
{
    enum { LENGTH = 37, COLS = 16, SEQUENCES = 3 };
    const struct {
        int64_t group_size, tokens;
    } shapes[] = {{1, 8}, {8, 1}, {16, 1}, {4, 5}};
    struct rig rig;
    rig_open(&rig, 2);
    struct tensor x = rig_random(&rig, SEQUENCES * LENGTH, COLS, 5);
    struct tensor y = rig_tensor(&rig, DTYPE_F32, SEQUENCES * LENGTH, COLS);
    for (size_t s = 0; s < sizeof(shapes) / sizeof(shapes[0]); s++) {
        const struct gpu_cache spec = tokens_of(4, shapes[s].group_size, shapes[s].tokens, LENGTH);
        ck_assert_rc_ok(rig.ops->quantize_cache(rig.stream, &y, &x, &spec));
        for (int64_t t = 0; t < SEQUENCES * LENGTH; t++) {
            for (int64_t c = 0; c < COLS; c++) {
                float low = INFINITY, high = -INFINITY;
                int64_t first = t - t % LENGTH % shapes[s].tokens, last = first + shapes[s].tokens;
                last = last < (t / LENGTH + 1) * LENGTH ? last : (t / LENGTH + 1) * LENGTH;
                for (int64_t i = first; i < last; i++) {
                    for (int64_t k = c - c % shapes[s].group_size;
                         k < c - c % shapes[s].group_size + shapes[s].group_size; k++) {
                        low = fminf(low, floats(&x)[i * COLS + k]);
                        high = fmaxf(high, floats(&x)[i * COLS + k]);
                    }
                }
                float error = fabsf(floats(&y)[t * COLS + c] - floats(&x)[t * COLS + c]);
                ck_assert(error <= 0.5f * (high - low) / 15.0f + 2e-3f);
            }
        }
    }
    gpu_tensor_free(&rig.gpu, &x);
    gpu_tensor_free(&rig.gpu, &y);
    rig_close(&rig);
}
END_TEST

/* One value everywhere leaves no range to divide: it comes back as half precision has it, and zero is zero. */
START_TEST(a_range_of_nothing)
{
    struct rig rig;
    rig_open(&rig, 1);
    struct tensor x = rig_tensor(&rig, DTYPE_F32, 8, 4), y = rig_tensor(&rig, DTYPE_F32, 8, 4);
    const struct gpu_cache spec = tokens_of(2, 4, 1, 8);
    for (int i = 0; i < 16; i++) {
        floats(&x)[i] = 0.3f;
    }
    ck_assert_rc_ok(rig.ops->quantize_cache(rig.stream, &y, &x, &spec));
    for (int i = 0; i < 32; i++) {
        ck_assert(floats(&y)[i] == dtype_round(floats(&x)[i], DTYPE_F16));
    }
    gpu_tensor_free(&rig.gpu, &x);
    gpu_tensor_free(&rig.gpu, &y);
    rig_close(&rig);
}
END_TEST

struct heads {
    struct gpu_attention spec;
    struct tensor q, k, v, kq, vq;
};

static struct heads heads_new(struct rig *rig, int64_t length, int64_t window, uint64_t seed)
{
    struct heads h = {.spec = {.sequences = 2,
                               .length = length,
                               .heads = 4,
                               .kv_heads = 2,
                               .head_dim = DIM,
                               .window = window,
                               .scale = (float)(1 / sqrt(DIM))}};
    h.q = rig_random(rig, 2 * length, 4 * DIM, seed);
    h.k = rig_random(rig, 2 * length, 2 * DIM, seed + 1);
    h.v = rig_random(rig, 2 * length, 2 * DIM, seed + 2);
    h.kq = rig_tensor(rig, DTYPE_F32, 2 * length, 2 * DIM);
    h.vq = rig_tensor(rig, DTYPE_F32, 2 * length, 2 * DIM);
    return h;
}

static void heads_free(struct rig *rig, struct heads *h)
{
    gpu_tensor_free(&rig->gpu, &h->q);
    gpu_tensor_free(&rig->gpu, &h->k);
    gpu_tensor_free(&rig->gpu, &h->v);
    gpu_tensor_free(&rig->gpu, &h->kq);
    gpu_tensor_free(&rig->gpu, &h->vq);
}

static struct gpu_attention_error loss(struct rig *rig, const struct heads *h, int64_t recent)
{
    struct gpu_attention_error error = {0};
    ck_assert_rc_ok(
        rig->ops->attention_error(rig->stream, &error, &h->q, &h->k, &h->v, &h->kq, &h->vq, &h->spec, recent));
    return error;
}

static void squeeze(struct rig *rig, struct heads *h, int bits, bool kivi)
{
    const struct gpu_cache keys =
        kivi ? tokens_of(bits, 1, 4, h->spec.length) : tokens_of(bits, DIM, 1, h->spec.length);
    const struct gpu_cache values = tokens_of(bits, DIM, 1, h->spec.length);
    ck_assert_rc_ok(rig->ops->quantize_cache(rig->stream, &h->kq, &h->k, &keys));
    ck_assert_rc_ok(rig->ops->quantize_cache(rig->stream, &h->vq, &h->v, &values));
}

static const float *at(const struct heads *h, const struct tensor *x, int64_t sequence, int64_t t, int64_t head)
{
    int64_t heads = x->shape[1] / DIM;
    return floats(x) + ((sequence * h->spec.length + t) * heads + head) * DIM;
}

/* One query's share, written from the definition. */
static void slow_query(const struct heads *h, int64_t s, int64_t head, int64_t t, int64_t recent,
                       struct gpu_attention_error *sum)
{
    double score[2][128], most[2] = {-INFINITY, -INFINITY}, total[2] = {0}, out[2][DIM] = {{0}};
    int64_t kv = head / 2, first = h->spec.window > 0 && t >= h->spec.window ? t - h->spec.window + 1 : 0;
    int64_t key_edge = recent == 0 ? t + 1 : t / recent * recent, value_edge = recent == 0 ? t + 1 : t - recent;

    for (int side = 0; side < 2; side++) {
        for (int64_t j = first; j <= t; j++) {
            const float *q = at(h, &h->q, s, t, head), *k = at(h, side == 1 && j < key_edge ? &h->kq : &h->k, s, j, kv);
            score[side][j] = 0;
            for (int d = 0; d < DIM; d++) {
                score[side][j] += (double)q[d] * (double)k[d];
            }
            most[side] = fmax(most[side], score[side][j]);
        }
    }
    for (int64_t j = first; j <= t; j++) {
        sum->score_error += pow(score[0][j] - score[1][j], 2);
        sum->score_signal += pow(score[0][j], 2);
        for (int side = 0; side < 2; side++) {
            score[side][j] = exp((score[side][j] - most[side]) * (double)h->spec.scale);
            total[side] += score[side][j];
        }
    }
    for (int64_t j = first; j <= t; j++) {
        sum->weight_error += pow(score[0][j] / total[0] - score[1][j] / total[1], 2);
        sum->weight_signal += pow(score[0][j] / total[0], 2);
        for (int side = 0; side < 2; side++) {
            const float *v = at(h, side == 1 && j < value_edge ? &h->vq : &h->v, s, j, kv);
            for (int d = 0; d < DIM; d++) {
                out[side][d] += score[side][j] / total[side] * (double)v[d];
            }
        }
    }
    for (int d = 0; d < DIM; d++) {
        sum->output_error += pow(out[0][d] - out[1][d], 2);
        sum->output_signal += pow(out[0][d], 2);
    }
}

#define ck_assert_close(a, b) ck_assert_double_eq_tol(a, b, 1e-5 * fabs(b) + 1e-9)

START_TEST(losses_are_the_definition)
{
    static const int64_t windows[] = {0, 20}, recents[] = {0, 16, 100};
    struct rig rig;
    rig_open(&rig, 2);
    for (int i = 0; i < 6; i++) {
        struct gpu_attention_error slow = {0};
        struct heads h = heads_new(&rig, 93, windows[i % 2], (uint64_t)(100 + i));
        squeeze(&rig, &h, 2, true);
        for (int64_t n = 0; n < 2 * 4 * 93; n++) {
            slow_query(&h, n / 93 / 4, n / 93 % 4, n % 93, recents[i / 2], &slow);
        }
        struct gpu_attention_error fast = loss(&rig, &h, recents[i / 2]);
        ck_assert_close(fast.score_error, slow.score_error);
        ck_assert_close(fast.score_signal, slow.score_signal);
        ck_assert_close(fast.weight_error, slow.weight_error);
        ck_assert_close(fast.weight_signal, slow.weight_signal);
        ck_assert_close(fast.output_error, slow.output_error);
        ck_assert_close(fast.output_signal, slow.output_signal);
        heads_free(&rig, &h);
    }
    rig_close(&rig);
}
END_TEST

START_TEST(nothing_is_lost_before_the_window_is_full)
{
    struct rig rig;
    rig_open(&rig, 2);
    struct heads h = heads_new(&rig, 64, 0, 9);
    squeeze(&rig, &h, 2, true);
    struct gpu_attention_error error = loss(&rig, &h, 64);
    ck_assert(error.score_error == 0 && error.weight_error == 0 && error.output_error == 0);
    ck_assert(error.output_signal > 0);
    ck_assert(loss(&rig, &h, 32).output_error > 0);
    heads_free(&rig, &h);
    rig_close(&rig);
}
END_TEST

/* What a query sees does not depend on what comes behind it: a prefix loses the same as the whole's first part. */
START_TEST(a_stream_loses_what_one_pass_does)
{
    struct rig rig;
    rig_open(&rig, 2);
    struct heads whole = heads_new(&rig, 80, 0, 21);
    struct gpu_attention_error sum = {0}, last = {0};
    whole.spec.sequences = 1;
    struct tensor *const all[] = {&whole.q, &whole.k, &whole.v, &whole.kq, &whole.vq};
    squeeze(&rig, &whole, 2, true); /* groups of 4 tokens: every prefix below is whole groups */
    for (int i = 0; i < 5; i++) {
        all[i]->shape[0] = 80;
    }
    sum = loss(&rig, &whole, 16);
    for (int64_t length = 16; length <= 80; length += 16) {
        for (int i = 0; i < 5; i++) {
            all[i]->shape[0] = length;
        }
        whole.spec.length = length;
        squeeze(&rig, &whole, 2, true);
        struct gpu_attention_error part = loss(&rig, &whole, 16);
        ck_assert(part.output_error >= last.output_error);
        last = part;
    }
    ck_assert(last.output_error == sum.output_error && last.score_error == sum.score_error);
    for (int i = 0; i < 5; i++) {
        all[i]->shape[0] = 160;
    }
    heads_free(&rig, &whole);
    rig_close(&rig);
}
END_TEST

START_TEST(losses_fall_with_bits)
{
    struct rig rig;
    rig_open(&rig, 2);
    struct heads h = heads_new(&rig, 96, 0, 31);
    double last = INFINITY;
    for (int bits = 2; bits <= 8; bits += 2) {
        squeeze(&rig, &h, bits, true);
        struct gpu_attention_error error = loss(&rig, &h, 0);
        ck_assert(error.output_error < 0.5 * last);
        last = error.output_error;
    }
    heads_free(&rig, &h);
    rig_close(&rig);
}
END_TEST

/* A key channel far larger than the others takes the grid of its whole token, but only its own by channel. */
START_TEST(an_outlier_channel_wants_keys_by_channel)
{
    struct rig rig;
    rig_open(&rig, 2);
    struct heads h = heads_new(&rig, 96, 0, 41);
    for (int64_t t = 0; t < 2 * 96; t++) {
        floats(&h.k)[t * 2 * DIM + 3] = 40.0f + floats(&h.k)[t * 2 * DIM + 3];
        floats(&h.k)[t * 2 * DIM + DIM + 5] = -40.0f + floats(&h.k)[t * 2 * DIM + DIM + 5];
    }
    squeeze(&rig, &h, 4, false);
    struct gpu_attention_error by_token = loss(&rig, &h, 0);
    squeeze(&rig, &h, 4, true);
    struct gpu_attention_error by_channel = loss(&rig, &h, 0);
    ck_assert(by_channel.weight_error < 0.05 * by_token.weight_error);
    heads_free(&rig, &h);
    rig_close(&rig);
}
END_TEST

/* q = [1,1], K = [[1,0],[.9,.9]]: scores [1, 1.8]; K2 -> [1,1] makes it 2, K2 -> [1,.5] makes it 1.5. */
START_TEST(the_worked_example)
{
    static const float k[4] = {1, 0, 0.9f, 0.9f}, kq[2][4] = {{1, 0, 1, 1}, {1, 0, 1, 0.5f}};
    static const double second[2] = {2, 1.5};
    const struct gpu_attention spec = {
        .sequences = 1, .length = 2, .heads = 1, .kv_heads = 1, .head_dim = 2, .scale = (float)(1 / sqrt(2))};
    struct rig rig;
    rig_open(&rig, 1);
    struct tensor t[4];
    for (int i = 0; i < 4; i++) {
        t[i] = rig_tensor(&rig, DTYPE_F32, 2, 2);
    }
    memcpy(t[1].data, k, sizeof(k));
    memcpy(t[3].data, k, sizeof(k));
    for (int i = 0; i < 4; i++) {
        floats(&t[0])[i] = 1;
    }
    for (int i = 0; i < 2; i++) {
        struct gpu_attention_error error = {0};
        memcpy(t[2].data, kq[i], sizeof(kq[i]));
        ck_assert_rc_ok(rig.ops->attention_error(rig.stream, &error, &t[0], &t[1], &t[3], &t[2], &t[3], &spec, 0));
        double p = 1 / (1 + exp(-0.8 / sqrt(2))), pq = 1 / (1 + exp(-(second[i] - 1) / sqrt(2)));
        ck_assert_double_eq_tol(error.score_error, pow(second[i] - 1.8, 2), 1e-6);
        ck_assert_double_eq_tol(error.score_signal, 1 + 1 + 1.8 * 1.8, 1e-5);
        ck_assert_double_eq_tol(error.weight_error, 2 * pow(p - pq, 2), 1e-6);
    }
    for (int i = 0; i < 4; i++) {
        gpu_tensor_free(&rig.gpu, &t[i]);
    }
    rig_close(&rig);
}
END_TEST

START_TEST(threads_give_the_same_bits)
{
    struct gpu_attention_error first = {0};
    for (int threads = 1; threads <= 2; threads++) {
        struct rig rig;
        rig_open(&rig, threads);
        struct heads h = heads_new(&rig, 96, 0, 51);
        squeeze(&rig, &h, 3, true);
        struct gpu_attention_error error = loss(&rig, &h, 32);
        if (threads == 1) {
            first = error;
        }
        ck_assert_int_eq(memcmp(&first, &error, sizeof(error)), 0);
        heads_free(&rig, &h);
        rig_close(&rig);
    }
}
END_TEST

START_TEST(unsound_arguments_are_refused)
{
    struct rig rig;
    rig_open(&rig, 1);
    struct tensor x = rig_tensor(&rig, DTYPE_F32, 8, 6), scale = rig_tensor(&rig, DTYPE_F32, 1, 2);
    const struct gpu_cache bad[] = {
        {.element = DTYPE_U8, .group_size = 0, .bits = 4, .tokens = 1, .length = 8},
        {.element = DTYPE_U8, .group_size = 4, .bits = 4, .tokens = 1, .length = 8},
        {.element = DTYPE_U8, .group_size = 3, .bits = 0, .tokens = 1, .length = 8},
        {.element = DTYPE_U8, .group_size = 3, .bits = 9, .tokens = 1, .length = 8},
        {.element = DTYPE_U8, .group_size = 3, .bits = 4, .tokens = 0, .length = 8},
        {.element = DTYPE_U8, .group_size = 3, .bits = 4, .tokens = 1, .length = 3},
        {.group_size = 3, .element = DTYPE_I8},
        {.group_size = 6, .element = DTYPE_I8, .scale = &scale},
        {.group_size = 3, .element = DTYPE_F64, .scale = &scale},
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        ck_assert_int_eq(rig.ops->quantize_cache(rig.stream, &x, &x, &bad[i]), ERR_INTERNAL);
    }
    struct heads h = heads_new(&rig, 8, 0, 1);
    struct gpu_attention_error error = {0};
    ck_assert_int_eq(rig.ops->attention_error(rig.stream, &error, &h.q, &h.k, &h.v, &h.kq, &h.vq, &h.spec, -1),
                     ERR_INTERNAL);
    ck_assert_int_eq(rig.ops->attention_error(rig.stream, &error, &h.q, &h.k, &h.v, &x, &h.vq, &h.spec, 0),
                     ERR_INTERNAL);
    heads_free(&rig, &h);
    gpu_tensor_free(&rig.gpu, &x);
    gpu_tensor_free(&rig.gpu, &scale);
    rig_close(&rig);
}
END_TEST

UNIT_MAIN("gpu/cache", symmetric_scales_belong_to_their_runs, asymmetric_groups_have_their_own_range,
          a_range_of_nothing, losses_are_the_definition, nothing_is_lost_before_the_window_is_full,
          a_stream_loses_what_one_pass_does, losses_fall_with_bits, an_outlier_channel_wants_keys_by_channel,
          the_worked_example, threads_give_the_same_bits, unsound_arguments_are_refused)
