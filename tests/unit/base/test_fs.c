/* Files: complete reads and writes, durable replacement, and paths that may not leave their root. */

#include "tests/unit/unit.h"

#include "tests/unit/scratch.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char dir[256];

static const char *at(const char *name)
{
    static char paths[4][512];
    static int next;
    char *path = paths[next++ % 4];
    snprintf(path, 512, "%s/%s", dir, name);
    return path;
}

static int entries(const char *path)
{
    int count = 0;
    DIR *stream = opendir(path);
    while (readdir(stream) != NULL) {
        count++;
    }
    closedir(stream);
    return count - 2;
}

START_TEST(atomic_writes_replace)
{
    char *data;
    size_t size;

    scratch_make(dir);
    ck_assert_rc_ok(fs_write_atomic(at("f"), "one", 3));
    ck_assert_rc_ok(fs_write_atomic(at("f"), "second", 6));
    ck_assert_rc_ok(fs_read_file(at("f"), 6, &data, &size));
    ck_assert_uint_eq(size, 6);
    ck_assert_str_eq(data, "second");
    free(data);
    ck_assert_rc_ok(fs_write_atomic(at("empty"), NULL, 0));
    ck_assert_rc_ok(fs_read_file(at("empty"), 0, &data, &size));
    ck_assert_str_eq(data, "");
    free(data);
    ck_assert_int_eq(entries(dir), 2); /* no temp file stays */
    ck_assert_int_eq(fs_write_atomic(at("absent/f"), "x", 1), ERR_NOT_FOUND);
    ck_assert_rc_ok(fs_make_dirs(at("d")));
    ck_assert_int_lt(fs_write_atomic(at("d"), "x", 1), 0); /* a directory is not replaced */
    ck_assert_int_eq(entries(dir), 3);
    scratch_remove(dir);
}
END_TEST

/* A link planted under the temp name is not written through. */
START_TEST(temp_names_are_not_followed)
{
    char *data;
    size_t size;

    scratch_make(dir);
    ck_assert_rc_ok(fs_write_atomic(at("victim"), "safe", 4));
    ck_assert_int_eq(symlink(at("victim"), at("f.tmp")), 0);
    ck_assert_int_lt(fs_write_atomic(at("f"), "evil", 4), 0);
    ck_assert_rc_ok(fs_read_file(at("victim"), 99, &data, &size));
    ck_assert_str_eq(data, "safe");
    free(data);
    scratch_remove(dir);
}
END_TEST

START_TEST(reads_are_whole_or_an_error)
{
    char buffer[8], *data = NULL;
    size_t size;

    scratch_make(dir);
    ck_assert_rc_ok(fs_write_atomic(at("f"), "12345", 5));
    int fd = open(at("f"), O_RDWR);
    ck_assert_rc_ok(fs_pread_full(fd, buffer, 3, 2));
    ck_assert_int_eq(memcmp(buffer, "345", 3), 0);
    ck_assert_int_eq(fs_pread_full(fd, buffer, 4, 2), ERR_SOURCE_CORRUPT);
    ck_assert_rc_ok(fs_pwrite_full(fd, "xy", 2, 4));
    ck_assert_rc_ok(fs_sync(fd));
    ck_assert_int_eq(fs_read_fd(fd, 5, &data, &size), ERR_PAYLOAD_TOO_LARGE);
    ck_assert_rc_ok(fs_read_fd(fd, 6, &data, &size));
    ck_assert_str_eq(data, "1234xy");
    free(data);
    close(fd);
    ck_assert_int_eq(fs_read_file(at("absent"), 6, &data, &size), ERR_NOT_FOUND);
    ck_assert_int_eq(fs_read_file(dir, 6, &data, &size), ERR_INVALID_PARAMETER);
    ck_assert_int_eq(mkfifo(at("fifo"), 0600), 0);
    ck_assert_int_eq(fs_read_file(at("fifo"), 6, &data, &size), ERR_INVALID_PARAMETER); /* and does not hang */
    fd = open(at("f"), O_RDONLY);
    ck_assert_int_lt(fs_pwrite_full(fd, "x", 1, 0), 0);
    close(fd);
    ck_assert_int_lt(fs_sync(fd), 0);
    scratch_remove(dir);
}
END_TEST

START_TEST(directories_are_made_once)
{
    struct stat info;

    scratch_make(dir);
    ck_assert_rc_ok(fs_make_dirs(at("a/b//c/")));
    ck_assert_rc_ok(fs_make_dirs(at("a/b/c")));
    ck_assert_int_eq(stat(at("a/b/c"), &info), 0);
    ck_assert_uint_eq(info.st_mode & 0777, 0700);
    ck_assert_rc_ok(fs_sync_dir(at("a")));
    ck_assert_rc_ok(fs_write_atomic(at("a/file"), "", 0));
    ck_assert_int_eq(fs_make_dirs(at("a/file")), ERR_INVALID_PARAMETER);
    ck_assert_int_lt(fs_make_dirs(at("a/file/x")), 0);
    ck_assert_int_eq(fs_make_dirs(""), ERR_INVALID_PARAMETER);
    ck_assert_rc_ok(fs_make_dirs("/"));
    scratch_remove(dir);
}
END_TEST

START_TEST(opening_stays_beneath_the_root)
{
    static const char *const escapes[] = {"../outside",      "a/../../outside", "/etc/passwd", "link",
                                          "dirlink/outside", "absolute",        "a/up/outside"};
    int fd = -1;

    scratch_make(dir);
    ck_assert_rc_ok(fs_make_dirs(at("root/a")));
    ck_assert_rc_ok(fs_write_atomic(at("outside"), "secret", 6));
    ck_assert_rc_ok(fs_write_atomic(at("root/a/file"), "x", 1));
    ck_assert_int_eq(symlink("../outside", at("root/link")), 0);
    ck_assert_int_eq(symlink("..", at("root/dirlink")), 0);
    ck_assert_int_eq(symlink(at("outside"), at("root/absolute")), 0);
    ck_assert_int_eq(symlink("../..", at("root/a/up")), 0);
    ck_assert_int_eq(symlink("a/file", at("root/inner")), 0);
    ck_assert_int_eq(symlink("loop", at("root/loop")), 0);
    int root = open(at("root"), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    ck_assert_int_ge(root, 0);
    for (size_t i = 0; i < sizeof(escapes) / sizeof(escapes[0]); i++) {
        ck_assert_int_eq(fs_open_beneath(root, escapes[i], O_RDONLY, &fd), ERR_INVALID_PARAMETER);
        ck_assert_int_eq(fd, -1);
    }
    ck_assert_int_eq(fs_open_beneath(root, "loop", O_RDONLY, &fd), ERR_INVALID_PARAMETER);
    ck_assert_int_eq(fs_open_beneath(root, "absent", O_RDONLY, &fd), ERR_NOT_FOUND);
    ck_assert_int_eq(fs_open_beneath(root, "a/file/x", O_RDONLY, &fd), ERR_NOT_FOUND);
    ck_assert_int_eq(fs_open_beneath(root, "", O_RDONLY, &fd), ERR_NOT_FOUND);
    static const char *const inside[] = {"a/file", "inner", "a/../a/file", "./a//file"};
    for (size_t i = 0; i < sizeof(inside) / sizeof(inside[0]); i++) {
        ck_assert_rc_ok(fs_open_beneath(root, inside[i], O_RDONLY, &fd));
        ck_assert_int_eq(fcntl(fd, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
        close(fd);
    }
    ck_assert_rc_ok(fs_open_beneath(root, "a/new", O_WRONLY | O_CREAT | O_EXCL, &fd));
    close(fd);
    close(root);
    scratch_remove(dir);
}
END_TEST

START_TEST(trees_go_links_stay)
{
    struct stat info;

    scratch_make(dir);
    ck_assert_rc_ok(fs_make_dirs(at("tree/a/b")));
    ck_assert_rc_ok(fs_write_atomic(at("outside"), "x", 1));
    ck_assert_rc_ok(fs_write_atomic(at("tree/a/f"), "x", 1));
    ck_assert_int_eq(symlink("../..", at("tree/a/up")), 0);
    ck_assert_int_eq(symlink("../outside", at("tree/link")), 0);
    ck_assert_rc_ok(fs_remove_tree(at("tree")));
    ck_assert_int_lt(lstat(at("tree"), &info), 0);
    ck_assert_int_eq(lstat(at("outside"), &info), 0);
    ck_assert_rc_ok(fs_remove_tree(at("tree"))); /* absent is success */
    ck_assert_rc_ok(fs_remove_tree(at("outside")));
    scratch_remove(dir);
}
END_TEST

START_TEST(paths_must_fit)
{
    char out[8];

    ck_assert_rc_ok(fs_path(out, sizeof(out), "%s/%d", "abcde", 1));
    ck_assert_str_eq(out, "abcde/1");
    ck_assert_int_eq(fs_path(out, sizeof(out), "%s/%d", "abcdef", 1), ERR_INVALID_PARAMETER);
    ck_assert_int_gt(fs_free_bytes("/"), 0);
    ck_assert_int_eq(fs_free_bytes("/no/such/place"), -1);
}
END_TEST

UNIT_MAIN("fs", atomic_writes_replace, temp_names_are_not_followed, reads_are_whole_or_an_error,
          directories_are_made_once, opening_stays_beneath_the_root, trees_go_links_stay, paths_must_fit)
