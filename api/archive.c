/* A tar archive is a list of pieces: headers and padding, which are small and kept, and blobs, which are opened one at
 * a time as they are read.
 *
 * The header is ustar; a name or size that does not fit there goes into a pax record before it (POSIX.1-2001). Owner,
 * mode and time are constants: nothing in the archive says when and for whom it was made. */

#include "api/archive.h"

#include "base/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TAR_BLOCK 512
#define TAR_NAME 100
#define TAR_SIZE_MAX ((int64_t)077777777777) /* 11 octal digits */

struct piece {
    int64_t start, size;
    char *bytes; /* NULL: a blob's */
    char sha256[DIGEST_HEX_SIZE];
};

struct archive {
    struct piece *pieces;
    size_t count, capacity;
    int64_t size;
    struct digest *identity;
    char digest[DIGEST_HEX_SIZE];
    struct blob_reader *reader; /* of piece number `open` */
    size_t open;
};

/* As tar(5) has it. */
struct tar_header {
    char name[TAR_NAME], mode[8], uid[8], gid[8], size[12], mtime[12], checksum[8], type, link[100], magic[6],
        version[2];
    char user[32], group[32], major[8], minor[8], prefix[155], padding[12];
};
_Static_assert(sizeof(struct tar_header) == TAR_BLOCK, "a tar header is one block");

int archive_new(struct archive **out)
{
    AUTO(archive) struct archive *archive = NULL;

    TRY(mem_new(&archive));
    archive->identity = digest_new();
    if (archive->identity == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for an archive");
    }
    *out = MOVE(archive);
    return 0;
}

void archive_free(struct archive *archive)
{
    if (archive == NULL) {
        return;
    }
    for (size_t i = 0; i < archive->count; i++) {
        free(archive->pieces[i].bytes);
    }
    if (archive->reader != NULL) {
        service_blob_close(archive->reader);
    }
    digest_free(archive->identity);
    free(archive->pieces);
    free(archive);
}

static int add_piece(struct archive *archive, struct piece **out)
{
    if (archive->count == archive->capacity) {
        size_t capacity = archive->capacity > 0 ? 2 * archive->capacity : 16;
        TRY(mem_resize(&archive->pieces, capacity));
        archive->capacity = capacity;
    }
    *out = &archive->pieces[archive->count++];
    **out = (struct piece){.start = archive->size};
    return 0;
}

/* A copy of bytes, filled up with zeros to complete blocks. */
static int add_blocks(struct archive *archive, const void *bytes, size_t size)
{
    size_t padded = (size + TAR_BLOCK - 1) / TAR_BLOCK * TAR_BLOCK;
    AUTO_FREE char *copy = NULL;
    struct piece *piece;

    TRY(mem_array(&copy, padded));
    memcpy(copy, bytes, size);
    TRY(add_piece(archive, &piece));
    digest_update(archive->identity, copy, padded);
    piece->bytes = MOVE(copy);
    piece->size = (int64_t)padded;
    archive->size += piece->size;
    return 0;
}

static int archive_add_header(struct archive *archive, const char *name, char type, int64_t size)
{
    struct tar_header header = {.magic = "ustar", .version = {'0', '0'}, .type = type};
    size_t length = strlen(name);
    unsigned sum = 0;

    memcpy(header.name, name, length < TAR_NAME ? length : TAR_NAME);
    (void)snprintf(header.mode, sizeof(header.mode), "%07o", 0644u);
    (void)snprintf(header.uid, sizeof(header.uid), "%07o", 0u);
    (void)snprintf(header.gid, sizeof(header.gid), "%07o", 0u);
    (void)snprintf(header.size, sizeof(header.size), "%011llo", (unsigned long long)(size > TAR_SIZE_MAX ? 0 : size));
    (void)snprintf(header.mtime, sizeof(header.mtime), "%011o", 0u);
    memset(header.checksum, ' ', sizeof(header.checksum));
    const unsigned char *bytes = (const unsigned char *)&header;
    for (size_t i = 0; i < sizeof(header); i++) {
        sum += bytes[i];
    }
    (void)snprintf(header.checksum, sizeof(header.checksum), "%06o", sum);
    return add_blocks(archive, &header, sizeof(header));
}

/* "<length> <key>=<value>\n", where the length counts its own digits too. */
static size_t pax_record(char *out, size_t capacity, const char *key, const char *value)
{
    size_t body = strlen(key) + strlen(value) + 3, length = body;

    for (size_t before = 0; before != length;) {
        char digits[24];
        before = length;
        length = body + (size_t)snprintf(digits, sizeof(digits), "%zu", before);
    }
    return (size_t)snprintf(out, capacity, "%zu %s=%s\n", length, key, value);
}

static int add_pax(struct archive *archive, const char *name, int64_t size)
{
    size_t capacity = strlen(name) + 128, used = 0;
    AUTO_FREE char *records = NULL;
    char number[24];

    if (strlen(name) <= TAR_NAME && size <= TAR_SIZE_MAX) {
        return 0;
    }
    TRY(mem_array(&records, capacity));
    if (strlen(name) > TAR_NAME) {
        used += pax_record(records, capacity, "path", name);
    }
    if (size > TAR_SIZE_MAX) {
        (void)snprintf(number, sizeof(number), "%lld", (long long)size);
        used += pax_record(records + used, capacity - used, "size", number);
    }
    TRY(archive_add_header(archive, "pax_header", 'x', (int64_t)used));
    return add_blocks(archive, records, used);
}

int archive_add_blob(struct archive *archive, const char *name, const char *sha256, int64_t size)
{
    struct piece *piece;

    TRY(add_pax(archive, name, size));
    TRY(archive_add_header(archive, name, '0', size));
    if (size > 0) {
        TRY(add_piece(archive, &piece));
        (void)snprintf(piece->sha256, sizeof(piece->sha256), "%s", sha256);
        piece->size = size;
        archive->size += size;
        digest_update(archive->identity, sha256, strlen(sha256));
    }
    size_t past = (size_t)(size % TAR_BLOCK);
    if (past == 0) {
        return 0;
    }
    TRY(add_piece(archive, &piece));
    piece->size = (int64_t)(TAR_BLOCK - past);
    archive->size += piece->size;
    return mem_array(&piece->bytes, TAR_BLOCK - past);
}

int archive_add_bytes(struct archive *archive, const char *name, const void *bytes, size_t size)
{
    TRY(add_pax(archive, name, (int64_t)size));
    TRY(archive_add_header(archive, name, '0', (int64_t)size));
    return size > 0 ? add_blocks(archive, bytes, size) : 0;
}

int archive_end(struct archive *archive)
{
    static const char zeros[2 * TAR_BLOCK];

    TRY(add_blocks(archive, zeros, sizeof(zeros)));
    digest_finish(archive->identity, archive->digest);
    archive->identity = NULL;
    return 0;
}

int64_t archive_size(const struct archive *archive)
{
    return archive->size;
}

const char *archive_digest(const struct archive *archive)
{
    return archive->digest;
}

static size_t find_piece(const struct archive *archive, int64_t offset)
{
    size_t low = 0, high = archive->count;

    while (high - low > 1) {
        size_t middle = low + (high - low) / 2;
        if (archive->pieces[middle].start <= offset) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}

static int archive_open_blob(struct archive *archive, struct service *service, size_t index)
{
    const struct piece *piece = &archive->pieces[index];
    int64_t size = 0;

    if (archive->reader != NULL && archive->open == index) {
        return 0;
    }
    if (archive->reader != NULL) {
        service_blob_close(archive->reader);
        archive->reader = NULL;
    }
    TRY(service_blob_open(service, piece->sha256, &archive->reader, &size));
    archive->open = index;
    return size == piece->size ? 0
                               : err_raise(ERR_SOURCE_CORRUPT, "blob %s has %lld bytes instead of %lld", piece->sha256,
                                           (long long)size, (long long)piece->size);
}

int archive_read(struct archive *archive, struct service *service, int64_t offset, char *buffer, size_t size)
{
    while (size > 0) {
        size_t index = find_piece(archive, offset);
        const struct piece *piece = &archive->pieces[index];
        int64_t within = offset - piece->start, left = piece->size - within;
        size_t part = left < (int64_t)size ? (size_t)left : size;
        if (piece->bytes != NULL) {
            memcpy(buffer, piece->bytes + within, part);
        } else {
            TRY(archive_open_blob(archive, service, index));
            TRY(service_blob_read(archive->reader, within, buffer, part));
        }
        buffer += part;
        offset += (int64_t)part;
        size -= part;
    }
    return 0;
}
