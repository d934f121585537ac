#pragma once
/* The state that the shim's runtime (shim_runtime.c) and its bookkeeping (shim.c) share. */

#include "tests/unit/gpu/cuda/shim.h"

#include <pthread.h>

#define SHIM_BLOCKS_MAX 4096
#define SHIM_COPIES_MAX 256

struct shim_block {
    void *pointer;
    size_t bytes;
    bool pooled;
};

/* A stream's handle is as large. */
struct shim_event {
    uint64_t copies; /* that were queued before it */
    double milliseconds;
};

struct shim_copy {
    void *to;
    const void *from;
    size_t bytes;
};

struct shim_state {
    pthread_mutex_t lock;
    struct shim_block blocks[SHIM_BLOCKS_MAX];
    int block_count;
    struct shim_copy copies[SHIM_COPIES_MAX];
    int copy_count;
    uint64_t copied; /* copies taken out of the queue so far */
    int64_t calls, allocations, fail_call, fail_allocation, fail_times;
    cudaError_t fault, sticky, last;
    int probe_error, devices, capability;
    size_t memory, used, pooled, pooled_max;
    int64_t fail_once, records, waits;
    cudaError_t fault_once;
    void (*on_sync)(void *data);
    void *on_sync_data;
    bool skip_kernels;
};

extern struct shim_state shim_state;

/* Do the queued copies up to this number, counted from the first. */
void shim_copy_until(uint64_t end);
