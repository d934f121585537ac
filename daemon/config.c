/* The option table and what its text means.
 *
 * Each row is one option in every source: --data-dir, QUANTD_DATA_DIR and data_dir: in the file. Every source yields
 * text (daemon/source.h). The first source that sets an option takes precedence, and one parser per row type reads it,
 * so that a value means the same in every source and error messages name the source. */

#include "daemon/config.h"

#include "base/err.h"
#include "base/log.h"
#include "base/mem.h"
#include "daemon/source.h"

#include <argp.h>
#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PATH_SIZE 4096
#define HELP_SIZE 512
#define KEEP_MAX 3153600000 /* 100 years */

const char *const config_products[] = {"float32", "bfloat16", "auto", NULL};

enum row_type {
    ROW_TEXT,
    ROW_TEXTS,
    ROW_PATH,
    ROW_FOLDERS,
    ROW_FILE,
    ROW_ADDRESS,
    ROW_FLAG,
    ROW_INT,
    ROW_BYTES,
    ROW_LEVEL,
    ROW_WORKER,
    ROW_PRODUCTS,
    ROW_AUTH
};

struct row {
    const char *name;     /* --name; QUANTD_NAME; name with '_' in the file */
    const char *argument; /* in --help; NULL = none */
    enum row_type type;
    size_t offset;        /* in struct config */
    const char *fallback; /* NULL = none */
    int64_t min, max;
    char separator;
    const char *help;
};

#define AT(member) offsetof(struct config, member)

enum { ROW_CONFIG_FILE = 3 };

static const struct row rows[] = {
    {"data-dir", "DIR", ROW_PATH, AT(data_dir), .help = "Directory for jobs, artifacts and the database; required"},
    {"model-root", "PATH", ROW_FOLDERS, AT(model_roots), .separator = ':',
     .help = "Directory below which checkpoints may be registered; repeatable"},
    {"listen", "HOST:PORT", ROW_ADDRESS, 0, "127.0.0.1:8080", .help = "Address to listen on; port 0 picks a free port"},
    [ROW_CONFIG_FILE] = {"config", "FILE", ROW_FILE, 0, .help = "YAML file with these options"},
    {"auth", "KIND", ROW_AUTH, AT(auth), "none",
     .help =
         "Who may send requests: none (anybody; only on loopback) or keys (holders of API keys: quantd key create)"},
    {"requests-per-key", "N", ROW_INT, AT(key_rate), "0", 0, 1000000,
     .help = "Requests per second of one API key; 0 = no limit"},
    {"requests-per-address", "N", ROW_INT, AT(address_rate), "0", 0, 1000000,
     .help = "Requests per second from one address; 0 = no limit"},
    {"max-queued-per-project", "N", ROW_INT, AT(max_queued_per_project), "0", 0, 1000000,
     .help = "Maximum number of waiting jobs of a project without a quota of its own; 0 = no limit"},
    {"max-running-per-project", "N", ROW_INT, AT(max_running_per_project), "0", 0, 1000000,
     .help = "The same of running jobs; others stay in the queue"},
    {"max-stored-per-project", "BYTES", ROW_BYTES, AT(max_stored_per_project), "0", 0, (int64_t)1 << 60,
     .help = "The same of bytes of files, uploaded models and artifacts (suffix K, M, G or T)"},
    {"max-upload-per-project", "BYTES", ROW_BYTES, AT(max_upload_per_project), "0", 0, (int64_t)1 << 60,
     .help = "The same of bytes of uploads that are not complete (suffix K, M, G or T)"},
    {"tls-certificate", "FILE", ROW_PATH, AT(tls_certificate),
     .help = "Serve HTTPS with this certificate: a PEM file that also has those of its issuers; read again on SIGHUP"},
    {"tls-key", "FILE", ROW_PATH, AT(tls_key), .help = "Private key of the certificate: a PEM file without passphrase"},
    {"trust-proxy", NULL, ROW_FLAG, AT(trust_proxy), "false",
     .help = "Listen beyond loopback without TLS, because only a proxy that encrypts can reach the address; its "
             "X-Forwarded-Proto is believed"},
    {"allowed-host", "NAME", ROW_TEXTS, AT(allowed_hosts), .separator = ',',
     .help = "Host header to accept in addition to the loopback names and those of the certificate; repeatable"},
    {"device", "NAME", ROW_TEXT, AT(device), "auto",
     .help = "Devices to run jobs on, one job at a time on each: auto (the best one), all (of the best kind), or "
             "names: cpu, cuda:0,cuda:1"},
    {"worker", "KIND", ROW_WORKER, AT(worker), "thread",
     .help = "Where jobs run: thread (in the daemon) or process (each in a process of its own)"},
    {"cpu-products", "KIND", ROW_PRODUCTS, AT(cpu_products), "auto",
     .help =
         "How a CPU multiplies activations: float32, bfloat16 (operands rounded, sums in float32) or auto (bfloat16 "
         "where the CPU has fast instructions for it)"},
    {"threads", "N", ROW_INT, AT(threads), "0", 0, 4096, .help = "CPU threads for computation; 0 = all cores"},
    {"host-memory-bytes", "BYTES", ROW_BYTES, AT(host_memory_bytes), "0", 0, INT64_MAX,
     .help = "Host memory for activations, beyond which they spill to disk (suffix K, M, G or T); 0 = a quarter of "
             "what is free on the host and in its control groups"},
    {"max-queued", "N", ROW_INT, AT(max_queued), "0", 0, 1000000, .help = "Maximum number of queued jobs; 0 = 1000"},
    {"keep-jobs-seconds", "N", ROW_INT, AT(keep_jobs_seconds), "0", 0, KEEP_MAX,
     .help = "Delete jobs so long after their end; 0 = never"},
    {"keep-artifacts-seconds", "N", ROW_INT, AT(keep_artifacts_seconds), "0", 0, KEEP_MAX,
     .help = "Delete artifacts so long after they were published; 0 = never"},
    {"keep-checkpoints-seconds", "N", ROW_INT, AT(keep_checkpoints_seconds), "604800", 0, KEEP_MAX,
     .help = "Delete the finished blocks of failed jobs, from which a retry continues, so long after the failure; 0 = "
             "never"},
    {"keep-uploads-seconds", "N", ROW_INT, AT(keep_uploads_seconds), "604800", 0, KEEP_MAX,
     .help = "Delete uploads that are not complete so long after their last piece; 0 = never"},
    {"signing-key", "FILE", ROW_PATH, AT(signing_key),
     .help = "Sign artifacts with this private key: EC on P-256, P-384 or P-521, PEM, no passphrase"},
    {"keep-deliveries-seconds", "N", ROW_INT, AT(keep_deliveries_seconds), "604800", 0, KEEP_MAX,
     .help = "Delete messages to webhooks that were delivered or failed so long after they were made; 0 = never"},
    {"webhook-host", "HOST", ROW_TEXTS, AT(webhook_hosts), .separator = ',',
     .help = "Host that webhooks may be on: NAME, *.DOMAIN or an address, for https and the scheme's own port, or with "
             ":PORT; repeatable; without any there are no webhooks"},
    {"webhook-allow-private", NULL, ROW_FLAG, AT(webhook_allow_private), "false",
     .help = "Send to these hosts also where their names resolve to private addresses, and by http"},
    {"webhook-ca-file", "FILE", ROW_PATH, AT(webhook_ca_file),
     .help = "Certificates (PEM) that sign those of these hosts, in place of the system's"},
    {"max-connections", "N", ROW_INT, AT(max_connections), "0", 0, 100000,
     .help = "Maximum number of open connections; 0 = 4096"},
    {"max-connections-per-address", "N", ROW_INT, AT(max_connections_per_address), "0", 0, 100000,
     .help = "Maximum number of connections from one address; 0 = half of max-connections"},
    {"max-streams", "N", ROW_INT, AT(max_streams), "0", 0, 100000,
     .help = "Maximum number of concurrent file uploads and downloads; 0 = 256"},
    {"drain-seconds", "N", ROW_INT, AT(drain_seconds), "25", 1, 3600, .help = "Time limit of a shutdown, in seconds"},
    {"module-dir", "DIR", ROW_PATH, AT(module_dir),
     .help = "Directory of backend modules (default: next to the executable, then " QUANTD_MODULE_DIR ")"},
    {"log-level", "LEVEL", ROW_LEVEL, AT(log_level), "info", .help = "Log level: error, warn, info, debug or trace"},
};
#define ROW_COUNT (sizeof(rows) / sizeof(rows[0]))
_Static_assert(ROW_COUNT <= SOURCE_ROWS_MAX, "SOURCE_ROWS_MAX is too small for the option table");

static bool is_list(enum row_type type)
{
    return type == ROW_TEXTS || type == ROW_FOLDERS;
}

/* --- the name of each option in each source */

static void make_keys(struct source_key *keys, const char *prefix, int (*letter)(int))
{
    for (size_t i = 0; i < ROW_COUNT; i++) {
        snprintf(keys[i].name, sizeof(keys[i].name), "%s%s", prefix, rows[i].name);
        for (char *at = keys[i].name + strlen(prefix); *at != '\0'; at++) {
            *at = (char)(*at == '-' ? '_' : letter(*at));
        }
        keys[i].list = is_list(rows[i].type);
        keys[i].separator = rows[i].separator;
    }
}

/* --- the command line */

struct line {
    struct source *source;
    int rc;
};

static error_t take_option(int key, char *argument, struct argp_state *state)
{
    struct line *line = state->input;

    if (key > 255 && (size_t)(key - 256) < ROW_COUNT) {
        size_t row = (size_t)(key - 256);
        line->rc = source_set(line->source, row, argument != NULL ? argument : "true", is_list(rows[row].type));
        return line->rc == 0 ? 0 : EINVAL;
    }
    if (key == ARGP_KEY_ARG) {
        line->rc = err_raise(ERR_CONFIG, "command line: \"%.200s\" is not an option", argument);
        return EINVAL;
    }
    return ARGP_ERR_UNKNOWN;
}

static int read_line(int argc, char **argv, struct source *source)
{
    struct argp_option options[ROW_COUNT + 1] = {{0}};
    char help[ROW_COUNT][HELP_SIZE];
    struct line line = {source, 0};

    for (size_t i = 0; i < ROW_COUNT; i++) {
        snprintf(help[i], sizeof(help[i]), rows[i].fallback != NULL ? "%s (default: %s)" : "%s", rows[i].help,
                 rows[i].fallback);
        options[i].name = rows[i].name;
        options[i].key = 256 + (int)i;
        options[i].arg = rows[i].argument;
        options[i].doc = help[i];
    }
    const struct argp argp = {
        .options = options,
        .parser = take_option,
        .doc =
            "Network service that quantizes language model checkpoints.\v"
            "Every option can also be set by an environment variable (--data-dir: QUANTD_DATA_DIR; lists of paths "
            "with ':', of names with ',') and in the file that --config names (data_dir: ...). The command line "
            "takes precedence over the environment, and the environment over the file.\n\n"
            "Example, with checkpoints below /models:\n\n"
            "  quantd --data-dir /var/lib/quantd --model-root /models\n\n"
            "The first line of output shows the address it listens on; GET /v1/system describes the devices, methods "
            "and formats available there.",
    };
    argp_program_version = "quantd " QUANTD_VERSION;
    argp_err_exit_status = 2;
    error_t outcome = argp_parse(&argp, argc, argv, 0, NULL, &line);
    if (outcome != 0) {
        return line.rc != 0 ? line.rc : err_raise(ERR_CONFIG, "command line: %s", strerror(outcome));
    }
    return 0;
}

/* --- values */

static int parse_int(const struct row *row, const char *where, const char *text, int64_t *out)
{
    static const char units[] = "KMGT";
    char *end;

    errno = 0;
    intmax_t value = strtoimax(text, &end, 10);
    const char *unit = row->type == ROW_BYTES && *end != '\0' ? strchr(units, toupper((unsigned char)*end)) : NULL;
    int shift = unit != NULL ? 10 * (int)(unit - units + 1) : 0;
    end += unit != NULL;
    if (end == text || *end != '\0' || errno != 0 || value < row->min || value > (row->max >> shift)) {
        return row->max == INT64_MAX
                   ? err_raise(ERR_CONFIG, "%s: \"%.80s\" is not a number of bytes", where, text)
                   : err_raise(ERR_CONFIG, "%s: \"%.80s\" is not a number from %" PRId64 " to %" PRId64, where, text,
                               row->min, row->max);
    }
    *out = (int64_t)value << shift;
    return 0;
}

static int parse_flag(const char *where, const char *text, bool *out)
{
    static const char *const words[] = {"false", "true", "0", "1", "no", "yes", "off", "on"};

    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
        if (strcasecmp(text, words[i]) == 0) {
            *out = i % 2 == 1;
            return 0;
        }
    }
    return err_raise(ERR_CONFIG, "%s: \"%.80s\" is not a boolean; use true or false", where, text);
}

static int parse_level(const char *where, const char *text, int *out)
{
    int level = log_level_parse(text);
    if (level < 0) {
        return err_raise(ERR_CONFIG, "%s: \"%.80s\" is not a log level; use error, warn, info, debug or trace", where,
                         text);
    }
    *out = level;
    return 0;
}

static int parse_worker(const char *where, const char *text, int *out)
{
    if (strcmp(text, "thread") != 0 && strcmp(text, "process") != 0) {
        return err_raise(ERR_CONFIG, "%s: \"%.80s\" is neither thread nor process", where, text);
    }
    *out = text[0] == 't' ? CONFIG_WORKER_THREAD : CONFIG_WORKER_PROCESS;
    return 0;
}

static int parse_products(const char *where, const char *text, int *out)
{
    for (int i = 0; config_products[i] != NULL; i++) {
        if (strcmp(text, config_products[i]) == 0) {
            *out = i;
            return 0;
        }
    }
    return err_raise(ERR_CONFIG, "%s: \"%.80s\" is not float32, bfloat16 or auto", where, text);
}

static int parse_auth(const char *where, const char *text, int *out)
{
    if (strcmp(text, "none") != 0 && strcmp(text, "keys") != 0) {
        return err_raise(ERR_CONFIG, "%s: \"%.80s\" is neither none nor keys", where, text);
    }
    *out = text[0] == 'n' ? CONFIG_AUTH_NONE : CONFIG_AUTH_KEYS;
    return 0;
}

static int replace_text(const char *text, char **out)
{
    char *copy;

    TRY(mem_strdup(&copy, text));
    free(*out);
    *out = copy;
    return 0;
}

/* HOST:PORT, [IPV6]:PORT; "localhost" is the IPv4 loopback, other names are not looked up. */
static int parse_address(const char *where, const char *text, struct config *config)
{
    char host[64];
    unsigned char address[16];
    const char *colon = strrchr(text, ':');
    size_t size = colon != NULL ? (size_t)(colon - text) : 0;
    const char *start = text;
    char *end = NULL;

    if (size > 2 && text[0] == '[' && text[size - 1] == ']') {
        start++;
        size -= 2;
    }
    errno = 0;
    long port = colon != NULL && isdigit((unsigned char)colon[1]) ? strtol(colon + 1, &end, 10) : -1;
    if (size == 0 || size >= sizeof(host) || port < 0 || port > 65535 || *end != '\0') {
        return err_raise(ERR_CONFIG, "%s: \"%.80s\" is not HOST:PORT", where, text);
    }
    memcpy(host, start, size);
    host[size] = '\0';
    if (strcmp(host, "localhost") == 0) {
        strcpy(host, "127.0.0.1");
    }
    bool six = inet_pton(AF_INET6, host, address) == 1;
    if ((!six && inet_pton(AF_INET, host, address) != 1) || six != (start != text)) {
        return err_raise(ERR_CONFIG, "%s: \"%.60s\" is not an IP address (such as 127.0.0.1, [::1] or 0.0.0.0)", where,
                         host);
    }
    config->listen_port = (uint16_t)port;
    return replace_text(host, &config->listen_host);
}

static int parse_path(const char *where, const char *text, char **out)
{
    char path[PATH_SIZE], here[PATH_SIZE];

    if (text[0] == '/') {
        return replace_text(text, out);
    }
    if (getcwd(here, sizeof(here)) == NULL || snprintf(path, sizeof(path), "%s/%s", here, text) >= (int)sizeof(path) ||
        text[0] == '\0') {
        return err_raise(ERR_CONFIG, "%s: \"%.200s\" is not a usable path", where, text);
    }
    return replace_text(path, out);
}

static void free_list(char **list)
{
    for (size_t i = 0; list != NULL && list[i] != NULL; i++) {
        free(list[i]);
    }
    free((void *)list);
}

CLEANUP_FREE(list, char *, free_list)

/* Symbolic links are resolved, so that two roots cannot be the same directory under two names. */
static int parse_list(const struct row *row, const char *where, const struct source_item *item, char ***out)
{
    AUTO(list) char **list = NULL;
    struct stat info;

    TRY(mem_array(&list, (size_t)item->count + 1));
    for (unsigned i = 0; i < item->count; i++) {
        if (row->type == ROW_TEXTS) {
            TRY(mem_strdup(&list[i], item->list[i]));
            continue;
        }
        list[i] = realpath(item->list[i], NULL);
        if (list[i] == NULL) {
            return err_raise(ERR_CONFIG, "%s: %.300s: %s", where, item->list[i], strerror(errno));
        }
        if (stat(list[i], &info) != 0 || !S_ISDIR(info.st_mode)) {
            return err_raise(ERR_CONFIG, "%s: %.300s is not a directory", where, item->list[i]);
        }
    }
    *out = MOVE(list);
    return 0;
}

static int config_apply_row(const struct row *row, const char *where, const struct source_item *item,
                            struct config *config)
{
    void *to = (char *)config + row->offset;

    switch (row->type) {
    case ROW_TEXT:
        return replace_text(item->scalar, to);
    case ROW_TEXTS:
    case ROW_FOLDERS:
        return parse_list(row, where, item, to);
    case ROW_PATH:
        return parse_path(where, item->scalar, to);
    case ROW_ADDRESS:
        return parse_address(where, item->scalar, config);
    case ROW_FLAG:
        return parse_flag(where, item->scalar, to);
    case ROW_INT:
    case ROW_BYTES:
        return parse_int(row, where, item->scalar, to);
    case ROW_LEVEL:
        return parse_level(where, item->scalar, to);
    case ROW_WORKER:
        return parse_worker(where, item->scalar, to);
    case ROW_PRODUCTS:
        return parse_products(where, item->scalar, to);
    case ROW_AUTH:
        return parse_auth(where, item->scalar, to);
    case ROW_FILE:
        break; /* has been read before */
    }
    return 0;
}

/* --- sources in order */

enum { SOURCE_LINE, SOURCE_ENVIRONMENT, SOURCE_FILE, SOURCE_COUNT };

static int read_sources(int argc, char **argv, struct source *const *sources,
                        struct source_key keys[SOURCE_COUNT][SOURCE_ROWS_MAX])
{
    make_keys(keys[SOURCE_LINE], "--", tolower);
    make_keys(keys[SOURCE_ENVIRONMENT], "QUANTD_", toupper);
    make_keys(keys[SOURCE_FILE], "", tolower);
    for (size_t i = 0; i < ROW_COUNT; i++) {
        snprintf(keys[SOURCE_LINE][i].name, sizeof(keys[SOURCE_LINE][i].name), "--%s", rows[i].name);
    }
    TRY(read_line(argc, argv, sources[SOURCE_LINE]));
    TRY(source_read_environment(sources[SOURCE_ENVIRONMENT], keys[SOURCE_ENVIRONMENT], ROW_COUNT));
    const char *path = sources[SOURCE_LINE]->items[ROW_CONFIG_FILE].scalar;
    path = path != NULL ? path : sources[SOURCE_ENVIRONMENT]->items[ROW_CONFIG_FILE].scalar;
    if (path == NULL) {
        return 0;
    }
    sources[SOURCE_FILE]->name = path;
    return source_read_yaml(sources[SOURCE_FILE], path, keys[SOURCE_FILE], ROW_COUNT);
}

/* No option has a meaning with a control character in it, and a message that quotes one would break its line. */
static int check_text(const char *where, const char *text)
{
    for (const unsigned char *at = (const unsigned char *)text; *at != '\0'; at++) {
        if (*at < 0x20 || *at == 0x7f) {
            return err_raise(ERR_CONFIG, "%s: the value contains the control character 0x%02x", where, *at);
        }
    }
    return 0;
}

static int config_check_item(const char *where, const struct source_item *item)
{
    if (item->scalar != NULL) {
        TRY(check_text(where, item->scalar));
    }
    for (unsigned i = 0; i < item->count; i++) {
        TRY(check_text(where, item->list[i]));
    }
    return 0;
}

static int apply_rows(struct source *const *sources, struct source_key keys[SOURCE_COUNT][SOURCE_ROWS_MAX],
                      struct config *config)
{
    for (size_t i = 0; i < ROW_COUNT; i++) {
        struct source_item item = {.scalar = (char *)rows[i].fallback};
        char where[PATH_SIZE + 64] = "default";
        bool found = false;
        for (int s = 0; s < SOURCE_COUNT && !found; s++) {
            if (sources[s]->items[i].scalar != NULL || sources[s]->items[i].count > 0) {
                item = sources[s]->items[i];
                found = true;
                snprintf(where, sizeof(where), "%s%s%s", s == SOURCE_FILE ? sources[s]->name : "",
                         s == SOURCE_FILE ? ": " : "", keys[s][i].name);
            }
        }
        if (item.scalar != NULL || is_list(rows[i].type)) {
            TRY(config_check_item(where, &item));
            TRY(config_apply_row(&rows[i], where, &item, config));
        }
    }
    return 0;
}

int config_check_address(const struct config *config)
{
    if (config_is_loopback(config->listen_host)) {
        return 0;
    }
    bool keys = config->auth == CONFIG_AUTH_KEYS, encrypted = config->tls_certificate != NULL || config->trust_proxy;
    if (keys && encrypted) {
        return 0;
    }
    return err_raise(ERR_CONFIG,
                     "refusing to listen on %s without %s: anyone who can reach this address %s; either listen on "
                     "127.0.0.1, or pass --auth keys (quantd key create makes the first key) and --tls-certificate "
                     "and --tls-key, or, where only a proxy that encrypts can reach this address, pass --auth keys and "
                     "--trust-proxy",
                     config->listen_host,
                     keys        ? "TLS"
                     : encrypted ? "authentication"
                                 : "authentication and TLS",
                     keys ? "could read the keys of others" : "would control the daemon");
}

static int check(const struct config *config)
{
    if (config->data_dir == NULL) {
        return err_raise(ERR_CONFIG, "no data directory is set; pass --data-dir DIR or set QUANTD_DATA_DIR");
    }
    if ((config->tls_certificate != NULL) != (config->tls_key != NULL)) {
        return err_raise(ERR_CONFIG, "--tls-%s is set without --tls-%s; TLS needs the certificate and its key",
                         config->tls_key != NULL ? "key" : "certificate",
                         config->tls_key != NULL ? "certificate" : "key");
    }
    return config_check_address(config);
}

int config_load(int argc, char **argv, struct config *out)
{
    AUTO(source) struct source line = {.name = "command line"};
    AUTO(source) struct source environment = {.name = "environment"};
    AUTO(source) struct source file = {.name = "file"};
    struct source *const sources[SOURCE_COUNT] = {&line, &environment, &file};
    struct source_key keys[SOURCE_COUNT][SOURCE_ROWS_MAX];
    AUTO(config) struct config config = {0};

    TRY(read_sources(argc, argv, sources, keys));
    TRY(apply_rows(sources, keys, &config));
    TRY(check(&config));
    *out = config;
    config = (struct config){0};
    return 0;
}

void config_deinit(struct config *config)
{
    free(config->data_dir);
    free(config->listen_host);
    free(config->tls_certificate);
    free(config->tls_key);
    free(config->device);
    free(config->module_dir);
    free(config->signing_key);
    free_list(config->model_roots);
    free_list(config->allowed_hosts);
    free_list(config->webhook_hosts);
    free(config->webhook_ca_file);
    memset(config, 0, sizeof(*config));
}

bool config_is_loopback(const char *host)
{
    struct in_addr four;
    struct in6_addr six;

    if (inet_pton(AF_INET, host, &four) == 1) {
        return (ntohl(four.s_addr) >> 24) == 127;
    }
    return inet_pton(AF_INET6, host, &six) == 1 && IN6_IS_ADDR_LOOPBACK(&six);
}
