#pragma once
/* A CUDA that is not there: the runtime and cuBLASLt calls that the CUDA module makes, on host memory, with
 * plain loops behind them. Built into a module of its own, it opens like the real one, so that everything but the
 * kernels is run by tests on any machine.
 *
 * It is stricter than the real thing: memory comes filled with garbage, copies with pinned memory happen as late as
 * their events allow, products refuse operands outside live memory, algorithms chosen for another shape and pointers
 * with less alignment than was promised; workspaces are overwritten. */

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What tests reach through dlsym("shim_get"). */
struct shim {
    void (*reset)(void); /* no errors, counters at 0; what is still allocated stays */
    /* From the k-th allocation on, `times` of them fail; k counts from 1. */
    void (*fail_allocation)(int64_t k, int64_t times);
    /* From the k-th call on every call fails with this error, as after a crashed kernel. */
    void (*fail_call)(int64_t k, int error);
    /* The k-th call fails with this error, and only it. */
    void (*fail_once)(int64_t k, int error);
    /* Called whenever the host waits for a stream; NULL: no more. */
    void (*on_sync)(void (*call)(void *data), void *data);
    int64_t (*records)(void); /* events recorded, streams told to wait for one */
    int64_t (*waits)(void);
    int64_t (*allocations)(void); /* since reset */
    int64_t (*calls)(void);
    int64_t (*live)(void); /* blocks and handles not given back */
    void (*discard)(void); /* free all blocks: what a lost device leaves behind */
    void (*set_probe)(int error, int devices, int capability);
    void (*set_memory)(size_t bytes);
    void (*skip_kernels)(bool skip); /* emulated ones are checked and counted, but not run */
};
typedef const struct shim *shim_entry(void);
shim_entry shim_get;

/* --- for the shim's own files */
/* What the call that begins now is to return. */
cudaError_t shim_enter(void);
/* As shim_enter, for calls that allocate. */
cudaError_t shim_enter_allocation(void);
/* What cudaGetLastError is to return next. */
void shim_fail(cudaError_t error);
bool shim_skips_kernels(void);
void *shim_take(size_t bytes);
void shim_give(void *block); /* NULL is fine */
/* What the file of orders says, shim_orders.c. */
void shim_obey(void);
/* Copies that still wait happen now. */
void shim_flush(void);
/* Aborts unless [pointer, pointer + bytes) lies in one live block. */
void shim_check(const char *what, const void *pointer, size_t bytes);

#ifdef __cplusplus
}
#endif
