/* The child of a process worker: receives an order and its sets, runs it, sends messages.
 *
 * Nothing outlives the parent: the kernel kills this process with it, and an end of file on the socket ends it too. It
 * ignores the signals meant for the daemon, which stops it by the socket; and where memory runs out, the kernel is
 * asked to end this process before the daemon. */

#include "pipeline/child.h"

#include "base/err.h"
#include "base/ids.h"
#include "base/log.h"
#include "pipeline/check.h"
#include "pipeline/message_wire.h"
#include "pipeline/order.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#define PROGRESS_MS 50 /* between two messages of progress, unless another step or block begins */
#define OOM_SCORE "500"

struct child {
    struct wire_receiver receiver;
    struct order order;
    struct recipe recipe;
    struct model *model;
    struct gpu gpu;
    struct calibration_set calibration, evaluation;
    int stop;                     /* the code to stop with, from the parent; 0: none */
    bool block_due, warning_due;  /* the parent has not answered that yet */
    int block_code, warning_code; /* its answers */
    const char *step;             /* as last sent */
    int64_t block, sent_ms;
};

/* The parent is gone: nobody would read a message. */
static void child_exit(void)
{
    _exit(1);
}

/* Read what the parent sent; due: until that answer has come, NULL: without waiting. Answers come in the order of
 * what they answer, and a block is always the first. */
static void listen_to_parent(struct child *child, const bool *due)
{
    enum wire_kind kind;
    struct wire_in body;
    bool got;

    while (due == NULL || *due) {
        if (wire_receive(CHILD_SOCKET, &child->receiver, due != NULL, &got, &kind, &body) != 0) {
            child_exit();
        }
        if (!got) {
            return;
        }
        int code = wire_get_code(&body);
        if (body.bad || body.left > 0) {
            child_exit();
        }
        if (kind == WIRE_STOP) {
            child->stop = code;
        } else if (kind == WIRE_ANSWER && child->block_due) {
            child->block_due = false;
            child->block_code = code;
        } else if (kind == WIRE_ANSWER && child->warning_due) {
            child->warning_due = false;
            child->warning_code = code;
        } else {
            child_exit();
        }
    }
}

static int stop_with(int code)
{
    return code == 0 ? 0 : err_raise(code, "stopped by the daemon");
}

static bool is_due(struct child *child, const struct message_progress *progress)
{
    int64_t now = clock_monotonic_ms();

    if (progress->step == child->step && progress->block == child->block && now - child->sent_ms < PROGRESS_MS) {
        return false;
    }
    child->step = progress->step;
    child->block = progress->block;
    child->sent_ms = now;
    return true;
}

static int child_receive(void *data, const struct message *message)
{
    struct child *child = data;
    struct wire_out body = {.data = NULL};

    if (message->kind == MESSAGE_PROGRESS) {
        listen_to_parent(child, NULL);
        if (child->stop != 0 || !is_due(child, &message->progress)) {
            return stop_with(child->stop);
        }
    }
    message_encode(message, &body);
    int rc = wire_send(CHILD_SOCKET, WIRE_MESSAGE, &body);
    free(body.data);
    if (rc == ERR_WORKER_LOST) {
        child_exit();
    }
    if (rc != 0) {
        return rc;
    }
    child->block_due = child->block_due || message->kind == MESSAGE_BLOCK_DONE; /* child_answer hears of it */
    if (message->kind == MESSAGE_WARNING) {
        child->warning_due = true;
        listen_to_parent(child, &child->warning_due);
        return stop_with(child->warning_code);
    }
    return 0;
}

static int child_answer(void *data, bool wait, bool *answered)
{
    struct child *child = data;

    listen_to_parent(child, wait ? &child->block_due : NULL);
    *answered = !child->block_due;
    return *answered ? stop_with(child->block_code) : 0;
}

/* --- the order */

static int receive_frame(struct child *child, enum wire_kind expected, struct wire_in *body)
{
    enum wire_kind kind;
    bool got;

    int rc = wire_receive(CHILD_SOCKET, &child->receiver, true, &got, &kind, body);
    return rc != 0 ? rc : kind == expected ? 0 : err_raise(ERR_WORKER_LOST, "the parent sends out of order");
}

static int receive_set(struct child *child, const struct order_set *told, struct calibration_set *out)
{
    size_t left = (size_t)(told->sequences * told->length) * sizeof(int32_t);
    struct wire_in body;

    if (told->sequences == 0) {
        return 0;
    }
    char *at = malloc(left);
    if (at == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for %lld tokens",
                         (long long)(told->sequences * told->length));
    }
    *out = (struct calibration_set){.ids = (int32_t *)(void *)at, .sequences = told->sequences, .length = told->length};
    memcpy(out->digest, told->digest, sizeof(out->digest));
    while (left > 0) {
        TRY(receive_frame(child, WIRE_IDS, &body));
        if (body.left == 0 || body.left > left) {
            return err_raise(ERR_WORKER_LOST, "the parent sends tokens that belong to no set");
        }
        memcpy(at, body.at, body.left);
        at += body.left;
        left -= body.left;
    }
    return 0;
}

static int receive_order(struct child *child)
{
    struct wire_in body;

    TRY(receive_frame(child, WIRE_ORDER, &body));
    TRY(order_decode(&body, &child->order));
    log_set_trace_id(child->order.trace_id);
    TRY(receive_set(child, &child->order.calibration, &child->calibration));
    return receive_set(child, &child->order.evaluation, &child->evaluation);
}

static int open_device(struct child *child)
{
    const struct order *order = &child->order;

    log_set_level(LOG_ERROR); /* the daemon has already logged what it says of these backends */
    if (order->cache_folder[0] != '\0') {
        gpu_cache_folder(order->cache_folder);
    }
    int rc = gpu_cpu_products(order->cpu_products);
    rc = rc != 0 ? rc : gpu_load_backends(order->module_folders);
    log_set_level((enum log_level)order->log_level);
    return rc != 0 ? rc : gpu_open(order->device, (int)order->threads, &child->gpu);
}

static int open_model(struct child *child)
{
    const char *folder = child->order.model;

    TRY(child->order.bare ? model_open_as(CHILD_MODEL_ROOT, folder, MODEL_BARE, &child->model)
                          : model_open(CHILD_MODEL_ROOT, folder, &child->model));
    return strcmp(model_digest(child->model), child->order.model_digest) == 0
               ? 0
               : err_raise(ERR_SOURCE_CHANGED, "the checkpoint has changed since the job's preparation");
}

static int read_recipe(struct child *child)
{
    struct validation_errors errors = {0};
    json_t *method = json_loads(child->order.method, JSON_DECODE_ANY, NULL);
    json_t *quantization = json_loads(child->order.quantization, 0, NULL);

    int rc = method == NULL ? err_raise(ERR_WORKER_LOST, "an order's recipe is not JSON")
                            : recipe_parse(method, quantization, "/method", "/quantization", &errors, &child->recipe);
    json_decref(method);
    json_decref(quantization);
    TRY(rc);
    TRY(recipe_bind(&child->recipe, child->model));
    return patterns_check(child->recipe.patterns);
}

static int run_order(struct child *child)
{
    const struct order *order = &child->order;

    TRY(receive_order(child));
    TRY(open_device(child));
    TRY(open_model(child));
    TRY(read_recipe(child));
    const struct format *format = format_find(order->format);
    if (format == NULL) {
        return err_raise(ERR_WORKER_LOST, "there is no format \"%.31s\"", order->format);
    }
    const struct pipeline pipeline = {
        .recipe = &child->recipe,
        .format = format,
        .model = child->model,
        .gpu = &child->gpu,
        .directory = order->directory,
        .calibration = child->calibration.sequences > 0 ? &child->calibration : NULL,
        .evaluation = child->evaluation.sequences > 0 ? &child->evaluation : NULL,
        .generation = order->generation,
        .float_model = order->float_model,
        .seed = order->seed,
        .host_memory_bytes = order->host_memory_bytes,
        .blocks = order->blocks,
        .block_count = order->block_count,
        .rows_before = order->rows_before,
        .receive = child_receive,
        .answer = child_answer,
        .receiver = child,
    };
    (void)pipeline_run(&pipeline); /* its last message says how it ended */
    return 0;
}

static int send_failure(struct child *child, int rc)
{
    struct message message = {.kind = MESSAGE_FAILED, .failure = *err_last()};

    message.failure.code = rc;
    return child_receive(child, &message);
}

/* --- the process */

static void set_oom_score(void)
{
    int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);

    if (fd >= 0) {
        (void)!write(fd, OOM_SCORE, strlen(OOM_SCORE));
        close(fd);
    }
}

static void set_up_process(const char *parent)
{
    static const int ignored[] = {SIGTERM, SIGINT, SIGHUP, SIGPIPE, SIGUSR1, SIGUSR2};

    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != (pid_t)strtol(parent, NULL, 10)) { /* it died before that */
        child_exit();
    }
    for (size_t i = 0; i < sizeof(ignored) / sizeof(ignored[0]); i++) {
        (void)signal(ignored[i], SIG_IGN);
    }
    (void)fcntl(CHILD_SOCKET, F_SETFD, FD_CLOEXEC);
    (void)fcntl(CHILD_MODEL_ROOT, F_SETFD, FD_CLOEXEC);
    (void)close_range(CHILD_MODEL_ROOT + 1, ~0U, 0); /* whatever a library of the daemon left open for it */
    set_oom_score();
}

int child_main(const char *parent)
{
    struct child child = {.block = -1};

    set_up_process(parent);
    int rc = run_order(&child);
    rc = rc != 0 ? send_failure(&child, rc) : 0;
    calibration_set_deinit(&child.calibration);
    calibration_set_deinit(&child.evaluation);
    recipe_deinit(&child.recipe);
    model_close(child.model);
    gpu_close(&child.gpu);
    wire_receiver_deinit(&child.receiver);
    order_deinit(&child.order);
    return rc != 0 ? 1 : 0;
}
