#pragma once
/* Models by name. */

#include "cli/client.h"

/* The id, new reference, of the model with that name. ERR_CONFIG when there is none, or more than one. */
int models_find(struct cli *cli, const char *name, json_t **id);
