/* SHA-256 through OpenSSL's EVP, which uses the CPU's SHA instructions. */

#include "base/digest.h"

#include "base/err.h"
#include "base/fs.h"
#include "base/text.h"

#include <errno.h>
#include <openssl/evp.h>
#include <stdlib.h>
#include <sys/stat.h>

#define DIGEST_PIECE (1 << 20)

struct digest {
    EVP_MD_CTX *context;
};

static void to_hex(const unsigned char bytes[32], char hex[DIGEST_HEX_SIZE])
{
    static const char digits[] = "0123456789abcdef";

    for (size_t i = 0; i < 32; i++) {
        hex[2 * i] = digits[bytes[i] >> 4];
        hex[2 * i + 1] = digits[bytes[i] & 15];
    }
    hex[64] = '\0';
}

struct digest *digest_new(void)
{
    struct digest *digest = malloc(sizeof(*digest));
    if (digest == NULL) {
        return NULL;
    }
    digest->context = EVP_MD_CTX_new();
    if (digest->context == NULL || EVP_DigestInit_ex(digest->context, EVP_sha256(), NULL) != 1) {
        digest_free(digest);
        return NULL;
    }
    return digest;
}

void digest_update(struct digest *digest, const void *data, size_t size)
{
    (void)EVP_DigestUpdate(digest->context, data, size);
}

void digest_finish(struct digest *digest, char hex[DIGEST_HEX_SIZE])
{
    unsigned char bytes[EVP_MAX_MD_SIZE] = {0};
    unsigned int size = 0;

    (void)EVP_DigestFinal_ex(digest->context, bytes, &size);
    to_hex(bytes, hex);
    digest_free(digest);
}

void digest_free(struct digest *digest)
{
    if (digest != NULL) {
        EVP_MD_CTX_free(digest->context);
        free(digest);
    }
}

void digest_bytes(const void *data, size_t size, char hex[DIGEST_HEX_SIZE])
{
    unsigned char bytes[EVP_MAX_MD_SIZE] = {0};
    unsigned int length = 0;

    (void)EVP_Digest(data, size, bytes, &length, EVP_sha256(), NULL);
    to_hex(bytes, hex);
}

int digest_file(int fd, char hex[DIGEST_HEX_SIZE], int64_t *size)
{
    struct stat info;
    char *piece = malloc(DIGEST_PIECE);
    struct digest *digest = digest_new();
    int rc = 0;

    if (piece == NULL || digest == NULL) {
        rc = err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a digest");
    } else if (fstat(fd, &info) != 0) {
        rc = err_raise_errno(errno, "cannot stat a file to hash");
    }
    for (int64_t done = 0; rc == 0 && done < info.st_size;) {
        size_t want = info.st_size - done < DIGEST_PIECE ? (size_t)(info.st_size - done) : DIGEST_PIECE;
        rc = fs_pread_full(fd, piece, want, done);
        if (rc == 0) {
            digest_update(digest, piece, want);
            done += (int64_t)want;
        }
    }
    free(piece);
    if (rc != 0) {
        digest_free(digest);
        return rc;
    }
    if (size != NULL) {
        *size = info.st_size;
    }
    digest_finish(digest, hex);
    return 0;
}

void digest_base64(const char hex[DIGEST_HEX_SIZE], char out[DIGEST_BASE64_SIZE])
{
    unsigned char bytes[DIGEST_HEX_SIZE / 2];

    for (size_t i = 0; i < sizeof(bytes); i++) {
        bytes[i] = (unsigned char)(text_hex_value(hex[2 * i]) * 16 + text_hex_value(hex[2 * i + 1]));
    }
    (void)EVP_EncodeBlock((unsigned char *)out, bytes, sizeof(bytes));
}
