/* Builds the house from the ground up, turns the loop, takes it down.
 *
 * The loop is libuv's and serves one descriptor: libmicrohttpd's epoll, seen only through api_fd and api_timeout_ms.
 * After each turn the timer is set to what the API asks next; other threads end a wait through the wake handle.
 *
 * A shutdown has one way: the signal stops admission (api_drain) and starts a helper thread in engine_drain, which may
 * block for as long as a layer takes; when it is done and open requests have ended, the loop stops and everything is
 * closed. Whatever happens on that way, an alarm ends the process when its time is over: finished blocks are on disk,
 * so leaving then costs the open block and nothing else. A second signal leaves at once, for the same reason.
 *
 * A device that only a new process can open again asks for a restart, which is a shutdown with an exec behind it
 * (restart.c). A signal on the way makes it a plain shutdown. */

#include "daemon/quantd.h"

#include "api/api.h"
#include "base/err.h"
#include "base/ids.h"
#include "base/log.h"
#include "daemon/modules.h"
#include "daemon/notify.h"
#include "daemon/report.h"
#include "daemon/restart.h"
#include "daemon/signals.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <uv.h>

#define LINGER_MS 2000 /* for open requests to end, once the engine has drained */

struct quantd {
    const struct config *config;
    char module_folders[MODULES_FOLDERS_SIZE];
    struct store *store;
    struct engine *engine;
    struct api *api;
    uv_loop_t loop;
    bool looped; /* loop and handles are initialised */
    uv_poll_t poll;
    uv_timer_t timer, linger;
    uv_async_t wake, drained, lost;
    uv_signal_t term, interrupt, cpu;
    struct signals signals;
    const char *reason; /* why it ends; NULL = it never ran */
    bool cut_off;       /* requests were open at the end */
    double started;
    uv_thread_t drainer;
    bool draining, restarting, engine_drained;
    pthread_mutex_t announce_lock; /* announced is set while events may go to the API */
    bool announced;
};

static int raise_uv(int status, const char *what)
{
    return err_raise(ERR_INTERNAL, "%s: %s", what, uv_strerror(status));
}

/* --- the loop's turns */

static void on_timer(uv_timer_t *timer);

static void stop_if_done(struct quantd *quantd)
{
    if (quantd->engine_drained && api_idle(quantd->api)) {
        uv_stop(&quantd->loop);
    }
}

static void turn(struct quantd *quantd)
{
    if (quantd->api == NULL) { /* the loop's last turn */
        return;
    }
    api_run(quantd->api);
    int64_t timeout = api_timeout_ms(quantd->api);
    if (timeout >= 0) {
        (void)uv_timer_start(&quantd->timer, on_timer, (uint64_t)timeout, 0);
    } else {
        (void)uv_timer_stop(&quantd->timer);
    }
    stop_if_done(quantd);
}

static void on_timer(uv_timer_t *timer)
{
    turn(timer->data);
}

static void on_readable(uv_poll_t *poll, int status, int events)
{
    (void)status;
    (void)events;
    turn(poll->data);
}

static void on_wake(uv_async_t *wake)
{
    turn(wake->data);
}

static void wake_loop(void *data)
{
    struct quantd *quantd = data;
    (void)uv_async_send(&quantd->wake);
}

/* Storage thread. */
static void forward_event(void *data, const char *job_id)
{
    struct quantd *quantd = data;
    (void)pthread_mutex_lock(&quantd->announce_lock);
    if (quantd->announced) {
        api_job_event(quantd->api, job_id);
    }
    (void)pthread_mutex_unlock(&quantd->announce_lock);
}

static void announce(struct quantd *quantd, bool announced)
{
    (void)pthread_mutex_lock(&quantd->announce_lock);
    quantd->announced = announced;
    (void)pthread_mutex_unlock(&quantd->announce_lock);
}

/* --- shutdown */

static void leave(int signal_number)
{
    static const char words[] = "{\"level\":\"warn\",\"message\":\"shutdown time is over, leaving the open block\"}\n";
    (void)signal_number;
    (void)!write(STDERR_FILENO, words, sizeof(words) - 1);
    _exit(restart_now() == 0 ? 0 : 1);
}

static void arm_alarm(int64_t seconds)
{
    struct sigaction action = {.sa_handler = leave};
    sigemptyset(&action.sa_mask);
    (void)sigaction(SIGALRM, &action, NULL);
    alarm((unsigned)seconds);
}

/* Helper thread. */
static void drain_engine(void *data)
{
    struct quantd *quantd = data;
    int64_t total_ms = quantd->config->drain_seconds * 1000;
    int64_t rest_ms = total_ms / 5 < LINGER_MS + 1000 ? total_ms / 5 : LINGER_MS + 1000;
    engine_drain(quantd->engine, total_ms - rest_ms);
    (void)uv_async_send(&quantd->drained);
}

static void on_linger(uv_timer_t *timer)
{
    struct quantd *quantd = timer->data;
    log_warn("requests are still open, closing them");
    quantd->cut_off = true;
    uv_stop(&quantd->loop);
}

static void on_drained(uv_async_t *drained)
{
    struct quantd *quantd = drained->data;
    quantd->engine_drained = true;
    (void)uv_timer_start(&quantd->linger, on_linger, LINGER_MS, 0);
    turn(quantd);
}

static void shut_down(struct quantd *quantd)
{
    quantd->draining = true;
    arm_alarm(quantd->config->drain_seconds);
    api_drain(quantd->api);
    int status = uv_thread_create(&quantd->drainer, drain_engine, quantd);
    if (status != 0) {
        log_error("cannot start the drain thread", LOG_S("reason", uv_strerror(status)));
        _exit(restart_now() == 0 ? 0 : 1); /* what is finished is on disk */
    }
    turn(quantd);
}

static void on_signal(uv_signal_t *handle, int signal_number)
{
    struct quantd *quantd = handle->data;

    if (quantd->draining && !quantd->restarting) {
        log_warn("second signal, leaving at once", LOG_S("signal", signals_name(signal_number)));
        _exit(1);
    }
    quantd->reason = signals_name(signal_number);
    log_info("shutting down", LOG_S("signal", quantd->reason), LOG_I("seconds", quantd->config->drain_seconds));
    notify_send("STOPPING=1");
    if (quantd->restarting) {
        quantd->restarting = false;
        restart_forget();
        return;
    }
    shut_down(quantd);
}

/* Runner thread. */
static void ask_restart(void *data)
{
    struct quantd *quantd = data;
    (void)uv_async_send(&quantd->lost);
}

static void on_lost(uv_async_t *lost)
{
    struct quantd *quantd = lost->data;

    if (quantd->draining) {
        return;
    }
    int rc = restart_prepare(api_socket(quantd->api));
    if (rc != 0) {
        log_err(LOG_ERROR, "cannot restart, leaving for the service manager to start anew", NULL);
        _exit(1);
    }
    log_error("device lost, restarting in place", LOG_I("pid", getpid()));
    quantd->restarting = true;
    quantd->reason = "a lost device: the daemon restarts in place";
    notify_restart();
    shut_down(quantd);
}

/* --- building */

static int open_loop(struct quantd *quantd)
{
    uv_loop_t *loop = &quantd->loop;

    int status = uv_loop_init(loop);
    if (status != 0) {
        return raise_uv(status, "cannot make the event loop");
    }
    quantd->looped = true;
    (void)uv_timer_init(loop, &quantd->timer);
    (void)uv_timer_init(loop, &quantd->linger);
    (void)uv_signal_init(loop, &quantd->term);
    (void)uv_signal_init(loop, &quantd->interrupt);
    (void)uv_signal_init(loop, &quantd->cpu);
    status = uv_async_init(loop, &quantd->wake, on_wake);
    status = status != 0 ? status : uv_async_init(loop, &quantd->drained, on_drained);
    status = status != 0 ? status : uv_async_init(loop, &quantd->lost, on_lost);
    if (status != 0) {
        return raise_uv(status, "cannot make the loop's handles");
    }
    quantd->timer.data = quantd->linger.data = quantd->wake.data = quantd->drained.data = quantd;
    quantd->lost.data = quantd;
    quantd->term.data = quantd->interrupt.data = quantd->cpu.data = quantd;
    return 0;
}

static int open_api(struct quantd *quantd, int socket)
{
    const struct config *config = quantd->config;
    const struct api_config api = {
        .engine = quantd->engine,
        .store = quantd->store,
        .host = config->listen_host,
        .port = config->listen_port,
        .socket = socket,
        .allowed_hosts = (const char *const *)config->allowed_hosts,
        .max_connections = (int)config->max_connections,
        .max_connections_per_address = (int)config->max_connections_per_address,
        .max_streams = (int)config->max_streams,
        .wake = wake_loop,
        .wake_data = quantd,
    };
    int rc = api_open(&api, &quantd->api);
    if (rc != 0) {
        return err_pass(rc, "listen on %s port %u", config->listen_host, config->listen_port);
    }
    announce(quantd, true);
    int status = uv_poll_init(&quantd->loop, &quantd->poll, api_fd(quantd->api));
    if (status != 0) {
        return raise_uv(status, "cannot poll the API");
    }
    quantd->poll.data = quantd;
    return 0;
}

static int open_floors(struct quantd *quantd, int socket)
{
    const struct config *config = quantd->config;
    const struct store_config store = {.data_dir = config->data_dir, .state = "sqlite", .blobs = "fs"};

    int rc = modules_folders(config->module_dir, quantd->module_folders, sizeof(quantd->module_folders));
    rc = rc != 0 ? rc : engine_load_devices(config->data_dir, quantd->module_folders, config->device);
    rc = rc != 0 ? rc : store_open(&store, &quantd->store); /* nothing is written before the options are known good */
    if (rc != 0) {
        return rc;
    }
    store_on_event(quantd->store, forward_event, quantd);
    const struct engine_config engine = {
        .store = quantd->store,
        .model_roots = (const char *const *)config->model_roots,
        .device = config->device,
        .threads = (int)config->threads,
        .host_memory_bytes = config->host_memory_bytes,
        .max_queued = (int)config->max_queued,
        .restart = ask_restart,
        .restart_data = quantd,
    };
    rc = engine_open(&engine, &quantd->engine);
    rc = rc != 0 ? rc : open_loop(quantd);
    rc = rc != 0 ? rc : open_api(quantd, socket);
    return rc != 0 ? rc : engine_start(quantd->engine);
}

int quantd_open(const struct config *config, int socket, struct quantd **out)
{
    struct quantd *quantd = calloc(1, sizeof(*quantd));
    if (quantd == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for the daemon");
    }
    quantd->config = config;
    (void)pthread_mutex_init(&quantd->announce_lock, NULL);
    signals_shield();
    int rc = open_floors(quantd, socket);
    if (rc != 0) {
        struct err_record record;
        err_take(&record);
        quantd_close(quantd);
        err_restore(&record);
        return rc;
    }
    *out = quantd;
    return 0;
}

int quantd_run(struct quantd *quantd)
{
    const char *host = quantd->config->listen_host;
    bool six = strchr(host, ':') != NULL;

    int status = uv_poll_start(&quantd->poll, UV_READABLE, on_readable);
    status = status != 0 ? status : uv_signal_start(&quantd->term, on_signal, SIGTERM);
    status = status != 0 ? status : uv_signal_start(&quantd->interrupt, on_signal, SIGINT);
    status = status != 0 ? status : uv_signal_start(&quantd->cpu, on_signal, SIGXCPU);
    status = status != 0 ? status : signals_watch(&quantd->loop, &quantd->signals);
    if (status != 0) {
        return raise_uv(status, "cannot start the loop");
    }
    if (quantd->config->model_roots[0] == NULL) {
        log_warn("no model root is given, so no checkpoint can be registered");
    }
    quantd->started = clock_monotonic_seconds();
    quantd->reason = "the loop ended by itself";
    report_start(quantd->config, quantd->module_folders, api_port(quantd->api));
    printf("listening on http://%s%s%s:%u\n", six ? "[" : "", host, six ? "]" : "", api_port(quantd->api));
    (void)fflush(stdout);
    notify_send("READY=1");
    turn(quantd);
    (void)uv_run(&quantd->loop, UV_RUN_DEFAULT);
    return 0;
}

static void close_handle(uv_handle_t *handle, void *data)
{
    (void)data;
    if (!uv_is_closing(handle)) {
        uv_close(handle, NULL);
    }
}

void quantd_close(struct quantd *quantd)
{
    if (quantd == NULL) {
        return;
    }
    if (quantd->draining) {
        (void)uv_thread_join(&quantd->drainer);
    } else if (quantd->engine != NULL) {
        engine_drain(quantd->engine, 0);
    }
    announce(quantd, false); /* an engine that drains late must not speak to an API that is gone */
    if (quantd->api != NULL) {
        api_close(quantd->api);
        quantd->api = NULL;
    }
    if (quantd->engine != NULL) {
        engine_close(quantd->engine);
    }
    store_close(quantd->store);
    if (quantd->looped) { /* last: until here other threads may have woken it */
        if (quantd->restarting) {
            (void)uv_run(&quantd->loop, UV_RUN_NOWAIT); /* a signal that came meanwhile */
        }
        uv_walk(&quantd->loop, close_handle, NULL);
        (void)uv_run(&quantd->loop, UV_RUN_DEFAULT);
        (void)uv_loop_close(&quantd->loop);
        signals_shield(); /* the loop has put the defaults back */
    }
    if (quantd->reason != NULL) {
        report_end(quantd->reason, clock_monotonic_seconds() - quantd->started, !quantd->cut_off);
    }
    (void)pthread_mutex_destroy(&quantd->announce_lock);
    free(quantd);
}
