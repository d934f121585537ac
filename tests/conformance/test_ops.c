/* Every operation over every backend: the CPU against itself with another number of threads, all others, and its own
 * products in bfloat16 where it has them, against the CPU in float32; and each against its own second run, bit for bit.
 *
 *   test_ops            the CPU, and whatever else can be used here; prints what cannot
 *   test_ops cuda       that backend; exit 77 when there is no device
 *
 * Modules come from QUANTD_MODULE_DIR, or from where they were built. */

#include "base/err.h"
#include "tests/conformance/ops.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXIT_SKIP 77

static int failures;

static void fail(const char *device, const char *name, const char *why)
{
    printf("FAIL %-8s %-28s %s\n", device, name, why);
    failures++;
}

static int run(const struct ops_case *row, struct ops_rig *rig, struct ops_output *out)
{
    int rc = row->body(rig, row->variant, out);
    ops_rig_clear(rig);
    return rc;
}

static void compare(const struct ops_case *row, const struct gpu *gpu, const struct ops_output *want,
                    const struct ops_output *got, bool same)
{
    bool bf16 = strcmp(gpu->info.products, "bfloat16") == 0 || strstr(gpu->info.detail, "bf16") != NULL;
    double bound = same ? 0 : bf16 ? row->bound_bf16 : row->bound;
    double distance = ops_distance(same ? OPS_EXACT : row->measure, want, got);
    char why[128];

    if (distance <= bound) {
        printf("ok   %-8s %-28s %.3g <= %.3g\n", gpu->info.id, row->name, distance, bound);
        return;
    }
    snprintf(why, sizeof(why), "%.3g > %.3g over %zu numbers", distance, bound, got->count);
    fail(gpu->info.id, row->name, why);
}

/* `same`: bit for bit, else within the row's bound. */
static void check_device(const struct gpu *reference, const struct gpu *gpu, bool same)
{
    const char *only = getenv("QUANTD_OPS_ONLY"); /* in the names of operations */
    struct ops_rig standard, rig;

    if (ops_rig_init(&standard, reference) != 0 || ops_rig_init(&rig, gpu) != 0) {
        fail(gpu->info.id, "stream", err_last()->message);
        return;
    }
    for (size_t i = 0; i < ops_case_count; i++) {
        const struct ops_case *row = &ops_cases[i];
        struct ops_output want = {0}, got = {0}, again = {0};
        if (only != NULL && strstr(row->name, only) == NULL) {
            continue;
        }

        if (run(row, &standard, &want) != 0 || run(row, &rig, &got) != 0 || run(row, &rig, &again) != 0) {
            fail(gpu->info.id, row->name, err_last()->message);
        } else if (ops_distance(OPS_EXACT, &got, &again) != 0) {
            fail(gpu->info.id, row->name, "two runs differ");
        } else {
            compare(row, gpu, &want, &got, same);
        }
        ops_output_deinit(&want);
        ops_output_deinit(&got);
        ops_output_deinit(&again);
    }
    ops_rig_deinit(&standard);
    ops_rig_deinit(&rig);
}

/* False when there is no such device here. */
static bool check_backend(const struct gpu *cpu, const char *name)
{
    struct gpu gpu;
    bool is_cpu = strcmp(name, "cpu") == 0;

    if (gpu_open(name, is_cpu ? 2 : 0, &gpu) != 0) {
        printf("SKIP %s: no device; %s", name, gpu_backend_notes());
        return false;
    }
    printf("%s: %s, %s\n", gpu.info.id, gpu.info.name, gpu.info.detail);
    check_device(cpu, &gpu, is_cpu);
    gpu_close(&gpu);
    return true;
}

/* The CPU's products in bfloat16 against those in float32. */
static void check_bfloat16(const struct gpu *cpu)
{
    struct gpu gpu;

    if (gpu_cpu_products("bfloat16") != 0) {
        printf("SKIP cpu in bfloat16: %s\n", err_last()->message);
        return;
    }
    if (gpu_open("cpu", 2, &gpu) != 0) {
        fail("cpu", "bfloat16", err_last()->message);
    } else {
        printf("%s: %s, %s\n", gpu.info.id, gpu.info.name, gpu.info.detail);
        check_device(cpu, &gpu, false);
        gpu_close(&gpu);
    }
    (void)gpu_cpu_products("float32");
}

int main(int argc, char **argv)
{
    static const char *const all[] = {"cpu", "cuda"};
    const char *modules = getenv("QUANTD_MODULE_DIR");
    struct gpu cpu;
    bool found = true;

    setvbuf(stdout, NULL, _IOLBF, 0);
    if (gpu_load_backends(modules != NULL ? modules : MODULE_DIR) != 0 || gpu_open("cpu", 1, &cpu) != 0) {
        printf("FAIL: %s\n", err_last()->message);
        return EXIT_FAILURE;
    }
    if (argc > 1) {
        found = check_backend(&cpu, argv[1]);
    } else {
        for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
            (void)check_backend(&cpu, all[i]);
        }
        check_bfloat16(&cpu);
    }
    gpu_close(&cpu);
    printf("%zu operations, %d failures\n", ops_case_count, failures);
    return failures > 0 ? EXIT_FAILURE : found ? EXIT_SUCCESS : EXIT_SKIP;
}
