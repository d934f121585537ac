/* Frames between a run's process and its parent: what goes in comes out, and nothing else is believed. */

#include "base/err.h"
#include "pipeline/message_wire.h"
#include "pipeline/order.h"
#include "tests/unit/unit.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static float keys[2] = {0.5f, -1.0f}, values[2] = {3.0f, 4.0f};
static struct cache_scales scales = {2, keys, values}, none;
static struct report_row rows[2] = {
    {.index = 7,
     .layer = 1,
     .module = "model.layers.1.mlp.up_proj",
     .method = "gptq",
     .loss = NAN,
     .input_outlier = -1},
    {.index = 8, .module = "b", .target = "weight", .fallback = "\xc3\xa4", .nonfinite = 1, .seconds = 0.25}};
static struct analysis_row analysis[1] = {
    {.layer = 1,
     .scheme = "kivi2",
     .key_relative_mse = NAN,
     .tokens = 9,
     .linear = {.module = "a.b", .method = "rtn", .set = 3, .kl = 0.5, .measured = true}}};

static const struct tune_curve curve = {.done = true,
                                        .steps = 3,
                                        .sequences = 4,
                                        .held_out = 1,
                                        .first = 2,
                                        .best = 1,
                                        .last = NAN,
                                        .best_step = 2,
                                        .seconds = 0.5,
                                        .bytes = 7,
                                        .note = "n",
                                        .points = {{1, 0.5, 2}, {3, 0.25, 1}},
                                        .count = 2};

static const struct saved_block saved = {
    .index = 3,
    .version = CHECKPOINT_VERSION,
    .file = "block-00003.safetensors",
    .sha256 = "00",
    .activations = {{.store = "calibration", .file = "calibration-00003.act", .sha256 = "11"}},
    .activation_count = 1,
};

static struct message sample(enum message_kind kind)
{
    struct message message = {.kind = kind, .device_peak_bytes = 5, .host_peak_bytes = 6};
    message.times.seconds[PHASE_SOLVE] = 1.5;
    switch (kind) {
    case MESSAGE_PROGRESS:
        message.progress = (struct message_progress){0.5, 2, message_steps[1], {3, 4, 0.25, 0.01, 0.02}};
        break;
    case MESSAGE_BLOCK_DONE:
        message.block = (struct message_block){saved, rows, 2, &scales, analysis, 1, &curve, true};
        break;
    case MESSAGE_WARNING:
        message.warning = (struct message_warning){"scales_clamped", "some text"};
        break;
    case MESSAGE_FAILED:
        message.failure = (struct err_record){.code = ERR_NON_FINITE_VALUE, .message = "m", .module = "model.norm"};
        break;
    default:
        message.done = (struct evaluation_result){.done = true,
                                                  .perplexity_before = 2,
                                                  .perplexity_after = 3,
                                                  .kl_mean = INFINITY,
                                                  .top1_agreement = 0.25,
                                                  .generation = {7, 8, 9, 0.5, 0.125, 0.75},
                                                  .tokens = 4,
                                                  .sequences = 5,
                                                  .length = 6};
    }
    return message;
}

static void same_scales(const struct cache_scales *a, const struct cache_scales *b)
{
    ck_assert_int_eq(a->count, b->count);
    ck_assert(a->count == 0 || memcmp(a->keys, b->keys, (size_t)a->count * sizeof(float)) == 0);
    ck_assert(a->count == 0 || memcmp(a->values, b->values, (size_t)a->count * sizeof(float)) == 0);
}

static void same_block(const struct message_block *a, const struct message_block *b)
{
    ck_assert_mem_eq(&a->saved, &b->saved, sizeof(a->saved));
    ck_assert_int_eq(a->row_count, b->row_count);
    for (int i = 0; i < a->row_count; i++) {
        ck_assert_mem_eq(&a->rows[i], &b->rows[i], sizeof(a->rows[i]));
    }
    same_scales(a->cache, b->cache);
    ck_assert_int_eq(a->analysis_count, b->analysis_count);
    for (int i = 0; i < a->analysis_count; i++) {
        ck_assert_str_eq(a->analysis[i].scheme, b->analysis[i].scheme);
        ck_assert(isnan(a->analysis[i].key_relative_mse) && isnan(b->analysis[i].key_relative_mse));
        ck_assert_int_eq(a->analysis[i].tokens, b->analysis[i].tokens);
        ck_assert_mem_eq(&a->analysis[i].linear, &b->analysis[i].linear, sizeof(a->analysis[i].linear));
        same_scales(&a->analysis[i].scales, &b->analysis[i].scales);
    }
    ck_assert_int_eq(a->again, b->again);
    if (a->tuning == NULL) {
        ck_assert(!b->tuning->done);
        return;
    }
    ck_assert(b->tuning->done && isnan(b->tuning->last));
    ck_assert_int_eq(a->tuning->steps, b->tuning->steps);
    ck_assert_int_eq(a->tuning->best_step, b->tuning->best_step);
    ck_assert_int_eq(a->tuning->bytes, b->tuning->bytes);
    ck_assert_str_eq(a->tuning->note, b->tuning->note);
    ck_assert_int_eq(a->tuning->count, b->tuning->count);
    ck_assert_mem_eq(a->tuning->points, b->tuning->points, sizeof(a->tuning->points));
}

START_TEST(test_messages_arrive_as_they_were)
{
    for (int kind = 0; kind < MESSAGE_COUNT; kind++) {
        struct message message = sample((enum message_kind)kind), back;
        struct wire_out out = {.data = NULL};
        message_encode(&message, &out);
        ck_assert(!out.failed);
        struct wire_in in = {.at = out.data, .left = out.size};
        ck_assert_rc_ok(message_decode(&in, &back));
        ck_assert_int_eq(back.kind, kind);
        ck_assert_double_eq(back.times.seconds[PHASE_SOLVE], 1.5);
        ck_assert_int_eq(back.device_peak_bytes, 5);
        ck_assert_int_eq(back.host_peak_bytes, 6);
        if (kind == MESSAGE_PROGRESS) {
            ck_assert_ptr_eq(back.progress.step, message_steps[1]);
            ck_assert_int_eq(back.progress.block, 2);
            ck_assert_mem_eq(&back.progress.learning, &message.progress.learning, sizeof(back.progress.learning));
        } else if (kind == MESSAGE_BLOCK_DONE) {
            same_block(&message.block, &back.block);
        } else if (kind == MESSAGE_WARNING) {
            ck_assert_str_eq(back.warning.text, "some text");
        } else if (kind == MESSAGE_FAILED) {
            ck_assert_int_eq(back.failure.code, ERR_NON_FINITE_VALUE);
            ck_assert_str_eq(back.failure.module, "model.norm");
        } else {
            ck_assert(back.done.done && isinf(back.done.kl_mean));
            ck_assert_double_eq(back.done.perplexity_after, 3);
            ck_assert_int_eq(back.done.length, 6);
            ck_assert_double_eq(back.done.top1_agreement, 0.25);
            ck_assert_mem_eq(&back.done.generation, &message.done.generation, sizeof(message.done.generation));
        }
        message_decoded_deinit(&back);
        free(out.data);
    }
}
END_TEST

/* Cut anywhere, longer by a byte, or with a number that is too large for what is there: refused, and nothing leaks. */
START_TEST(test_broken_messages_are_refused)
{
    for (int kind = 0; kind < MESSAGE_COUNT; kind++) {
        struct message message = sample((enum message_kind)kind), back;
        struct wire_out out = {.data = NULL};
        message_encode(&message, &out);
        for (size_t size = 0; size < out.size; size++) {
            struct wire_in in = {.at = out.data, .left = size};
            ck_assert_int_eq(message_decode(&in, &back), ERR_WORKER_LOST);
        }
        wire_put_bytes(&out, "", 1);
        struct wire_in longer = {.at = out.data, .left = out.size};
        ck_assert_int_eq(message_decode(&longer, &back), ERR_WORKER_LOST);
        for (size_t at = 0; at + 8 < out.size; at += 8) {
            unsigned char original[8];
            memcpy(original, out.data + at, 8);
            memset(out.data + at, 0x7f, 8);
            struct wire_in in = {.at = out.data, .left = out.size - 1};
            if (message_decode(&in, &back) == 0) {
                message_decoded_deinit(&back);
            }
            memcpy(out.data + at, original, 8);
        }
        free(out.data);
    }
}
END_TEST

START_TEST(test_orders_arrive_as_they_were)
{
    struct saved_block blocks[1] = {saved};
    struct order back, order = {
                           .method = "\"gptq\"",
                           .quantization = "{}",
                           .format = "gguf",
                           .device = "cpu",
                           .threads = 2,
                           .trace_id = "0af7651916cd43dd8448eb211c80319c",
                           .module_folders = "",
                           .cpu_products = "float32",
                           .cache_folder = "/c",
                           .model = "a/b",
                           .directory = "/jobs/x",
                           .model_digest = "22",
                           .generation = {4, 32, 16},
                           .float_model = {"eval_float", "eval_float-00003.act", "44"},
                           .seed = UINT64_MAX,
                           .host_memory_bytes = 9,
                           .calibration = {2, 3, "33"},
                           .blocks = blocks,
                           .block_count = 1,
                           .rows_before = 28,
                       };
    struct wire_out out = {.data = NULL};
    order_encode(&order, &out);
    struct wire_in in = {.at = out.data, .left = out.size};
    ck_assert_rc_ok(order_decode(&in, &back));
    ck_assert_str_eq(back.method, order.method);
    ck_assert_str_eq(back.model, "a/b");
    ck_assert_str_eq(back.trace_id, order.trace_id);
    ck_assert(back.seed == UINT64_MAX);
    ck_assert_int_eq(back.generation.tokens, 16);
    ck_assert_mem_eq(&back.float_model, &order.float_model, sizeof(order.float_model));
    ck_assert_int_eq(back.calibration.sequences, 2);
    ck_assert_int_eq(back.evaluation.sequences, 0);
    ck_assert_int_eq(back.block_count, 1);
    ck_assert_mem_eq(&back.blocks[0], &saved, sizeof(saved));
    ck_assert_int_eq(back.rows_before, 28);
    order_deinit(&back);
    for (size_t size = 0; size < out.size; size++) {
        struct wire_in cut = {.at = out.data, .left = size};
        ck_assert_int_eq(order_decode(&cut, &back), ERR_WORKER_LOST);
    }
    free(out.data);
}
END_TEST

/* In pieces, one after another, by a peer that goes, and by one that speaks another version. */
START_TEST(test_frames)
{
    struct wire_receiver receiver = {.data = NULL};
    const struct wire_out body = {.data = (unsigned char *)"abc", .size = 3};
    enum wire_kind kind;
    struct wire_in in;
    unsigned char frame[64];
    bool got;
    int pair[2], back[2];

    ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, back), 0);
    ck_assert_rc_ok(wire_receive(pair[0], &receiver, false, &got, &kind, &in));
    ck_assert(!got);
    ck_assert_rc_ok(wire_send(pair[1], WIRE_IDS, &body));
    ck_assert_rc_ok(wire_send_code(pair[1], WIRE_STOP, ERR_CANCELLED));
    ck_assert_rc_ok(wire_receive(pair[0], &receiver, false, &got, &kind, &in));
    ck_assert(got && kind == WIRE_IDS && in.left == 3 && memcmp(in.at, "abc", 3) == 0);
    ck_assert_rc_ok(wire_receive(pair[0], &receiver, true, &got, &kind, &in));
    ck_assert(got && kind == WIRE_STOP);
    ck_assert_int_eq(wire_get_int(&in), ERR_CANCELLED);
    ck_assert_rc_ok(wire_send(pair[1], WIRE_IDS, &body));
    ssize_t size = read(pair[0], frame, sizeof(frame));
    ck_assert_int_eq(size, 19);
    for (ssize_t i = 0; i < size; i++) {
        ck_assert_rc_ok(wire_receive(back[0], &receiver, false, &got, &kind, &in));
        ck_assert(!got);
        ck_assert_int_eq(write(back[1], frame + i, 1), 1);
    }
    ck_assert_rc_ok(wire_receive(back[0], &receiver, false, &got, &kind, &in));
    ck_assert(got && in.left == 3);
    frame[4]++; /* of the version */
    ck_assert_int_eq(write(back[1], frame, 16), 16);
    ck_assert_int_eq(wire_receive(back[0], &receiver, false, &got, &kind, &in), ERR_WORKER_LOST);
    close(pair[1]);
    wire_receiver_deinit(&receiver);
    ck_assert_int_eq(wire_receive(pair[0], &receiver, true, &got, &kind, &in), ERR_WORKER_LOST);
    ck_assert_int_eq(wire_send(pair[0], WIRE_IDS, &body), ERR_WORKER_LOST);
    wire_receiver_deinit(&receiver);
    close(pair[0]);
    close(back[0]);
    close(back[1]);
}
END_TEST

START_TEST(test_codes_that_are_none)
{
    static const int64_t codes[] = {ERR_CANCELLED, 0, 1, -ERR_BASE_, -ERR_END_, INT64_MIN, INT64_MAX};

    for (size_t i = 0; i < sizeof(codes) / sizeof(codes[0]); i++) {
        struct wire_out out = {.data = NULL};
        wire_put_int(&out, codes[i]);
        struct wire_in in = {.at = out.data, .left = out.size};
        ck_assert_int_eq(wire_get_code(&in), i == 0 ? ERR_CANCELLED : 0);
        ck_assert(in.bad == (i > 1));
        free(out.data);
    }
}
END_TEST

START_TEST(test_a_block_without_rows)
{
    struct message back, message = {.kind = MESSAGE_BLOCK_DONE, .block = {.saved = saved, .cache = &none}};
    struct wire_out out = {.data = NULL};
    message_encode(&message, &out);
    struct wire_in in = {.at = out.data, .left = out.size};
    ck_assert_rc_ok(message_decode(&in, &back));
    same_block(&message.block, &back.block);
    message_decoded_deinit(&back);
    free(out.data);
}
END_TEST

UNIT_MAIN("wire", test_messages_arrive_as_they_were, test_broken_messages_are_refused, test_orders_arrive_as_they_were,
          test_frames, test_codes_that_are_none, test_a_block_without_rows)
