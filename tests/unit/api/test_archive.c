/* Headers of archives: names and sizes that ustar cannot say go into a pax record. The bytes of the files themselves
 * come from the service, and are not read here. */

#include "../unit.h"
#include "api/archive.h"

#define BLOCK 512
#define SHA "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

static void read_at(struct archive *archive, int64_t offset, char *out, size_t size)
{
    ck_assert_rc_ok(archive_read(archive, NULL, offset, out, size));
}

static void check_checksum(const char block[BLOCK])
{
    unsigned sum = 0;
    for (int i = 0; i < BLOCK; i++) {
        sum += i >= 148 && i < 156 ? ' ' : (unsigned char)block[i];
    }
    ck_assert_uint_eq(strtoul(block + 148, NULL, 8), sum);
}

/* An archive of one file, complete. */
static struct archive *archive_of(const char *name, int64_t size)
{
    struct archive *archive;
    ck_assert_rc_ok(archive_new(&archive));
    ck_assert_rc_ok(archive_add_blob(archive, name, SHA, size));
    ck_assert_rc_ok(archive_end(archive));
    return archive;
}

static void fill_name(char *name, size_t size)
{
    memset(name, 'n', size);
    name[size] = '\0';
}

/* What fits has one header. 100 bytes fill the field: no NUL ends it. */
START_TEST(test_archive_plain)
{
    const int64_t size = ((int64_t)8 << 30) - 1;
    char name[101], block[BLOCK];
    fill_name(name, 100);
    struct archive *archive = archive_of(name, size);
    read_at(archive, 0, block, BLOCK);
    check_checksum(block);
    ck_assert_int_eq(memcmp(block, name, 100), 0);
    ck_assert_str_eq(block + 124, "77777777777");
    ck_assert_int_eq(block[156], '0');
    ck_assert_int_eq(archive_size(archive), BLOCK + ((int64_t)8 << 30) + 2 * BLOCK);
    archive_free(archive);
}
END_TEST

/* The pax record is before the header; ranges that begin in it, within the padding, and in the last blocks. */
static void check_pax(const char *name, int64_t size, const char *records)
{
    char block[3 * BLOCK], part[BLOCK], end[2 * BLOCK + 1], zeros[2 * BLOCK + 1] = {0};
    struct archive *archive = archive_of(name, size);
    read_at(archive, 0, block, sizeof(block));
    check_checksum(block);
    ck_assert_int_eq(block[156], 'x');
    ck_assert_uint_eq(strtoul(block + 124, NULL, 8), strlen(records));
    ck_assert_str_eq(block + BLOCK, records);
    check_checksum(block + 2 * BLOCK);
    ck_assert_int_eq(block[2 * BLOCK + 156], '0');
    read_at(archive, BLOCK + 5, part, sizeof(part));
    ck_assert_int_eq(memcmp(part, block + BLOCK + 5, sizeof(part)), 0);
    int64_t padded = (size + BLOCK - 1) / BLOCK * BLOCK;
    ck_assert_int_eq(archive_size(archive), 3 * BLOCK + padded + 2 * BLOCK);
    size_t rest = 2 * BLOCK + (padded > size);
    read_at(archive, archive_size(archive) - (int64_t)rest, end, rest);
    ck_assert_int_eq(memcmp(end, zeros, rest), 0);
    archive_free(archive);
}

START_TEST(test_archive_pax)
{
    char name[241], records[512];
    fill_name(name, 101);
    (void)snprintf(records, sizeof(records), "111 path=%s\n", name);
    check_pax(name, 3, records);
    fill_name(name, 89); /* short: only the size does not fit */
    check_pax(name, (int64_t)8 << 30, "19 size=8589934592\n");
    fill_name(name, 240);
    (void)snprintf(records, sizeof(records), "250 path=%s\n22 size=1099511627777\n", name);
    check_pax(name, ((int64_t)1 << 40) + 1, records);
}
END_TEST

/* Its identity depends on names, sizes and digests. */
START_TEST(test_archive_identity)
{
    struct archive *same[] = {archive_of("a", 7), archive_of("a", 7), archive_of("b", 7), archive_of("a", 8)};
    ck_assert_str_eq(archive_digest(same[0]), archive_digest(same[1]));
    ck_assert_str_ne(archive_digest(same[0]), archive_digest(same[2]));
    ck_assert_str_ne(archive_digest(same[0]), archive_digest(same[3]));
    for (size_t i = 0; i < sizeof(same) / sizeof(same[0]); i++) {
        archive_free(same[i]);
    }
}
END_TEST

UNIT_MAIN("archive", test_archive_plain, test_archive_pax, test_archive_identity)
