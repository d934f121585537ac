/* Output moments: what gptq makes of them depends neither on where activations are, nor on threads, nor on
 * interruptions; the files are found again, and belong to one request. */

#include "tests/unit/pipeline/pipeline_rig.h"

#include <math.h>
#include <sys/stat.h>
#include <unistd.h>

#define GRID "\"bits\":2,\"group_size\":32,\"mse_search\":false,\"target_tokens\":0"
#define BOTH "{" GRID ",\"output_moments\":true}"

static void open_world(struct world *w, const char *quantization, int threads)
{
    world_open(w, "rtn", threads);
    read_recipe(w, "\"gptq\"", quantization);
    w->gpu.info.batch_tokens = 2 * LENGTH;
    w->calibration.digest[0] = 'c';
}

static bool is_there(const struct world *w, const char *file)
{
    char path[512];
    struct stat status;

    snprintf(path, sizeof(path), "%s/%s", w->directory, file);
    return stat(path, &status) == 0;
}

START_TEST(test_lowers_what_it_minimises)
{
    struct world w, plain;
    double ratio = 0;
    open_world(&w, BOTH, 2);
    open_world(&plain, "{" GRID "}", 2);
    ck_assert_rc_ok(run(&w, MEMORY));
    ck_assert_rc_ok(run(&plain, MEMORY));
    for (int i = 0; i < w.rows.count; i++) {
        const struct report_row *row = &w.rows.list[i];
        ck_assert(row->two_sided_start > 0 && row->two_sided_loss <= row->two_sided_start);
        ck_assert(row->loss > 0 && isnan(plain.rows.list[i].two_sided_loss));
        ratio += row->two_sided_loss / row->two_sided_start / w.rows.count;
    }
    ck_assert_double_lt(ratio, 0.9);
    ck_assert(is_there(&w, "moments.json")); /* for other rungs of a job */
    world_close(&w);
    world_close(&plain);
}
END_TEST

START_TEST(test_spilled_threads_and_resumes_are_the_same)
{
    struct world full, w;
    open_world(&full, BOTH, 1);
    ck_assert_rc_ok(run(&full, MEMORY));

    open_world(&w, BOTH, 2);
    ck_assert_rc_ok(run(&w, 0)); /* nothing in memory */
    expect_same(&full, &w);
    world_close(&w);

    open_world(&w, BOTH, 1);
    w.cancel_in = 9; /* in the pass, which begins once more */
    ck_assert_int_eq(run(&w, MEMORY), ERR_CANCELLED);
    ck_assert(!is_there(&w, "moments.json"));
    w.cancel_in = -1;
    w.stop_at = 1;
    ck_assert_int_eq(run(&w, MEMORY), ERR_INTERRUPTED);
    ck_assert(is_there(&w, "moments.json") && is_there(&w, "moments-3.safetensors"));
    size_t begun = w.begun;
    w.stop_at = -1;
    ck_assert_rc_ok(run(&w, MEMORY));
    ck_assert_int_le(w.begun - begun, BLOCKS); /* the pass is not made again */
    expect_same(&full, &w);
    world_close(&w);

    open_world(&w, BOTH, 1);
    w.stop_at = 1;
    ck_assert_int_eq(run(&w, MEMORY), ERR_INTERRUPTED);
    char path[512];
    snprintf(path, sizeof(path), "%s/moments-3.safetensors", w.directory);
    ck_assert_int_eq(truncate(path, 100), 0);
    w.stop_at = -1;
    ck_assert_rc_ok(run(&w, MEMORY)); /* the pass is made again */
    expect_same(&full, &w);
    world_close(&w);
    world_close(&full);
}
END_TEST

/* Fewer tokens and another seed are other moments. */
START_TEST(test_tokens)
{
    struct world all, some;
    open_world(&all, BOTH, 2);
    open_world(&some, "{" GRID ",\"output_moments\":true,\"output_tokens\":100}", 2);
    ck_assert_rc_ok(run(&all, MEMORY));
    ck_assert_rc_ok(run(&some, MEMORY));
    ck_assert_str_ne(all.blocks[0].sha256, some.blocks[0].sha256);
    world_close(&all);
    world_close(&some);
}
END_TEST

UNIT_MAIN("pipeline_moments", test_lowers_what_it_minimises, test_spilled_threads_and_resumes_are_the_same, test_tokens)
