#pragma once
/* Signatures of Standard Webhooks (version 1.0.0): HMAC-SHA256 with a secret that both sides have. Any thread. */

#include <stddef.h>
#include <stdint.h>

#define SIGN_SECRET_PREFIX "whsec_"
#define SIGN_SECRET_SIZE 51    /* the prefix, 32 random bytes in base 64, and NUL */
#define SIGN_SIGNATURE_SIZE 48 /* "v1,", 32 bytes in base 64, and NUL */

/* A new secret, of the kernel's random bytes. */
int sign_secret_new(char secret[SIGN_SECRET_SIZE]);
/* Of "id.timestamp.body". ERR_INTERNAL when the secret is not one. */
int sign_message(const char *secret, const char *id, int64_t timestamp, const char *body, size_t size,
                 char signature[SIGN_SIGNATURE_SIZE]);
