/* Blobs: content is the name, written once, moved in, ranged reads, and what garbage collection may take. */

#include "tests/unit/storage/support.h"

#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

static const char abc[] = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

static void put(struct store *store, const char *text, char sha256[DIGEST_HEX_SIZE])
{
    struct blob_writer *writer;
    int64_t size = -1;

    ck_assert_rc_ok(blob_writer_new(store, &writer));
    for (const char *at = text; *at != '\0'; at++) {
        ck_assert_rc_ok(blob_writer_write(writer, at, 1));
    }
    ck_assert_rc_ok(blob_writer_commit_take(writer, sha256, &size));
    ck_assert_int_eq(size, (int64_t)strlen(text));
}

static bool there(struct store *store, const char *sha256)
{
    struct blob_reader *reader;
    int rc = blob_reader_open(store, sha256, &reader, NULL);

    if (rc == 0) {
        blob_reader_close(reader);
    }
    ck_assert(rc == 0 || rc == ERR_NOT_FOUND);
    return rc == 0;
}

static int files_in(const struct bench *bench, const char *folder)
{
    char path[512];
    int count = 0;

    snprintf(path, sizeof(path), "%s/%s", bench->dir, folder);
    DIR *stream = opendir(path);
    ck_assert_ptr_nonnull(stream);
    for (struct dirent *entry; (entry = readdir(stream)) != NULL;) {
        count += entry->d_name[0] != '.';
    }
    closedir(stream);
    return count;
}

static void path_of(const struct bench *bench, const char *sha256, char path[512])
{
    snprintf(path, 512, "%s/blobs/sha256/%.2s/%s", bench->dir, sha256, sha256);
}

START_TEST(what_is_written_is_read)
{
    struct bench bench;
    struct blob_reader *reader;
    struct stat info;
    char sha256[DIGEST_HEX_SIZE], buffer[4] = "", path[512];
    int64_t size;

    bench_init(&bench);
    put(bench.store, "abc", sha256);
    ck_assert_str_eq(sha256, abc);
    ck_assert_rc_ok(blob_reader_open(bench.store, abc, &reader, &size));
    ck_assert_int_eq(size, 3);
    ck_assert_rc_ok(blob_reader_read(reader, 0, buffer, 3));
    ck_assert_str_eq(buffer, "abc");
    ck_assert_rc_ok(blob_reader_read(reader, 2, buffer, 1));
    ck_assert_int_eq(buffer[0], 'c');
    ck_assert_rc_ok(blob_reader_read(reader, 3, buffer, 0));
    ck_assert_int_eq(blob_reader_read(reader, 2, buffer, 2), ERR_RANGE_NOT_SATISFIABLE);
    ck_assert_int_eq(blob_reader_read(reader, -1, buffer, 1), ERR_RANGE_NOT_SATISFIABLE);
    ck_assert_int_eq(blob_reader_read(reader, INT64_MAX, buffer, SIZE_MAX), ERR_RANGE_NOT_SATISFIABLE);
    path_of(&bench, abc, path);
    ck_assert_int_eq(stat(path, &info), 0);
    ck_assert_uint_eq(info.st_mode & 0777, 0444);
    blob_reader_close(reader);
    blob_reader_close(NULL);
    put(bench.store, "abc", sha256); /* again is fine */
    ck_assert_str_eq(sha256, abc);
    put(bench.store, "", sha256); /* nothing is a blob too */
    ck_assert(there(bench.store, sha256));
    ck_assert_int_eq(files_in(&bench, "tmp"), 0);
    bench_deinit(&bench);
}
END_TEST

START_TEST(names_are_digests_only)
{
    static const char *const rows[] = {"",
                                       "..",
                                       "../../quantd.db",
                                       "BA7816BF8F01CFEA414140DE5DAE2223B00361A396177A9CB410FF61F20015AD",
                                       "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015a",
                                       "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad0"};
    struct bench bench;
    char sha256[DIGEST_HEX_SIZE];

    bench_init(&bench);
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        ck_assert(!there(bench.store, rows[i]));
        ck_assert_int_eq(blob_adopt(bench.store, "x", rows[i], sha256, NULL), ERR_INVALID_PARAMETER);
    }
    ck_assert(!there(bench.store, abc));
    bench_deinit(&bench);
}
END_TEST

START_TEST(an_aborted_write_leaves_nothing)
{
    struct bench bench;
    struct blob_writer *writer;

    bench_init(&bench);
    ck_assert_rc_ok(blob_writer_new(bench.store, &writer));
    ck_assert_rc_ok(blob_writer_write(writer, "abc", 3));
    ck_assert_int_eq(files_in(&bench, "tmp"), 1);
    blob_writer_abort(writer);
    blob_writer_abort(NULL);
    ck_assert_int_eq(files_in(&bench, "tmp"), 0);
    ck_assert(!there(bench.store, abc));
    ck_assert_rc_ok(blob_writer_new(bench.store, &writer)); /* left open, as by a crash */
    ck_assert_rc_ok(blob_writer_write(writer, "abc", 3));
    bench_reopen(&bench);
    ck_assert_int_eq(files_in(&bench, "tmp"), 0);
    blob_writer_abort(writer);
    bench_deinit(&bench);
}
END_TEST

START_TEST(files_are_moved_in)
{
    struct bench bench;
    char path[512], sha256[DIGEST_HEX_SIZE];
    int64_t size;

    bench_init(&bench);
    snprintf(path, sizeof(path), "%s/jobs/file", bench.dir);
    for (int known = 0; known < 2; known++) {
        ck_assert_rc_ok(fs_write_atomic(path, "abc", 3));
        ck_assert_rc_ok(blob_adopt(bench.store, path, known ? abc : NULL, sha256, &size));
        ck_assert_str_eq(sha256, abc);
        ck_assert_int_eq(size, 3);
        ck_assert_int_lt(access(path, F_OK), 0);
        ck_assert(there(bench.store, abc));
    }
    ck_assert_int_eq(blob_adopt(bench.store, path, NULL, sha256, &size), ERR_NOT_FOUND);
    ck_assert_int_eq(symlink("../quantd.db", path), 0);
    ck_assert_int_lt(blob_adopt(bench.store, path, NULL, sha256, &size), 0);
    ck_assert_int_eq(blob_adopt(bench.store, bench.dir, NULL, sha256, &size), ERR_INVALID_PARAMETER);
    bench_deinit(&bench);
}
END_TEST

/* Files of this process that have no name any more. */
static int nameless_files(void)
{
    char path[300], target[4096];
    DIR *folder = opendir("/proc/self/fd");
    int count = 0;

    ck_assert_ptr_nonnull(folder);
    for (const struct dirent *entry; (entry = readdir(folder)) != NULL;) {
        snprintf(path, sizeof(path), "/proc/self/fd/%s", entry->d_name);
        ssize_t length = readlink(path, target, sizeof(target) - 1);
        target[length > 0 ? length : 0] = '\0';
        count += strstr(target, "/jobs/file (deleted)") != NULL;
    }
    closedir(folder);
    return count;
}

/* The space of a large duplicate is freed in the background, and before the store is closed. */
START_TEST(a_large_duplicate_is_freed)
{
    struct bench bench;
    char path[512], sha256[DIGEST_HEX_SIZE], again[DIGEST_HEX_SIZE];
    int64_t size;

    bench_init(&bench);
    snprintf(path, sizeof(path), "%s/jobs/file", bench.dir);
    for (int i = 0; i < 4; i++) {
        int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        ck_assert_int_eq(ftruncate(fd, (off_t)17 << 20), 0);
        close(fd);
        ck_assert_rc_ok(blob_adopt(bench.store, path, NULL, i == 0 ? sha256 : again, &size));
        ck_assert_int_eq(size, (int64_t)17 << 20);
        ck_assert(i == 0 || strcmp(sha256, again) == 0);
        ck_assert_int_lt(access(path, F_OK), 0);
        ck_assert(there(bench.store, sha256));
    }
    bench_reopen(&bench);
    ck_assert_int_eq(nameless_files(), 0);
    ck_assert(there(bench.store, sha256));
    bench_deinit(&bench);
}
END_TEST

/* A blob of the wrong length (a disk that lied) is put right by the next writer. */
START_TEST(a_short_blob_is_replaced)
{
    struct bench bench;
    struct blob_reader *reader;
    char sha256[DIGEST_HEX_SIZE], path[512];
    int64_t size;

    bench_init(&bench);
    put(bench.store, "abc", sha256);
    ck_assert_rc_ok(blob_reader_open(bench.store, abc, &reader, NULL));
    path_of(&bench, abc, path);
    blob_reader_close(reader);
    ck_assert_int_eq(chmod(path, 0600), 0);
    ck_assert_int_eq(truncate(path, 1), 0);
    put(bench.store, "abc", sha256);
    ck_assert_rc_ok(blob_reader_open(bench.store, abc, &reader, &size));
    ck_assert_int_eq(size, 3);
    blob_reader_close(reader);
    bench_deinit(&bench);
}
END_TEST

START_TEST(garbage_is_unreferenced_and_not_held)
{
    struct bench bench;
    char named[DIGEST_HEX_SIZE], listed[DIGEST_HEX_SIZE], loose[DIGEST_HEX_SIZE], held[DIGEST_HEX_SIZE];
    int64_t removed = -1;

    bench_init(&bench);
    put(bench.store, "named", named);
    put(bench.store, "listed", listed);
    put(bench.store, "loose", loose);
    put(bench.store, "held", held);
    blob_let_go(bench.store, loose);
    json_t *file = json_pack("{s:s, s:i, s:s}", "id", "file_1", "created_at", 1, "sha256", named);
    json_t *artifact = json_pack("{s:s, s:i, s:[{s:s}]}", "id", "art_1", "created_at", 1, "files", "sha256", listed);
    ck_assert_rc_ok(store_object_put(bench.store, "default", "file", file));
    ck_assert_rc_ok(store_object_put(bench.store, "default", "art", artifact));
    blob_let_go(bench.store, named);
    blob_let_go(bench.store, listed);
    ck_assert_rc_ok(store_collect_garbage(bench.store, &removed));
    ck_assert_int_eq(removed, 1);
    ck_assert(there(bench.store, named) && there(bench.store, listed) && there(bench.store, held));
    ck_assert(!there(bench.store, loose));
    ck_assert_rc_ok(store_object_delete(bench.store, "default", "art", "art_1")); /* its references go with it */
    put(bench.store, "listed", listed);                                           /* found there by two writers */
    put(bench.store, "listed", listed);
    blob_let_go(bench.store, listed);
    ck_assert_rc_ok(store_collect_garbage(bench.store, &removed));
    ck_assert_int_eq(removed, 0);
    blob_let_go(bench.store, listed);
    json_object_del(file, "sha256");
    ck_assert_rc_ok(
        store_object_put(bench.store, "default", "file", file)); /* a changed body names what it names now */
    ck_assert_rc_ok(store_collect_garbage(bench.store, NULL));
    ck_assert(!there(bench.store, named) && !there(bench.store, listed) && there(bench.store, held));
    bench_reopen(&bench); /* holds are a process's */
    ck_assert_rc_ok(store_collect_garbage(bench.store, &removed));
    ck_assert_int_eq(removed, 1);
    ck_assert(!there(bench.store, held));
    json_decref(file);
    json_decref(artifact);
    bench_deinit(&bench);
}
END_TEST

static void *write_many(void *data)
{
    char text[16], sha256[DIGEST_HEX_SIZE];

    for (int i = 0; i < 40; i++) {
        snprintf(text, sizeof(text), "blob %d", i % 20);
        put(data, text, sha256);
        ck_assert(there(data, sha256));
    }
    return NULL;
}

/* Two writers of the same blobs and a collector that may not take what they hold. */
START_TEST(writers_and_collector_together)
{
    struct bench bench;
    pthread_t threads[2];
    int64_t removed = 0;

    bench_init(&bench);
    for (int i = 0; i < 2; i++) {
        pthread_create(&threads[i], NULL, write_many, bench.store);
    }
    for (int i = 0; i < 5; i++) {
        ck_assert_rc_ok(store_collect_garbage(bench.store, &removed));
        ck_assert_int_eq(removed, 0);
    }
    for (int i = 0; i < 2; i++) {
        pthread_join(threads[i], NULL);
    }
    ck_assert_int_eq(files_in(&bench, "tmp"), 0);
    bench_deinit(&bench);
}
END_TEST

UNIT_MAIN("blob", what_is_written_is_read, names_are_digests_only, an_aborted_write_leaves_nothing, files_are_moved_in,
          a_large_duplicate_is_freed, a_short_blob_is_replaced, garbage_is_unreferenced_and_not_held,
          writers_and_collector_together)
