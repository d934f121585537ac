/* The worker of a job in a process of its own, which a crash or a lost device takes down alone.
 *
 * The process is this executable again (pipeline/child.h). It gets the order and the sets by a socket, and a descriptor
 * of the model's root; it opens the device, writes into the job's folder, and says everything else by the messages that
 * a run in this thread would hand over. Blocks and warnings wait for an answer, so that what a message commits is
 * committed before the run goes on. Progress is handed over again while the process is silent: a cancellation, a
 * shutdown or a timeout shows there, and is passed on; a process that does not end then is killed. One that ends
 * without its last message has crashed: ERR_WORKER_LOST, a failure of the attempt that counts like a crash of the
 * daemon. */

#include "jobs/worker.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/fs.h"
#include "base/log.h"
#include "jobs/worker_wait.h"
#include "pipeline/child.h"
#include "pipeline/message_wire.h"
#include "pipeline/order.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#define LISTEN_MS 100   /* until a silent run is asked whether it should stop */
#define STOP_MS 2500    /* for a run that was told to stop; less than a drain leaves (task_messages.c) */
#define EXIT_MS 5000    /* for a process that has sent its last message */
#define CRASH_MS 500    /* for one whose socket was closed to be gone */
#define SEND_SECONDS 60 /* for a process to read what it is sent */
#define IDS_PIECE ((size_t)4 << 20)
#define FREE_DESCRIPTOR 10 /* above those that the process gets */

struct process {
    const struct pipeline *pipeline;
    pid_t pid;
    int socket;
    struct wire_receiver receiver;
    struct message_progress progress; /* as last heard, with the next three */
    struct pipeline_times times;
    int64_t device_peak_bytes, host_peak_bytes;
    bool ended; /* the last message was heard */
    int rc;     /* of it */
    struct err_record failure;
    bool stopping; /* it was told to end with stop.code */
    struct err_record stop;
    int64_t stop_by_ms;
};

/* --- starting */

/* Where the process gets it, and not in the way of another's place. */
static int raise_descriptor(int fd, int *raised)
{
    *raised = fcntl(fd, F_DUPFD_CLOEXEC, FREE_DESCRIPTOR);
    return *raised >= 0 ? 0 : err_raise_errno(errno, "no descriptor for a run's process");
}

static int process_spawn(struct process *process, int socket, int root)
{
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    char parent[32];
    char *argv[] = {"quantd", CHILD_COMMAND, parent, NULL};
    sigset_t none;

    snprintf(parent, sizeof(parent), "%ld", (long)getpid());
    (void)sigemptyset(&none);
    (void)posix_spawn_file_actions_init(&actions);
    (void)posix_spawnattr_init(&attributes);
    int failed = posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    failed = failed != 0 ? failed : posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
    failed = failed != 0 ? failed : posix_spawn_file_actions_adddup2(&actions, socket, CHILD_SOCKET);
    failed = failed != 0 ? failed : posix_spawn_file_actions_adddup2(&actions, root, CHILD_MODEL_ROOT);
    failed = failed != 0 ? failed : posix_spawnattr_setsigmask(&attributes, &none);
    failed = failed != 0 ? failed : posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
    failed = failed != 0 ? failed : posix_spawn(&process->pid, "/proc/self/exe", &actions, &attributes, argv, environ);
    (void)posix_spawn_file_actions_destroy(&actions);
    (void)posix_spawnattr_destroy(&attributes);
    return failed == 0 ? 0 : err_raise_errno(failed, "cannot start a process for the run");
}

static int process_start(struct process *process)
{
    const struct timeval patience = {.tv_sec = SEND_SECONDS};
    int pair[2];
    AUTO_CLOSE int given = -1;
    AUTO_CLOSE int theirs = -1;
    AUTO_CLOSE int root = -1;

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0) {
        return err_raise_errno(errno, "no socket for a run's process");
    }
    process->socket = pair[0];
    given = pair[1];
    (void)setsockopt(pair[0], SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
    TRY(raise_descriptor(given, &theirs));
    TRY(raise_descriptor(model_root_fd(process->pipeline->model), &root));
    return process_spawn(process, theirs, root);
}

/* --- the order */

static struct order_set told_set(const struct calibration_set *set)
{
    struct order_set told = {.sequences = 0};

    if (set != NULL) {
        told.sequences = set->sequences;
        told.length = set->length;
        memcpy(told.digest, set->digest, sizeof(told.digest));
    }
    return told;
}

static char *json_text(json_t *value)
{
    char *text = value != NULL ? json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY) : NULL;

    json_decref(value);
    return text;
}

static int send_order(struct process *process, const struct service *service, const struct gpu_info *device)
{
    const struct pipeline *p = process->pipeline;
    char cache_folder[SERVICE_PATH_MAX];
    struct wire_out body = {.data = NULL};
    struct order order = {
        .method = json_text(recipe_method_json(p->recipe)),
        .quantization = json_text(recipe_parameters_json(p->recipe)),
        .threads = service->supervisor.threads,
        .log_level = log_get_level(),
        .module_folders = (char *)service->supervisor.module_folders,
        .cache_folder = cache_folder,
        .cpu_products = (char *)service->supervisor.cpu_products,
        .model = (char *)model_relative(p->model),
        .directory = (char *)p->directory,
        .bare = model_is_bare(p->model),
        .generation = p->generation,
        .float_model = p->float_model,
        .seed = p->seed,
        .host_memory_bytes = p->host_memory_bytes,
        .calibration = told_set(p->calibration),
        .evaluation = told_set(p->evaluation),
        .blocks = (struct saved_block *)p->blocks,
        .block_count = p->block_count,
        .rows_before = p->rows_before,
    };

    snprintf(order.trace_id, sizeof(order.trace_id), "%s", log_trace_id());
    snprintf(order.format, sizeof(order.format), "%s", p->format->name);
    snprintf(order.device, sizeof(order.device), "%s", device->id);
    snprintf(order.model_digest, sizeof(order.model_digest), "%s", model_digest(p->model));
    int rc = service_cache_folder(store_data_dir(service->store), cache_folder);
    if (rc == 0 && (order.method == NULL || order.quantization == NULL)) {
        rc = err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a run's order");
    }
    if (rc == 0) {
        order_encode(&order, &body);
        rc = wire_send(process->socket, WIRE_ORDER, &body);
    }
    free(body.data);
    free(order.method);
    free(order.quantization);
    return rc;
}

static int send_ids(struct process *process, const struct calibration_set *set)
{
    size_t left = set != NULL ? (size_t)(set->sequences * set->length) * sizeof(*set->ids) : 0;
    const unsigned char *at = set != NULL ? (const unsigned char *)set->ids : NULL;
    int rc = 0;

    while (rc == 0 && left > 0) {
        size_t size = left < IDS_PIECE ? left : IDS_PIECE;
        const struct wire_out body = {.data = (unsigned char *)at, .size = size};
        rc = wire_send(process->socket, WIRE_IDS, &body);
        at += size;
        left -= size;
    }
    return rc;
}

/* --- the run */

/* Whoever takes the messages wants the run to end, with the code and the record of this thread. */
static void note_stop(struct process *process, int code)
{
    if (!process->stopping) {
        process->stopping = true;
        process->stop = *err_last();
        process->stop.code = code;
        process->stop_by_ms = clock_monotonic_ms() + STOP_MS;
    }
}

static int tell_stop(struct process *process, int code)
{
    note_stop(process, code);
    return wire_send_code(process->socket, WIRE_STOP, code);
}

static int hand_over(struct process *process, const struct message *message)
{
    return process->pipeline->receive(process->pipeline->receiver, message);
}

static int take_last(struct process *process, const struct message *message)
{
    (void)hand_over(process, message);
    process->ended = true;
    if (message->kind == MESSAGE_DONE) {
        return 0;
    }
    process->rc = message->failure.code;
    process->failure = message->failure;
    if (process->stopping && process->stop.code == process->rc) {
        process->failure = process->stop; /* in the words of who stopped it */
    }
    return 0;
}

static int take_message(struct process *process, const struct message *message)
{
    int rc;

    switch (message->kind) {
    case MESSAGE_PROGRESS:
        process->progress = message->progress;
        rc = process->stopping ? 0 : hand_over(process, message);
        return rc != 0 ? tell_stop(process, rc) : 0;
    case MESSAGE_BLOCK_DONE:
    case MESSAGE_WARNING:
        rc = hand_over(process, message);
        if (rc != 0) {
            note_stop(process, rc);
        }
        return wire_send_code(process->socket, WIRE_ANSWER, rc);
    default:
        return take_last(process, message);
    }
}

/* Nothing was heard for a while. */
static int look_around(struct process *process)
{
    const struct message again = {.kind = MESSAGE_PROGRESS,
                                  .times = process->times,
                                  .device_peak_bytes = process->device_peak_bytes,
                                  .host_peak_bytes = process->host_peak_bytes,
                                  .progress = process->progress};

    if (process->stopping) {
        return clock_monotonic_ms() < process->stop_by_ms
                   ? 0
                   : err_raise(ERR_WORKER_LOST, "the run's process did not stop in time");
    }
    int rc = hand_over(process, &again);
    return rc != 0 ? tell_stop(process, rc) : 0;
}

static int take_frames(struct process *process)
{
    struct message message;
    enum wire_kind kind;
    struct wire_in body;
    bool got = true;
    int rc = 0;

    while (rc == 0 && !process->ended) {
        rc = wire_receive(process->socket, &process->receiver, false, &got, &kind, &body);
        if (rc != 0 || !got) {
            break;
        }
        rc = kind == WIRE_MESSAGE ? message_decode(&body, &message)
                                  : err_raise(ERR_WORKER_LOST, "a run's process sent what only its parent sends");
        if (rc == 0) {
            process->times = message.times;
            process->device_peak_bytes = message.device_peak_bytes;
            process->host_peak_bytes = message.host_peak_bytes;
            rc = take_message(process, &message);
            message_decoded_deinit(&message);
        }
    }
    return rc;
}

/* Until the last message was heard. */
static int process_follow(struct process *process)
{
    int64_t looked_ms = clock_monotonic_ms();
    int rc = 0;

    while (rc == 0 && !process->ended) {
        struct pollfd poll_fd = {.fd = process->socket, .events = POLLIN};
        int ready = poll(&poll_fd, 1, LISTEN_MS);
        if (ready > 0) {
            rc = take_frames(process);
        }
        if (rc == 0 && !process->ended && clock_monotonic_ms() - looked_ms >= LISTEN_MS) {
            looked_ms = clock_monotonic_ms();
            rc = look_around(process);
        }
    }
    return rc;
}

/* --- the end */

static void describe_status(bool known, int status, char out[96])
{
    if (!known) {
        snprintf(out, 96, "did not end");
    } else if (WIFSIGNALED(status)) {
        snprintf(out, 96, "was killed by signal %d (%s)", WTERMSIG(status), strsignal(WTERMSIG(status)));
    } else {
        snprintf(out, 96, "ended with status %d", WEXITSTATUS(status));
    }
}

/* How the run ended, once its process is gone. rc: of following it. */
static int process_finish(struct process *process, int rc)
{
    struct err_record lost = *err_last();
    char how[96];
    int status = 0;

    bool known = worker_end(process->pid,
                            process->ended      ? EXIT_MS
                            : process->stopping ? 0
                                                : CRASH_MS,
                            EXIT_MS, &status);
    if (process->ended) {
        if (process->rc != 0) {
            err_restore(&process->failure);
        }
        return process->rc;
    }
    if (process->stopping) { /* it is over, as was wanted; how, does not count */
        err_restore(&process->stop);
        return process->stop.code;
    }
    if (rc != ERR_WORKER_LOST) { /* the parent's own trouble */
        err_restore(&lost);
        return rc;
    }
    describe_status(known, status, how);
    log_warn("the process of a run crashed", LOG_S("how", how), LOG_S("heard", lost.message),
             LOG_I("pid", process->pid));
    return err_raise(ERR_WORKER_LOST, "the process that ran the job %s", how);
}

/* The order, the sets, and what comes back. */
static int process_run(struct process *process, const struct service *service, const struct gpu_info *device)
{
    TRY(send_order(process, service, device));
    TRY(send_ids(process, process->pipeline->calibration));
    TRY(send_ids(process, process->pipeline->evaluation));
    return process_follow(process);
}

int worker_run_process(struct service *service, const struct gpu_info *device, const struct pipeline *pipeline)
{
    struct process process = {
        .pipeline = pipeline, .pid = -1, .socket = -1, .progress = {.block = pipeline->block_count, .step = "loading"}};

    int rc = process_start(&process);
    if (rc == 0) {
        log_debug("run started in a process", LOG_I("pid", process.pid));
        rc = process_finish(&process, process_run(&process, service, device));
    }
    if (process.socket >= 0) {
        close(process.socket);
    }
    wire_receiver_deinit(&process.receiver);
    return rc;
}
