/* SHA-256 against the examples of FIPS 180-2, in pieces, and over files. */

#include "tests/unit/unit.h"

#include "base/digest.h"
#include "tests/unit/scratch.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

static const char empty[] = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
static const char abc[] = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
static const char million[] = "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0";

START_TEST(known_answers)
{
    char hex[DIGEST_HEX_SIZE];

    digest_bytes("", 0, hex);
    ck_assert_str_eq(hex, empty);
    digest_bytes("abc", 3, hex);
    ck_assert_str_eq(hex, abc);
}
END_TEST

START_TEST(pieces_make_the_whole)
{
    char piece[997], hex[DIGEST_HEX_SIZE];
    struct digest *digest = digest_new();

    memset(piece, 'a', sizeof(piece));
    for (size_t left = 1000000; left > 0;) {
        size_t n = left < sizeof(piece) ? left : sizeof(piece);
        digest_update(digest, piece, n);
        left -= n;
    }
    digest_finish(digest, hex);
    ck_assert_str_eq(hex, million);
    digest_free(NULL);
    digest_free(digest_new());
}
END_TEST

START_TEST(files_are_hashed_whole)
{
    char dir[256], path[300], hex[DIGEST_HEX_SIZE];
    int64_t size = -1;
    size_t large = ((size_t)1 << 20) + 17; /* more than one piece */
    char *data = calloc(1, large);

    scratch_make(dir);
    snprintf(path, sizeof(path), "%s/file", dir);
    ck_assert_rc_ok(fs_write_atomic(path, data, large));
    int fd = open(path, O_RDONLY);
    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(lseek(fd, 100, SEEK_SET), 100); /* the offset does not matter */
    ck_assert_rc_ok(digest_file(fd, hex, &size));
    ck_assert_int_eq(size, (int64_t)large);
    char at_once[DIGEST_HEX_SIZE];
    digest_bytes(data, large, at_once);
    ck_assert_str_eq(hex, at_once);
    ck_assert_rc_ok(digest_file(fd, hex, NULL));
    close(fd);
    ck_assert_int_lt(digest_file(fd, hex, NULL), 0);
    free(data);
    scratch_remove(dir);
}
END_TEST

START_TEST(base64_of_a_known_digest)
{
    char hex[DIGEST_HEX_SIZE], text[DIGEST_BASE64_SIZE];

    digest_bytes("", 0, hex);
    digest_base64(hex, text);
    ck_assert_str_eq(text, "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=");
}
END_TEST

UNIT_MAIN("digest", known_answers, pieces_make_the_whole, files_are_hashed_whole, base64_of_a_known_digest)
