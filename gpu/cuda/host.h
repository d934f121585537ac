#pragma once
/* The daemon's side of the module boundary. */

#include "gpu/backend.h"

/* Before any operation; host outlives the module. */
void host_set(const struct gpu_host *host);
