#pragma once
/* Public header of the HTTP API. The daemon's loop thread owns it: it polls api_fd with api_timeout_ms and calls
 * api_run. Nothing here depends on libuv, and nothing in daemon/ depends on libmicrohttpd.
 *
 * Handlers run on a few worker threads (they may wait for the store); the loop thread only parses, guards and copies.
 * A connection is suspended while a worker has it, while a streamed body waits for its consumer (backpressure), and
 * while a streamed reply waits for more. */

#include "api/tls.h"
#include "jobs/jobs.h"

#include <stdint.h>

struct api;

struct api_config {
    struct service *service;
    const char *host;                 /* listen address: "127.0.0.1", "::1", ... */
    uint16_t port;                    /* 0 = any free one */
    int socket;                       /* > 0: a listening TCP socket, which is taken over; otherwise one is created */
    const char *const *allowed_hosts; /* extra Host names, NULL-terminated or NULL; loopback names are always allowed
                                         when bound to loopback */
    struct tls *tls;                  /* for every connection; taken over by a successful api_open. NULL: plain HTTP */
    bool trust_proxy;                 /* X-Forwarded-Proto is a proxy's, and not a client's */
    bool keys;                        /* requests need an API key */
    int64_t key_rate, address_rate;   /* requests per second of one key, of one address; 0 = no limit */
    const char *audit_path;           /* file to append a line to for each request that changes something; or NULL */
    int workers;                      /* 0 = 4 */
    int max_connections;              /* 0 = 4096 */
    int max_connections_per_address;  /* 0 = half of these */
    int max_streams;                  /* concurrent file uploads and downloads; 0 = 256 */
    void (*wake)(void *data);         /* any thread: the loop should call api_run soon */
    void *wake_data;
};

/* Listen and start the workers; what config points to is copied, service and store are borrowed. Raises the soft limit
 * of open files as far as max_connections needs. ERR_CONFIG when the address cannot be bound. */
int api_open(const struct api_config *config, struct api **out);
const char *api_library_version(void); /* of the HTTP library that runs, such as "0.9.75" */
uint16_t api_port(const struct api *api);
int api_socket(const struct api *api);            /* the listening socket; api_close closes it */
int api_fd(const struct api *api);                /* epoll descriptor to poll for reading */
int64_t api_timeout_ms(struct api *api);          /* -1 = none */
void api_run(struct api *api);                    /* loop thread: handle what is ready; never blocks */
const struct tls *api_tls(const struct api *api); /* of new connections; NULL: plain HTTP */
/* Loop thread: connections from now on use it; only for a server that was opened with one. */
void api_use_tls_take(struct api *api, struct tls *tls);
/* Any thread: job has new events (wakes its streams and long polls). */
void api_job_event(struct api *api, const char *job_id);
/* Loop thread: readyz fails, no new work is accepted. Streams end. */
void api_drain(struct api *api);
bool api_idle(struct api *api); /* no open requests */
/* Ends what is still open: waits for the workers, disconnects the clients. Loop thread, after the last api_run;
 * api_job_event must not be called any more. NULL is accepted. */
void api_close(struct api *api);
