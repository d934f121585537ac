#pragma once
/* Signatures of artifacts (base/model_signature.h), before and after a download. What does not verify is
 * STATUS_MISMATCH. */

#include "base/model_signature.h"
#include "cli/client.h"
#include "cli/manifest.h"

/* The public key of a file. ERR_CONFIG: it has none; STATUS_LOCAL: it cannot be read. */
int verify_read_key(const char *path, struct signing_key **out);
/* The signature of an artifact on the server is one of the key, over exactly the files of the manifest. signature:
 * zeroed. */
int verify_artifact(struct cli *cli, const char *artifact, const struct manifest *manifest,
                    const struct signing_key *key, struct model_signature *signature);
/* No file is in the directory, if it is there, that the manifest does not have and the signature does not ignore: a
 * loader would read it, too. */
int verify_no_others(const char *directory, const struct manifest *manifest, const struct model_signature *signature);
/* Files below the directory have been signed by the key, all that are there and no others. signature: the file of the
 * signature; NULL: MODEL_SIGNATURE_FILE in the directory. *files, *bytes: how many were hashed. */
int verify_directory(const char *directory, const char *signature, const struct signing_key *key, int64_t *files,
                     int64_t *bytes);
