#pragma once
/* What upload.c and upload_pieces.c share. */

#include "base/digest.h"
#include "cli/upload.h"
#include "cli/upload_state.h"

#include <stdint.h>

#define UPLOAD_PIECE ((int64_t)16 << 20) /* and the largest file that is sent in one request */

/* Open a regular file for reading. */
int upload_open(const char *path, int *out, int64_t *bytes);
/* Files beyond UPLOAD_PIECE, as resumable uploads. */
int upload_pieces(struct cli *cli, struct upload_item *const *items, size_t count, const char *purpose, int parallel);
