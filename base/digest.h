#pragma once
/* SHA-256 (OpenSSL EVP), streaming and one-shot, as lower-case hex. */

#include "base/cleanup.h"

#include <stddef.h>
#include <stdint.h>

#define DIGEST_HEX_SIZE 65    /* 64 hex digits and NUL */
#define DIGEST_BASE64_SIZE 45 /* 44 characters and NUL */

struct digest;
struct digest *digest_new(void); /* NULL when out of memory */
void digest_update(struct digest *digest, const void *data, size_t size);
void digest_finish(struct digest *digest, char hex[DIGEST_HEX_SIZE]); /* frees digest */
void digest_free(struct digest *digest);
void digest_bytes(const void *data, size_t size, char hex[DIGEST_HEX_SIZE]);
/* Hash an open file from its first to its last byte; size may be NULL. 0 or a raised code. */
int digest_file(int fd, char hex[DIGEST_HEX_SIZE], int64_t *size);
/* The same digest in base 64 (RFC 4648, 4). */
void digest_base64(const char hex[DIGEST_HEX_SIZE], char out[DIGEST_BASE64_SIZE]);

CLEANUP_FREE(digest, struct digest, digest_free)
