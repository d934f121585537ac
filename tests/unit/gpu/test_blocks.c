/* GGUF blocks: layouts to the bit, fixed points, and what the search for scales gains. */

#include "gpu/ggml_blocks.h"
#include "tests/unit/gpu/support.h"

#include <stdio.h>
#include <stdlib.h>

static const int types[] = {GGML_TYPE_Q8_0, GGML_TYPE_Q4_0, GGML_TYPE_Q4_K, GGML_TYPE_Q6_K, GGML_TYPE_IQ4_NL};
#define TYPES (int)(sizeof(types) / sizeof(types[0]))

static struct tensor encode(struct rig *rig, const struct tensor *w, const struct tensor *importance, int type,
                            bool search)
{
    const struct gpu_blocks spec = {.type = type, .search = search};
    struct tensor blocks = rig_tensor(rig, DTYPE_U8, w->shape[0], ggml_row_bytes(type, w->shape[1]));

    ck_assert_rc_ok(rig->ops->encode_blocks(rig->stream, &blocks, w, importance, &spec));
    return blocks;
}

static struct tensor decode(struct rig *rig, const struct tensor *blocks, int type, int64_t cols)
{
    struct tensor back = rig_tensor(rig, DTYPE_F32, blocks->shape[0], cols);

    for (int64_t n = 0; n < blocks->shape[0]; n++) {
        ggml_decode_row(type, bytes(blocks) + n * blocks->shape[1], cols, floats(&back) + n * cols);
    }
    return back;
}

/* sum importance err^2 of columns [begin, end) of one row. */
static double lost(const struct tensor *w, const struct tensor *back, const float *importance, int64_t row,
                   int64_t begin, int64_t end)
{
    double sum = 0;

    for (int64_t j = begin; j < end; j++) {
        double error = (double)floats(w)[row * w->shape[1] + j] - (double)floats(back)[row * w->shape[1] + j];
        sum += (importance != NULL ? (double)importance[j] : 1.0) * error * error;
    }
    return sum;
}

static double encoded_loss(struct rig *rig, const struct tensor *w, const struct tensor *importance, int type,
                           bool search, const float *judge)
{
    struct tensor blocks = encode(rig, w, importance, type, search);
    struct tensor back = decode(rig, &blocks, type, w->shape[1]);
    double sum = 0;

    for (int64_t n = 0; n < w->shape[0]; n++) {
        sum += lost(w, &back, judge, n, 0, w->shape[1]);
    }
    gpu_tensor_free(&rig->gpu, &blocks);
    gpu_tensor_free(&rig->gpu, &back);
    return sum;
}

START_TEST(layouts)
{
    static const uint8_t q4_0[16] = {0x80, 0x91, 0x91, 0xa2, 0xa2, 0xb3, 0xb3, 0xc4,
                                     0xc4, 0xd5, 0xd5, 0xe6, 0xe6, 0xf7, 0xf7, 0xf8};
    static const uint8_t packed[12] = {0x81, 0xc2, 0x43, 0xc4, 0x85, 0x46, 0xc7, 0x08, 0x81, 0x52, 0xc1, 0x9f};
    static const uint8_t scales[8] = {1, 2, 3, 4, 33, 50, 17, 63}, minima[8] = {5, 6, 7, 8, 40, 21, 60, 9};
    uint8_t made[12] = {0};
    struct rig rig;

    rig_open(&rig, 1);
    struct tensor w = rig_tensor(&rig, DTYPE_F32, 1, 32);
    for (int i = 0; i < 32; i++) {
        floats(&w)[i] = (float)(i - 16);
    }
    struct tensor blocks = encode(&rig, &w, NULL, GGML_TYPE_Q4_0, false);
    ck_assert_uint_eq(bytes(&blocks)[0] | bytes(&blocks)[1] << 8, 0x4000); /* 2.0 */
    ck_assert_mem_eq(bytes(&blocks) + 2, q4_0, 16);
    gpu_tensor_free(&rig.gpu, &blocks);
    for (int i = 0; i < 32; i++) {
        floats(&w)[i] = (float)(4 * i) * (i % 2 == 0 ? 1.0f : -1.0f) + (i == 31 ? -3.0f : 0.0f);
    }
    blocks = encode(&rig, &w, NULL, GGML_TYPE_Q8_0, false); /* the extreme is -127, so d is 1 */
    ck_assert_uint_eq(bytes(&blocks)[0] | bytes(&blocks)[1] << 8, 0x3c00);
    for (int i = 0; i < 32; i++) {
        ck_assert_int_eq((int8_t)bytes(&blocks)[2 + i], (int)floats(&w)[i]);
    }
    for (int j = 0; j < 8; j++) {
        uint8_t scale, minimum;
        ggml_q4k_set_scale(made, j, scales[j], minima[j]);
        ggml_q4k_scale(packed, j, &scale, &minimum);
        ck_assert(scale == scales[j] && minimum == minima[j]);
    }
    ck_assert_mem_eq(made, packed, 12);
    gpu_tensor_free(&rig.gpu, &blocks);
    gpu_tensor_free(&rig.gpu, &w);
    rig_close(&rig);
}
END_TEST

/* What blocks can say exactly comes back exactly. */
START_TEST(blocks_of_blocks_are_the_same)
{
    struct rig rig;

    rig_open(&rig, 2);
    for (int search = 0; search < 2; search++) {
        struct tensor w = rig_random(&rig, 6, 512, 5);
        struct tensor blocks = encode(&rig, &w, NULL, types[_i], false);
        struct tensor back = decode(&rig, &blocks, types[_i], 512);
        double first = 0, again = encoded_loss(&rig, &back, NULL, types[_i], search == 1, NULL);
        for (int64_t n = 0; n < 6; n++) {
            first += lost(&w, &back, NULL, n, 0, 512);
        }
        /* A block of scales that need not use its largest integers may come back in other words: never far away. */
        ck_assert_msg(again <= (types[_i] == GGML_TYPE_Q4_K || types[_i] == GGML_TYPE_Q6_K ? 0.25 * first : 0),
                      "type %d: %g of %g", types[_i], again, first);
        gpu_tensor_free(&rig.gpu, &w);
        gpu_tensor_free(&rig.gpu, &blocks);
        gpu_tensor_free(&rig.gpu, &back);
    }
    rig_close(&rig);
}
END_TEST

/* Importance over five orders of magnitude, with zeros in it. */
static struct tensor importance_new(struct rig *rig, int64_t cols, uint64_t seed)
{
    struct tensor tensor;

    ck_assert_rc_ok(gpu_tensor_new(&rig->gpu, DTYPE_F32, 1, &cols, &tensor));
    for (int64_t j = 0; j < cols; j++) {
        floats(&tensor)[j] = random_bits(&seed) % 8 == 0 ? 0.0f : expf(3.0f * random_normal(&seed));
    }
    return tensor;
}

/* Block by block: a search loses no more than plain scales in what it was asked to weigh. */
START_TEST(search_never_loses)
{
    double plain_sum = 0, found_sum = 0;
    struct rig rig;

    rig_open(&rig, 2);
    for (uint64_t seed = 1; seed <= 4; seed++) {
        struct tensor w = rig_random(&rig, 24, 768, seed), importance = importance_new(&rig, 768, seed + 9);
        const struct tensor *weigh = seed % 2 == 0 ? &importance : NULL;
        struct tensor a = encode(&rig, &w, NULL, types[_i], false), b = encode(&rig, &w, weigh, types[_i], true);
        struct tensor plain = decode(&rig, &a, types[_i], 768), found = decode(&rig, &b, types[_i], 768);
        for (int64_t n = 0; n < 24; n++) {
            int64_t size = ggml_block_find(types[_i])->elements;
            for (int64_t j = 0; j < 768; j += size) {
                const float *judge = weigh != NULL ? floats(&importance) : NULL;
                double of_plain = lost(&w, &plain, judge, n, j, j + size);
                double of_found = lost(&w, &found, judge, n, j, j + size);
                if (of_found > of_plain) {
                    ck_abort_msg("type %d: %g, plain %g", types[_i], of_found, of_plain);
                }
                plain_sum += weigh == NULL ? of_plain : 0;
                found_sum += weigh == NULL ? of_found : 0;
            }
        }
        gpu_tensor_free(&rig.gpu, &w);
        gpu_tensor_free(&rig.gpu, &importance);
        gpu_tensor_free(&rig.gpu, &a);
        gpu_tensor_free(&rig.gpu, &b);
        gpu_tensor_free(&rig.gpu, &plain);
        gpu_tensor_free(&rig.gpu, &found);
    }
    rig_close(&rig);
    printf("%s: a search leaves %.3f of the squared error\n", ggml_block_find(types[_i])->name, found_sum / plain_sum);
    ck_assert_msg(found_sum < (types[_i] == GGML_TYPE_Q8_0 ? 0.99 : 0.95) * plain_sum, "type %d: %g of %g", types[_i],
                  found_sum, plain_sum);
}
END_TEST

/* The best F16 scale of one block by trying every one of a fine sweep, in double. */
static double brute_force(const float *x, const float *weight, int type)
{
    float extreme = 0;
    double best = INFINITY;

    for (int i = 0; i < 32; i++) {
        extreme = fmaxf(extreme, fabsf(x[i]));
    }
    for (int step = -6000; step <= 6000; step++) {
        double d = (double)dtype_round(extreme * (float)step / 30000.0f, DTYPE_F16), sum = 0;
        if (type == GGML_TYPE_IQ4_NL) {
            d = (double)dtype_round(extreme * (float)step / 500000.0f, DTYPE_F16);
        }
        for (int i = 0; i < 32; i++) {
            double least = INFINITY;
            for (int u = 0; u < 16; u++) {
                double level = type == GGML_TYPE_Q4_0 ? u - 8 : ggml_iq4nl_levels[u];
                double error = (double)x[i] - d * level;
                least = fmin(least, error * error);
            }
            sum += (double)weight[i] * least;
        }
        best = fmin(best, sum);
    }
    return best;
}

START_TEST(search_comes_near_brute_force)
{
    static const int simple[] = {GGML_TYPE_Q4_0, GGML_TYPE_IQ4_NL};
    struct rig rig;
    rig_open(&rig, 1);
    struct tensor w = rig_random(&rig, 8, 32, 77), importance = importance_new(&rig, 32, 3);

    for (int t = 0; t < 2; t++) {
        double best = 0, found = encoded_loss(&rig, &w, &importance, simple[t], true, floats(&importance));
        for (int n = 0; n < 8; n++) {
            best += brute_force(floats(&w) + (ptrdiff_t)n * 32, floats(&importance), simple[t]);
        }
        ck_assert_msg(found <= 1.1 * best, "type %d: %g, best %g", simple[t], found, best);
        ck_assert_msg(found >= 0.999 * best, "type %d: %g, best %g", simple[t], found, best);
    }
    gpu_tensor_free(&rig.gpu, &w);
    gpu_tensor_free(&rig.gpu, &importance);
    rig_close(&rig);
}
END_TEST

/* Zero, constant, one huge, tiny, too large for F16: finite, zeros stay zeros. */
START_TEST(odd_blocks)
{
    struct rig rig;
    rig_open(&rig, 1);

    for (int oddity = 0; oddity < 6; oddity++) {
        struct tensor w = rig_random(&rig, 4, 256, 8);
        for (int64_t i = 0; i < 4 * 256; i++) {
            static const float factor[] = {0.0f, 0.0f, 1.0f, 1e-9f, 1e-39f, 1e7f};
            floats(&w)[i] =
                floats(&w)[i] * factor[oddity] + (oddity == 1 ? 0.37f : 0.0f) + (oddity == 2 && i == 5 ? 1e4f : 0.0f);
        }
        for (int search = 0; search < 2; search++) {
            struct tensor blocks = encode(&rig, &w, NULL, types[_i], search == 1);
            struct tensor back = decode(&rig, &blocks, types[_i], 256);
            for (int64_t i = 0; i < 4 * 256; i++) {
                if (!isfinite(floats(&back)[i]) || (oddity == 0 && floats(&back)[i] != 0)) {
                    ck_abort_msg("type %d oddity %d: %g", types[_i], oddity, (double)floats(&back)[i]);
                }
                if (oddity == 1 && fabsf(floats(&back)[i] - 0.37f) > 0.002f) {
                    ck_abort_msg("type %d: a constant came back as %g", types[_i], (double)floats(&back)[i]);
                }
            }
            gpu_tensor_free(&rig.gpu, &blocks);
            gpu_tensor_free(&rig.gpu, &back);
        }
        gpu_tensor_free(&rig.gpu, &w);
    }
    rig_close(&rig);
}
END_TEST

START_TEST(threads_give_the_same_bytes)
{
    struct tensor kept = {0};
    struct rig rigs[2];

    for (int t = 0; t < 2; t++) {
        rig_open(&rigs[t], t + 1);
        struct tensor w = rig_random(&rigs[t], 40, 512, 21), importance = importance_new(&rigs[t], 512, 22);
        struct tensor blocks = encode(&rigs[t], &w, &importance, types[_i], true);
        if (t == 1) {
            ck_assert_int_eq(memcmp(kept.data, blocks.data, tensor_bytes(&blocks)), 0);
            gpu_tensor_free(&rigs[1].gpu, &blocks);
            gpu_tensor_free(&rigs[0].gpu, &kept);
        } else {
            kept = blocks;
        }
        gpu_tensor_free(&rigs[t].gpu, &w);
        gpu_tensor_free(&rigs[t].gpu, &importance);
    }
    rig_close(&rigs[0]);
    rig_close(&rigs[1]);
}
END_TEST

START_TEST(wrong_shapes_are_refused)
{
    struct rig rig;
    rig_open(&rig, 1);
    struct tensor w = rig_random(&rig, 2, 96, 1), blocks = rig_tensor(&rig, DTYPE_U8, 2, 54);
    const struct gpu_blocks wide = {.type = GGML_TYPE_Q4_K}, unknown = {.type = 99}, q8 = {.type = GGML_TYPE_Q8_0};

    ck_assert_int_eq(rig.ops->encode_blocks(rig.stream, &blocks, &w, NULL, &wide), ERR_INTERNAL);
    ck_assert_int_eq(rig.ops->encode_blocks(rig.stream, &blocks, &w, NULL, &unknown), ERR_INTERNAL);
    ck_assert_int_eq(rig.ops->encode_blocks(rig.stream, &blocks, &w, NULL, &q8), ERR_INTERNAL);
    ck_assert_int_eq(rig.ops->encode_blocks(rig.stream, &w, &w, NULL, &q8), ERR_INTERNAL);
    gpu_tensor_free(&rig.gpu, &w);
    gpu_tensor_free(&rig.gpu, &blocks);
    rig_close(&rig);
}
END_TEST

#define HARD_BLOCKS 27

/* Random, constant, zero, subnormal, huge, negative, and nearly equal ones, of each some sub-blocks. */
static void fill_hard(float *x)
{
    static const float factors[] = {1.0f, 0.0f, 1e-39f, 3e37f, 1e-9f, -2.0f, 6e4f};
    uint64_t state = 31;

    for (int i = 0; i < HARD_BLOCKS * 256; i++) {
        int block = i / 256, sub = i / 32;
        int kind = (block < 7 ? block : sub) % 7;
        float value = factors[kind] * random_unit(&state);
        x[i] = kind == 5              ? -fabsf(value)
               : block % 9 == 8       ? 0.25f + 1e-7f * value
               : i % 61 == 0          ? -value
               : (i + block) % 97 < 2 ? 0.0f
                                      : value;
    }
}

/* Blocks of three rows, so that some are searched two at once and the last alone, at one level. */
static void encode_hard(const char *level, int type, bool weighted, uint8_t *out)
{
    struct rig rig;

    setenv("QUANTD_CPU_LEVEL", level, 1);
    rig_open(&rig, 1);
    struct tensor w = rig_tensor(&rig, DTYPE_F32, 3, HARD_BLOCKS / 3 * 256);
    struct tensor importance = importance_new(&rig, HARD_BLOCKS / 3 * 256, 23);
    fill_hard(floats(&w));
    for (int i = 0; i < 256; i++) {
        floats(&importance)[i] = 0.0f; /* a block that nothing reads */
    }
    struct tensor blocks = encode(&rig, &w, weighted ? &importance : NULL, type, true);
    memcpy(out, blocks.data, tensor_bytes(&blocks));
    gpu_tensor_free(&rig.gpu, &blocks);
    gpu_tensor_free(&rig.gpu, &importance);
    gpu_tensor_free(&rig.gpu, &w);
    rig_close(&rig);
    unsetenv("QUANTD_CPU_LEVEL");
}

/* Sub-blocks in the lanes of vectors get the bytes that the generic level gives them one by one. */
START_TEST(lanes_give_the_bytes_of_single_blocks)
{
    static uint8_t expected[HARD_BLOCKS * 272], found[HARD_BLOCKS * 272]; /* Q8_0 has the most */

    for (int weighted = 0; weighted < 2; weighted++) {
        encode_hard("generic", types[_i], weighted != 0, expected);
        encode_hard("avx2", types[_i], weighted != 0, found);
        ck_assert_mem_eq(found, expected, sizeof(expected));
        encode_hard("avx512", types[_i], weighted != 0, found);
        ck_assert_mem_eq(found, expected, sizeof(expected));
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("gpu/blocks");
    TCase *tcase = tcase_create("all");

    tcase_set_timeout(tcase, 120);
    tcase_add_test(tcase, layouts);
    tcase_add_test(tcase, search_comes_near_brute_force);
    tcase_add_test(tcase, wrong_shapes_are_refused);
    tcase_add_loop_test(tcase, lanes_give_the_bytes_of_single_blocks, 0, TYPES);
    tcase_add_loop_test(tcase, blocks_of_blocks_are_the_same, 0, TYPES);
    tcase_add_loop_test(tcase, search_never_loses, 0, TYPES);
    tcase_add_loop_test(tcase, odd_blocks, 0, TYPES);
    tcase_add_loop_test(tcase, threads_give_the_same_bytes, 0, TYPES);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
