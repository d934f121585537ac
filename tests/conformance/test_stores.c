/* What the store promises, over every pair of a state row and a blob row: a life of one job, its events and blobs, and
 * all of it again after the store was reopened. */

#include "base/fs.h"
#include "storage/blob.h"
#include "storage/state.h"
#include "tests/unit/storage/support.h"

#include <fcntl.h>
#include <unistd.h>

static void each_pair(void (*body)(struct bench *bench, const struct store_config *config))
{
    for (const struct state_ops *const *state = state_list(); *state != NULL; state++) {
        for (const struct blob_ops *const *blobs = blob_list(); *blobs != NULL; blobs++) {
            struct bench bench;
            scratch_make(bench.dir);
            const struct store_config config = {
                .data_dir = bench.dir, .state = (*state)->name, .blobs = (*blobs)->name};
            ck_assert_rc_ok(store_open(&config, &bench.store));
            body(&bench, &config);
            bench_deinit(&bench);
        }
    }
}

static void again(struct bench *bench, const struct store_config *config)
{
    store_close(bench->store);
    ck_assert_rc_ok(store_open(config, &bench->store));
}

static void job_life(struct bench *bench, const struct store_config *config)
{
    char id[ID_SIZE];
    struct job_row job;
    int64_t counts[STATUS_COUNT];
    json_t *list;
    json_t *block = json_of("{'index': 0, 'file': 'b'}"), *layers = json_of("[{'module': 'q'}]");
    json_t *artifact = json_of("{'id': 'art_1', 'created_at': 1, 'files': []}");

    add_job(bench->store, 1, 5, id);
    again(bench, config);
    job = claim_job(bench->store);
    ck_assert_str_eq(job.id, id);
    job_row_deinit(&job);
    again(bench, config); /* as after a crash: the claim stands until somebody takes it back */
    ck_assert_int_eq(store_job_claim(bench->store, STATUS_QUEUED, STATUS_RUNNING, "w", "[]", &job), ERR_NOT_FOUND);
    ck_assert_rc_ok(commit_block(bench->store, id, 1, block, layers));
    ck_assert_int_eq(commit_block(bench->store, id, 1, block, layers), ERR_JOB_STATE_CONFLICT);
    ck_assert_int_eq(commit_block(bench->store, id, 0, block, layers), ERR_JOB_STATE_CONFLICT);
    ck_assert_rc_ok(move_job(bench->store, id, STATUS_RUNNING, 1, STATUS_SUCCEEDED, artifact));
    ck_assert_int_eq(move_job(bench->store, id, STATUS_RUNNING, 1, STATUS_SUCCEEDED, artifact), ERR_JOB_STATE_CONFLICT);
    again(bench, config);
    ck_assert_int_eq(check_events(bench->store, id), 4);
    ck_assert_rc_ok(store_job_get(bench->store, "default", id, &job));
    ck_assert_int_eq(job.checkpoint.blocks, 1);
    ck_assert(job.progress.known && job.progress.fraction == 0.5);
    job_row_deinit(&job);
    ck_assert_rc_ok(store_layers_list(bench->store, id, &list));
    assert_json_take(list, "[{'module': 'q'}]");
    ck_assert_rc_ok(store_object_get(bench->store, "default", "art", "art_1", &list));
    ck_assert(json_equal(list, artifact));
    json_decref(list);
    ck_assert_rc_ok(store_job_counts(bench->store, "default", counts));
    for (int i = 0; i < STATUS_COUNT; i++) {
        ck_assert_int_eq(counts[i], i == STATUS_SUCCEEDED ? 1 : 0);
    }
    ck_assert_rc_ok(store_job_delete(bench->store, id));
    ck_assert_int_eq(store_job_get(bench->store, NULL, id, &job), ERR_NOT_FOUND);
    json_decref(block);
    json_decref(layers);
    json_decref(artifact);
}

/* A blob under a name: it is found from the data directory, and from nowhere above it. */
static void check_link(struct bench *bench, const char *sha256)
{
    char path[4096];
    int fd = -1, root = open(bench->dir, O_PATH | O_DIRECTORY | O_CLOEXEC);

    ck_assert_int_ge(root, 0);
    (void)snprintf(path, sizeof(path), "%s/named/deep", bench->dir);
    ck_assert_rc_ok(fs_make_dirs(path));
    ck_assert_rc_ok(blob_link(bench->store, sha256, "named/deep/file"));
    ck_assert_rc_ok(fs_open_beneath(root, "named/deep/file", O_RDONLY, &fd));
    ck_assert_int_eq(lseek(fd, 0, SEEK_END), 100000);
    close(fd);
    close(root);
    ck_assert_int_lt(blob_link(bench->store, sha256, "named/deep/file"), 0); /* the name is taken */
    ck_assert_int_eq(blob_link(bench->store, "../../lock", "named/other"), ERR_NOT_FOUND);
}

static void blob_life(struct bench *bench, const struct store_config *config)
{
    struct blob_writer *writer;
    struct blob_reader *reader;
    char sha256[DIGEST_HEX_SIZE], held[DIGEST_HEX_SIZE], piece[1000], back[1000];
    int64_t size, removed;

    memset(piece, 'p', sizeof(piece));
    for (int round = 0; round < 2; round++) { /* the second finds it there */
        ck_assert_rc_ok(blob_writer_new(bench->store, &writer));
        for (int i = 0; i < 100; i++) {
            ck_assert_rc_ok(blob_writer_write(writer, piece, sizeof(piece)));
        }
        ck_assert_rc_ok(blob_writer_commit_take(writer, sha256, &size));
        ck_assert_int_eq(size, 100000);
    }
    ck_assert_rc_ok(blob_writer_new(bench->store, &writer));
    blob_writer_abort(writer);
    again(bench, config);
    ck_assert_rc_ok(blob_reader_open(bench->store, sha256, &reader, &size));
    ck_assert_int_eq(size, 100000);
    ck_assert_rc_ok(blob_reader_read(reader, 99000, back, sizeof(back)));
    ck_assert_int_eq(memcmp(back, piece, sizeof(back)), 0);
    ck_assert_int_eq(blob_reader_read(reader, 99001, back, sizeof(back)), ERR_RANGE_NOT_SATISFIABLE);
    blob_reader_close(reader);
    check_link(bench, sha256);
    json_t *file = json_pack("{s:s, s:i, s:s}", "id", "file_1", "created_at", 1, "sha256", sha256);
    ck_assert_rc_ok(store_object_put(bench->store, "default", "file", file));
    ck_assert_rc_ok(store_collect_garbage(bench->store, &removed));
    ck_assert_int_eq(removed, 0);
    ck_assert_rc_ok(blob_writer_new(bench->store, &writer));
    ck_assert_rc_ok(blob_writer_write(writer, "held", 4));
    ck_assert_rc_ok(blob_writer_commit_take(writer, held, &size));
    ck_assert_rc_ok(store_collect_garbage(bench->store, &removed));
    ck_assert_int_eq(removed, 0);
    blob_let_go(bench->store, held);
    ck_assert_rc_ok(store_collect_garbage(bench->store, &removed));
    ck_assert_int_eq(removed, 1);
    ck_assert_rc_ok(store_object_delete(bench->store, "default", "file", "file_1"));
    ck_assert_rc_ok(store_collect_garbage(bench->store, &removed));
    ck_assert_int_eq(removed, 1);
    ck_assert_int_eq(blob_reader_open(bench->store, sha256, &reader, &size), ERR_NOT_FOUND);
    json_decref(file);
}

static void list_life(struct bench *bench, const struct store_config *config)
{
    char ids[9][ID_SIZE];
    struct job_list list;

    for (int i = 0; i < 9; i++) {
        add_job(bench->store, i, i, ids[i]);
    }
    again(bench, config);
    struct page page = {.limit = 4, .after = ids[6], .status = "queued"};
    ck_assert_rc_ok(store_job_list(bench->store, &page, &list));
    ck_assert_uint_eq(list.count, 4);
    for (size_t i = 0; i < 4; i++) { /* the youngest first */
        ck_assert_str_eq(list.rows[i].id, ids[5 - i]);
    }
    ck_assert(list.more);
    job_list_deinit(&list);
    page = (struct page){.limit = 4, .before = ids[7], .method = "gptq", .ascending = true};
    ck_assert_rc_ok(store_job_list(bench->store, &page, &list));
    ck_assert(!list.more);
    ck_assert_str_eq(list.rows[0].id, ids[0]);
    ck_assert_str_eq(list.rows[list.count - 1].id, ids[6]);
    job_list_deinit(&list);
}

/* An object that is there is replaced, with what it refers to; one that is gone, or another project's, is not made. */
static void replace_life(struct bench *bench, const struct store_config *config)
{
    json_t *first = json_of("{'id': 'art_1', 'created_at': 1, 'n': 1}");
    json_t *second = json_of("{'id': 'art_1', 'created_at': 1, 'n': 2}");
    json_t *body;

    ck_assert_int_eq(store_object_replace(bench->store, "default", "art", first), ERR_NOT_FOUND);
    ck_assert_rc_ok(store_object_put(bench->store, "default", "art", first));
    ck_assert_int_eq(store_object_replace(bench->store, "other", "art", second), ERR_NOT_FOUND);
    ck_assert_rc_ok(store_object_get(bench->store, "default", "art", "art_1", &body));
    ck_assert(json_equal(body, first));
    json_decref(body);
    ck_assert_rc_ok(store_object_replace(bench->store, "default", "art", second));
    again(bench, config);
    ck_assert_rc_ok(store_object_get(bench->store, "default", "art", "art_1", &body));
    ck_assert(json_equal(body, second));
    json_decref(body);
    ck_assert_rc_ok(store_object_delete(bench->store, "default", "art", "art_1"));
    ck_assert_int_eq(store_object_replace(bench->store, "default", "art", second), ERR_NOT_FOUND);
    ck_assert_int_eq(store_object_get(bench->store, NULL, "art", "art_1", &body), ERR_NOT_FOUND);
    json_decref(first);
    json_decref(second);
}

START_TEST(jobs)
{
    each_pair(job_life);
}
END_TEST

START_TEST(blobs_and_garbage)
{
    each_pair(blob_life);
}
END_TEST

START_TEST(lists)
{
    each_pair(list_life);
}
END_TEST

START_TEST(replacements)
{
    each_pair(replace_life);
}
END_TEST

UNIT_MAIN("conformance_stores", jobs, blobs_and_garbage, lists, replacements)
