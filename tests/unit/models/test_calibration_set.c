/* Sets drawn from a token log: packing, windows, the seeded order, the split; and what a damaged log gives. */

#include "base/digest.h"
#include "tests/unit/models/calibration_log.h"

/* A log whose tokens count up from 0; record i has i % 7 + 1 of them. */
static struct calibration_counts counting_log(int records)
{
    struct calibration_writer *writer = open_writer(&(struct calibration_counts){0}, NULL);
    int next = 0;
    for (int i = 0; i < records; i++) {
        feed(writer, "{\"input_ids\":[");
        for (int k = 0; k <= i % 7; k++) {
            char number[16];
            snprintf(number, sizeof(number), k == 0 ? "%d" : ",%d", next++);
            feed(writer, number);
        }
        feed(writer, "]}\n");
    }
    return finish(writer);
}

static struct calibration_set load(const struct calibration_counts *counts, struct calibration_spec spec)
{
    struct calibration_set set = {0};
    ck_assert_rc_ok(calibration_set_load(log_path(), counts->records, counts->bytes, &spec, &set));
    return set;
}

START_TEST(test_packed_sets)
{
    struct calibration_counts counts = counting_log(500);
    struct calibration_set set = load(&counts, (struct calibration_spec){.sequence_length = 16, .packing = true});

    ck_assert_int_eq(set.sequences, counts.tokens / 16);
    for (int64_t i = 0; i < set.sequences * 16; i++) {
        ck_assert_int_eq(set.ids[i], i);
    }
    calibration_set_deinit(&set);
    set = load(&counts, (struct calibration_spec){.num_samples = 3, .sequence_length = 5, .packing = true});
    ck_assert_int_eq(set.sequences, 3);
    ck_assert_int_eq(set.ids[14], 14);
    calibration_set_deinit(&set);
    clean();
}
END_TEST

START_TEST(test_windows)
{
    struct calibration_counts counts = counting_log(70);
    struct calibration_set set = load(&counts, (struct calibration_spec){.sequence_length = 6});

    ck_assert_int_eq(set.sequences, 20); /* records of 6 and of 7, ten each */
    ck_assert_int_eq(set.ids[0], 15);
    ck_assert_int_eq(set.ids[6], 21);
    ck_assert_int_eq(set.ids[12], 28 + 15);
    calibration_set_deinit(&set);
    clean();
}
END_TEST

START_TEST(test_shuffle_is_seeded)
{
    struct calibration_counts counts = counting_log(500);
    for (int packing = 0; packing < 2; packing++) {
        struct calibration_spec spec = {.sequence_length = 4, .packing = packing == 1, .shuffle = true, .seed = 7};
        struct calibration_set all = load(&counts, spec), again = load(&counts, spec);
        spec.seed = 8;
        struct calibration_set other = load(&counts, spec);
        spec.num_samples = 10;
        struct calibration_set few = load(&counts, spec);
        ck_assert_str_eq(all.digest, again.digest);
        ck_assert_str_ne(all.digest, other.digest);
        ck_assert_int_eq(few.sequences, 10);
        /* A permutation: each row is complete and none comes twice. */
        char seen[2048] = {0};
        for (int64_t row = 0; row < all.sequences; row++) {
            const int32_t *ids = all.ids + 4 * row;
            ck_assert_int_eq(ids[1], ids[0] + 1);
            ck_assert_int_eq(ids[3], ids[0] + 3);
            ck_assert_int_eq(seen[ids[0]]++, 0);
        }
        calibration_set_deinit(&all);
        calibration_set_deinit(&again);
        calibration_set_deinit(&other);
        calibration_set_deinit(&few);
    }
    clean();
}
END_TEST

START_TEST(test_shuffle_is_pinned)
{
    struct calibration_counts counts = counting_log(100);
    struct calibration_spec spec = {
        .num_samples = 5, .sequence_length = 8, .packing = true, .shuffle = true, .seed = 1};
    struct calibration_set set = load(&counts, spec);
    /* These rows are a promise: artifacts name the digest, and a resumed job draws its set again. */
    static const int32_t firsts[5] = {272, 56, 0, 248, 304};
    for (int i = 0; i < 5; i++) {
        ck_assert_int_eq(set.ids[8 * i], firsts[i]);
    }
    calibration_set_deinit(&set);
    clean();
}
END_TEST

START_TEST(test_split_moves_the_tail)
{
    struct calibration_counts counts = counting_log(100);
    struct calibration_set set = load(&counts, (struct calibration_spec){.sequence_length = 8, .packing = true});
    struct calibration_set tail = {0};
    char whole[65], hex[65];
    int64_t sequences = set.sequences;

    strcpy(whole, set.digest);
    ck_assert_int_eq(calibration_set_split(&set, sequences, &tail), ERR_INSUFFICIENT_CALIBRATION);
    ck_assert_rc_ok(calibration_set_split(&set, 4, &tail));
    ck_assert_int_eq(set.sequences, sequences - 4);
    ck_assert_int_eq(tail.ids[0], (int32_t)(sequences - 4) * 8);
    ck_assert_str_ne(set.digest, whole);
    digest_bytes(tail.ids, 4 * 8 * sizeof(int32_t), hex);
    ck_assert_str_eq(tail.digest, hex);
    calibration_set_deinit(&set);
    calibration_set_deinit(&tail);
    clean();
}
END_TEST

START_TEST(test_sample_is_spread)
{
    struct calibration_counts counts = counting_log(100);
    struct calibration_set set = load(&counts, (struct calibration_spec){.sequence_length = 8, .packing = true});
    struct calibration_set sample = {0}, all = {0};
    int64_t sequences = set.sequences;

    ck_assert_int_eq(sequences, 49);
    ck_assert_rc_ok(calibration_set_sample(&set, 3, &sample));
    ck_assert_int_eq(sample.sequences, 3);
    ck_assert_int_eq(sample.length, 8);
    for (int i = 0; i < 24; i++) {
        ck_assert_int_eq(sample.ids[i], i / 8 * 49 / 3 * 8 + i % 8);
    }
    ck_assert_int_eq(set.sequences, sequences); /* which keeps what it has */
    ck_assert_rc_ok(calibration_set_sample(&set, sequences, &all));
    ck_assert_str_eq(all.digest, set.digest);
    ck_assert_str_ne(sample.digest, set.digest);
    ck_assert_int_eq(calibration_set_sample(&set, 0, &sample), ERR_INTERNAL);
    ck_assert_int_eq(calibration_set_sample(&set, sequences + 1, &sample), ERR_INTERNAL);
    calibration_set_deinit(&set);
    calibration_set_deinit(&sample);
    calibration_set_deinit(&all);
    clean();
}
END_TEST

START_TEST(test_too_few_tokens)
{
    struct calibration_counts counts = counting_log(10);
    struct calibration_spec spec = {.sequence_length = 1000, .packing = true};
    struct calibration_set set;

    ck_assert_int_eq(calibration_set_load(log_path(), counts.records, counts.bytes, &spec, &set),
                     ERR_INSUFFICIENT_CALIBRATION);
    ck_assert_ptr_nonnull(strstr(err_last()->message, "34 tokens"));
    spec = (struct calibration_spec){.sequence_length = 8};
    ck_assert_int_eq(calibration_set_load(log_path(), counts.records, counts.bytes, &spec, &set),
                     ERR_INSUFFICIENT_CALIBRATION);
    clean();
}
END_TEST

START_TEST(test_damaged_log)
{
    struct calibration_counts counts = counting_log(50);
    struct calibration_spec spec = {.sequence_length = 4, .packing = true};
    struct calibration_set set;

    ck_assert_int_eq(calibration_set_load(log_path(), counts.records, counts.bytes + 4, &spec, &set),
                     ERR_SOURCE_CORRUPT);
    ck_assert_int_eq(calibration_set_load(log_path(), counts.records, counts.bytes - 3, &spec, &set),
                     ERR_SOURCE_CORRUPT);
    FILE *file = fopen(log_path(), "r+b");
    ck_assert_ptr_nonnull(file);
    ck_assert_uint_eq(fwrite("\0\0\0\0", 1, 4, file), 4); /* the first record now says 0 tokens */
    fclose(file);
    ck_assert_int_eq(calibration_set_load(log_path(), counts.records, counts.bytes, &spec, &set), ERR_SOURCE_CORRUPT);
    spec.packing = false;
    ck_assert_int_eq(calibration_set_load(log_path(), counts.records, counts.bytes, &spec, &set), ERR_SOURCE_CORRUPT);
    clean();
}
END_TEST

UNIT_MAIN("calibration_set", test_packed_sets, test_windows, test_shuffle_is_seeded, test_shuffle_is_pinned,
          test_split_moves_the_tail, test_sample_is_spread, test_too_few_tokens, test_damaged_log)
