/* kill -9 at any moment: what was acknowledged is there after the restart, nothing is half there, events have no gaps.
 *
 * A child works on a store and writes a line to a pipe after each acknowledgement; the parent kills it after a random
 * while, opens the store as a restarted daemon would, and holds it to every line. Over the rounds the store is the same
 * one, so that recovery meets its own traces. */

#include "tests/unit/storage/support.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { ROUNDS = 36, MOMENT_MS = 120 };

struct note {
    char what; /* J job created, E events so far, B blob there, A artifact published, K key answered */
    char id[ID_SIZE];
    char sha256[DIGEST_HEX_SIZE];
    int64_t number;
};

static void tell(int fd, char what, const char *id, const char *sha256, int64_t number)
{
    struct note note = {.what = what, .number = number};

    snprintf(note.id, sizeof(note.id), "%s", id);
    snprintf(note.sha256, sizeof(note.sha256), "%s", sha256);
    if (write(fd, &note, sizeof(note)) != (ssize_t)sizeof(note)) {
        _exit(1);
    }
}

static void write_blob(struct store *store, int fd, const char *id, char sha256[DIGEST_HEX_SIZE])
{
    struct blob_writer *writer;

    ck_assert_rc_ok(blob_writer_new(store, &writer));
    ck_assert_rc_ok(blob_writer_write(writer, id, strlen(id)));
    ck_assert_rc_ok(blob_writer_commit_take(writer, sha256, NULL));
    tell(fd, 'B', id, sha256, 0);
}

/* One job from its submission to its artifact. */
static void work(struct store *store, int fd)
{
    char id[ID_SIZE], art[ID_SIZE], sha256[DIGEST_HEX_SIZE];
    json_t *reply = NULL;

    add_job(store, 0, 1, id);
    tell(fd, 'J', id, "", 1);
    ck_assert_int_eq(store_idempotency_reserve(store, &(struct idempotency_key){"default", "POST", id}, "d", &reply),
                     0);
    json_t *response = json_pack("{s:s}", "id", id);
    ck_assert_rc_ok(store_idempotency_finish(store, &(struct idempotency_key){"default", "POST", id}, response));
    tell(fd, 'K', id, "", 0);
    /* Earlier rounds left jobs: continue those first, as a daemon would. */
    struct job_row job = claim_job(store);
    snprintf(id, sizeof(id), "%s", job.id);
    int64_t fence = job.fence, seq = job.seq;
    job_row_deinit(&job);
    tell(fd, 'E', id, "", seq);
    json_t *layers = json_of("[{'module': 'q'}, {'module': 'k'}]");
    for (int i = 0; i < 3; i++) {
        json_t *block = json_pack("{s:i}", "index", i);
        ck_assert_rc_ok(commit_block(store, id, fence, block, layers));
        tell(fd, 'E', id, "", ++seq);
        json_decref(block);
    }
    json_decref(layers);
    write_blob(store, fd, id, sha256);
    id_new("art", art);
    json_t *artifact =
        json_pack("{s:s, s:i, s:s, s:[{s:s}]}", "id", art, "created_at", 1, "job_id", id, "files", "sha256", sha256);
    json_t *result = json_pack("{s:s}", "artifact_id", art);
    const struct job_row done = {.status = STATUS_SUCCEEDED, .result = result};
    const struct job_update update = {.id = id,
                                      .from = STATUS_RUNNING,
                                      .fence = fence,
                                      .set = JOB_SET_STATUS | JOB_SET_RESULT,
                                      .row = &done,
                                      .event = "status",
                                      .event_data = result,
                                      .artifact = artifact};
    ck_assert_rc_ok(store_job_update(store, &update, NULL));
    tell(fd, 'A', art, sha256, 0);
    json_decref(artifact);
    json_decref(result);
    json_decref(response);
}

static void check_note(struct store *store, const struct note *note)
{
    struct blob_reader *reader;
    json_t *got;
    int64_t size;

    switch (note->what) {
    case 'J':
    case 'E':
        ck_assert_int_ge(check_events(store, note->id), note->number);
        break;
    case 'B':
        ck_assert_rc_ok(blob_reader_open(store, note->sha256, &reader, &size));
        ck_assert_int_eq(size, (int64_t)strlen(note->id));
        blob_reader_close(reader);
        break;
    case 'A':
        ck_assert_rc_ok(store_object_get(store, "default", "art", note->id, &got));
        json_decref(got);
        break;
    default:
        ck_assert_int_eq(
            store_idempotency_reserve(store, &(struct idempotency_key){"default", "POST", note->id}, "d", &got), 1);
        json_decref(got);
        break;
    }
}

/* Every job is in a state that some transaction made; the interrupted one is queued again and its blocks are dropped.
 */
static void check_jobs(struct store *store)
{
    struct job_list list;
    json_t *blocks, *layers, *got;

    ck_assert_rc_ok(store_job_list(store, &(struct page){.limit = 100}, &list));
    for (size_t i = 0; i < list.count; i++) {
        const struct job_row *job = &list.rows[i];
        (void)check_events(store, job->id);
        ck_assert_rc_ok(store_blocks_list(store, job->id, &blocks));
        ck_assert_rc_ok(store_layers_list(store, job->id, &layers));
        ck_assert_uint_eq(json_array_size(layers), 2 * json_array_size(blocks));
        if (job->status == STATUS_SUCCEEDED) {
            ck_assert_rc_ok(store_object_get(store, "default", "art", text_at(job->result, "artifact_id"), &got));
            json_decref(got);
            ck_assert_uint_eq(json_array_size(blocks), 3);
        } else if (job->status == STATUS_RUNNING) {
            ck_assert_rc_ok(store_blocks_clear(store, job->id, 0));
            ck_assert_rc_ok(move_job(store, job->id, STATUS_RUNNING, -1, STATUS_QUEUED, NULL));
        } else {
            ck_assert_int_eq(job->status, STATUS_QUEUED);
        }
        json_decref(blocks);
        json_decref(layers);
    }
    job_list_deinit(&list);
}

static void wait_us(unsigned microseconds)
{
    const struct timespec time = {0, (long)microseconds * 1000L};
    nanosleep(&time, NULL);
}

/* Let a child work for a random while, kill it, and collect its notes. Returns their number. */
static size_t one_round(const struct bench *bench, unsigned moment_us, struct note *notes, size_t max)
{
    int ends[2];

    ck_assert_int_eq(pipe(ends), 0);
    pid_t child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        close(ends[0]);
        struct bench own = *bench;
        bench_open(&own);
        tell(ends[1], 'O', "", "", 0);
        for (;;) {
            work(own.store, ends[1]);
        }
    }
    close(ends[1]);
    size_t count = 0;
    struct note note;
    ck_assert_int_eq(read(ends[0], &note, sizeof(note)), sizeof(note)); /* open: the while begins */
    wait_us(moment_us);
    kill(child, SIGKILL);
    while (read(ends[0], &note, sizeof(note)) == (ssize_t)sizeof(note)) {
        ck_assert_uint_lt(count, max);
        notes[count++] = note;
    }
    close(ends[0]);
    int status;
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    return count;
}

START_TEST(what_was_acknowledged_is_there)
{
    enum { NOTES = 20000 };
    static struct note notes[NOTES];
    struct bench bench = {.store = NULL};
    size_t count = 0;

    scratch_make(bench.dir);
    srand(20);
    for (int round = 0; round < ROUNDS; round++) {
        size_t before = count;
        count += one_round(&bench, (unsigned)rand() % (MOMENT_MS * 1000u), notes + count, NOTES - count);
        bench_open(&bench); /* at once: the lock died with its owner */
        for (size_t i = before; i < count; i++) {
            check_note(bench.store, &notes[i]);
        }
        check_jobs(bench.store);
        store_close(bench.store);
    }
    bench_open(&bench);
    for (size_t i = 0; i < count; i++) { /* and all of it still, after every later crash */
        check_note(bench.store, &notes[i]);
    }
    ck_assert_uint_gt(count, ROUNDS);
    bench_deinit(&bench);
}
END_TEST

UNIT_MAIN("crash", what_was_acknowledged_is_there)
