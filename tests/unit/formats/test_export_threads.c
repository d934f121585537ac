/* An export over several threads: the same bytes, ticks where they belong, errors as if there were one. */

#include "formats/export.h"
#include "tests/unit/formats/export_rig.h"

#include <pthread.h>

/* Every thread count, in one file and in shards that cut modules in two, writes what one thread does. */
START_TEST(threads_do_not_show)
{
    static const char *const formats[] = {"compressed-tensors", "gptq_v2", "awq", "dense"};
    static const int64_t shards[] = {0, 5000};
    static const int threads[] = {0, 2, 5};

    for (size_t f = 0; f < sizeof(formats) / sizeof(formats[0]); f++) {
        struct rig rig;
        rig_init(&rig, NULL, formats[f], 4, 32, true);
        for (size_t s = 0; s < sizeof(shards) / sizeof(shards[0]); s++) {
            json_t *one, *many;
            rig.threads = 1;
            ck_assert_rc_ok(export_to(&rig, formats[f], s == 0 ? "one" : "one-in-shards", shards[s], NULL, NULL, &one));
            for (size_t t = 0; t < sizeof(threads) / sizeof(threads[0]); t++) {
                char folder[64];
                snprintf(folder, sizeof(folder), "many-%zu-%zu", s, t);
                rig.threads = threads[t];
                ck_assert_rc_ok(export_to(&rig, formats[f], folder, shards[s], NULL, NULL, &many));
                check_files(&rig, folder, many);
                ck_assert(json_equal(one, many));
                json_decref(many);
            }
            json_decref(one);
        }
        rig_deinit(&rig);
    }
}
END_TEST

static void check_units(const struct export_unit *units, const struct export_unit *expected, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        ck_assert_uint_eq(units[i].first, expected[i].first);
        ck_assert_uint_eq(units[i].count, expected[i].count);
        ck_assert_int_eq(units[i].ahead, expected[i].ahead);
        ck_assert_int_eq(units[i].at, expected[i].at);
        ck_assert_int_eq(units[i].size, expected[i].size);
    }
}

/* INT8 codes, scales and ranges of every module of a block, as the block's file has them. */
static void check_int8(const struct rig *rig, const char *folder, int block)
{
    struct safetensors *shard = open_shard(rig, folder, "model.safetensors");
    struct qtensor_file *file;
    char name[200];

    ck_assert_rc_ok(qtensor_file_open(rig->paths[block], NULL, &file));
    for (int i = 0; i < qtensor_file_count(file); i++) {
        struct qtensor q;
        ck_assert_rc_ok(qtensor_file_read(file, i, &q));
        float *ranges = malloc((size_t)q.rows * sizeof(*ranges));
        int8_t *codes = malloc((size_t)(q.rows * q.cols));
        snprintf(name, sizeof(name), "%s.SCB", q.name);
        ck_assert_rc_ok(safetensors_read(shard, safetensors_find(shard, name), 0, ranges, (size_t)q.rows * 4));
        snprintf(name, sizeof(name), "%s.weight", q.name);
        ck_assert_rc_ok(safetensors_read(shard, safetensors_find(shard, name), 0, codes, (size_t)(q.rows * q.cols)));
        for (int64_t n = 0; n < q.rows; n++) {
            ck_assert_float_eq(ranges[n], q.scales[n] * 127.0f);
        }
        for (int64_t k = 0; k < q.rows * q.cols; k++) {
            ck_assert_int_eq(codes[k], q.codes[k] - 128);
        }
        free(ranges);
        free(codes);
        qtensor_deinit(&q);
    }
    qtensor_file_close(file);
    safetensors_close(shard);
}

/* Ranges of F32 lie before all codes of a byte: read from blocks' files twice, in one file and in shards that cut
 * modules. */
START_TEST(ranges_ahead_of_codes)
{
    struct rig rig;
    json_t *files, *first = NULL;

    rig_init(&rig, NULL, "bitsandbytes", 8, -1, true);
    for (int i = 0; i < rig.count; i++) {
        rig.modules[i].scheme.input = (struct gpu_input){.element = DTYPE_I8, .dynamic = true};
    }
    make_blocks(&rig);
    for (int threads = 1; threads <= 5; threads += 4) {
        rig.threads = threads;
        ck_assert_rc_ok(export_to(&rig, "bitsandbytes", "single", 0, NULL, NULL, &files));
        check_files(&rig, "single", files);
        for (int block = 0; block < rig.blocks; block++) {
            check_int8(&rig, "single", block);
        }
        ck_assert(first == NULL || json_equal(first, files));
        json_decref(first);
        first = files;
        ck_assert_rc_ok(export_to(&rig, "bitsandbytes", threads == 1 ? "cut" : "cut-again", 500, NULL, NULL, &files));
        check_files(&rig, threads == 1 ? "cut" : "cut-again", files);
        json_decref(files);
    }
    json_decref(first);
    rig_deinit(&rig);
}
END_TEST

/* A module's pieces stay together but for those ahead of the codes, a large copy is cut, nothing is left out. */
START_TEST(units_of_a_plan)
{
    const int64_t mib = 1 << 20;
    struct export_piece pieces[] = {
        {.module = -1, .dense = -1, .bytes = 130 * mib}, {.module = 3, .dense = -1, .bytes = 500 * mib},
        {.module = 3, .dense = -1, .bytes = 10},         {.module = 4, .dense = -1, .bytes = 10},
        {.module = -1, .dense = 0, .bytes = 70 * mib},   {.module = -1, .dense = -1, .bytes = 0},
        {.module = -1, .dense = -1, .bytes = 64 * mib},  {.module = 5, .dense = -1, .bytes = 500 * mib},
        {.module = 5, .dense = -1, .ahead = true},       {.module = 6, .dense = -1, .ahead = true},
    };
    static const struct export_unit expected[] = {
        {.first = 0, .count = 1, .at = 0, .size = 64 << 20},
        {.first = 0, .count = 1, .at = 64 << 20, .size = 64 << 20},
        {.first = 0, .count = 1, .at = 128 << 20, .size = 2 << 20},
        {.first = 1, .count = 2},
        {.first = 3, .count = 1},
        {.first = 4, .count = 1},
        {.first = 5, .count = 1},
        {.first = 6, .count = 1, .size = 64 << 20},
        {.first = 7, .count = 2, .ahead = true},
        {.first = 7, .count = 2},
        {.first = 9, .count = 1, .ahead = true},
    };
    struct export_plan plan = {.pieces = pieces, .count = 10};
    struct export_unit *units;
    size_t count;

    ck_assert_rc_ok(export_units_list(&plan, 0, 10, &units, &count));
    ck_assert_uint_eq(count, sizeof(expected) / sizeof(expected[0]));
    check_units(units, expected, count);
    free(units);
    ck_assert_rc_ok(export_units_list(&plan, 1, 2, &units, &count)); /* the rest of it is in another shard */
    ck_assert(count == 1 && units[0].first == 1 && units[0].count == 1);
    free(units);
}
END_TEST

struct ticks {
    int count, stop_at;
    double last;
    pthread_t thread;
};

static int on_tick(void *data, double fraction)
{
    struct ticks *ticks = data;
    ck_assert(pthread_equal(ticks->thread, pthread_self()));
    ck_assert(fraction >= ticks->last && fraction <= 1);
    ticks->last = fraction;
    return ++ticks->count == ticks->stop_at ? err_raise(ERR_CANCELLED, "enough") : 0;
}

START_TEST(progress_and_cancellation)
{
    for (int threads = 1; threads <= 4; threads += 3) {
        struct rig rig;
        struct ticks ticks = {.thread = pthread_self()};
        json_t *files = NULL;
        rig_init(&rig, NULL, "gptq", 4, 32, true);
        rig.threads = threads;
        ck_assert_rc_ok(export_to(&rig, "gptq", "out", 0, on_tick, &ticks, &files));
        ck_assert_double_eq(ticks.last, 1);
        json_decref(files);
        files = NULL;
        /* Which pieces are the calling thread's varies, but for one thread and for the last tick of a shard. */
        for (int stop = 1; stop <= (threads == 1 ? ticks.count : 1); stop += 7) {
            struct ticks again = {.stop_at = stop, .thread = pthread_self()};
            ck_assert_int_eq(export_to(&rig, "gptq", "stopped", 9000, on_tick, &again, &files), ERR_CANCELLED);
            ck_assert_str_eq(err_last()->message, "enough");
            ck_assert_int_eq(again.count, stop);
            ck_assert_ptr_null(files);
        }
        rig_deinit(&rig);
    }
}
END_TEST

/* What goes wrong in a thread is told as if the caller had done it. */
START_TEST(errors_of_threads)
{
    for (int threads = 1; threads <= 4; threads += 3) {
        struct rig rig;
        json_t *files = NULL;
        rig_init(&rig, NULL, "gptq", 4, 32, true);
        rig.threads = threads;
        char *text;
        size_t size;
        ck_assert_rc_ok(fs_read_file(rig.paths[1], 1 << 22, &text, &size));
        text[size - 1] ^= 1; /* the zero points of the block's last module by name */
        ck_assert_rc_ok(fs_write_atomic(rig.paths[1], text, size));
        ck_assert_int_eq(export_to(&rig, "gptq", "damaged", 0, NULL, NULL, &files), ERR_SOURCE_CORRUPT);
        ck_assert_ptr_nonnull(strstr(err_last()->message, "model.layers.1.self_attn.v_proj is symmetric"));
        ck_assert_ptr_nonnull(strstr(err_last()->trace, "load model.layers.1.self_attn.v_proj.qweight"));
        ck_assert_int_eq(export_to(&rig, "gptq", "damaged-in-shards", 9000, NULL, NULL, &files), ERR_SOURCE_CORRUPT);
        ck_assert_ptr_null(files);
        free(text);
        rig_deinit(&rig);
    }
}
END_TEST

/* More pieces than the ring holds, full and short: the digest of them in order; or none, when abandoned. */
START_TEST(hash_behind_its_feeder)
{
    size_t bytes = 20 * EXPORT_HASH_PIECE, at = 0;
    unsigned char *data = malloc(bytes);
    char expected[DIGEST_HEX_SIZE], actual[DIGEST_HEX_SIZE];
    struct export_hash *hash, *abandoned;

    for (size_t i = 0; i < bytes; i++) {
        data[i] = (unsigned char)(i * 2654435761u >> 13);
    }
    digest_bytes(data, bytes, expected);
    ck_assert_rc_ok(export_hash_new(&hash));
    ck_assert_rc_ok(export_hash_new(&abandoned));
    for (size_t k = 0; at < bytes; k++) {
        size_t max = k % 3 == 1 ? 4097 : EXPORT_HASH_PIECE, size = bytes - at < max ? bytes - at : max;
        memcpy(export_hash_buffer(hash), data + at, size);
        export_hash_feed(hash, size);
        memcpy(export_hash_buffer(abandoned), data + at, size);
        export_hash_feed(abandoned, size);
        at += size;
    }
    export_hash_free(abandoned);
    export_hash_finish_take(hash, actual);
    ck_assert_str_eq(actual, expected);
    ck_assert_rc_ok(export_hash_new(&hash));
    export_hash_finish_take(hash, actual);
    digest_bytes("", 0, expected);
    ck_assert_str_eq(actual, expected);
    free(data);
}
END_TEST

/* Shapes of 8 bytes an element lie before every code; scales and codes do not. */
START_TEST(what_lies_ahead)
{
    struct rig rig;
    struct export_plan plan;
    size_t ahead = 0;

    rig_init(&rig, NULL, "compressed-tensors", 4, 32, true);
    const struct format_export request = {.format = format_find("compressed-tensors"),
                                          .config = {.modules = rig.modules, .count = rig.count, .model = rig.model},
                                          .block_files = rig.files,
                                          .block_count = rig.blocks};
    ck_assert_rc_ok(export_plan_make(&request, &plan));
    for (size_t i = 0; i < plan.count; i++) {
        ck_assert_int_eq(plan.pieces[i].ahead, strstr(plan.pieces[i].name, ".weight_shape") != NULL);
        ahead += plan.pieces[i].ahead;
    }
    ck_assert_uint_eq(ahead, (size_t)rig.count);
    export_plan_deinit(&plan);
    rig_deinit(&rig);
}
END_TEST

UNIT_MAIN("export_threads", threads_do_not_show, units_of_a_plan, what_lies_ahead, ranges_ahead_of_codes,
          hash_behind_its_feeder, progress_and_cancellation, errors_of_threads)
