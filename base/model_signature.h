#pragma once
/* Signatures of models as OpenSSF Model Signing v1.0 has them: a Sigstore bundle (JSON) with a DSSE envelope, whose
 * payload is an in-toto statement of the SHA-256 of each file. Any thread. */

#include "base/signing_key.h"

#include <jansson.h>

#define MODEL_SIGNATURE_FILE "model.sig" /* its name next to the files; it is not one of those that are signed */
#define MODEL_SIGNATURE_TYPE "application/vnd.dev.sigstore.bundle.v0.3+json"
#define MODEL_SIGNATURE_MAX ((size_t)16 << 20) /* of a bundle */

/* The bundle that signs files, objects with "path" and "sha256". name: of the model, for people. MODEL_SIGNATURE_FILE
 * is left out. *bundle is malloc'ed and ends with NUL. */
int model_signature_make(const struct signing_key *key, const char *name, const json_t *files, char **bundle,
                         size_t *size);

struct model_signature {
    char hint[2 * DIGEST_HEX_SIZE]; /* of the key, as the bundle has it: not to be trusted; "" = none */
    unsigned char *payload, *signature;
    size_t payload_size, signature_size;
    /* Once it is verified: */
    json_t *files;   /* an object: path to SHA-256 */
    json_t *ignored; /* an array: paths of files that need not be signed, or of directories */
};

/* Read a bundle. ERR_DIGEST_MISMATCH when it is none. out: zeroed. */
int model_signature_read(const char *bundle, size_t size, struct model_signature *out);
/* Whether the bundle says that it was made by this key, or does not say by which. */
bool model_signature_names(const struct model_signature *signature, const struct signing_key *key);
/* Check that the key has signed it, and read what was signed. ERR_DIGEST_MISMATCH with the reason. */
int model_signature_verify(struct model_signature *signature, const struct signing_key *key);
/* Whether a file that is not signed may be there. */
bool model_signature_ignores(const struct model_signature *signature, const char *path);
/* Hold what was found against what is signed: found is an object, path to SHA-256. ERR_DIGEST_MISMATCH names the first
 * file that is missing, changed or added, and how many more there are. What the signature ignores counts as added: who
 * looks at a directory leaves it out, but nothing unsigned comes from a server. */
int model_signature_compare(const struct model_signature *signature, const json_t *found);
void model_signature_deinit(struct model_signature *signature);
CLEANUP_DEINIT(model_signature, struct model_signature, model_signature_deinit)
