#pragma once
/* What a backend has in addition to its table (struct gpu_ops). Private to gpu/ and to modules. */

#include "gpu/gpu.h"

/* Every backend's struct gpu_stream begins with this: gpu/front.c finds the backend's own table by it. */
struct gpu_stream_head {
    const struct gpu_ops *ops;
};

/* The rows of ops.def as text, up to NULL, compiled into the daemon and into each module: in a table that was built
 * from other rows, operations are in other places or take other arguments. */
extern const char *const gpu_signature[];

/* The backend's table as callers see it: each operation checks its arguments before the backend's own one runs, and
 * raises ERR_UNSUPPORTED where the backend has none. The calls of devices are the backend's. */
void gpu_front(const struct gpu_ops *backend, struct gpu_ops *front);
/* The name of a device call that the backend lacks, or NULL: without these it cannot be used. */
const char *gpu_missing_call(const struct gpu_ops *backend);

/* The backend that is linked in, its own table. */
const struct gpu_ops *gpu_cpu_ops(void);

/* What a module needs of the daemon: it links nothing of base, so errors go through here and land in the caller's
 * record (raise and pass return code). */
struct gpu_host {
    uint32_t abi;
    int (*raise)(const char *file, int line, int code, const char *message);
    int (*pass)(const char *file, int line, int code, const char *message);
    const char *cache_folder; /* where what is compiled for a device may be kept from one start to the next; or NULL */
};
typedef const struct gpu_ops *gpu_module_entry(const struct gpu_host *host);
