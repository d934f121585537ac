#pragma once
/* A local file to the server: hashed, sent with its digest, and sent again if the connection broke. How it travels is
 * known to upload.c alone. */

#include "cli/client.h"

/* *out: the file object of the server. STATUS_LOCAL when the file cannot be read. */
int upload_file(struct cli *cli, const char *path, const char *purpose, const char *name, json_t **out);
