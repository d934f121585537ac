#pragma once
/* One file on its way: its bytes in NAME.quantctl-part, which of its chunks are complete in NAME.quantctl-map, so that
 * another process continues where one was killed. It gets its name once its digest is the manifest's. */

#include "cli/manifest.h"

#include <stdbool.h>

#define PART_CHUNK ((int64_t)4 << 20)

struct part {
    const struct manifest_file *file; /* the manifest's */
    int parent, data, map;            /* descriptors: its directory, the bytes, the map; -1 = not open */
    char *name;                       /* in its directory */
    int64_t chunks, missing;          /* all, and those not complete */
    bool *complete, *taken;           /* of each chunk; taken: somebody is at it */
    bool continued;                   /* some chunks are an earlier process's */
};

/* Open the part of file below the directory root, creating directories. STATUS_LOCAL when another process is at it. */
int part_open(int root, const struct manifest_file *file, struct part *part);
/* Is the complete file there already, with the right digest? *there: some file of that name is. */
int part_find(int root, const struct manifest_file *file, bool *there, bool *same);
/* A chunk that nobody is at: its number, or -1. It is taken from now on. */
int64_t part_take(struct part *part);
void part_release(struct part *part, int64_t chunk);
int64_t part_chunk_bytes(const struct part *part, int64_t chunk);
/* Chunk is on disk, as far as a crash of this process is concerned. */
int part_complete(struct part *part, int64_t chunk);
/* All chunks are there: check the digest and give the file its name (replace: over another file). *again: it was wrong,
 * but an earlier process had a share in it, so it begins from nothing. STATUS_MISMATCH if it is simply wrong; the part
 * is removed then. */
int part_finish(struct part *part, bool replace, bool *again);
/* Close what is open; the part stays. */
void part_close(struct part *part);
