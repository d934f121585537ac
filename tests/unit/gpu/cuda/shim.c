/* What the shim counts and checks: calls and the errors that tests ask for, blocks of memory, and copies that wait in
 * one queue until something must see them. */

#include "tests/unit/gpu/cuda/shim_state.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ALIGNMENT 256
#define POISON ((size_t)256 << 10) /* of each block; the rest of large ones is never touched */

struct shim_state shim_state = {
    .lock = PTHREAD_MUTEX_INITIALIZER, .devices = 1, .capability = 90, .memory = (size_t)4 << 30};

cudaError_t shim_enter(void)
{
    pthread_mutex_lock(&shim_state.lock);
    shim_state.calls++;
    if (shim_state.fail_call > 0 && shim_state.calls >= shim_state.fail_call) {
        shim_state.sticky = shim_state.fault;
    }
    cudaError_t status = shim_state.sticky;
    if (status == cudaSuccess && shim_state.fail_once > 0 && shim_state.calls == shim_state.fail_once) {
        status = shim_state.fault_once;
    }
    shim_state.last = status != cudaSuccess ? status : shim_state.last;
    pthread_mutex_unlock(&shim_state.lock);
    return status;
}

cudaError_t shim_enter_allocation(void)
{
    cudaError_t status = shim_enter();

    pthread_mutex_lock(&shim_state.lock);
    shim_state.allocations++;
    int64_t past = shim_state.allocations - shim_state.fail_allocation;
    if (status == cudaSuccess && shim_state.fail_allocation > 0 && past >= 0 && past < shim_state.fail_times) {
        status = shim_state.last = cudaErrorMemoryAllocation;
    }
    pthread_mutex_unlock(&shim_state.lock);
    return status;
}

void shim_fail(cudaError_t error)
{
    pthread_mutex_lock(&shim_state.lock);
    shim_state.last = error;
    pthread_mutex_unlock(&shim_state.lock);
}

void *shim_take(size_t bytes)
{
    size_t size = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    void *pointer = NULL;

    pthread_mutex_lock(&shim_state.lock);
    if (shim_state.block_count < SHIM_BLOCKS_MAX && size <= shim_state.memory - shim_state.used &&
        posix_memalign(&pointer, ALIGNMENT, bytes > 0 ? bytes : 1) != 0) { /* no more bytes than were asked for */
        pointer = NULL;
    }
    if (pointer != NULL) {
        memset(pointer, 0xff, bytes < POISON ? bytes : POISON); /* NaN */
        shim_state.blocks[shim_state.block_count++] = (struct shim_block){pointer, bytes, false};
        shim_state.used += size;
    } else {
        shim_state.last = cudaErrorMemoryAllocation;
    }
    pthread_mutex_unlock(&shim_state.lock);
    return pointer;
}

void shim_give(void *block)
{
    pthread_mutex_lock(&shim_state.lock);
    for (int i = 0; block != NULL && i <= shim_state.block_count; i++) {
        if (i == shim_state.block_count) {
            fprintf(stderr, "shim: freed what was not allocated\n");
            abort();
        }
        if (shim_state.blocks[i].pointer == block) {
            shim_state.used -= (shim_state.blocks[i].bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
            shim_state.pooled -= shim_state.blocks[i].pooled ? shim_state.blocks[i].bytes : 0;
            shim_state.blocks[i] = shim_state.blocks[--shim_state.block_count];
            break;
        }
    }
    pthread_mutex_unlock(&shim_state.lock);
    free(block);
}

void shim_copy_until(uint64_t end)
{
    pthread_mutex_lock(&shim_state.lock);
    uint64_t due = end > shim_state.copied ? end - shim_state.copied : 0;
    int count = due < (uint64_t)shim_state.copy_count ? (int)due : shim_state.copy_count;
    for (int i = 0; i < count; i++) {
        memcpy(shim_state.copies[i].to, shim_state.copies[i].from, shim_state.copies[i].bytes);
    }
    memmove(shim_state.copies, shim_state.copies + count,
            (size_t)(shim_state.copy_count - count) * sizeof(shim_state.copies[0]));
    shim_state.copy_count -= count;
    shim_state.copied += (uint64_t)count;
    pthread_mutex_unlock(&shim_state.lock);
}

void shim_flush(void)
{
    shim_copy_until(UINT64_MAX);
}

void shim_check(const char *what, const void *pointer, size_t bytes)
{
    bool inside = bytes == 0;

    pthread_mutex_lock(&shim_state.lock);
    for (int i = 0; i < shim_state.block_count && !inside; i++) {
        uintptr_t begin = (uintptr_t)shim_state.blocks[i].pointer, at = (uintptr_t)pointer;
        inside = at >= begin && at - begin <= shim_state.blocks[i].bytes &&
                 bytes <= shim_state.blocks[i].bytes - (at - begin);
    }
    pthread_mutex_unlock(&shim_state.lock);
    if (!inside) {
        fprintf(stderr, "shim: %s: %zu bytes outside live memory\n", what, bytes);
        abort();
    }
}

/* --- controls */
static void control_reset(void)
{
    shim_state.calls = shim_state.allocations = shim_state.fail_call = shim_state.fail_allocation =
        shim_state.fail_once = 0;
    shim_state.sticky = shim_state.last = cudaSuccess;
}

static void control_fail_allocation(int64_t k, int64_t times)
{
    shim_state.fail_allocation = shim_state.allocations + k;
    shim_state.fail_times = times;
}

static void control_fail_call(int64_t k, int error)
{
    shim_state.fail_call = shim_state.calls + k;
    shim_state.fault = (cudaError_t)error;
}

static void control_fail_once(int64_t k, int error)
{
    shim_state.fail_once = shim_state.calls + k;
    shim_state.fault_once = (cudaError_t)error;
}

static void control_on_sync(void (*call)(void *data), void *data)
{
    shim_state.on_sync = call;
    shim_state.on_sync_data = data;
}

static int64_t control_records(void)
{
    return shim_state.records;
}

static int64_t control_waits(void)
{
    return shim_state.waits;
}

static int64_t control_allocations(void)
{
    return shim_state.allocations;
}

static int64_t control_calls(void)
{
    return shim_state.calls;
}

static int64_t control_live(void)
{
    return shim_state.block_count;
}

static void control_discard(void)
{
    shim_state.copy_count = 0;
    while (shim_state.block_count > 0) {
        shim_give(shim_state.blocks[0].pointer);
    }
}

static void control_set_probe(int error, int devices, int capability)
{
    shim_state.probe_error = error;
    shim_state.devices = devices;
    shim_state.capability = capability;
}

static void control_set_memory(size_t bytes)
{
    shim_state.memory = bytes;
}

static void control_skip_kernels(bool skip)
{
    shim_state.skip_kernels = skip;
}

bool shim_skips_kernels(void)
{
    return shim_state.skip_kernels;
}

__attribute__((visibility("default"))) shim_entry shim_get;

const struct shim *shim_get(void)
{
    static const struct shim controls = {
        .reset = control_reset,
        .fail_allocation = control_fail_allocation,
        .fail_call = control_fail_call,
        .fail_once = control_fail_once,
        .on_sync = control_on_sync,
        .records = control_records,
        .waits = control_waits,
        .allocations = control_allocations,
        .calls = control_calls,
        .live = control_live,
        .discard = control_discard,
        .set_probe = control_set_probe,
        .set_memory = control_set_memory,
        .skip_kernels = control_skip_kernels,
    };
    return &controls;
}
