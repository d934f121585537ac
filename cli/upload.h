#pragma once
/* Local files to the server, several at once. A small one is one request; a large one is a resumable upload, whose
 * pieces are sent again after a broken connection, and which the same command continues after it was interrupted. How
 * they travel is known to upload*.c alone. */

#include "cli/client.h"

struct upload_item {
    const char *path, *name; /* name: on the server */
    json_t *file;            /* out: the server's object */
    char upload[64];         /* out: id of the upload that made it; "" */
};

/* Each item's file, unless it is there. STATUS_LOCAL when one cannot be read, STATUS_MISMATCH when one changed
 * meanwhile; what has arrived of the others is kept for the next time. */
int upload_files(struct cli *cli, struct upload_item *items, size_t count, const char *purpose, int parallel);
/* All of it was used: the server need not know the uploads any more; their files stay. Failures are ignored. */
void upload_forget(struct cli *cli, struct upload_item *items, size_t count, const char *purpose);
void upload_items_deinit(struct upload_item *items, size_t count);
