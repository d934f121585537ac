/* Loading backend modules: a good one, one of another ABI, one without a device, and files that are no modules. */

#include "tests/unit/gpu/support.h"
#include "tests/unit/scratch.h"

#include <dlfcn.h>
#include <unistd.h>

START_TEST(modules_are_ranked_and_the_rest_explained)
{
    struct gpu gpu;
    struct gpu_stream *stream;

    ck_assert_rc_ok(gpu_load_backends(MODULE_DIR));
    ck_assert_ptr_nonnull(strstr(gpu_backend_notes(), "old: built for interface 999"));
    ck_assert_ptr_nonnull(strstr(gpu_backend_notes(), "absent: no such device"));
    ck_assert_ptr_nonnull(strstr(gpu_backend_notes(), "other: built for other operations"));
    ck_assert_ptr_nonnull(strstr(gpu_backend_notes(), "partial: it has no 'upload'"));
    ck_assert_ptr_nonnull(strstr(gpu_backend_notes(), "cuda: no module"));
    ck_assert_ptr_null(strstr(gpu_backend_notes(), "fake"));

    ck_assert_rc_ok(gpu_open("auto", 0, &gpu));
    ck_assert_str_eq(gpu.ops->name, "fake"); /* it scores above the CPU */
    ck_assert_rc_ok(gpu.ops->stream_new(gpu.device, &stream));
    ck_assert_int_eq(gpu.ops->add(stream, NULL, NULL), ERR_UNSUPPORTED);
    ck_assert_ptr_nonnull(strstr(err_last()->message, "'fake' has no operation 'add'"));
    gpu_close(&gpu);
    ck_assert_rc_ok(gpu_open("fake:1", 0, &gpu));
    gpu_close(&gpu);
    ck_assert_int_eq(gpu_open("fake:2", 0, &gpu), ERR_CONFIG);
    ck_assert_int_eq(gpu_open("absent", 0, &gpu), ERR_CONFIG);
    ck_assert_ptr_nonnull(strstr(err_last()->hint, "absent: no such device"));
    ck_assert_rc_ok(gpu_open("cpu", 1, &gpu));
    ck_assert_str_eq(gpu.ops->name, "cpu");
    gpu_close(&gpu);
}
END_TEST

/* The libraries of a module that is refused leave memory with it. */
START_TEST(refused_modules_are_closed)
{
    ck_assert_rc_ok(gpu_load_backends(MODULE_DIR));
    ck_assert_ptr_null(dlopen(MODULE_DIR "/quantd_gpu_absent.so", RTLD_NOW | RTLD_NOLOAD));
    ck_assert_ptr_null(dlopen(MODULE_DIR "/quantd_gpu_old.so", RTLD_NOW | RTLD_NOLOAD));
    ck_assert_ptr_nonnull(dlopen(MODULE_DIR "/quantd_gpu_fake.so", RTLD_NOW | RTLD_NOLOAD));
}
END_TEST

/* Where there is a device, a probe may have started the threads of its driver: what was asked stays. What was built for
 * another interface was not asked. */
START_TEST(modules_of_devices_stay_open)
{
    static const char *const modules[] = {"absent", "old"};
    char folder[256], path[512];

    for (size_t i = 0; i < sizeof(modules) / sizeof(modules[0]); i++) {
        scratch_make(folder);
        snprintf(path, sizeof(path), "%s/nvidiactl", folder);
        ck_assert_rc_ok(fs_write_atomic(path, "", 0));
        ck_assert_int_eq(setenv("QUANTD_DEV", folder, 1), 0);
        snprintf(path, sizeof(path), MODULE_DIR "/quantd_gpu_%s.so", modules[i]);
        char link[512];
        snprintf(link, sizeof(link), "%s/quantd_gpu_cuda.so", folder);
        ck_assert_int_eq(symlink(path, link), 0);
        ck_assert_rc_ok(gpu_load_backends(folder));
        ck_assert_int_eq(dlopen(link, RTLD_NOW | RTLD_NOLOAD) != NULL, i == 0);
        scratch_remove(folder);
    }
}
END_TEST

START_TEST(a_missing_folder_is_no_error)
{
    ck_assert_rc_ok(gpu_load_backends(MODULE_DIR "/none"));
    ck_assert_ptr_nonnull(strstr(gpu_backend_notes(), "cuda: no module quantd_gpu_cuda.so in: " MODULE_DIR "/none ("));
}
END_TEST

START_TEST(the_first_folder_with_a_module_wins)
{
    ck_assert_rc_ok(gpu_load_backends(MODULE_DIR "/none:" MODULE_DIR ":" MODULE_DIR "/.:"));
    const char *notes = gpu_backend_notes();
    const char *old = strstr(notes, "old: built for interface 999");
    ck_assert_ptr_nonnull(old);
    ck_assert_ptr_null(strstr(old + 1, "old: ")); /* it was opened once */
    ck_assert_ptr_nonnull(
        strstr(notes, "in: " MODULE_DIR "/none (no such folder), " MODULE_DIR ", " MODULE_DIR "/.\n"));
}
END_TEST

UNIT_MAIN("gpu/registry", modules_are_ranked_and_the_rest_explained, refused_modules_are_closed,
          modules_of_devices_stay_open, a_missing_folder_is_no_error, the_first_folder_with_a_module_wins)
