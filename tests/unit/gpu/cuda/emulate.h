#pragma once
/* CUDA C on the host: what the kernels of gpu/cuda need so that a C++ compiler builds them and a test runs them, every
 * thread of every block, over the shim. Included before the .cu file itself (emulated.cc.in); gpu/cuda/meson.build has
 * the list of files, so a new .cu file there is emulated without further ado. A kernel is started by `launch` and finds
 * its dynamic shared memory by `dynamic_shared` (device.cuh); static shared arrays are `__shared__` as ever. What a new
 * kernel calls beyond what is here (another intrinsic or atomic) is added here.
 *
 * The threads of a block are fibers on one host thread, and blocks run one after another. It is stricter than a device:
 *
 * - A barrier or shuffle that some thread does not reach, or reaches at another line, ends the process with a message,
 *   as does a shuffle from a lane outside its mask.
 * - Between barriers a warp runs as far as it can before the next begins, in an order that changes each time, as do
 *   blocks and lanes. Where a barrier is missing, two runs differ, which the conformance bodies look for.
 * - Shared memory is full of NaN when a block begins, and ends where it ends: AddressSanitizer sees what lies past it,
 *   and past global memory too.
 * - Launches obey the limits of the smallest device: threads, grids, 48 KiB of dynamic shared memory unless asked for,
 *   99 KiB in all.
 *
 * What it cannot show: races inside one warp between barriers, fused multiply-adds, a device's own exp, and speed. */

#include <cuda_runtime_api.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <type_traits>

/* --- declarations */
#undef __shared__
#define __shared__ static __attribute__((section("emulated_shared")))
#define __launch_bounds__(...)

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

/* --- for the functions below, in emulate.cc */
#define EMULATE_BALLOT (-1)

struct emulate_launch {
    dim3 grid, block;
    size_t shared;
    const void *kernel;
    void (*call)(const void *arguments); /* the kernel, once, as the current thread */
    const void *arguments;
};
/* Runs the kernel, or records an error for cudaGetLastError. Any host thread. */
void emulate_run(const struct emulate_launch *launch);
/* As cudaFuncSetAttribute with the only attribute there is. */
cudaError_t emulate_allow_shared(const void *kernel, int bytes);
void *emulate_dynamic_shared(size_t bytes);
void emulate_barrier(const char *file, int line);
/* The bits that lane `from` of this warp brings to the same call; EMULATE_BALLOT: which lanes bring other than 0. */
uint64_t emulate_exchange(unsigned mask, uint64_t bits, int from, const char *file, int line);
int emulate_lane(void);
[[noreturn]] void emulate_fail(const char *file, int line, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* --- launches */
template <typename... P, typename... A>
static inline void launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, cudaStream_t, A... arguments)
{
    auto call = [&] { kernel(arguments...); };
    const struct emulate_launch job = {grid,
                                       block,
                                       shared,
                                       reinterpret_cast<const void *>(kernel),
                                       [](const void *closure) { (*static_cast<const decltype(call) *>(closure))(); },
                                       &call};
    emulate_run(&job);
}

template <typename... P>
static inline cudaError_t cudaFuncSetAttribute(void (*kernel)(P...), enum cudaFuncAttribute attribute, int value)
{
    return attribute == cudaFuncAttributeMaxDynamicSharedMemorySize
               ? emulate_allow_shared(reinterpret_cast<const void *>(kernel), value)
               : cudaErrorInvalidValue;
}

template <typename T> static inline T *dynamic_shared(void)
{
    return static_cast<T *>(emulate_dynamic_shared(sizeof(T)));
}

/* --- barriers, shuffles, votes. The defaulted arguments are the place of the call. */
#define EMULATE_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

static inline void __syncthreads(EMULATE_HERE)
{
    emulate_barrier(file, line);
}

static inline void __syncwarp(unsigned mask = 0xffffffffu, EMULATE_HERE)
{
    emulate_exchange(mask, 0, EMULATE_BALLOT, file, line);
}

static inline unsigned __ballot_sync(unsigned mask, int predicate, EMULATE_HERE)
{
    return (unsigned)emulate_exchange(mask, predicate != 0, EMULATE_BALLOT, file, line);
}

static inline int __any_sync(unsigned mask, int predicate, EMULATE_HERE)
{
    return __ballot_sync(mask, predicate, file, line) != 0;
}

static inline int __all_sync(unsigned mask, int predicate, EMULATE_HERE)
{
    return __ballot_sync(mask, predicate, file, line) == mask;
}

template <typename T> static inline T emulate_shuffle(unsigned mask, T value, int from, const char *file, int line)
{
    static_assert(std::is_arithmetic<T>::value && sizeof(T) <= sizeof(uint64_t), "a shuffle moves one number");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof(value));
    bits = emulate_exchange(mask, bits, from, file, line);
    memcpy(&value, &bits, sizeof(value));
    return value;
}

static inline int emulate_segment(int width, const char *file, int line)
{
    if (width < 1 || width > 32 || (width & (width - 1)) != 0) {
        emulate_fail(file, line, "a shuffle of width %d", width);
    }
    return emulate_lane() & ~(width - 1);
}

template <typename T> static inline T __shfl_sync(unsigned mask, T value, int lane, int width = 32, EMULATE_HERE)
{
    int first = emulate_segment(width, file, line);
    return emulate_shuffle(mask, value, first + (lane & (width - 1)), file, line);
}

template <typename T>
static inline T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, EMULATE_HERE)
{
    int first = emulate_segment(width, file, line), from = emulate_lane() ^ lane_mask;
    return emulate_shuffle(mask, value, from < first + width ? from : emulate_lane(), file, line);
}

template <typename T>
static inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, EMULATE_HERE)
{
    int first = emulate_segment(width, file, line), from = emulate_lane() + (int)delta;
    return emulate_shuffle(mask, value, from < first + width ? from : emulate_lane(), file, line);
}

template <typename T>
static inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, EMULATE_HERE)
{
    int first = emulate_segment(width, file, line), from = emulate_lane() - (int)delta;
    return emulate_shuffle(mask, value, from >= first ? from : emulate_lane(), file, line);
}

/* --- atomics: threads take turns, so these are plain. Of floats there are none, since their sums have no order. */
template <typename T> static inline T emulate_atomic(T *at, T value)
{
    static_assert(std::is_integral<T>::value, "results repeat: no float is changed atomically");
    T old = *at;
    *at = value;
    return old;
}

template <typename T> static inline T atomicMin(T *at, T value)
{
    return emulate_atomic(at, value < *at ? value : *at);
}

template <typename T> static inline T atomicMax(T *at, T value)
{
    return emulate_atomic(at, value > *at ? value : *at);
}

template <typename T> static inline T atomicAdd(T *at, T value)
{
    return emulate_atomic(at, (T)(*at + value));
}

/* --- tensor cores and copies (gpu/cuda/tensor_core.cuh). What a lane brings stands in a row of a table until it comes
 * to the second call from here: by then all others have read it. Copies are made at once. */
struct emulate_row {
    const void *address;
    uint32_t a[4], b[2];
};
/* The rows of this warp, with this lane's, once all have brought theirs. */
const struct emulate_row *emulate_gather(const struct emulate_row *own, const char *file, int line);

static inline float emulate_half(uint32_t pair, int i)
{
    uint32_t bits = i == 0 ? pair << 16 : pair & 0xffff0000u;
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

static inline void tensor_multiply(float *c, const uint32_t *a, const uint32_t *b, EMULATE_HERE)
{
    const struct emulate_row own = {NULL, {a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
    const struct emulate_row *rows = emulate_gather(&own, file, line);
    int g = emulate_lane() / 4, t = emulate_lane() % 4;

    for (int i = 0; i < 4; i++) {
        for (int k = 0; k < 16; k++) {
            const struct emulate_row *left = &rows[g * 4 + k % 8 / 2];
            const struct emulate_row *right = &rows[(2 * t + i % 2) * 4 + k % 8 / 2];
            c[i] += emulate_half(left->a[i / 2 + k / 8 * 2], k % 2) * emulate_half(right->b[k / 8], k % 2);
        }
    }
}

static inline void emulate_matrices(uint32_t *x, const void *row, bool turned, const char *file, int line)
{
    const struct emulate_row own = {row, {0, 0, 0, 0}, {0, 0}};
    const struct emulate_row *rows = emulate_gather(&own, file, line);
    int g = emulate_lane() / 4, t = emulate_lane() % 4;

    for (int i = 0; i < 4; i++) {
        const uint16_t *low = static_cast<const uint16_t *>(rows[8 * i + (turned ? 2 * t : g)].address);
        const uint16_t *high = static_cast<const uint16_t *>(rows[8 * i + (turned ? 2 * t + 1 : g)].address);
        x[i] = (uint32_t)low[turned ? g : 2 * t] | (uint32_t)high[turned ? g : 2 * t + 1] << 16;
    }
}

template <typename T> static inline void tensor_load(uint32_t *x, const T *row, EMULATE_HERE)
{
    emulate_matrices(x, row, false, file, line);
}

template <typename T> static inline void tensor_load_turned(uint32_t *x, const T *row, EMULATE_HERE)
{
    emulate_matrices(x, row, true, file, line);
}

static inline void copy_begin(void *shared, const void *global, bool there, EMULATE_HERE)
{
    if (((uintptr_t)shared | (there ? (uintptr_t)global : 0)) % 16 != 0) {
        emulate_fail(file, line, "a copy of 16 bytes that are not aligned");
    }
    if (there) {
        memcpy(shared, global, 16);
    } else {
        memset(shared, 0, 16);
    }
}

static inline void copy_group(void)
{
}

template <int left> static inline void copy_wait(void)
{
}

/* --- bits */
static inline int __float_as_int(float value)
{
    int bits;
    memcpy(&bits, &value, sizeof(bits));
    return bits;
}

static inline float __int_as_float(int bits)
{
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}
