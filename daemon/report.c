/* What a reader of the log needs to know about the process: its version, address and options, and how it ended. */

#include "daemon/report.h"

#include "api/api.h"
#include "base/log.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define LIST_SIZE 1024

static const char *join(char *const *list, char out[LIST_SIZE])
{
    size_t used = 0;

    out[0] = '\0';
    for (size_t i = 0; list[i] != NULL && used < LIST_SIZE - 1; i++) {
        int size = snprintf(out + used, LIST_SIZE - used, "%s%s", i > 0 ? " " : "", list[i]);
        used += size > 0 ? (size_t)size : 0;
    }
    return out;
}

void report_start(const struct config *config, const char *module_folders, uint16_t port)
{
    static const char *const levels[] = {"error", "warn", "info", "debug", "trace"};
    char roots[LIST_SIZE], hosts[LIST_SIZE], address[128];
    bool six = strchr(config->listen_host, ':') != NULL;

    (void)snprintf(address, sizeof(address), "%s%s%s:%u", six ? "[" : "", config->listen_host, six ? "]" : "", port);
    log_info(
        "started", LOG_S("version", QUANTD_VERSION), LOG_S("address", address), LOG_S("data_dir", config->data_dir),
        LOG_S("model_root", join(config->model_roots, roots)), LOG_S("device", config->device),
        LOG_S("worker", config->worker == CONFIG_WORKER_PROCESS ? "process" : "thread"),
        LOG_S("cpu_products", config_products[config->cpu_products]), LOG_I("threads", config->threads),
        LOG_I("host_memory_bytes", config->host_memory_bytes), LOG_I("max_queued", config->max_queued),
        LOG_I("max_queued_per_project", config->max_queued_per_project),
        LOG_I("max_running_per_project", config->max_running_per_project),
        LOG_I("max_stored_per_project", config->max_stored_per_project),
        LOG_I("max_upload_per_project", config->max_upload_per_project), LOG_I("requests_per_key", config->key_rate),
        LOG_I("requests_per_address", config->address_rate), LOG_I("keep_jobs_seconds", config->keep_jobs_seconds),
        LOG_I("keep_artifacts_seconds", config->keep_artifacts_seconds),
        LOG_I("keep_checkpoints_seconds", config->keep_checkpoints_seconds),
        LOG_I("keep_uploads_seconds", config->keep_uploads_seconds), LOG_I("max_connections", config->max_connections),
        LOG_I("max_connections_per_address", config->max_connections_per_address),
        LOG_I("max_streams", config->max_streams), LOG_I("drain_seconds", config->drain_seconds),
        LOG_S("module_dir", module_folders),
        LOG_S("signing_key", config->signing_key != NULL ? config->signing_key : ""),
        LOG_S("allowed_host", join(config->allowed_hosts, hosts)),
        LOG_S("auth", config->auth == CONFIG_AUTH_KEYS ? "keys" : "none"),
        LOG_S("tls_certificate", config->tls_certificate), LOG_S("tls_key", config->tls_key),
        LOG_S("trust_proxy", config->trust_proxy ? "true" : "false"), LOG_S("log_level", levels[config->log_level]),
        LOG_S("libmicrohttpd", api_library_version()), LOG_S("openssl", tls_library_version()), LOG_I("pid", getpid()));
}

void report_end(const char *reason, double seconds, bool clean)
{
    log_info("stopped", LOG_S("reason", reason), LOG_S("jobs", "a job that was running resumes at the next start"),
             LOG_S("requests", clean ? "all were answered" : "some were aborted"), LOG_F("seconds", seconds));
}
