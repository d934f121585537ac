#pragma once
/* The daemon's configuration: one table of options, read from the command line, QUANTD_* variables and a YAML file.
 *
 * Precedence, option by option: command line > environment > file > default. A list (model roots, hosts) is
 * taken from the first source that sets it and not merged. */

#include "base/cleanup.h"

#include <stdbool.h>
#include <stdint.h>

enum config_auth { CONFIG_AUTH_NONE, CONFIG_AUTH_KEYS };

enum config_worker { CONFIG_WORKER_THREAD, CONFIG_WORKER_PROCESS };

/* Words of --cpu-products, which gpu_cpu_products takes; NULL ends them. */
extern const char *const config_products[];

struct config {
    char *data_dir;     /* absolute */
    char **model_roots; /* absolute, existing directories; NULL-terminated, never NULL */
    char *listen_host;  /* address without brackets */
    uint16_t listen_port;
    int auth;                        /* enum config_auth */
    int64_t key_rate, address_rate;  /* requests per second; 0 = no limit */
    char *tls_certificate, *tls_key; /* files; both or neither */
    bool trust_proxy;     /* a proxy in front encrypts: other addresses than loopback are allowed without TLS */
    char **allowed_hosts; /* NULL-terminated, never NULL */
    char *device;
    int worker;                     /* enum config_worker */
    int cpu_products;               /* index of config_products */
    char *signing_key;              /* a file; NULL = artifacts are not signed */
    char *module_dir;               /* NULL = the default directories (daemon/modules.h) */
    int64_t threads;                /* 0 = all cores */
    int64_t host_memory_bytes;      /* 0 = the service's choice */
    int64_t max_queued;             /* 0 = the service's choice */
    int64_t max_queued_per_project; /* 0 = no limit of its own, as the next three */
    int64_t max_running_per_project;
    int64_t max_stored_per_project; /* bytes */
    int64_t max_upload_per_project;
    int64_t keep_jobs_seconds; /* 0 = until they are deleted, as the next three */
    int64_t keep_artifacts_seconds;
    int64_t keep_checkpoints_seconds;
    int64_t keep_uploads_seconds;
    int64_t keep_deliveries_seconds;
    char **webhook_hosts; /* NULL-terminated, never NULL */
    bool webhook_allow_private;
    char *webhook_ca_file;   /* NULL = the system's certificates */
    int64_t max_connections; /* 0 = the API's choice, as the next two */
    int64_t max_connections_per_address;
    int64_t max_streams;
    int64_t drain_seconds;
    int log_level; /* enum log_level */
};

/* Reads every source; call before threads start. --help and --version print and exit 0. Raises ERR_CONFIG with one
 * sentence for the user. *out is set on success only. */
int config_load(int argc, char **argv, struct config *out);
void config_deinit(struct config *config);
CLEANUP_DEINIT(config, struct config, config_deinit)
/* ERR_CONFIG when this configuration does not allow the address. */
int config_check_address(const struct config *config);
/* True for an address that can only be reached from this machine. */
bool config_is_loopback(const char *host);
