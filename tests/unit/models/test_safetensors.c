/* The container: each check of the reader provoked by a crafted header; what the writer writes, to the byte. */

#include "models/safetensors.h"
#include "tests/unit/scratch.h"
#include "tests/unit/unit.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define T(name, dtype, shape, begin, end) \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":[" shape "],\"data_offsets\":[" #begin "," #end "]}"

/* A file that says its header has `size` bytes, has these, and ends at `end`. */
static int check_file(const char *header, uint64_t size, uint64_t end)
{
    struct safetensors *file;
    int fd = memfd_create("header", MFD_CLOEXEC);

    ck_assert_int_eq(pwrite(fd, &size, 8, 0), 8);
    ck_assert_int_eq(pwrite(fd, header, strlen(header), 8), (ssize_t)strlen(header));
    ck_assert_int_eq(ftruncate(fd, (off_t)end), 0);
    int rc = safetensors_open_fd_take(fd, "header", &file);
    if (rc == 0) {
        safetensors_close(file);
    }
    return rc;
}

static int check(const char *header, uint64_t data)
{
    return check_file(header, strlen(header), 8 + strlen(header) + data);
}

START_TEST(test_good_headers)
{
    static const struct {
        const char *header;
        uint64_t data;
    } rows[] = {
        {"{}", 0},
        {"{}      ", 0},
        {"{" T("a", "F32", "2,3", 0, 24) "}", 24},
        {"{" T("b", "BF16", "2", 24, 28) "," T("a", "F32", "2,3", 0, 24) "}", 28},
        {"{" T("scalar", "I64", "", 0, 8) "}", 8},
        {"{" T("empty", "F16", "0,5", 0, 0) "," T("a", "U8", "1", 0, 1) "," T("tail", "F16", "3,0", 1, 1) "}", 1},
        {"{\"__metadata__\":{\"format\":\"pt\"}," T("a", "BOOL", "3", 0, 3) "}", 3},
        {"{" T("\\u00e9 \\\"quoted\\\"", "F8_E4M3", "1,1,1,4", 0, 4) "}", 4},
    };

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        ck_assert_rc_ok(check(rows[i].header, rows[i].data));
    }
}
END_TEST

static const struct {
    const char *header;
    uint64_t data;
    const char *word; /* in the message */
} bad[] = {
    {"", 0, "begin with"},
    {" {}", 0, "begin with"},
    {"[]", 0, "begin with"},
    {"{", 0, "ends early"},
    {"{} x", 0, "follows"},
    {"{\"a\":1}", 0, "object"},
    {"{\"a\":[]}", 0, "object"},
    {"{\"\xff\":{}}", 0, "UTF-8"},
    {"{\"a\\u0000b\":{}}", 0, "NUL"},
    {"{" T("a", "F32", "1", 0, 4) "," T("a", "F32", "1", 4, 8) "}", 8, "twice"},
    {"{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "twice"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, "lacks"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0]}}", 4, "lacks"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,8]}}", 4, "too many"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4],\"x\":1}}", 4, "unknown member"},
    {"{\"a\":{\"dtype\":7,\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "not a string"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":1,\"data_offsets\":[0,4]}}", 4, "not an array"},
    {"{" T("a", "F99", "1", 0, 4) "}", 4, "dtype"},
    {"{" T("a", "F4", "8", 0, 4) "}", 4, "dtype"},
    {"{" T("a", "f32", "1", 0, 4) "}", 4, "dtype"},
    {"{" T("a", "F32", "-1", 0, 4) "}", 4, "integer"},
    {"{" T("a", "F32", "1.0", 0, 4) "}", 4, "integer"},
    {"{" T("a", "F32", "1e0", 0, 4) "}", 4, "integer"},
    {"{" T("a", "F32", "\"1\"", 0, 4) "}", 4, "not a number"},
    {"{" T("a", "F32", "[1]", 0, 4) "}", 4, "not a number"},
    {"{" T("a", "F32", "281474976710656", 0, 4) "}", 4, "integer"},
    {"{" T("a", "F32", "281474976710655,281474976710655", 0, 4) "}", 4, "overflows"},
    {"{" T("a", "F32", "1,1,1,1,1,1,1,1,1", 0, 4) "}", 4, "too many"},
    {"{" T("a", "F32", "2", 0, 4) "}", 4, "needs 8 bytes"},
    {"{" T("a", "F32", "0", 0, 4) "}", 4, "needs 0 bytes"},
    {"{" T("a", "F32", "1", 4, 0) "}", 4, "needs 4 bytes"},
    {"{" T("a", "U8", "4", 4, 8) "}", 8, "hole"},
    {"{" T("a", "U8", "4", 0, 4) "," T("b", "U8", "4", 5, 9) "}", 9, "hole"},
    {"{" T("a", "U8", "4", 0, 4) "," T("b", "U8", "4", 3, 7) "}", 7, "overlaps"},
    {"{" T("a", "U8", "4", 0, 4) "," T("b", "U8", "4", 0, 4) "}", 4, "overlaps"},
    {"{" T("a", "U8", "4", 0, 4) "," T("b", "U8", "0", 2, 2) "}", 4, "overlaps"},
    {"{" T("a", "U8", "4", 0, 4) "}", 5, "end at byte"},
    {"{" T("a", "U8", "4", 0, 4) "}", 3, "truncated"},
    {"{}", 1, "end at byte"},
    {"{\"__metadata__\":[]}", 0, "not an object"},
    {"{\"__metadata__\":{\"a\":1}}", 0, "not a string"},
    {"{\"__metadata__\":{\"a\":{\"b\":\"c\"}}}", 0, "not a string"},
    {"{\"__metadata__\":{\"a\":\"1\",\"a\":\"2\"}}", 0, "twice"},
    {"{\"__metadata__\":{},\"__metadata__\":{}}", 0, "twice"},
};

START_TEST(test_bad_headers)
{
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        int rc = check(bad[i].header, bad[i].data);
        ck_assert_msg(rc == ERR_INVALID_MODEL, "row %zu: %d for %s", i, rc, bad[i].header);
        ck_assert_msg(strstr(err_last()->message, bad[i].word) != NULL, "row %zu says: %s", i, err_last()->message);
    }
}
END_TEST

START_TEST(test_deep_header)
{
    char header[400] = "{\"a\":";
    memset(header + 5, '[', 300);

    ck_assert_int_eq(check(header, 0), ERR_INVALID_MODEL);
    ck_assert_int_eq(check_file("{}", 2, 9), ERR_INVALID_MODEL);
    ck_assert_int_eq(check_file("{}", 2, 4), ERR_INVALID_MODEL);
    ck_assert_int_eq(check_file("{}", UINT64_MAX, 10), ERR_INVALID_MODEL);
}
END_TEST

static char folder[256];

static void path_of(char out[300], const char *name)
{
    snprintf(out, 300, "%s/%s", folder, name);
}

static int open_bytes(const void *data, size_t size, struct safetensors **out)
{
    char path[300];

    path_of(path, "file");
    ck_assert_rc_ok(fs_write_atomic(path, data, size));
    return safetensors_open_fd_take(open(path, O_RDONLY), "file", out);
}

START_TEST(test_bad_files)
{
    struct safetensors *file = NULL;
    unsigned char bytes[64] = {0};

    scratch_make(folder);
    ck_assert_int_eq(open_bytes("", 0, &file), ERR_INVALID_MODEL);
    ck_assert_int_eq(open_bytes(bytes, 7, &file), ERR_INVALID_MODEL);
    ck_assert_int_eq(open_bytes(bytes, 8, &file), ERR_INVALID_MODEL);
    bytes[0] = 57; /* header size past the end */
    ck_assert_int_eq(open_bytes(bytes, 64, &file), ERR_INVALID_MODEL);
    memset(bytes, 0xff, 8);
    ck_assert_int_eq(open_bytes(bytes, 64, &file), ERR_INVALID_MODEL);
    ck_assert_ptr_nonnull(strstr(err_last()->message, "does not fit"));
    memset(bytes, 0, 8);
    bytes[3] = 6; /* 100663296: within the cap of no file this small */
    ck_assert_int_eq(open_bytes(bytes, 64, &file), ERR_INVALID_MODEL);
    ck_assert_int_eq(safetensors_open_fd_take(open(folder, O_RDONLY), "folder", &file), ERR_INVALID_MODEL);
    ck_assert_ptr_null(file);
    scratch_remove(folder);
}
END_TEST

/* Worked out by hand: 88 bytes of header, 112 of file. */
START_TEST(test_writes_the_reference_bytes)
{
    static const char header[] =
        "{\"__metadata__\":{\"format\":\"pt\"},\"t\":{\"dtype\":\"I32\",\"shape\":[2,2],\"data_offsets\":[0,16]}}";
    static const int32_t data[4] = {1, 2, 3, 4};
    struct safetensors_writer *writer;
    char path[300], *text;
    size_t size;

    scratch_make(folder);
    path_of(path, "t");
    ck_assert_rc_ok(safetensors_writer_new(path, &writer));
    ck_assert_rc_ok(safetensors_writer_declare(writer, "t", DTYPE_I32, 2, (const int64_t[]){2, 2}));
    ck_assert_rc_ok(safetensors_writer_begin(writer));
    ck_assert_rc_ok(safetensors_writer_put(writer, "t", 8, data + 2, 8));
    ck_assert_rc_ok(safetensors_writer_put(writer, "t", 0, data, 8));
    ck_assert_rc_ok(safetensors_writer_finish(writer));
    safetensors_writer_free(writer);
    ck_assert_rc_ok(fs_read_file(path, 1 << 20, &text, &size));
    ck_assert_uint_eq(size, 112);
    ck_assert_int_eq(memcmp(text, "\x58\0\0\0\0\0\0\0", 8), 0);
    ck_assert_int_eq(memcmp(text + 8, header, strlen(header)), 0);
    for (size_t i = strlen(header); i < 88; i++) {
        ck_assert_int_eq(text[8 + i], ' ');
    }
    ck_assert_int_eq(memcmp(text + 96, data, 16), 0);
    free(text);
    scratch_remove(folder);
}
END_TEST

static void declare(struct safetensors_writer *writer, const char *name, enum dtype dtype, int64_t n)
{
    ck_assert_rc_ok(safetensors_writer_declare(writer, name, dtype, 1, &n));
}

START_TEST(test_round_trip)
{
    static const char *const order[] = {"b8", "a4", "z4", "a2", "\"odd\" name", "zero"};
    struct safetensors_writer *writer;
    struct safetensors *file;
    char path[300], buffer[16] = "0123456789abcdef", back[16];

    scratch_make(folder);
    path_of(path, "many");
    ck_assert_rc_ok(safetensors_writer_new(path, &writer));
    declare(writer, "z4", DTYPE_F32, 2);
    declare(writer, "a2", DTYPE_BF16, 3);
    declare(writer, "\"odd\" name", DTYPE_U8, 5);
    declare(writer, "b8", DTYPE_I64, 1);
    declare(writer, "a4", DTYPE_F32, 1);
    declare(writer, "zero", DTYPE_U8, 0);
    ck_assert_rc_ok(safetensors_writer_metadata(writer, "key", "value \"x\"\n"));
    ck_assert_rc_ok(safetensors_writer_begin(writer));
    for (size_t i = 0; i < 5; i++) {
        static const size_t sizes[] = {8, 4, 8, 6, 5};
        ck_assert_rc_ok(safetensors_writer_put(writer, order[i], 0, buffer, sizes[i]));
    }
    ck_assert_rc_ok(safetensors_writer_finish(writer));
    safetensors_writer_free(writer);

    ck_assert_rc_ok(safetensors_open_fd_take(open(path, O_RDONLY), "many", &file));
    ck_assert_uint_eq(safetensors_count(file), 6);
    for (size_t i = 0; i < 6; i++) {
        ck_assert_str_eq(safetensors_at(file, i)->name, order[i]);
        ck_assert_ptr_eq(safetensors_find(file, order[i]), safetensors_at(file, i));
    }
    ck_assert_ptr_null(safetensors_find(file, "nothing"));
    ck_assert_str_eq(safetensors_metadata(file, "format"), "pt");
    ck_assert_str_eq(safetensors_metadata(file, "key"), "value \"x\"\n");
    ck_assert_ptr_null(safetensors_metadata(file, "other"));
    ck_assert_uint_eq(strlen(safetensors_header_digest(file)), 64);
    const struct safetensors_entry *entry = safetensors_find(file, "a2");
    ck_assert_int_eq(entry->dtype, DTYPE_BF16);
    ck_assert_rc_ok(safetensors_read(file, entry, 2, back, 4));
    ck_assert_int_eq(memcmp(back, "2345", 4), 0);
    ck_assert_int_eq(safetensors_read(file, entry, 4, back, 4), ERR_INTERNAL);
    ck_assert_int_eq(safetensors_read(file, entry, UINT64_MAX, back, 1), ERR_INTERNAL);

    ck_assert_int_eq(truncate(path, safetensors_file_bytes(file) - 3), 0); /* by someone else: an error, no signal */
    ck_assert_int_eq(safetensors_read(file, safetensors_at(file, 4), 0, back, 5), ERR_SOURCE_CORRUPT);
    safetensors_close(file);
    ck_assert_int_eq(safetensors_open_fd_take(open(path, O_RDONLY), "many", &file), ERR_INVALID_MODEL);
    ck_assert_ptr_nonnull(strstr(err_last()->message, "truncated"));
    scratch_remove(folder);
}
END_TEST

START_TEST(test_writer_refuses)
{
    struct safetensors_writer *writer;
    char path[300];

    scratch_make(folder);
    path_of(path, "w");
    ck_assert_rc_ok(safetensors_writer_new(path, &writer));
    declare(writer, "a", DTYPE_U8, 4);
    ck_assert_int_eq(safetensors_writer_finish(writer), ERR_INTERNAL);
    ck_assert_int_eq(safetensors_writer_put(writer, "a", 0, "abcd", 4), ERR_INTERNAL);
    ck_assert_rc_ok(safetensors_writer_begin(writer));
    ck_assert_int_eq(safetensors_writer_begin(writer), ERR_INTERNAL);
    ck_assert_int_eq(safetensors_writer_put(writer, "b", 0, "abcd", 4), ERR_INTERNAL);
    ck_assert_int_eq(safetensors_writer_put(writer, "a", 1, "abcd", 4), ERR_INTERNAL);
    ck_assert_int_eq(safetensors_writer_put(writer, "a", UINT64_MAX, "a", 1), ERR_INTERNAL);
    ck_assert_rc_ok(safetensors_writer_put(writer, "a", 0, "abc", 3));
    ck_assert_int_eq(safetensors_writer_finish(writer), ERR_INTERNAL);
    safetensors_writer_free(writer);

    ck_assert_rc_ok(safetensors_writer_new(path, &writer));
    declare(writer, "a", DTYPE_U8, 4);
    declare(writer, "a", DTYPE_F32, 4);
    ck_assert_int_eq(safetensors_writer_begin(writer), ERR_INTERNAL);
    safetensors_writer_free(writer);
    ck_assert_int_eq(safetensors_writer_new("/nonexistent/file", &writer), ERR_NOT_FOUND);
    scratch_remove(folder);
}
END_TEST

/* Complete is all up to the first tensor that is not, in the order of the file. */
START_TEST(test_settled)
{
    struct safetensors_writer *writer;
    char path[300];
    uint64_t a, b, c;

    scratch_make(folder);
    path_of(path, "w");
    ck_assert_rc_ok(safetensors_writer_new(path, &writer));
    declare(writer, "c", DTYPE_U8, 3);
    declare(writer, "a", DTYPE_F32, 2);
    declare(writer, "b", DTYPE_F32, 1);
    declare(writer, "empty", DTYPE_F32, 0);
    ck_assert_int_eq(safetensors_writer_place(writer, "a", &a), ERR_INTERNAL);
    ck_assert_rc_ok(safetensors_writer_begin(writer));
    ck_assert_int_eq(safetensors_writer_place(writer, "d", &a), ERR_INTERNAL);
    ck_assert_rc_ok(safetensors_writer_place(writer, "a", &a));
    ck_assert_rc_ok(safetensors_writer_place(writer, "b", &b));
    ck_assert_rc_ok(safetensors_writer_place(writer, "c", &c));
    ck_assert(b == a + 8 && c == b + 4);
    ck_assert_uint_eq(safetensors_writer_final_bytes(writer), a);
    ck_assert_rc_ok(safetensors_writer_put(writer, "b", 0, "bbbb", 4));
    ck_assert_rc_ok(safetensors_writer_put(writer, "a", 4, "aaaa", 4));
    ck_assert_uint_eq(safetensors_writer_final_bytes(writer), a); /* a is half there, b waits for it */
    ck_assert_rc_ok(safetensors_writer_put(writer, "a", 0, "aaaa", 4));
    ck_assert_uint_eq(safetensors_writer_final_bytes(writer), c);
    ck_assert_rc_ok(safetensors_writer_put(writer, "c", 0, "ccc", 3));
    ck_assert_uint_eq(safetensors_writer_final_bytes(writer), c + 3);
    ck_assert_rc_ok(safetensors_writer_finish(writer));
    safetensors_writer_free(writer);
    scratch_remove(folder);
}
END_TEST

enum { PUTTERS = 4, PIECES = 64, PIECE = 100 };

struct putter {
    struct safetensors_writer *writer;
    int number;
};

/* Every fourth piece of one tensor, and a tensor of its own. */
static void *put_pieces(void *data)
{
    const struct putter *putter = data;
    char piece[PIECE], name[8];

    snprintf(name, sizeof(name), "own%d", putter->number);
    memset(piece, 'A' + putter->number, sizeof(piece));
    for (int i = putter->number; i < PIECES; i += PUTTERS) {
        ck_assert_rc_ok(safetensors_writer_put(putter->writer, "shared", (uint64_t)i * PIECE, piece, PIECE));
    }
    ck_assert_rc_ok(safetensors_writer_put(putter->writer, name, 0, piece, PIECE));
    return NULL;
}

START_TEST(test_put_from_threads)
{
    struct safetensors_writer *writer;
    struct safetensors *file;
    struct putter putters[PUTTERS];
    pthread_t threads[PUTTERS];
    char path[300], back[PIECES * PIECE], name[8];
    uint64_t last = 0;

    scratch_make(folder);
    path_of(path, "w");
    ck_assert_rc_ok(safetensors_writer_new(path, &writer));
    declare(writer, "shared", DTYPE_F16, PIECES * PIECE / 2);
    for (int i = 0; i < PUTTERS; i++) {
        snprintf(name, sizeof(name), "own%d", i);
        declare(writer, name, DTYPE_U8, PIECE);
    }
    ck_assert_rc_ok(safetensors_writer_begin(writer));
    for (int i = 0; i < PUTTERS; i++) {
        putters[i] = (struct putter){writer, i};
        ck_assert_int_eq(pthread_create(&threads[i], NULL, put_pieces, &putters[i]), 0);
    }
    for (int i = 0; i < PUTTERS; i++) {
        uint64_t settled = safetensors_writer_final_bytes(writer);
        ck_assert_uint_ge(settled, last);
        last = settled;
        ck_assert_int_eq(pthread_join(threads[i], NULL), 0);
    }
    ck_assert_rc_ok(safetensors_writer_finish(writer));
    safetensors_writer_free(writer);
    ck_assert_rc_ok(safetensors_open_fd_take(open(path, O_RDONLY), "w", &file));
    ck_assert_rc_ok(safetensors_read(file, safetensors_find(file, "shared"), 0, back, sizeof(back)));
    for (int i = 0; i < PIECES * PIECE; i++) {
        ck_assert_int_eq(back[i], 'A' + i / PIECE % PUTTERS);
    }
    safetensors_close(file);
    scratch_remove(folder);
}
END_TEST

UNIT_MAIN("safetensors", test_good_headers, test_bad_headers, test_deep_header, test_bad_files,
          test_writes_the_reference_bytes, test_round_trip, test_writer_refuses, test_settled, test_put_from_threads)
