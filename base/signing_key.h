#pragma once
/* Keys of signatures: elliptic curves P-256, P-384 and P-521, as PEM. Functions may block on the disk; any thread, and
 * a key may be used by several at once. */

#include "base/cleanup.h"
#include "base/digest.h"

#include <stdbool.h>
#include <stddef.h>

struct signing_key;

enum signing_key_kind { SIGNING_KEY_PRIVATE, SIGNING_KEY_PUBLIC };

/* Read a key. ERR_CONFIG, with the hint of what to do, when the file has none that can be used: another kind, a
 * passphrase, RSA or another curve, a private key whose halves do not belong together. The codes of base/fs.h when it
 * cannot be read. */
int signing_key_read(const char *path, enum signing_key_kind kind, struct signing_key **out);
void signing_key_free(struct signing_key *key);
CLEANUP_FREE(signing_key, struct signing_key, signing_key_free)

/* Users of the host other than the owner and the group may read or change the file that it was read from. */
bool signing_key_exposed(const struct signing_key *key);
/* "ecdsa-p256-sha256", "ecdsa-p384-sha384" or "ecdsa-p521-sha512". */
const char *signing_key_algorithm(const struct signing_key *key);
/* The public half as PEM, as `openssl pkey -pubout` writes it, and the SHA-256 of that text. */
const char *signing_key_public(const struct signing_key *key);
const char *signing_key_hint(const struct signing_key *key);

/* The signature (DER) of data by a private key. *signature is malloc'ed. */
int signing_key_sign(const struct signing_key *key, const void *data, size_t size, unsigned char **signature,
                     size_t *signature_size);
/* Whether it is one of this data by this key. */
bool signing_key_verify(const struct signing_key *key, const void *data, size_t size, const unsigned char *signature,
                        size_t signature_size);
