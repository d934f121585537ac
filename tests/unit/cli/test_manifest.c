/* Manifests of a server that is not trusted: what is refused, and that what quantd writes is not. */

#include "cli/manifest.h"
#include "cli/status.h"
#include "tests/unit/unit.h"

#include <string.h>

#define SHA "73ea7f6f4a51d7bd1e3592feb71a37ce7b678663c81b15c58fe2b83e9bfe6090"

START_TEST(test_paths)
{
    static const char *const good[] = {
        "config.json", "a/b/c.bin", "..a", "a..b/c", ".hidden", "gr\xc3\xbc\xc3\x9f.txt", "name with blanks", "..."};
    static const char *const bad[] = {"",
                                      "/etc/passwd",
                                      "../x",
                                      "a/../../x",
                                      "a/..",
                                      "..",
                                      ".",
                                      "./a",
                                      "a/./b",
                                      "a//b",
                                      "a/",
                                      "a\\b",
                                      "a\nb",
                                      "\x1b[2J",
                                      "a\x7f",
                                      "a\xc2\x9b",
                                      "a\xff",
                                      "x.quantctl-part",
                                      "sub/x.quantctl-map"};
    static char large[2000];

    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        ck_assert_rc_ok(manifest_check_path(good[i], strlen(good[i])));
    }
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        ck_assert_msg(manifest_check_path(bad[i], strlen(bad[i])) == STATUS_MISMATCH, "%s was accepted", bad[i]);
    }
    ck_assert_int_eq(manifest_check_path("a\0/../b", 7), STATUS_MISMATCH);
    memset(large, 'x', sizeof(large));
    ck_assert_int_eq(manifest_check_path(large, sizeof(large)), STATUS_MISMATCH);
    ck_assert_int_eq(manifest_check_path(large, 250), STATUS_MISMATCH);
    ck_assert_rc_ok(manifest_check_path(large, 200));
}
END_TEST

static json_t *artifact_of(const char *files)
{
    char text[4096];
    json_error_t error;

    snprintf(text, sizeof(text), "{\"files\": %s}", files);
    json_t *artifact = json_loads(text, 0, &error);
    ck_assert_msg(artifact != NULL, "%s: %s", text, error.text);
    return artifact;
}

static int read_files(const char *files, struct manifest *manifest)
{
    json_t *artifact = artifact_of(files);

    memset(manifest, 0, sizeof(*manifest));
    int rc = manifest_read(artifact, manifest);
    json_decref(artifact);
    return rc;
}

START_TEST(test_read)
{
    struct manifest manifest;

    ck_assert_rc_ok(read_files("[{\"path\": \"b/c\", \"bytes\": 5, \"sha256\": \"" SHA "\"},"
                               " {\"path\": \"a\", \"bytes\": 0, \"sha256\": \"" SHA "\", \"more\": 1}]",
                               &manifest));
    ck_assert_uint_eq(manifest.count, 2);
    ck_assert_int_eq(manifest.bytes, 5);
    ck_assert_str_eq(manifest.files[0].path, "a");
    ck_assert_str_eq(manifest.files[1].path, "b/c");
    ck_assert_str_eq(manifest.files[1].sha256, SHA);
    manifest_deinit(&manifest);
}
END_TEST

#define FILE_OF(path, bytes, sha) "{\"path\": " path ", \"bytes\": " bytes ", \"sha256\": " sha "}"
#define DIGEST "\"" SHA "\""

START_TEST(test_faults)
{
    static const struct {
        const char *files;
        int rc;
    } faults[] = {
        {"[]", STATUS_SERVER},
        {"{}", STATUS_SERVER},
        {"null", STATUS_SERVER},
        {"[3]", STATUS_SERVER},
        {"[" FILE_OF("3", "1", DIGEST) "]", STATUS_SERVER},
        {"[" FILE_OF("\"a\"", "-1", DIGEST) "]", STATUS_SERVER},
        {"[" FILE_OF("\"a\"", "1.5", DIGEST) "]", STATUS_SERVER},
        {"[" FILE_OF("\"a\"", "\"1\"", DIGEST) "]", STATUS_SERVER},
        {"[" FILE_OF("\"a\"", "1", "\"12\"") "]", STATUS_SERVER},
        {"[" FILE_OF("\"a\"", "1", "null") "]", STATUS_SERVER},
        {"[" FILE_OF("\"a\"", "1", "\"73EA7f6f4a51d7bd1e3592feb71a37ce7b678663c81b15c58fe2b83e9bfe6090\"") "]",
         STATUS_SERVER},
        {"[" FILE_OF("\"../a\"", "1", DIGEST) "]", STATUS_MISMATCH},
        {"[" FILE_OF("\"a\"", "1", DIGEST) "," FILE_OF("\"a\"", "1", DIGEST) "]", STATUS_MISMATCH},
        {"[" FILE_OF("\"a\"", "1", DIGEST) "," FILE_OF("\"a/b\"", "1", DIGEST) "]", STATUS_MISMATCH},
        {"[" FILE_OF("\"a\"", "1", DIGEST) "," FILE_OF("\"a-\"", "1", DIGEST) "," FILE_OF("\"a/b/c\"", "1", DIGEST) "]",
         STATUS_MISMATCH},
        {"[" FILE_OF("\"a\"", "4611686018427387903", DIGEST) "," FILE_OF(
             "\"b\"", "4611686018427387903", DIGEST) "," FILE_OF("\"c\"", "4611686018427387903", DIGEST) "]",
         STATUS_SERVER},
    };

    for (size_t i = 0; i < sizeof(faults) / sizeof(faults[0]); i++) {
        struct manifest manifest;
        int rc = read_files(faults[i].files, &manifest);
        ck_assert_msg(rc == faults[i].rc, "%s: %d: %s", faults[i].files, rc, err_last()->message);
        ck_assert_ptr_null(manifest.files);
    }
}
END_TEST

UNIT_MAIN("cli_manifest", test_paths, test_read, test_faults)
