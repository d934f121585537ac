#pragma once
/* The daemon's side of the module boundary. */

#include "gpu/gpu.h"

/* Before any operation; host outlives the module. */
void host_set(const struct gpu_host *host);
/* The CPU backend's table. */
const struct gpu_ops *host_cpu(void);
