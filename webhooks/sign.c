/* Signatures, by OpenSSL. */

#include "webhooks/sign.h"

#include "base/err.h"

#include <errno.h>
#include <inttypes.h>
#include <openssl/evp.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#define SIGN_RANDOM_BYTES 32
#define SIGN_KEY_MAX 64 /* bytes of a secret's key */

int sign_secret_new(char secret[SIGN_SECRET_SIZE])
{
    unsigned char key[SIGN_RANDOM_BYTES];

    if (getrandom(key, sizeof(key), 0) != (ssize_t)sizeof(key)) {
        return err_raise_errno(errno, "cannot get random bytes for a secret");
    }
    char *to = stpcpy(secret, SIGN_SECRET_PREFIX);
    (void)EVP_EncodeBlock((unsigned char *)to, key, sizeof(key));
    explicit_bzero(key, sizeof(key));
    return 0;
}

/* The key that a secret's text holds; its size, or -1. */
static int sign_key(const char *secret, unsigned char key[SIGN_KEY_MAX])
{
    const size_t prefix = strlen(SIGN_SECRET_PREFIX);
    size_t size = strlen(secret);

    if (size <= prefix || strncmp(secret, SIGN_SECRET_PREFIX, prefix) != 0 || (size - prefix) % 4 != 0 ||
        (size - prefix) / 4 * 3 > SIGN_KEY_MAX) {
        return -1;
    }
    int decoded = EVP_DecodeBlock(key, (const unsigned char *)secret + prefix, (int)(size - prefix));
    for (size_t i = size; decoded > 0 && secret[i - 1] == '='; i--) {
        decoded--; /* OpenSSL counts the padding */
    }
    return decoded > 0 ? decoded : -1;
}

/* HMAC over the three parts, without a copy of the body. */
static bool sign_parts(const unsigned char *key, int key_size, const char *head, const char *body, size_t size,
                       unsigned char mac[EVP_MAX_MD_SIZE], size_t *mac_size)
{
    EVP_PKEY *secret = EVP_PKEY_new_raw_private_key(EVP_PKEY_HMAC, NULL, key, (size_t)key_size);
    EVP_MD_CTX *context = EVP_MD_CTX_new();

    *mac_size = EVP_MAX_MD_SIZE;
    bool done = secret != NULL && context != NULL &&
                EVP_DigestSignInit(context, NULL, EVP_sha256(), NULL, secret) == 1 &&
                EVP_DigestSignUpdate(context, head, strlen(head)) == 1 &&
                EVP_DigestSignUpdate(context, body, size) == 1 && EVP_DigestSignFinal(context, mac, mac_size) == 1;
    EVP_MD_CTX_free(context);
    EVP_PKEY_free(secret);
    return done;
}

int sign_message(const char *secret, const char *id, int64_t timestamp, const char *body, size_t size,
                 char signature[SIGN_SIGNATURE_SIZE])
{
    unsigned char key[SIGN_KEY_MAX], mac[EVP_MAX_MD_SIZE];
    char head[128];
    size_t mac_size = 0;
    int key_size = sign_key(secret, key);

    if (key_size < 0 || snprintf(head, sizeof(head), "%s.%" PRId64 ".", id, timestamp) >= (int)sizeof(head)) {
        return err_raise(ERR_INTERNAL, "a webhook's secret or the id of its message is damaged");
    }
    bool done = sign_parts(key, key_size, head, body, size, mac, &mac_size);
    explicit_bzero(key, sizeof(key));
    if (!done || mac_size != 32) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "cannot sign a message to a webhook");
    }
    char *to = stpcpy(signature, "v1,");
    (void)EVP_EncodeBlock((unsigned char *)to, mac, (int)mac_size);
    return 0;
}
