/* Opens the layers, lowest first, runs the event loop, and closes them.
 *
 * The loop is libuv's and polls one descriptor, which belongs to the API (api_fd, api_timeout_ms). After each iteration
 * the timer is set to the API's next timeout; other threads wake the loop through the wake handle.
 *
 * There is one way to shut down: the signal stops admission (api_drain) and starts a helper thread that calls
 * service_drain, which may block for as long as a block of the model takes. When it has returned and open requests have
 * ended, the loop stops and everything is closed. An alarm ends the process when the time limit passes first: finished
 * blocks are on disk, so only the unfinished block is lost. For the same reason a second signal exits immediately.
 *
 * A lost device that only a new process can open again requests a restart, which is a shutdown followed by exec
 * (restart.c). A signal during it turns it into a plain shutdown. */

#include "daemon/quantd.h"

#include "api/api.h"
#include "api/audit.h"
#include "base/err.h"
#include "base/fs.h"
#include "base/ids.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/signing_key.h"
#include "daemon/certificate.h"
#include "daemon/modules.h"
#include "daemon/notify.h"
#include "daemon/report.h"
#include "daemon/restart.h"
#include "daemon/signals.h"
#include "storage/storage.h"

#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <uv.h>

#define LINGER_MS 2000 /* for open requests to end, once the service has drained */

struct quantd {
    const struct config *config;
    char module_folders[MODULES_FOLDERS_SIZE];
    struct signing_key *signing_key; /* NULL = none */
    struct store *store;
    struct service *service;
    struct api *api;
    uv_loop_t loop;
    bool loop_open; /* loop and handles are initialised */
    uv_poll_t poll;
    uv_timer_t timer, linger, watchdog;
    uv_async_t wake, drained, lost;
    uv_signal_t term, interrupt, cpu;
    struct signals signals;
    struct certificate certificate; /* unused without TLS */
    const char *reason;             /* for the end; NULL = it never ran */
    bool cut_off;                   /* requests were open at the end */
    double started;
    uv_thread_t drainer;
    bool draining, restarting, service_drained;
    pthread_mutex_t announce_lock; /* announced is set while events may go to the API */
    bool announced;
};

static int raise_uv(int status, const char *what)
{
    return err_raise(ERR_INTERNAL, "%s: %s", what, uv_strerror(status));
}

/* --- iterations of the loop */

static void on_timer(uv_timer_t *timer);

static void stop_if_done(struct quantd *quantd)
{
    if (quantd->service_drained && api_idle(quantd->api)) {
        uv_stop(&quantd->loop);
    }
}

static void run_once(struct quantd *quantd)
{
    if (quantd->api == NULL) { /* closed: the loop's last iteration */
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
    run_once(timer->data);
}

static void on_readable(uv_poll_t *poll, int status, int events)
{
    (void)status;
    (void)events;
    run_once(poll->data);
}

static void on_wake(uv_async_t *wake)
{
    run_once(wake->data);
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

/* What log_write would write: a signal handler may not call it. */
#define LATE "shutdown time limit reached, abandoning the unfinished block"
static const char *late_line = "{\"level\":\"warn\",\"message\":\"" LATE "\"}\n";

static void exit_late(int signal_number)
{
    (void)signal_number;
    (void)!write(STDERR_FILENO, late_line, strlen(late_line));
    _exit(restart_now() == 0 ? 0 : 1);
}

static void arm_alarm(int64_t seconds)
{
    struct sigaction action = {.sa_handler = exit_late};
    if (isatty(STDERR_FILENO)) {
        late_line = "warn  " LATE "\n";
    }
    sigemptyset(&action.sa_mask);
    (void)sigaction(SIGALRM, &action, NULL);
    alarm((unsigned)seconds);
}

/* Helper thread. */
static void drain_service(void *data)
{
    struct quantd *quantd = data;
    int64_t total_ms = quantd->config->drain_seconds * 1000;
    int64_t rest_ms = total_ms / 5 < LINGER_MS + 1000 ? total_ms / 5 : LINGER_MS + 1000;
    service_drain(quantd->service, total_ms - rest_ms);
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
    quantd->service_drained = true;
    (void)uv_timer_start(&quantd->linger, on_linger, LINGER_MS, 0);
    run_once(quantd);
}

static void shut_down(struct quantd *quantd)
{
    quantd->draining = true;
    arm_alarm(quantd->config->drain_seconds);
    api_drain(quantd->api);
    int status = uv_thread_create(&quantd->drainer, drain_service, quantd);
    if (status != 0) {
        log_error("cannot start the drain thread", LOG_S("reason", uv_strerror(status)));
        _exit(restart_now() == 0 ? 0 : 1); /* finished blocks are on disk */
    }
    run_once(quantd);
}

static void on_signal(uv_signal_t *handle, int signal_number)
{
    struct quantd *quantd = handle->data;

    if (quantd->draining && !quantd->restarting) {
        log_warn("second signal, exiting immediately", LOG_S("signal", signals_name(signal_number)));
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
static void request_restart(void *data)
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
        log_err(LOG_ERROR, "cannot restart in place, exiting so that the service manager starts a new process", NULL);
        _exit(1);
    }
    log_error("device lost, restarting in place", LOG_I("pid", getpid()));
    quantd->restarting = true;
    quantd->reason = "a lost device: the daemon restarts in place";
    notify_reloading();
    shut_down(quantd);
}

/* --- opening and closing */

static int open_loop(struct quantd *quantd)
{
    uv_loop_t *loop = &quantd->loop;

    int status = uv_loop_init(loop);
    if (status != 0) {
        return raise_uv(status, "cannot create the event loop");
    }
    quantd->loop_open = true;
    (void)uv_timer_init(loop, &quantd->timer);
    (void)uv_timer_init(loop, &quantd->linger);
    (void)uv_signal_init(loop, &quantd->term);
    (void)uv_signal_init(loop, &quantd->interrupt);
    (void)uv_signal_init(loop, &quantd->cpu);
    status = uv_async_init(loop, &quantd->wake, on_wake);
    status = status != 0 ? status : uv_async_init(loop, &quantd->drained, on_drained);
    status = status != 0 ? status : uv_async_init(loop, &quantd->lost, on_lost);
    if (status != 0) {
        return raise_uv(status, "cannot create the handles of the event loop");
    }
    quantd->timer.data = quantd->linger.data = quantd->wake.data = quantd->drained.data = quantd;
    quantd->lost.data = quantd;
    quantd->term.data = quantd->interrupt.data = quantd->cpu.data = quantd;
    return 0;
}

/* *tls is NULL once the API has it. */
static int open_api(struct quantd *quantd, int socket, struct tls **tls)
{
    const struct config *config = quantd->config;
    char audit_path[PATH_MAX];
    TRY(fs_path(audit_path, sizeof(audit_path), "%s/" AUDIT_FILE, config->data_dir));
    const struct api_config api = {
        .service = quantd->service,
        .host = config->listen_host,
        .port = config->listen_port,
        .socket = socket,
        .tls = *tls,
        .trust_proxy = config->trust_proxy,
        .keys = config->auth == CONFIG_AUTH_KEYS,
        .key_rate = config->key_rate,
        .address_rate = config->address_rate,
        .audit_path = audit_path,
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
    *tls = NULL;
    announce(quantd, true);
    int status = uv_poll_init(&quantd->loop, &quantd->poll, api_fd(quantd->api));
    if (status != 0) {
        return raise_uv(status, "cannot poll the API");
    }
    quantd->poll.data = quantd;
    return 0;
}

/* A daemon whose requests need keys of which there is none would only answer 401. */
static int check_keys(const struct quantd *quantd)
{
    const struct config *config = quantd->config;
    int64_t count = 0;

    if (config->auth != CONFIG_AUTH_KEYS) {
        return 0;
    }
    TRY(store_key_count(quantd->store, &count));
    return count > 0 ? 0
                     : err_raise(ERR_CONFIG,
                                 "there is no API key that is valid; make one with: quantd key create --data-dir %s "
                                 "--scope admin",
                                 config->data_dir);
}

static int load_signing_key(struct quantd *quantd)
{
    const char *path = quantd->config->signing_key;

    if (path == NULL) {
        return 0;
    }
    int rc = signing_key_read(path, SIGNING_KEY_PRIVATE, &quantd->signing_key);
    if (rc != 0) {
        const struct err_record why = *err_last();
        return err_raise(ERR_CONFIG, "--signing-key: %.600s%s%.380s", why.message, why.hint[0] != '\0' ? "; " : "",
                         why.hint);
    }
    if (signing_key_exposed(quantd->signing_key)) {
        log_warn("other users of this host may read the signing key: chmod o-rwx", LOG_S("path", path));
    }
    return 0;
}

static int open_layers(struct quantd *quantd, int socket)
{
    const struct config *config = quantd->config;
    const struct store_config store = {.data_dir = config->data_dir, .state = "sqlite", .blobs = "fs"};
    AUTO(tls) struct tls *tls = NULL;

    TRY(modules_folders(config->module_dir, quantd->module_folders, sizeof(quantd->module_folders)));
    TRY(service_load_devices(config->data_dir, quantd->module_folders, config_products[config->cpu_products],
                             config->device));
    if (config->tls_certificate != NULL) {
        TRY(tls_load(config->tls_certificate, config->tls_key, &tls));
    }
    TRY(load_signing_key(quantd));
    TRY(store_open(&store, &quantd->store)); /* last: nothing is written before the options are validated */
    TRY(check_keys(quantd));
    store_on_event(quantd->store, forward_event, quantd);
    const struct service_config service = {
        .store = quantd->store,
        .model_roots = (const char *const *)config->model_roots,
        .device = config->device,
        .worker_process = config->worker == CONFIG_WORKER_PROCESS,
        .module_folders = quantd->module_folders,
        .cpu_products = config_products[config->cpu_products],
        .threads = (int)config->threads,
        .host_memory_bytes = config->host_memory_bytes,
        .max_queued = (int)config->max_queued,
        .project_limits = {.queued_jobs = config->max_queued_per_project,
                           .running_jobs = config->max_running_per_project,
                           .stored_bytes = config->max_stored_per_project,
                           .upload_bytes = config->max_upload_per_project},
        .retention = {.jobs = config->keep_jobs_seconds,
                      .artifacts = config->keep_artifacts_seconds,
                      .checkpoints = config->keep_checkpoints_seconds,
                      .uploads = config->keep_uploads_seconds,
                      .deliveries = config->keep_deliveries_seconds},
        .webhook_hosts = (const char *const *)config->webhook_hosts,
        .webhook_allow_private = config->webhook_allow_private,
        .webhook_ca_file = config->webhook_ca_file,
        .signing_key = quantd->signing_key,
        .restart = request_restart,
        .restart_data = quantd,
    };
    TRY(service_open(&service, &quantd->service));
    TRY(open_loop(quantd));
    TRY(open_api(quantd, socket, &tls));
    return service_start(quantd->service);
}

int quantd_open(const struct config *config, int socket, struct quantd **out)
{
    struct quantd *quantd;
    TRY(mem_new(&quantd));
    quantd->config = config;
    (void)pthread_mutex_init(&quantd->announce_lock, NULL);
    signals_shield();
    int rc = open_layers(quantd, socket);
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

/* Also called after the end: the files may have been read meanwhile. */
static void use_certificate(void *data, struct tls *tls)
{
    struct quantd *quantd = data;

    if (quantd->api == NULL) {
        tls_free(tls);
        return;
    }
    api_use_tls_take(quantd->api, tls);
}

int quantd_run(struct quantd *quantd)
{
    const char *host = quantd->config->listen_host;
    bool six = strchr(host, ':') != NULL;

    int status = uv_poll_start(&quantd->poll, UV_READABLE, on_readable);
    status = status != 0 ? status : uv_signal_start(&quantd->term, on_signal, SIGTERM);
    status = status != 0 ? status : uv_signal_start(&quantd->interrupt, on_signal, SIGINT);
    status = status != 0 ? status : uv_signal_start(&quantd->cpu, on_signal, SIGXCPU);
    if (quantd->config->tls_certificate != NULL) {
        certificate_open(&quantd->certificate, quantd->config, &quantd->loop, tls_facts_of(api_tls(quantd->api)),
                         use_certificate, quantd);
        quantd->signals.hang_up = certificate_reload;
        quantd->signals.data = &quantd->certificate;
    }
    status = status != 0 ? status : signals_watch(&quantd->loop, &quantd->signals);
    if (status != 0) {
        return raise_uv(status, "cannot start the event loop");
    }
    if (quantd->config->model_roots[0] == NULL) {
        log_warn("no --model-root is set, so no checkpoint can be registered");
    }
    quantd->started = clock_monotonic_seconds();
    quantd->reason = "the loop ended";
    report_start(quantd->config, quantd->module_folders, api_port(quantd->api));
    printf("listening on %s://%s%s%s:%u\n", quantd->config->tls_certificate != NULL ? "https" : "http", six ? "[" : "",
           host, six ? "]" : "", api_port(quantd->api));
    (void)fflush(stdout);
    notify_send("READY=1");
    notify_watchdog(&quantd->loop, &quantd->watchdog);
    run_once(quantd);
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
    } else if (quantd->service != NULL) {
        service_drain(quantd->service, 0);
    }
    announce(quantd, false); /* events must not reach the API once it is closed */
    if (quantd->api != NULL) {
        api_close(quantd->api);
        quantd->api = NULL;
    }
    if (quantd->service != NULL) {
        service_close(quantd->service);
    }
    signing_key_free(quantd->signing_key);
    store_close(quantd->store);
    if (quantd->loop_open) { /* last: until now other threads may have woken it */
        if (quantd->restarting) {
            (void)uv_run(&quantd->loop, UV_RUN_NOWAIT); /* a signal that arrived in the meantime */
        }
        uv_walk(&quantd->loop, close_handle, NULL);
        (void)uv_run(&quantd->loop, UV_RUN_DEFAULT);
        (void)uv_loop_close(&quantd->loop);
        signals_shield(); /* the loop has restored the default actions */
    }
    if (quantd->reason != NULL) {
        report_end(quantd->reason, clock_monotonic_seconds() - quantd->started, !quantd->cut_off);
    }
    (void)pthread_mutex_destroy(&quantd->announce_lock);
    free(quantd);
}
