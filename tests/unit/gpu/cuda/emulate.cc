/* The emulator's scheduler. Each thread that must wait does so on a fiber, a stack of its own; threads that never wait
 * follow each other on one fiber. The sanitizers are told of every change of stack. */

#include "tests/unit/gpu/cuda/emulate.h"

#include "tests/unit/gpu/cuda/shim.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#ifndef __x86_64__
#include <ucontext.h>
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

#define WARP 32
#define THREADS_MAX 1024
#define FIBERS_MAX (THREADS_MAX + 1)
#define STACK ((size_t)256 << 10) /* room for a sanitizer's report */
#define GUARD ((size_t)64 << 10)  /* a multiple of every page size */
#define KERNELS_MAX 64
#define SHARED_MAX (99 << 10)
#define SHARED_UNASKED (48 << 10)
#define GRID_X_MAX 0x7fffffffu
#define GRID_MAX 65535u

/* Where a fiber, or the scheduler, goes on. */
struct place {
#ifdef __x86_64__
    void *end; /* of the stack in use */
#else
    ucontext_t context;
#endif
    void *fake_stack;
    const void *stack; /* lowest byte */
    size_t size;
};

enum state { UNSTARTED, RUNNABLE, AT_EXCHANGE, AT_BARRIER, DONE };

struct thread {
    enum state state;
    struct place *fiber;
    uint3 index;
    const char *file; /* where it waits */
    int line;
    unsigned mask; /* of an exchange, with what it brings, asks for and gets */
    int from;
    uint64_t bits, result;
};

struct permission {
    const void *kernel;
    int bytes;
};

static struct {
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    const struct emulate_launch *launch;
    struct place scheduler;
    struct place fibers[FIBERS_MAX];
    struct place *idle[FIBERS_MAX];
    int fiber_count, idle_count;
    struct thread threads[THREADS_MAX];
    struct thread *current, *warp; /* the running thread, and the first of its warp */
    int warp_count;                /* threads of that warp */
    int exchanging;                /* those that wait at an exchange */
    int turn, first, step;         /* how far its round is, and the order of the lanes in it */
    char *shared;
    uint64_t random = 0x9e3779b97f4a7c15u;
    struct permission permissions[KERNELS_MAX];
    int permission_count;
} emulator;

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

void emulate_fail(const char *file, int line, const char *format, ...)
{
    const char *slash = strrchr(file, '/');
    va_list arguments;

    va_start(arguments, format);
    fprintf(stderr, "emulator: %s:%d: block (%u, %u, %u), thread (%u, %u, %u): ", slash != NULL ? slash + 1 : file,
            line, blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z);
    vfprintf(stderr, format, arguments);
    fprintf(stderr, "\n");
    va_end(arguments);
    abort();
}

static uint32_t random_below(uint32_t count) /* xorshift; the bias does not matter */
{
    emulator.random ^= emulator.random << 13;
    emulator.random ^= emulator.random >> 7;
    emulator.random ^= emulator.random << 17;
    return (uint32_t)(emulator.random >> 32) % count;
}

/* --- fibers */
static void leave(struct place *from, const struct place *to)
{
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(&from->fake_stack, to->stack, to->size);
#endif
}

/* The scheduler's stack is the host thread's, whichever that is. */
static void arrive(struct place *at, struct place *from)
{
#ifdef __SANITIZE_ADDRESS__
    const void *stack;
    size_t size;

    __sanitizer_finish_switch_fiber(at->fake_stack, &stack, &size);
    if (from != NULL) {
        from->stack = stack;
        from->size = size;
    }
#endif
}

#ifdef __x86_64__
/* Registers that a call keeps go on the stack, and the stack's end into *from: a switch costs a few loads. */
extern "C" void emulate_jump(void **from, void *to) __attribute__((visibility("hidden")));
__asm__(".text\n"
        ".globl emulate_jump\n"
        ".hidden emulate_jump\n"
        ".type emulate_jump, @function\n"
        "emulate_jump:\n"
        "push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n"
        "mov %rsp, (%rdi)\n"
        "mov %rsi, %rsp\n"
        "pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n"
        "ret\n"
        ".size emulate_jump, . - emulate_jump\n");

static void jump(struct place *from, struct place *to)
{
    emulate_jump(&from->end, to->end);
}

/* A stack as emulate_jump would have left it at the beginning of `main`. */
static void prepare(struct place *place, void (*main)(void))
{
    void **end = (void **)((uintptr_t)place->stack + place->size) - 8;

    memset(end, 0, 8 * sizeof(*end));
    end[6] = reinterpret_cast<void *>(main);
    place->end = end;
}
#else
static void jump(struct place *from, struct place *to)
{
    swapcontext(&from->context, &to->context);
}

static void prepare(struct place *place, void (*main)(void))
{
    getcontext(&place->context);
    place->context.uc_stack.ss_sp = const_cast<void *>(place->stack);
    place->context.uc_stack.ss_size = place->size;
    place->context.uc_link = NULL;
    makecontext(&place->context, main, 0);
}
#endif

static void become(struct thread *thread)
{
    emulator.current = thread;
    threadIdx = thread->index;
}

/* Threads of a warp take turns from a lane on, upwards or downwards. */
static struct thread *lane_at(int turn)
{
    int count = emulator.warp_count;
    return &emulator.warp[(emulator.first + emulator.step * turn + count) % count];
}

static void wait_in_scheduler(struct place *fiber)
{
    leave(fiber, &emulator.scheduler);
    jump(fiber, &emulator.scheduler);
    arrive(fiber, &emulator.scheduler);
}

/* A fiber runs the thread that it is started for and those that follow, as long as none of them has begun. */
static void fiber_main(void)
{
    struct place *fiber = emulator.current->fiber;

    arrive(fiber, &emulator.scheduler);
    for (;;) {
        emulator.launch->call(emulator.launch->arguments);
        emulator.current->state = DONE;
        if (emulator.turn < emulator.warp_count && lane_at(emulator.turn)->state == UNSTARTED) {
            struct thread *next = lane_at(emulator.turn++);
            next->fiber = fiber;
            become(next);
        } else {
            emulator.idle[emulator.idle_count++] = fiber;
            wait_in_scheduler(fiber);
        }
    }
}

static struct place *new_fiber(void)
{
    struct place *fiber = &emulator.fibers[emulator.fiber_count++];
    void *memory =
        mmap(NULL, GUARD + STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (memory == MAP_FAILED || mprotect(memory, GUARD, PROT_NONE) != 0) {
        fprintf(stderr, "emulator: no memory for a stack\n");
        abort();
    }
    fiber->stack = static_cast<char *>(memory) + GUARD;
    fiber->size = STACK;
    prepare(fiber, fiber_main);
    return fiber;
}

static void resume(struct thread *thread)
{
    become(thread);
    leave(&emulator.scheduler, thread->fiber);
    jump(&emulator.scheduler, thread->fiber);
    arrive(&emulator.scheduler, NULL);
}

/* --- what threads wait for */
int emulate_lane(void)
{
    return (int)(emulator.current - emulator.warp);
}

static bool meets(const struct thread *a, const struct thread *b)
{
    return a->state == b->state && a->line == b->line && a->file == b->file; /* a literal of one source */
}

static void wait_at(enum state state, const char *file, int line)
{
    struct thread *self = emulator.current;

    self->state = state;
    self->file = file;
    self->line = line;
}

void emulate_barrier(const char *file, int line)
{
    wait_at(AT_BARRIER, file, line);
    wait_in_scheduler(emulator.current->fiber);
}

/* Whether all of the mask are here. */
static bool is_complete(const struct thread *self)
{
    for (int i = 0; i < WARP; i++) {
        const struct thread *other = &emulator.warp[i];
        if ((self->mask >> i & 1) != 0 &&
            (i >= emulator.warp_count || !meets(self, other) || other->mask != self->mask)) {
            return false;
        }
    }
    return true;
}

static uint64_t answer(const struct thread *asks)
{
    uint64_t ballot = 0;

    if (asks->from != EMULATE_BALLOT) {
        return emulator.warp[asks->from].bits;
    }
    for (int i = 0; i < WARP; i++) {
        ballot |= (asks->mask >> i & 1) != 0 && emulator.warp[i].bits != 0 ? (uint64_t)1 << i : 0;
    }
    return ballot;
}

uint64_t emulate_exchange(unsigned mask, uint64_t bits, int from, const char *file, int line)
{
    struct thread *self = emulator.current;

    wait_at(AT_EXCHANGE, file, line);
    self->mask = mask;
    self->bits = bits;
    self->from = from;
    if ((mask >> emulate_lane() & 1) == 0) {
        emulate_fail(file, line, "the lane is not in its own mask %08x", mask);
    }
    if (from != EMULATE_BALLOT && (from < 0 || from >= WARP || (mask >> from & 1) == 0)) {
        emulate_fail(file, line, "a shuffle from lane %d, which is not in the mask %08x", from, mask);
    }
    emulator.exchanging++;
    if (emulator.exchanging < __builtin_popcount(mask) || !is_complete(self)) {
        wait_in_scheduler(self->fiber);
        return self->result;
    }
    for (int i = 0; i < emulator.warp_count; i++) {
        if ((mask >> i & 1) != 0) {
            emulator.warp[i].result = answer(&emulator.warp[i]);
        }
    }
    for (int i = 0; i < emulator.warp_count; i++) {
        if ((mask >> i & 1) != 0) {
            emulator.warp[i].state = RUNNABLE;
        }
    }
    emulator.exchanging -= __builtin_popcount(mask);
    return self->result;
}

const struct emulate_row *emulate_gather(const struct emulate_row *own, const char *file, int line)
{
    static struct emulate_row rows[2][WARP]; /* of this call and the one before: a warp runs alone until a barrier */
    static unsigned char calls[WARP];
    int lane = emulate_lane(), turn = calls[lane]++ % 2;

    rows[turn][lane] = *own;
    emulate_exchange(UINT32_MAX, 0, EMULATE_BALLOT, file, line);
    return rows[turn];
}

/* --- blocks */
/* Until each thread of the warp is done or at a barrier. */
static void run_warp(int first, int count)
{
    bool moved = true;

    emulator.warp = &emulator.threads[first];
    emulator.warp_count = count;
    emulator.exchanging = 0;
    while (moved) {
        moved = false;
        emulator.first = (int)random_below((uint32_t)count);
        emulator.step = random_below(2) == 0 ? 1 : count - 1;
        for (emulator.turn = 0; emulator.turn < count;) {
            struct thread *thread = lane_at(emulator.turn++);
            if (thread->state == UNSTARTED) {
                thread->fiber = emulator.idle_count > 0 ? emulator.idle[--emulator.idle_count] : new_fiber();
            } else if (thread->state != RUNNABLE) {
                continue;
            }
            resume(thread);
            moved = true;
        }
    }
    for (int i = 0; i < count; i++) {
        if (emulator.warp[i].state == AT_EXCHANGE) {
            become(&emulator.warp[i]);
            emulate_fail(emulator.current->file, emulator.current->line,
                         "waits for lanes of the mask %08x that have returned or are elsewhere",
                         emulator.current->mask);
        }
    }
}

/* Whether all are at one barrier; false when all are done. */
static bool pass_barrier(int count)
{
    for (int i = 0; i < count; i++) {
        const struct thread *a = &emulator.threads[0], *b = &emulator.threads[i];
        const struct thread *waits = a->state == AT_BARRIER ? a : b;
        if (a->state != b->state || (a->state == AT_BARRIER && !meets(a, b))) {
            threadIdx = waits->index;
            emulate_fail(waits->file, waits->line, "a barrier that not all threads of the block reach");
        }
    }
    if (emulator.threads[0].state == DONE) {
        return false;
    }
    for (int i = 0; i < count; i++) {
        emulator.threads[i].state = RUNNABLE;
    }
    return true;
}

extern "C" {
extern uint32_t __start_emulated_shared[] __attribute__((visibility("hidden")));
extern uint32_t __stop_emulated_shared[] __attribute__((visibility("hidden")));
}

/* NaN in every type. Plain stores, since the redzones between the arrays are written too. */
static __attribute__((no_sanitize("address"))) void spoil_shared(void)
{
    for (volatile uint32_t *at = __start_emulated_shared; at + 1 <= __stop_emulated_shared; at++) {
        *at = UINT32_MAX;
    }
}

static void run_block(const struct emulate_launch *launch)
{
    int count = (int)(launch->block.x * launch->block.y * launch->block.z), warps = (count + WARP - 1) / WARP;

    for (int i = 0; i < count; i++) {
        emulator.threads[i].state = UNSTARTED;
    }
    spoil_shared();
    memset(emulator.shared, 0xff, launch->shared);
    do {
        int first = (int)random_below((uint32_t)warps), step = random_below(2) == 0 ? 1 : warps - 1;
        for (int i = 0; i < warps; i++) {
            int begins = (first + step * i) % warps * WARP;
            run_warp(begins, count - begins < WARP ? count - begins : WARP);
        }
    } while (pass_barrier(count));
}

static void number_threads(dim3 block)
{
    for (unsigned i = 0; i < block.x * block.y * block.z; i++) {
        emulator.threads[i].index = {i % block.x, i / block.x % block.y, i / block.x / block.y};
    }
}

static void run_grid(const struct emulate_launch *launch)
{
    uint64_t blocks = (uint64_t)launch->grid.x * launch->grid.y * launch->grid.z;
    bool upwards = random_below(2) == 0;

    gridDim = launch->grid;
    blockDim = launch->block;
    emulator.launch = launch;
    number_threads(launch->block);
    for (uint64_t i = 0; i < blocks; i++) {
        uint64_t at = upwards ? i : blocks - 1 - i;
        blockIdx = {(unsigned)(at % gridDim.x), (unsigned)(at / gridDim.x % gridDim.y),
                    (unsigned)(at / gridDim.x / gridDim.y)};
        run_block(launch);
    }
}

/* --- launches */
cudaError_t emulate_allow_shared(const void *kernel, int bytes)
{
    cudaError_t status = shim_enter();

    if (status != cudaSuccess || bytes > SHARED_MAX) {
        return status != cudaSuccess ? status : cudaErrorInvalidValue;
    }
    pthread_mutex_lock(&emulator.lock);
    int at = 0;
    while (at < emulator.permission_count && emulator.permissions[at].kernel != kernel) {
        at++;
    }
    if (at == KERNELS_MAX) {
        fprintf(stderr, "emulator: more than %d kernels with much shared memory\n", KERNELS_MAX);
        abort();
    }
    emulator.permissions[at] = {kernel, bytes};
    emulator.permission_count += at == emulator.permission_count;
    pthread_mutex_unlock(&emulator.lock);
    return status;
}

static bool is_allowed(const struct emulate_launch *launch)
{
    size_t most = SHARED_UNASKED;
    const dim3 &grid = launch->grid, &block = launch->block;

    for (int i = 0; i < emulator.permission_count; i++) {
        most = emulator.permissions[i].kernel == launch->kernel && (size_t)emulator.permissions[i].bytes > most
                   ? (size_t)emulator.permissions[i].bytes
                   : most;
    }
    return grid.x > 0 && grid.y > 0 && grid.z > 0 && grid.x <= GRID_X_MAX && grid.y <= GRID_MAX && grid.z <= GRID_MAX &&
           block.x > 0 && block.y > 0 && block.z > 0 && block.x <= THREADS_MAX && block.y <= THREADS_MAX &&
           block.z <= 64 && (uint64_t)block.x * block.y * block.z <= THREADS_MAX && launch->shared <= most;
}

void emulate_run(const struct emulate_launch *launch)
{
    if (shim_enter() != cudaSuccess) {
        return;
    }
    shim_flush();
    pthread_mutex_lock(&emulator.lock);
    if (is_allowed(launch)) {
        emulator.shared = static_cast<char *>(malloc(launch->shared > 0 ? launch->shared : 1));
        if (emulator.shared == NULL) {
            fprintf(stderr, "emulator: no memory for shared memory\n");
            abort();
        }
        if (!shim_skips_kernels()) {
            run_grid(launch);
        }
        free(emulator.shared);
    } else {
        shim_fail(cudaErrorInvalidConfiguration);
    }
    pthread_mutex_unlock(&emulator.lock);
}

void *emulate_dynamic_shared(size_t bytes)
{
    if (bytes > emulator.launch->shared) {
        emulate_fail("launch", 0, "%zu bytes of dynamic shared memory where %zu were asked for", bytes,
                     emulator.launch->shared);
    }
    return emulator.shared;
}
