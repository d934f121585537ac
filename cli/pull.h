#pragma once
/* The files of an artifact into a directory: in parallel ranges, continued after an interruption, each checked against
 * the manifest before it gets its name. */

#include "cli/client.h"
#include "cli/manifest.h"

struct pull_options {
    int parallel;
    bool replace; /* files that are there and differ */
};

/* Every file of the manifest of artifact, into directory, which is created. fetched: set for each file that was not
 * there already; as many as the manifest has. */
int pull_files(struct cli *cli, const char *artifact, const struct manifest *manifest, const char *directory,
               const struct pull_options *options, bool *fetched);
