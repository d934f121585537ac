#pragma once
/* An artifact to a registry: blob by blob from quantd, without a copy on this host. What the registry has already is
 * not sent. */

#include "cli/client.h"
#include "cli/manifest.h"
#include "cli/registry.h"

struct pushed {
    char sha256[DIGEST_HEX_SIZE]; /* of the image's manifest */
    json_t *blobs;                /* [{"digest","bytes","path","uploaded"}] */
};

/* files: those of the artifact. */
int push_artifact(struct cli *cli, const char *artifact, const struct manifest *files, struct registry *registry,
                  struct pushed *out);
