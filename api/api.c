/* The server: the listening socket, the HTTP library, which runs without threads of its own, and the worker pools.
 *
 * A request goes to the workers through their queue and comes back through the list `returned`, which the loop thread
 * takes at every api_run; so do requests whose wait has ended. Only the loop thread resumes connections. The workers'
 * queue is bounded and the loop thread must not block: what does not fit waits in the backlog.
 *
 * The library may leave ready connections for its next round while it resumes others, so it is run until it has nothing
 * left to do at once, a bounded number of times. */

#include "api/api.h"

#include "api/audit.h"
#include "api/auth.h"
#include "api/limits.h"
#include "api/server.h"
#include "base/log.h"
#include "base/mem.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define WORKERS 4
#define ADMIT_WORKERS 4                      /* for requests that check checkpoints */
#define HEAVY_WORKERS 2                      /* for requests that compute: uploads of calibration records */
#define CONNECTION_MEMORY ((size_t)24 << 10) /* headers, and parts of bodies in either direction */
#define LISTEN_BACKLOG 1024
#define ROUNDS_MAX 64
#define RELEASED_LATE 256
#define LIBRARY_MIN "0.9.75" /* with it and later ones the table of malformed requests is tested */

/* Any thread: give a request back to the loop thread. */
static void give_back(struct api *api, struct request *request)
{
    pthread_mutex_lock(&api->lock);
    bool first = api->returned == NULL;
    request->next = api->returned;
    api->returned = request;
    pthread_mutex_unlock(&api->lock);
    if (first && api->wake != NULL) {
        api->wake(api->wake_data);
    }
}

static void on_wait_over(void *data, struct waiter *waiter)
{
    struct request *request = (void *)((char *)waiter - offsetof(struct request, waiter));
    request->result = SERVER_AGAIN;
    give_back(data, request);
}

/* Worker thread. */
static void work(void *data, void *item)
{
    struct api *api = data;
    struct request *request = item;
    log_set_trace(request->trace.parent);
    if (request->step != REQUEST_DISPOSE) {
        request->result = request_work(request);
        log_set_trace(NULL);
        give_back(api, request);
        return;
    }
    (void)request_work(request); /* frees it */
    log_set_trace(NULL);
    atomic_fetch_sub(&api->open, 1);
    if (api->wake != NULL) { /* the queue has capacity for the backlog now */
        api->wake(api->wake_data);
    }
}

/* The pool for a request: long requests must not delay the others. */
static struct worker_pool *workers_of(const struct api *api, const struct request *request)
{
    unsigned flags = request->route != NULL ? request->route->flags : 0;
    return (flags & ROUTE_HEAVY) != 0    ? api->heavy_workers
           : (flags & ROUTE_ADMITS) != 0 ? api->admit_workers
                                         : api->workers;
}

static void dispatch(struct api *api, struct request *request)
{
    request->next = NULL;
    if (api->backlog == NULL && worker_pool_push(workers_of(api, request), request)) {
        return;
    }
    *api->backlog_end = request;
    api->backlog_end = &request->next;
}

static void drain_backlog(struct api *api)
{
    while (api->backlog != NULL) {
        struct request *request = api->backlog, *next = request->next;
        if (!worker_pool_push(workers_of(api, request), request)) {
            return;
        }
        api->backlog = next;
        if (next == NULL) {
            api->backlog_end = &api->backlog;
        }
    }
}

void api_hand_over(struct connection *connection, enum request_step step)
{
    struct request *request = connection->request;
    request->step = step;
    sweeper_set(connection, CONNECTION_BUSY);
    MHD_suspend_connection(request->mhd);
    dispatch(connection->api, request);
}

void api_release(struct api *api, struct request *request)
{
    notifier_unwatch(api->context.notifier, &request->waiter);
    if (request_holds_resources(request) && !api->closing) {
        request->step = REQUEST_DISPOSE;
        dispatch(api, request);
        return;
    }
    request_free(request);
    atomic_fetch_sub(&api->open, 1);
}

/* A request is back from a worker or from a wait. */
static void finish_step(struct api *api, struct request *request)
{
    if (!api->closing && request->result == SERVER_AGAIN) {
        dispatch(api, request);
        return;
    }
    if (!api->closing && request->result == REQUEST_WAIT) {
        if (!notifier_park(api->context.notifier, &request->waiter)) {
            dispatch(api, request);
        }
        return;
    }
    server_after_step(request->connection);
    MHD_resume_connection(request->mhd);
}

static void take_returned(struct api *api)
{
    pthread_mutex_lock(&api->lock);
    struct request *returned = api->returned, *ordered = NULL;
    api->returned = NULL;
    pthread_mutex_unlock(&api->lock);
    while (returned != NULL) { /* oldest first */
        struct request *next = returned->next;
        returned->next = ordered;
        ordered = returned;
        returned = next;
    }
    while (ordered != NULL) {
        struct request *next = ordered->next;
        finish_step(api, ordered);
        ordered = next;
    }
}

void api_run(struct api *api)
{
    int64_t now = clock_monotonic_ms();
    take_returned(api);
    drain_backlog(api);
    relays_begin(api);
    MHD_UNSIGNED_LONG_LONG timeout;
    for (int round = 0; round < ROUNDS_MAX; round++) {
        bool more = relays_run(api);
        (void)MHD_run(api->daemon);
        if (!more && (MHD_get_timeout(api->daemon, &timeout) == MHD_NO || timeout > 0)) {
            break;
        }
    }
    if (now >= api->sweep_ms) {
        api->sweep_ms = sweeper_run(api, now);
    }
    api->deadline_ms = notifier_expire(api->context.notifier, now);
}

int64_t api_timeout_ms(struct api *api)
{
    MHD_UNSIGNED_LONG_LONG library;
    int64_t now = clock_monotonic_ms(), timeout = -1;
    if (MHD_get_timeout(api->daemon, &library) == MHD_YES) {
        timeout = library < INT32_MAX ? (int64_t)library : INT32_MAX;
    }
    if (relays_busy(&api->relays)) {
        return 0;
    }
    int64_t next = api->relays.all != NULL || api->relays.paused ? api->sweep_ms : -1;
    if (api->deadline_ms >= 0 && (next < 0 || api->deadline_ms < next)) {
        next = api->deadline_ms;
    }
    if (api->relays.waiting != NULL && api->relays.admit_ms < next) {
        next = api->relays.admit_ms;
    }
    if (next >= 0) {
        int64_t left = next > now ? next - now : 0;
        timeout = timeout < 0 || left < timeout ? left : timeout;
    }
    return timeout;
}

void api_job_event(struct api *api, const char *job_id)
{
    notifier_notify(api->context.notifier, job_id);
}

void api_drain(struct api *api)
{
    atomic_store(&api->context.draining, true);
    notifier_notify(api->context.notifier, NULL);
}

bool api_idle(struct api *api)
{
    return atomic_load(&api->open) == 0 && atomic_load(&api->unsent) == 0;
}

const char *api_library_version(void)
{
    return MHD_get_version();
}

uint16_t api_port(const struct api *api)
{
    return api->port;
}

int api_socket(const struct api *api)
{
    return api->fd;
}

int api_fd(const struct api *api)
{
    return api->relays.epoll;
}

const struct tls *api_tls(const struct api *api)
{
    return api->tls;
}

void api_use_tls_take(struct api *api, struct tls *tls)
{
    tls_free(api->tls);
    api->tls = tls;
    atomic_store(&api->context.certificate_ends_at, tls_facts_of(tls)->ends_at);
}

static bool is_loopback(const struct sockaddr_storage *address)
{
    if (address->ss_family == AF_INET) {
        return ntohl(((const struct sockaddr_in *)address)->sin_addr.s_addr) >> 24 == 127;
    }
    return address->ss_family == AF_INET6 && IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)address)->sin6_addr);
}

static uint16_t port_of(const struct sockaddr_storage *address)
{
    return ntohs(address->ss_family == AF_INET6 ? ((const struct sockaddr_in6 *)address)->sin6_port
                                                : ((const struct sockaddr_in *)address)->sin_port);
}

static int make_socket(const struct api_config *config)
{
    const struct addrinfo hints = {
        .ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICHOST | AI_NUMERICSERV};
    struct addrinfo *found = NULL;
    char service[8];
    int one = 1;

    (void)snprintf(service, sizeof(service), "%u", config->port);
    int failed = getaddrinfo(config->host, service, &hints, &found);
    if (failed != 0) {
        return err_raise(ERR_CONFIG, "%s is not an address to listen on: %s", config->host, gai_strerror(failed));
    }
    int fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) != 0 ||
        bind(fd, found->ai_addr, found->ai_addrlen) != 0 || listen(fd, LISTEN_BACKLOG) != 0) {
        int saved = errno;
        freeaddrinfo(found);
        if (fd >= 0) {
            close(fd);
        }
        return err_raise(ERR_CONFIG, "cannot listen on %s port %u: %s", config->host, config->port, strerror(saved));
    }
    freeaddrinfo(found);
    return fd;
}

/* Open or take over the listening socket; sets fd, port and the facts that the guard needs about the address. */
static int listen_on(struct api *api, const struct api_config *config)
{
    struct sockaddr_storage bound = {0};
    socklen_t size = sizeof(bound);

    int fd = config->socket > 0 ? config->socket : make_socket(config);
    if (fd < 0) {
        return fd;
    }
    api->fd = fd;
    if (getsockname(fd, (struct sockaddr *)&bound, &size) != 0) {
        return err_raise_errno(errno, "cannot get the address of the listening socket");
    }
    api->port = port_of(&bound);
    api->hosts.any_address = !is_loopback(&bound);
    return 0;
}

/* A browser that trusts the certificate for a name has not been misled about it. */
static bool in_certificate(const void *data, const char *host)
{
    const struct api *api = data;
    return api->tls != NULL && tls_names(api->tls, host);
}

static int copy_hosts(struct api *api, const struct api_config *config)
{
    size_t count = 0;
    while (config->allowed_hosts != NULL && config->allowed_hosts[count] != NULL) {
        count++;
    }
    TRY(mem_strdup(&api->host, config->host));
    TRY(mem_array(&api->allowed, count + 1));
    for (size_t i = 0; i < count; i++) {
        TRY(mem_strdup(&api->allowed[i], config->allowed_hosts[i]));
    }
    api->hosts.listen = api->host;
    api->hosts.names = in_certificate;
    api->hosts.names_data = api;
    api->hosts.allowed = (const char *const *)api->allowed;
    return 0;
}

/* Escapes are decoded by the matcher, from the raw target. */
static size_t keep_escapes(void *data, struct MHD_Connection *mhd, char *text)
{
    return strlen(text);
}

/* Only the loop calls the library. From 1.0 on it must be told so, or it accepts an added connection in its next run
 * only, and accept.c would take that for a refusal. */
#if MHD_VERSION >= 0x00097707
#define LIBRARY_ONE_THREAD MHD_USE_NO_THREAD_SAFETY
#else
#define LIBRARY_ONE_THREAD 0
#endif

/* It has no listening socket: connections are handed to it (relay.c). A few more than our limit, because it releases
 * ended connections a little later than we do. */
static int start_library(struct api *api, const struct limits *limits, bool trust_proxy)
{
    if (api->hosts.any_address && !trust_proxy && strverscmp(MHD_get_version(), LIBRARY_MIN) < 0) {
        return err_raise(ERR_CONFIG,
                         "libmicrohttpd %s is older than " LIBRARY_MIN
                         ", and what malformed requests it accepts is not known; "
                         "listen on 127.0.0.1, or let only a proxy reach this address and pass --trust-proxy",
                         MHD_get_version());
    }
    api->daemon = MHD_start_daemon(
        MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_NO_LISTEN_SOCKET | LIBRARY_ONE_THREAD, 0, NULL, NULL,
        server_on_request, api, MHD_OPTION_CONNECTION_LIMIT, 2 * limits->attached + RELEASED_LATE,
        MHD_OPTION_CONNECTION_MEMORY_LIMIT, CONNECTION_MEMORY, MHD_OPTION_STRICT_FOR_CLIENT, 1,
        MHD_OPTION_URI_LOG_CALLBACK, server_on_target, api, MHD_OPTION_UNESCAPE_CALLBACK, keep_escapes, NULL,
        MHD_OPTION_NOTIFY_COMPLETED, server_on_completed, api, MHD_OPTION_NOTIFY_CONNECTION, server_on_connection, api,
        MHD_OPTION_END);
    if (api->daemon == NULL) {
        return err_raise(ERR_CONFIG, "cannot start the HTTP server");
    }
    int library = MHD_get_daemon_info(api->daemon, MHD_DAEMON_INFO_EPOLL_FD)->epoll_fd;
    return relays_open(api, api->fd, library, limits);
}

static int api_open_parts(struct api *api, const struct api_config *config)
{
    struct limits limits;
    limits_find(config, &limits);
    api->context.streams_max = (int)limits.streams;
    api->context.notifier = notifier_new(on_wait_over, api);
    if (api->context.notifier == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "not enough memory for the server");
    }
    api->context.keys = config->keys ? auth_cache_new() : NULL;
    if (config->keys && api->context.keys == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "not enough memory for the keys");
    }
    api->key_rates = config->key_rate > 0 ? buckets_new(config->key_rate) : NULL;
    api->address_rates = config->address_rate > 0 ? buckets_new(config->address_rate) : NULL;
    if ((config->key_rate > 0 && api->key_rates == NULL) || (config->address_rate > 0 && api->address_rates == NULL)) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "not enough memory for the rates of requests");
    }
    if (config->audit_path != NULL) {
        TRY(audit_open(config->audit_path, &api->audit_fd));
    }
    int workers = config->workers > 0 ? config->workers : WORKERS;
    TRY(copy_hosts(api, config));
    TRY(listen_on(api, config));
    TRY(worker_pool_new(workers, (size_t)limits.connections, work, api, &api->workers));
    TRY(worker_pool_new(ADMIT_WORKERS, (size_t)limits.connections, work, api, &api->admit_workers));
    TRY(worker_pool_new(HEAVY_WORKERS, (size_t)limits.connections, work, api, &api->heavy_workers));
    return start_library(api, &limits, config->trust_proxy);
}

int api_open(const struct api_config *config, struct api **out)
{
    struct api *api;
    TRY(mem_new(&api));
    api->context.service = config->service;
    api->context.tls = config->tls != NULL;
    api->context.trust_proxy = config->trust_proxy;
    api->backlog_end = &api->backlog;
    api->deadline_ms = -1;
    api->fd = api->audit_fd = -1;
    api->wake = config->wake;
    api->wake_data = config->wake_data;
    pthread_mutex_init(&api->lock, NULL);
    int rc = api_open_parts(api, config);
    if (rc < 0) {
        api_close(api);
        return err_pass(rc, "opening the server");
    }
    if (config->tls != NULL) {
        api_use_tls_take(api, config->tls);
    }
    *out = api;
    return 0;
}

/* Everything that is suspended must run again before the library stops: workers finish, waits end, the rest of the
 * backlog is given up. */
static void resume_all(struct api *api)
{
    api_drain(api);
    worker_pool_free(api->workers);
    worker_pool_free(api->admit_workers);
    worker_pool_free(api->heavy_workers);
    api->workers = api->admit_workers = api->heavy_workers = NULL;
    api->closing = true;
    take_returned(api);
    while (api->backlog != NULL) {
        struct request *request = api->backlog;
        api->backlog = request->next;
        if (request->mhd != NULL) {
            MHD_resume_connection(request->mhd);
        } else {
            request_free(request);
        }
    }
}

void api_close(struct api *api)
{
    if (api == NULL) {
        return;
    }
    if (api->daemon != NULL) {
        resume_all(api);
        MHD_stop_daemon(api->daemon);
    }
    relays_close(api);
    if (api->fd >= 0) {
        close(api->fd);
    }
    worker_pool_free(api->workers);
    worker_pool_free(api->admit_workers);
    worker_pool_free(api->heavy_workers);
    notifier_free(api->context.notifier);
    auth_cache_free(api->context.keys);
    tls_free(api->tls);
    buckets_free(api->key_rates);
    buckets_free(api->address_rates);
    if (api->audit_fd >= 0) {
        close(api->audit_fd);
    }
    for (size_t i = 0; api->allowed != NULL && api->allowed[i] != NULL; i++) {
        free(api->allowed[i]);
    }
    free(api->allowed);
    free(api->host);
    pthread_mutex_destroy(&api->lock);
    free(api);
}
