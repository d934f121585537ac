#pragma once
/* What is remembered of an upload that has begun, so that the same command continues it: a small file below
 * $XDG_STATE_HOME/quantctl/uploads, named after the server, the local file and what it becomes. Another size or time of
 * modification is another file. */

#include "base/cleanup.h"
#include "base/ids.h"

#include <stdbool.h>

#define UPLOAD_STATE_PATH 4096

struct upload_state {
    char path[UPLOAD_STATE_PATH]; /* "": nothing can be remembered here */
    int fd;                       /* locked; -1 */
    char key[ID_SIZE];            /* Idempotency-Key with which the upload is created */
    char id[ID_SIZE];             /* of the upload; "": it was not created yet */
};

/* Of a local file that is open. STATUS_LOCAL when another process uploads it now. */
int upload_state_open(const char *url, const char *purpose, const char *name, int file, struct upload_state *out);
/* Remember the id; "" = begin again, under another key. */
int upload_state_set(struct upload_state *state, const char *id);
/* Nothing is left to continue. */
void upload_state_remove(struct upload_state *state);
void upload_state_close(struct upload_state *state);
CLEANUP_DEINIT(upload_state, struct upload_state, upload_state_close)
