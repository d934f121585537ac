#pragma once
/* Files as one tar archive (POSIX pax), made while it is sent: the same list of files is always the same bytes, so
 * ranges and entity tags work as for a stored file. */

#include "api/request.h"

struct archive;

int archive_new(struct archive **out);
void archive_free(struct archive *archive); /* NULL is accepted */
CLEANUP_FREE(archive, struct archive, archive_free)
/* Append a file whose bytes are a blob. */
int archive_add_blob(struct archive *archive, const char *name, const char *sha256, int64_t size);
/* Append a file whose bytes are these, which are copied. */
int archive_add_bytes(struct archive *archive, const char *name, const void *bytes, size_t size);
/* The two empty blocks at the end; nothing can be added after them. */
int archive_end(struct archive *archive);
/* Valid after archive_end. */
int64_t archive_size(const struct archive *archive);
const char *
archive_digest(const struct archive *archive); /* of the headers and of the digests of the files: an identity */
/* Read exactly size bytes. ERR_NOT_FOUND when a file's bytes are gone. */
int archive_read(struct archive *archive, struct service *service, int64_t offset, char *buffer, size_t size);
