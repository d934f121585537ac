/* The CUDA module's host side over a shim of CUDA: what it says where there is no device, what it does when memory runs
 * out at any point, and when the device dies at any point. That its results are right is shown by the conformance body
 * over the same shim. */

#include "base/err.h"
#include "tests/conformance/ops.h"
#include "tests/unit/gpu/cuda/shim.h"
#include "tests/unit/unit.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

static const struct shim *shim;

/* The registry opens the same file again and gets this one. */
static void open_shim(void)
{
    void *module = dlopen(MODULE_DIR "/quantd_gpu_cuda.so", RTLD_NOW | RTLD_LOCAL);
    shim_entry *entry;

    ck_assert_msg(module != NULL, "%s", dlerror());
    *(void **)&entry = dlsym(module, "shim_get");
    ck_assert(entry != NULL);
    shim = entry();
}

static void open_device(struct gpu *gpu)
{
    if (shim == NULL) {
        open_shim();
        ck_assert_rc_ok(gpu_load_backends(MODULE_DIR));
    }
    ck_assert_rc_ok(gpu_open("cuda:0", 0, gpu));
}

/* Long inputs prove nothing more about errors, nor do more kinds of one search: its kernels are emulated here. */
static bool is_long(const struct ops_case *row)
{
    static const char *const parts[] = {"past",          "order",     "encode_blocks q",
                                        "cluster_rows,", "codebooks", "attention_error,"};

    for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
        if (strstr(row->name, parts[i]) != NULL) {
            return true;
        }
    }
    return false;
}

/* What kernels find is no matter to errors, but for a body that looks at it before it is done. */
static bool needs_results(const struct ops_case *row)
{
    return strncmp(row->name, "codebook", strlen("codebook")) == 0;
}

static void expect_absent(int error, int devices, int capability, const char *reason)
{
    struct gpu gpu;

    open_shim();
    shim->set_probe(error, devices, capability);
    ck_assert_rc_ok(gpu_load_backends(MODULE_DIR));
    ck_assert_int_eq(gpu_open("cuda:0", 0, &gpu), ERR_CONFIG);
    ck_assert_msg(strstr(gpu_backend_notes(), reason) != NULL, "%s", gpu_backend_notes());
    ck_assert_rc_ok(gpu_open("auto", 1, &gpu));
    ck_assert_str_eq(gpu.info.id, "cpu");
    gpu_close(&gpu);
}

START_TEST(probe_without_driver)
{
    expect_absent(cudaErrorInsufficientDriver, 0, 0, "cuda: the driver is for CUDA 12.4, and 13.0 is needed");
}
END_TEST

START_TEST(probe_without_device)
{
    expect_absent(0, 0, 0, "cuda: there is no CUDA device");
}
END_TEST

START_TEST(probe_failing)
{
    expect_absent(cudaErrorNoDevice, 0, 0, "cuda: an error of the shim");
}
END_TEST

START_TEST(probe_too_old)
{
    expect_absent(0, 2, 75, "cuda: no device has compute capability 8.0 or more");
}
END_TEST

START_TEST(devices_are_counted)
{
    struct gpu gpu;

    open_shim();
    shim->set_probe(0, 2, 90);
    ck_assert_rc_ok(gpu_load_backends(MODULE_DIR));
    ck_assert_rc_ok(gpu_open("cuda:1", 0, &gpu));
    ck_assert_str_eq(gpu.info.id, "cuda:1");
    ck_assert_int_gt(gpu.info.batch_tokens, 0);
    ck_assert(gpu.info.memory_free > 0 && gpu.info.memory_free <= gpu.info.memory_total);
    gpu_close(&gpu);
    ck_assert_int_eq(gpu_open("cuda:2", 0, &gpu), ERR_CONFIG);
    ck_assert_rc_ok(gpu_open("auto", 0, &gpu));
    ck_assert_str_eq(gpu.info.id, "cuda:0");
    gpu_close(&gpu);
    ck_assert_int_eq(shim->live(), 0);
}
END_TEST

/* A stream, the body, and all of it given back. */
static int run_case(const struct ops_case *row, const struct gpu *gpu)
{
    struct ops_output out = {0};
    struct ops_rig rig;

    int rc = ops_rig_init(&rig, gpu);
    rc = rc != 0 ? rc : row->body(&rig, row->variant, &out);
    ops_rig_deinit(&rig);
    ops_output_deinit(&out);
    return rc;
}

static void exhaust_memory(const struct ops_case *row, const struct gpu *gpu, int64_t before)
{
    bool more = true;

    shim->skip_kernels(!needs_results(row));
    for (int64_t k = 1; more; k++) {
        shim->reset();
        shim->fail_allocation(k, 2); /* the second try too */
        int rc = run_case(row, gpu);
        more = k <= shim->allocations();
        ck_assert_msg(rc == (more ? ERR_GPU_OUT_OF_MEMORY : 0), "%s, allocation %d: %d %s", row->name, (int)k, rc,
                      err_last()->message);
        ck_assert_msg(shim->live() == before, "%s leaks when allocation %d fails", row->name, (int)k);
    }
    int64_t last = shim->allocations();
    for (int64_t k = 1; k <= last; k += 1 + last / 6) { /* memory comes back after a trim */
        shim->reset();
        shim->fail_allocation(k, 1);
        int rc = run_case(row, gpu);
        ck_assert_msg(rc == 0 || rc == ERR_GPU_OUT_OF_MEMORY, "%s: %d %s", row->name, rc, err_last()->message);
        ck_assert_int_eq(shim->live(), before);
    }
    shim->skip_kernels(false);
    shim->reset();
    ck_assert_rc_ok(run_case(row, gpu));
}

START_TEST(memory_runs_out_anywhere)
{
    struct gpu gpu;

    open_device(&gpu);
    int64_t before = shim->live();
    for (size_t i = 0; i < ops_case_count; i++) {
        if (!is_long(&ops_cases[i])) {
            exhaust_memory(&ops_cases[i], &gpu, before);
        }
    }
    gpu_close(&gpu);
    ck_assert_int_eq(shim->live(), 0);
}
END_TEST

START_TEST(memory_is_what_the_device_has)
{
    struct tensor small, large;
    struct gpu gpu;

    open_device(&gpu);
    int64_t before = shim->live();
    shim->set_memory((size_t)1 << 30);
    ck_assert_int_eq(gpu_tensor_new(&gpu, DTYPE_F32, 1, (const int64_t[]){1 << 29}, &large), ERR_GPU_OUT_OF_MEMORY);
    ck_assert_rc_ok(gpu_tensor_new(&gpu, DTYPE_F32, 1, (const int64_t[]){1 << 10}, &small));
    gpu_tensor_free(&gpu, &small);
    ck_assert_int_eq(shim->live(), before);
    gpu_close(&gpu);
}
END_TEST

/* The device dies at its k-th call: the operation says so, or the next one does, and none goes through after. */
static void lose_device(const struct ops_case *row, int64_t k, int error)
{
    struct ops_output out = {0};
    struct ops_rig rig;
    struct gpu gpu;

    open_device(&gpu);
    shim->skip_kernels(!needs_results(row));
    ck_assert_rc_ok(ops_rig_init(&rig, &gpu));
    shim->fail_call(k, error);
    int rc = row->body(&rig, row->variant, &out);
    ck_assert_msg(rc == 0 || rc == ERR_DEVICE_LOST, "%s, call %d: %d %s", row->name, (int)k, rc, err_last()->message);
    ops_rig_clear(&rig);
    ck_assert_int_eq(row->body(&rig, row->variant, &out), ERR_DEVICE_LOST);
    if (rc != 0) {
        ck_assert_ptr_nonnull(strstr(err_last()->message, "lost earlier"));
    }
    ops_rig_deinit(&rig);
    ops_output_deinit(&out);
    gpu_close(&gpu);
    shim->skip_kernels(false);
    shim->discard(); /* a process that goes on would not get it back */
    shim->reset();
}

START_TEST(device_dies_anywhere)
{
    struct gpu gpu;

    open_device(&gpu);
    gpu_close(&gpu);
    for (size_t i = 0; i < ops_case_count; i++) {
        struct ops_output out = {0};
        struct ops_rig rig;
        if (is_long(&ops_cases[i])) {
            continue;
        }
        open_device(&gpu);
        ck_assert_rc_ok(ops_rig_init(&rig, &gpu));
        int64_t calls = shim->calls();
        ck_assert_rc_ok(ops_cases[i].body(&rig, ops_cases[i].variant, &out));
        calls = shim->calls() - calls;
        ops_rig_deinit(&rig);
        ops_output_deinit(&out);
        gpu_close(&gpu);
        for (int64_t k = 1; k <= calls; k += 1 + calls / 4) {
            lose_device(&ops_cases[i], k, k % 2 == 0 ? cudaErrorIllegalAddress : cudaErrorLaunchFailure);
        }
    }
}
END_TEST

/* An error that concerns one call fails that call; what leaves nothing usable loses the device. */
START_TEST(only_sticky_errors_lose_the_device)
{
    static const int passing[] = {cudaErrorInvalidPitchValue,
                                  cudaErrorInvalidResourceHandle,
                                  cudaErrorStreamCaptureUnsupported,
                                  cudaErrorStreamCaptureInvalidated,
                                  cudaErrorInvalidMemcpyDirection,
                                  cudaErrorNotPermitted,
                                  cudaErrorSymbolNotFound,
                                  cudaErrorInvalidSource,
                                  cudaErrorUnsupportedPtxVersion,
                                  cudaErrorJitCompilerNotFound,
                                  cudaErrorCooperativeLaunchTooLarge,
                                  cudaErrorNotReady};
    static const int sticky[] = {cudaErrorIllegalAddress,
                                 cudaErrorLaunchFailure,
                                 cudaErrorLaunchTimeout,
                                 cudaErrorMisalignedAddress,
                                 cudaErrorIllegalInstruction,
                                 cudaErrorHardwareStackError,
                                 cudaErrorInvalidPc,
                                 cudaErrorECCUncorrectable,
                                 cudaErrorUnknown,
                                 cudaErrorAssert,
                                 cudaErrorDevicesUnavailable,
                                 cudaErrorMpsRpcFailure};
    struct tensor tensor;
    struct gpu gpu;

    open_device(&gpu);
    for (size_t i = 0; i < sizeof(passing) / sizeof(passing[0]); i++) {
        shim->fail_once(2, passing[i]);
        ck_assert_int_eq(gpu_tensor_new(&gpu, DTYPE_F32, 1, (const int64_t[]){16}, &tensor), ERR_INTERNAL);
        ck_assert_rc_ok(gpu_tensor_new(&gpu, DTYPE_F32, 1, (const int64_t[]){16}, &tensor));
        gpu_tensor_free(&gpu, &tensor);
    }
    gpu_close(&gpu);
    for (size_t i = 0; i < sizeof(sticky) / sizeof(sticky[0]); i++) {
        open_device(&gpu);
        shim->fail_once(2, sticky[i]);
        ck_assert_int_eq(gpu_tensor_new(&gpu, DTYPE_F32, 1, (const int64_t[]){16}, &tensor), ERR_DEVICE_LOST);
        ck_assert_int_eq(gpu_tensor_new(&gpu, DTYPE_F32, 1, (const int64_t[]){16}, &tensor), ERR_DEVICE_LOST);
        gpu_close(&gpu);
    }
}
END_TEST

/* Calls that give memory back are looked at, too: whichever of them fails, the device is lost, or the memory is back.
 */
START_TEST(what_fails_in_a_free_is_seen)
{
    for (int64_t k = 1; k <= 4; k++) { /* device, mark, wait, free */
        for (int pass = 0; pass < 2; pass++) {
            struct gpu_stream *stream;
            struct tensor tensor, other;
            struct gpu gpu;
            open_device(&gpu);
            ck_assert_rc_ok(gpu.ops->stream_new(gpu.device, &stream));
            ck_assert_rc_ok(gpu_tensor_new(&gpu, DTYPE_F32, 1, (const int64_t[]){16}, &tensor));
            int64_t live = shim->live();
            shim->fail_once(k, pass == 0 ? cudaErrorIllegalAddress : cudaErrorInvalidResourceHandle);
            gpu_tensor_free(&gpu, &tensor);
            int rc = gpu_tensor_new(&gpu, DTYPE_F32, 1, (const int64_t[]){16}, &other);
            ck_assert_msg(rc == (pass == 0 ? ERR_DEVICE_LOST : 0), "call %d: %d", (int)k, rc);
            if (pass == 1 && (k == 2 || k == 3)) { /* the host waited instead */
                ck_assert_int_eq(shim->live(), live);
            }
            gpu.ops->stream_free(stream);
            gpu_close(&gpu);
            shim->discard();
            shim->reset();
        }
    }
}
END_TEST

struct freed_meanwhile {
    struct gpu gpu;
    struct tensor tensor;
    int64_t records;
};

static void free_meanwhile(void *data)
{
    struct freed_meanwhile *job = data;

    shim->on_sync(NULL, NULL);
    int64_t before = shim->records();
    gpu_tensor_free(&job->gpu, &job->tensor);
    job->records = shim->records() - before;
}

/* Memory that another thread frees while a stream is being closed waits for what that stream had queued. */
START_TEST(a_stream_counts_until_it_has_ended)
{
    struct freed_meanwhile job = {.records = 0};
    struct gpu_stream *stream;

    open_device(&job.gpu);
    ck_assert_rc_ok(job.gpu.ops->stream_new(job.gpu.device, &stream));
    ck_assert_rc_ok(gpu_tensor_new(&job.gpu, DTYPE_F32, 1, (const int64_t[]){16}, &job.tensor));
    shim->on_sync(free_meanwhile, &job);
    job.gpu.ops->stream_free(stream);
    ck_assert_int_eq(job.records, 1);
    gpu_close(&job.gpu);
    ck_assert_int_eq(shim->live(), 0);
}
END_TEST

START_TEST(streams_follow_by_events)
{
    struct gpu_stream *first, *second;
    struct gpu_event *event;
    struct gpu gpu;

    open_device(&gpu);
    ck_assert_rc_ok(gpu.ops->stream_new(gpu.device, &first));
    ck_assert_rc_ok(gpu.ops->stream_new(gpu.device, &second));
    ck_assert_rc_ok(gpu.ops->event_new(gpu.device, &event));
    int64_t records = shim->records(), waits = shim->waits();
    ck_assert_rc_ok(gpu.ops->event_record(first, event));
    ck_assert_rc_ok(gpu.ops->event_wait(second, event));
    ck_assert_int_eq(shim->records() - records, 1);
    ck_assert_int_eq(shim->waits() - waits, 1);
    shim->fail_once(2, cudaErrorInvalidResourceHandle);
    ck_assert_int_eq(gpu.ops->event_record(first, event), ERR_INTERNAL);
    shim->fail_once(2, cudaErrorInvalidResourceHandle);
    ck_assert_int_eq(gpu.ops->event_wait(second, event), ERR_INTERNAL);
    gpu.ops->event_free(event);
    gpu.ops->stream_free(first);
    gpu.ops->stream_free(second);
    gpu_close(&gpu);
}
END_TEST

START_TEST(peak_memory_is_counted)
{
    struct tensor tensors[3], x, w, y;
    struct gpu_stream *stream;
    struct gpu gpu;
    int64_t peak = 0, before = 0;

    open_device(&gpu);
    ck_assert_rc_ok(gpu.ops->memory_peak(gpu.device, true, &before));
    for (int i = 0; i < 3; i++) {
        ck_assert_rc_ok(gpu_tensor_new(&gpu, DTYPE_F32, 1, (const int64_t[]){1 << 18}, &tensors[i]));
    }
    for (int i = 0; i < 3; i++) {
        gpu_tensor_free(&gpu, &tensors[i]);
    }
    ck_assert_rc_ok(gpu.ops->memory_peak(gpu.device, true, &peak));
    ck_assert_int_eq(peak, 3 << 20);
    ck_assert_rc_ok(gpu.ops->memory_peak(gpu.device, false, &peak));
    ck_assert_int_eq(peak, 0);
    /* scratch and the workspace of products, too */
    ck_assert_rc_ok(gpu.ops->stream_new(gpu.device, &stream));
    ck_assert_rc_ok(gpu_tensor_new(&gpu, DTYPE_F32, 2, (const int64_t[]){16, 16}, &x));
    ck_assert_rc_ok(gpu_tensor_new(&gpu, DTYPE_F32, 2, (const int64_t[]){16, 16}, &w));
    ck_assert_rc_ok(gpu_tensor_new(&gpu, DTYPE_F32, 2, (const int64_t[]){16, 16}, &y));
    ck_assert_rc_ok(gpu.ops->linear(stream, &y, &x, &w, NULL));
    gpu_tensor_free(&gpu, &x);
    gpu_tensor_free(&gpu, &w);
    gpu_tensor_free(&gpu, &y);
    gpu.ops->stream_free(stream);
    ck_assert_rc_ok(gpu.ops->memory_peak(gpu.device, true, &peak));
    ck_assert_int_ge(peak, 3 * 1024 + (64 << 20));
    gpu_close(&gpu);
}
END_TEST

START_TEST(a_device_says_what_results_depend_on)
{
    struct gpu gpu;

    unsetenv("CUDA_CACHE_PATH");
    gpu_cache_folder("/var/lib/of-the-test");
    open_device(&gpu);
    ck_assert_str_eq(getenv("CUDA_CACHE_PATH"), "/var/lib/of-the-test");
    ck_assert_str_eq(gpu.info.libraries, "CUDA runtime 13.0, cublasLt 130002");
    ck_assert_msg(strstr(gpu.info.detail, "1 multiprocessors") != NULL, "%s", gpu.info.detail);
    gpu_close(&gpu);
}
END_TEST

UNIT_MAIN("gpu_cuda", probe_without_driver, probe_without_device, probe_failing, probe_too_old, devices_are_counted,
          memory_runs_out_anywhere, memory_is_what_the_device_has, device_dies_anywhere,
          only_sticky_errors_lose_the_device, what_fails_in_a_free_is_seen, a_stream_counts_until_it_has_ended,
          streams_follow_by_events, peak_memory_is_counted, a_device_says_what_results_depend_on)
