/* The backends that this process has, and the way from "cuda:0" to an open device.
 *
 * The CPU is always row 0. Modules are opened once and stay open: a device library that has started threads cannot be
 * unloaded safely. A module that is refused is closed where it cannot have started any. The table is written before
 * other threads start (gpu_load_backends) and only read after that. */

#include "base/cleanup.h"
#include "base/err.h"
#include "base/log.h"
#include "base/mem.h"
#include "gpu/backend.h"

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define BACKENDS_MAX 8
#define SEARCHED_SIZE 1024
#define MODULE_PREFIX "quantd_gpu_"
#define MODULE_SUFFIX ".so"

struct backend {
    struct gpu_ops ops; /* as callers see it: with checks */
    int score;
};

static struct backend backends[BACKENDS_MAX];
static int backend_count;
static char notes[2048];
static pthread_once_t cpu_once = PTHREAD_ONCE_INIT;

/* Backends that a full installation has: when one is absent, the notes say so. A host on which one of the device files
 * exists was given such a device, and whoever runs it wants to read in the log why it is left idle. */
static const struct known_module {
    const char *name;
    const char *device_files[3]; /* in /dev */
} known_modules[] = {{"cuda", {"nvidiactl", "nvidia0", "dxg"}}};
#define KNOWN_COUNT (sizeof(known_modules) / sizeof(known_modules[0]))

/* QUANTD_DEV: another folder of device files, for tests. */
static bool has_device_file(const struct known_module *known)
{
    const char *folder = getenv("QUANTD_DEV");
    char path[4096];
    struct stat info;

    for (size_t i = 0; i < sizeof(known->device_files) / sizeof(known->device_files[0]); i++) {
        snprintf(path, sizeof(path), "%s/%s", folder != NULL ? folder : "/dev", known->device_files[i]);
        if (stat(path, &info) == 0) {
            return true;
        }
    }
    return false;
}

/* Whether this host was given a device for the module of this name. */
static bool has_device(const char *name)
{
    bool has = false;

    for (size_t i = 0; i < KNOWN_COUNT; i++) {
        has = has || (strcmp(known_modules[i].name, name) == 0 && has_device_file(&known_modules[i]));
    }
    return has;
}

static void note(const char *name, const char *reason)
{
    size_t used = strlen(notes);

    snprintf(notes + used, sizeof(notes) - used, "%s: %s\n", name, reason);
    if (has_device(name)) {
        log_warn("this host has a device that cannot be used", LOG_S("backend", name), LOG_S("reason", reason));
    } else {
        log_info("backend not usable", LOG_S("backend", name), LOG_S("reason", reason));
    }
}

static bool same_signature(const char *const *other)
{
    size_t i = 0;

    while (gpu_signature[i] != NULL && other[i] != NULL && strcmp(gpu_signature[i], other[i]) == 0) {
        i++;
    }
    return gpu_signature[i] == NULL && other[i] == NULL;
}

/* Whether it was built for this daemon; else the notes say why not. Runs nothing of it. */
static bool fits_daemon(const struct gpu_ops *ops)
{
    char reason[256];

    if (ops->abi != GPU_ABI) {
        snprintf(reason, sizeof(reason), "built for interface %u, this daemon has %u", ops->abi, GPU_ABI);
        note(ops->name != NULL ? ops->name : "?", reason);
        return false;
    }
    if (!same_signature(ops->signature)) {
        note(ops->name, "built for other operations than this daemon: build both from the same sources");
        return false;
    }
    const char *missing = gpu_missing_call(ops);
    if (missing != NULL) {
        snprintf(reason, sizeof(reason), "it has no '%s', which every backend needs", missing);
        note(ops->name, reason);
        return false;
    }
    if (backend_count == BACKENDS_MAX) {
        note(ops->name, "there are too many backends");
        return false;
    }
    return true;
}

/* True when it was added; else the notes say why not, and nothing refers to it. */
static bool add_backend(const struct gpu_ops *ops)
{
    char reason[256] = "";
    struct backend *backend = &backends[backend_count];

    gpu_front(ops, &backend->ops);
    backend->score = ops->probe(reason, sizeof(reason));
    if (backend->score <= 0) {
        note(ops->name, reason[0] != '\0' ? reason : "it gave no reason");
        return false;
    }
    backend_count++;
    log_info("backend ready", LOG_S("backend", ops->name), LOG_I("score", backend->score),
             LOG_I("devices", backend->ops.device_count()));
    return true;
}

static void add_cpu(void)
{
    if (fits_daemon(gpu_cpu_ops())) {
        add_backend(gpu_cpu_ops());
    }
}

static int host_raise(const char *file, int line, int code, const char *message)
{
    return err_raise_at(file, line, code, "%s", message);
}

static int host_pass(const char *file, int line, int code, const char *message)
{
    return err_pass_at(file, line, code, "%s", message);
}

static char cache_folder[1024];
static struct gpu_host module_host = {GPU_ABI, host_raise, host_pass, NULL};

void gpu_cache_folder(const char *path)
{
    bool fits = strlen(path) < sizeof(cache_folder);

    snprintf(cache_folder, sizeof(cache_folder), "%s", fits ? path : "");
    module_host.cache_folder = fits ? cache_folder : NULL;
}

static void registry_load(const char *folder, const char *file, const char *name)
{
    char path[4096];
    gpu_module_entry *entry;

    snprintf(path, sizeof(path), "%s/%s", folder, file);
    void *module = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (module == NULL) {
        const char *reason = dlerror();
        note(name, reason != NULL ? reason : "the module cannot be opened");
        return;
    }
    *(void **)&entry = dlsym(module, "quantd_gpu_ops");
    const struct gpu_ops *ops = entry != NULL ? entry(&module_host) : NULL;
    if (ops == NULL || ops->name == NULL) {
        note(name, "the module does not export quantd_gpu_ops");
        dlclose(module);
        return;
    }
    log_info("module opened", LOG_S("backend", ops->name), LOG_S("file", path));
    /* A module that is of no use is closed, with the libraries that it brought: 150 MiB of cuBLAS on a host without a
     * device. Where there is one, the probe has started its driver, which may have threads from then on. */
    if (!fits_daemon(ops) || (!add_backend(ops) && !has_device(name))) {
        dlclose(module);
    }
}

/* Copies the middle of "quantd_gpu_<name>.so" to name; false when the file is called otherwise. */
static bool module_name(const char *file, char *name, size_t size)
{
    size_t length = strlen(file), prefix = strlen(MODULE_PREFIX), suffix = strlen(MODULE_SUFFIX);

    if (length <= prefix + suffix || length - prefix - suffix >= size || strncmp(file, MODULE_PREFIX, prefix) != 0 ||
        strcmp(file + length - suffix, MODULE_SUFFIX) != 0) {
        return false;
    }
    memcpy(name, file + prefix, length - prefix - suffix);
    name[length - prefix - suffix] = '\0';
    return true;
}

/* What a search has met so far. */
struct search {
    char names[BACKENDS_MAX][64]; /* modules found: the first folder that has one wins */
    size_t count;
    char searched[SEARCHED_SIZE]; /* the folders, for a reader */
};

static bool found(const struct search *search, const char *name)
{
    for (size_t i = 0; i < search->count; i++) {
        if (strcmp(search->names[i], name) == 0) {
            return true;
        }
    }
    return false;
}

static void add_searched(struct search *search, const char *folder, bool exists)
{
    size_t used = strlen(search->searched);

    snprintf(search->searched + used, sizeof(search->searched) - used, "%s%s%s", used > 0 ? ", " : "", folder,
             exists ? "" : " (no such folder)");
}

static int load_folder(const char *folder, struct search *search)
{
    char name[sizeof(search->names[0])];
    struct dirent **files;
    int count = scandir(folder, &files, NULL, alphasort);

    if (count < 0 && errno != ENOENT) {
        return err_raise_errno(errno, "cannot read the module folder '%s'", folder);
    }
    add_searched(search, folder, count >= 0);
    for (int i = 0; i < count; i++) {
        if (module_name(files[i]->d_name, name, sizeof(name)) && !found(search, name) && search->count < BACKENDS_MAX) {
            memcpy(search->names[search->count++], name, sizeof(name));
            registry_load(folder, files[i]->d_name, name);
        }
        free(files[i]);
    }
    if (count >= 0) {
        free(files);
    }
    return 0;
}

int gpu_load_backends(const char *module_folders)
{
    struct search search = {.count = 0};
    char reason[SEARCHED_SIZE + 128];
    AUTO_FREE char *folders = NULL;

    pthread_once(&cpu_once, add_cpu);
    TRY(mem_strdup(&folders, module_folders != NULL ? module_folders : ""));
    char *rest = folders;
    for (const char *folder; (folder = strsep(&rest, ":")) != NULL;) {
        if (folder[0] != '\0') {
            TRY(load_folder(folder, &search));
        }
    }
    for (size_t i = 0; i < KNOWN_COUNT; i++) {
        if (!found(&search, known_modules[i].name)) {
            snprintf(reason, sizeof(reason), "no module " MODULE_PREFIX "%s" MODULE_SUFFIX " in: %s",
                     known_modules[i].name, search.searched[0] != '\0' ? search.searched : "no folder was searched");
            note(known_modules[i].name, reason);
        }
    }
    return 0;
}

const char *gpu_backend_notes(void)
{
    return notes;
}

/* The backend and device number that `want` names. */
static const struct backend *find_backend(const char *want, int *index)
{
    const struct backend *best = NULL;
    size_t length = strcspn(want, ":");

    *index = 0;
    if (strcmp(want, "auto") == 0) {
        for (int i = 0; i < backend_count; i++) {
            if (backends[i].ops.device_count() > 0 && (best == NULL || backends[i].score > best->score)) {
                best = &backends[i];
            }
        }
        return best;
    }
    if (want[length] == ':') {
        char *end;
        errno = 0;
        long number = strtol(want + length + 1, &end, 10);
        if (end == want + length + 1 || *end != '\0' || errno != 0 || number < 0 || number > 1023) {
            return NULL;
        }
        *index = (int)number;
    }
    for (int i = 0; i < backend_count; i++) {
        if (strlen(backends[i].ops.name) == length && strncmp(backends[i].ops.name, want, length) == 0) {
            return &backends[i];
        }
    }
    return NULL;
}

#define SEEN_MAX 32

/* Devices as they were when they were first opened. */
static struct {
    const struct backend *backend;
    int index;
    struct gpu_info info;
} seen_devices[SEEN_MAX];
static int seen_count;
static pthread_mutex_t seen_lock = PTHREAD_MUTEX_INITIALIZER;

static bool recall(const struct backend *backend, int index, struct gpu_info *out)
{
    bool found = false;

    pthread_mutex_lock(&seen_lock);
    for (int i = 0; i < seen_count && !found; i++) {
        found = seen_devices[i].backend == backend && seen_devices[i].index == index;
        *out = found ? seen_devices[i].info : *out;
    }
    pthread_mutex_unlock(&seen_lock);
    return found;
}

static void remember(const struct backend *backend, int index, const struct gpu_info *info)
{
    struct gpu_info known;

    if (recall(backend, index, &known)) {
        return;
    }
    pthread_mutex_lock(&seen_lock);
    if (seen_count < SEEN_MAX) {
        seen_devices[seen_count].backend = backend;
        seen_devices[seen_count].index = index;
        seen_devices[seen_count++].info = *info;
    }
    pthread_mutex_unlock(&seen_lock);
}

static int find_device(const char *want, const struct backend **backend, int *index)
{
    pthread_once(&cpu_once, add_cpu);
    *backend = find_backend(want, index);
    if (*backend == NULL || *index >= (*backend)->ops.device_count()) {
        int rc = err_raise(ERR_CONFIG, "there is no device '%s'", want);
        return err_set_hint(rc, "not usable here: %s", notes[0] != '\0' ? notes : "nothing");
    }
    return 0;
}

static int add_device(struct gpu_names *names, const char *wanted, const struct backend *backend, int index)
{
    char id[sizeof(names->ids[0])];

    /* Ids are as backends write them: one device has no number. */
    snprintf(id, sizeof(id), strcmp(backend->ops.name, "cpu") == 0 ? "%s" : "%s:%d", backend->ops.name, index);
    for (int i = 0; i < names->count; i++) {
        if (strcmp(names->ids[i], id) == 0) {
            return err_raise(ERR_CONFIG, "'%s' names the device %s twice", wanted, id);
        }
    }
    if (names->count == GPU_DEVICES_MAX) {
        return err_raise(ERR_CONFIG, "'%s' names more than %d devices", wanted, GPU_DEVICES_MAX);
    }
    memcpy(names->ids[names->count++], id, sizeof(id));
    return 0;
}

int gpu_find_all(const char *wanted, struct gpu_names *out)
{
    struct gpu_names names = {.count = 0};
    AUTO_FREE char *texts = NULL;
    const struct backend *backend;
    int index;

    if (strcmp(wanted, "all") == 0) {
        TRY(find_device("auto", &backend, &index));
        for (int i = 0; i < backend->ops.device_count(); i++) {
            TRY(add_device(&names, wanted, backend, i));
        }
        *out = names;
        return 0;
    }
    TRY(mem_strdup(&texts, wanted));
    char *rest = texts;
    for (const char *name; (name = strsep(&rest, ",")) != NULL;) {
        TRY(find_device(name, &backend, &index));
        TRY(add_device(&names, wanted, backend, index));
    }
    *out = names;
    return 0;
}

int gpu_open(const char *want, int threads, struct gpu *out)
{
    const struct backend *backend;
    struct gpu gpu = {0};
    int index;

    TRY(find_device(want, &backend, &index));
    gpu.ops = &backend->ops;
    int rc = gpu.ops->device_open(index, threads, &gpu.device);
    if (rc != 0) {
        return err_pass(rc, "opening device '%s'", want);
    }
    rc = gpu.ops->device_info(gpu.device, &gpu.info);
    if (rc != 0) {
        gpu.ops->device_close(gpu.device);
        return err_pass(rc, "asking device '%s' what it is", want);
    }
    remember(backend, index, &gpu.info);
    *out = gpu;
    return 0;
}

int gpu_describe(const char *want, int threads, struct gpu_info *out)
{
    struct gpu gpu = {.ops = NULL};
    int index;

    pthread_once(&cpu_once, add_cpu);
    const struct backend *backend = find_backend(want, &index);
    if (backend != NULL && recall(backend, index, out)) {
        return 0;
    }
    TRY(gpu_open(want, threads, &gpu));
    *out = gpu.info;
    gpu_close(&gpu);
    return 0;
}

void gpu_close(struct gpu *gpu)
{
    if (gpu->ops != NULL) {
        gpu->ops->device_close(gpu->device);
    }
    *gpu = (struct gpu){0};
}

static int registry_tensor(const struct gpu *gpu, enum dtype dtype, int rank, const int64_t *shape, bool zeroed,
                           struct tensor *out)
{
    struct tensor tensor = {.dtype = dtype, .rank = rank, .shape = {1, 1, 1, 1}};
    size_t bytes = dtype_rows[dtype].bytes;

    if (rank < 0 || rank > TENSOR_RANK_MAX) {
        return err_raise(ERR_INTERNAL, "a tensor of rank %d", rank);
    }
    for (int i = 0; i < rank; i++) {
        if (shape[i] < 0 || __builtin_mul_overflow(bytes, (size_t)shape[i], &bytes) || bytes > INT64_MAX) {
            return err_raise(ERR_INTERNAL, "dimension %d of a tensor is %lld", i, (long long)shape[i]);
        }
        tensor.shape[i] = shape[i];
    }
    int rc = gpu->ops->alloc(gpu->device, bytes, zeroed, &tensor.data);
    if (rc != 0) {
        return err_pass(rc, "a tensor of %zu bytes", bytes);
    }
    *out = tensor;
    return 0;
}

int gpu_tensor_new(const struct gpu *gpu, enum dtype dtype, int rank, const int64_t *shape, struct tensor *out)
{
    return registry_tensor(gpu, dtype, rank, shape, true, out);
}

int gpu_tensor_uninitialized(const struct gpu *gpu, enum dtype dtype, int rank, const int64_t *shape,
                             struct tensor *out)
{
    return registry_tensor(gpu, dtype, rank, shape, false, out);
}

int gpu_tensor_upload(const struct gpu *gpu, struct gpu_stream *stream, const struct tensor *to, const void *host)
{
    return gpu->ops->upload(stream, to->data, host, tensor_bytes(to));
}

int gpu_tensor_from_host(const struct gpu *gpu, struct gpu_stream *stream, enum dtype dtype, int rank,
                         const int64_t *shape, const void *host, struct tensor *out)
{
    AUTO_TENSOR(made, gpu);

    TRY(gpu_tensor_uninitialized(gpu, dtype, rank, shape, &made));
    TRY(gpu_tensor_upload(gpu, stream, &made, host));
    *out = tensor_move(&made);
    return 0;
}

void gpu_tensor_free(const struct gpu *gpu, struct tensor *tensor)
{
    if (tensor->data != NULL) {
        gpu->ops->free(gpu->device, tensor->data);
    }
    *tensor = (struct tensor){0};
}

void gpu_tensor_scope_end(const struct gpu_tensor_scope *scope)
{
    int saved_errno = errno;

    gpu_tensor_free(scope->gpu, scope->tensor);
    errno = saved_errno;
}
