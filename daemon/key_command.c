/* API keys from the command line: how the first one is made.
 *
 * Without a daemon the data directory is opened as a daemon would, so that it is made, locked and migrated. While one
 * runs, only its database is opened, at the same time: SQLite orders the writes of both, and the daemon sees a
 * revocation within two seconds. What it changes is in the audit log, as what requests change: a key whose line cannot
 * be written is revoked, and not shown. */

#include "daemon/key_command.h"

#include "api/audit.h"
#include "base/err.h"
#include "base/fs.h"
#include "base/mem.h"
#include "jobs/keys.h"

#include <argp.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct arguments {
    const char *data_dir;
    const char *verb, *id;
    json_t *request; /* the members of POST /v1/api_keys */
    int rc;
};

static error_t fail(struct arguments *arguments, int rc)
{
    arguments->rc = rc;
    return EINVAL;
}

static error_t take_number(struct arguments *arguments, const char *text)
{
    char *end;

    errno = 0;
    long long number = strtoll(text, &end, 10);
    if (end == text || *end != '\0' || errno != 0) {
        return fail(arguments, err_raise(ERR_CONFIG, "--expires-after-seconds: \"%.80s\" is not a number", text));
    }
    json_object_set_new(arguments->request, "expires_after_seconds", json_integer(number));
    return 0;
}

static error_t take(int key, char *argument, struct argp_state *state)
{
    struct arguments *arguments = state->input;

    switch (key) {
    case 'd':
        arguments->data_dir = argument;
        return 0;
    case 'n':
        json_object_set_new(arguments->request, "name", json_string(argument));
        return 0;
    case 's':
        json_object_set_new(arguments->request, "scope", json_string(argument));
        return 0;
    case 'p':
        json_object_set_new(arguments->request, "project", json_string(argument));
        return 0;
    case 'e':
        return take_number(arguments, argument);
    case ARGP_KEY_ARG:
        if (state->arg_num > 1) {
            return fail(arguments, err_raise(ERR_CONFIG, "quantd key: \"%.80s\" is one argument too many", argument));
        }
        *(state->arg_num == 0 ? &arguments->verb : &arguments->id) = argument;
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static int read_arguments(int argc, char **argv, struct arguments *arguments)
{
    static const struct argp_option options[] = {
        {"data-dir", 'd', "DIR", 0, "Data directory of the daemon (or QUANTD_DATA_DIR)", 0},
        {"name", 'n', "TEXT", 0, "create: a name for people", 0},
        {"scope", 's', "SCOPE", 0, "create: read, write or admin; required", 0},
        {"project", 'p', "NAME", 0, "create: project whose objects it reaches (default: default)", 0},
        {"expires-after-seconds", 'e', "N", 0, "create: when it ends; 0 = never (the default)", 0},
        {0},
    };
    static const struct argp argp = {
        .options = options,
        .parser = take,
        .args_doc = "create\nlist\nrevoke KEY_ID",
        .doc = "Make, list and revoke the API keys of a data directory. A daemon may run on it.\v"
               "create prints the key, which is stored nowhere: only its SHA-256 is. Run this command as the user that "
               "the daemon runs as.\n\nExample:\n\n  quantd key create --data-dir /var/lib/quantd --scope admin",
    };
    static char name[] = "quantd key";

    argv[0] = name;
    argp_err_exit_status = 2;
    error_t outcome = argp_parse(&argp, argc, argv, 0, NULL, arguments);
    if (outcome != 0) {
        return arguments->rc != 0 ? arguments->rc : err_raise(ERR_CONFIG, "quantd key: %s", strerror(outcome));
    }
    bool revoke = arguments->verb != NULL && strcmp(arguments->verb, "revoke") == 0;
    if (arguments->verb == NULL || revoke != (arguments->id != NULL)) {
        return err_raise(ERR_CONFIG, "quantd key: say create, list, or revoke and the id of a key");
    }
    arguments->data_dir = arguments->data_dir != NULL ? arguments->data_dir : getenv("QUANTD_DATA_DIR");
    return arguments->data_dir != NULL && arguments->data_dir[0] != '\0'
               ? 0
               : err_raise(ERR_CONFIG, "no data directory is set; pass --data-dir DIR or set QUANTD_DATA_DIR");
}

static int open_keys(const char *data_dir, struct store **store)
{
    AUTO_FREE char *path = realpath(data_dir, NULL); /* NULL: it does not exist yet */
    struct store_config config = {.data_dir = path != NULL ? path : data_dir};

    if (config.data_dir[0] != '/') {
        return err_raise(ERR_CONFIG, "%.300s does not exist; make it first, or pass an absolute path", data_dir);
    }
    int rc = store_open(&config, store);
    if (rc == ERR_CONFIG) { /* a daemon has it */
        struct err_record record;
        err_take(&record);
        config.beside = true;
        rc = store_open(&config, store);
        if (rc != 0 && rc != ERR_CONFIG) {
            err_restore(&record);
            rc = ERR_CONFIG;
        }
    }
    return rc;
}

/* The user of the system takes the place of a key. */
static int key_audit(int log, const char *project, const char *operation, const char *object, int status)
{
    char client[32];

    (void)snprintf(client, sizeof(client), "uid:%u", (unsigned)getuid());
    const struct audit_line line = {
        .client = client, .project = project, .operation = operation, .object = object, .status = status};
    return audit_write(log, &line) ? 0 : err_raise_errno(errno, "the audit log cannot be written");
}

static int create(struct store *store, int log, const json_t *body)
{
    struct validation_errors errors = {.count = 0};
    struct key_request request = {.scope = KEY_SCOPE_READ};
    char text[KEY_TEXT_SIZE];
    char object[ID_SIZE + 16];
    AUTO_JSON json_t *key = NULL;

    if (json_object_get(body, "scope") == NULL) {
        return err_raise(ERR_CONFIG, "pass --scope read, --scope write or --scope admin");
    }
    if (key_request_parse(body, &request, &errors) != 0) {
        return err_raise(ERR_CONFIG, "%s", errors.items[0].detail);
    }
    TRY(key_create(store, &request, text, &key));
    const char *id = json_string_value(json_object_get(key, "id"));
    (void)snprintf(object, sizeof(object), "/v1/api_keys/%s", id);
    int rc = key_audit(log, json_string_value(json_object_get(key, "project")), "create_api_key", object, 201);
    if (rc != 0) {
        explicit_bzero(text, sizeof(text));
        TRY(store_key_revoke(store, id));
        return err_set_hint(rc, "the key that was made has been revoked: %s", id);
    }
    printf("%s\n", text);
    explicit_bzero(text, sizeof(text));
    (void)fflush(stdout);
    fprintf(stderr, "%s: scope %s, project %s. Keep the key: it is not shown again.\n", id,
            json_string_value(json_object_get(key, "scope")), json_string_value(json_object_get(key, "project")));
    return ferror(stdout) == 0 ? 0 : err_raise(ERR_STORAGE, "the key cannot be printed; revoke it and make another");
}

static void print_key(const json_t *key)
{
    static const char *const members[] = {"id",         "scope",        "project",    "created_at",
                                          "expires_at", "last_used_at", "revoked_at", "name"};

    for (size_t i = 0; i < sizeof(members) / sizeof(members[0]); i++) {
        const json_t *value = json_object_get(key, members[i]);
        (void)fputs(i > 0 ? "\t" : "", stdout);
        if (json_is_integer(value)) {
            printf("%lld", (long long)json_integer_value(value));
        } else {
            (void)fputs(json_is_string(value) ? json_string_value(value) : "-", stdout);
        }
    }
    (void)fputs("\n", stdout);
}

static int list(struct store *store)
{
    char after[ID_SIZE] = "";
    bool more = true;

    puts("id\tscope\tproject\tcreated_at\texpires_at\tlast_used_at\trevoked_at\tname");
    while (more) {
        const struct page page = {.limit = 100, .ascending = true, .after = after[0] != '\0' ? after : NULL};
        AUTO_JSON json_t *keys = NULL;
        size_t i;
        json_t *key;
        TRY(store_key_list(store, &page, &keys));
        json_array_foreach(json_object_get(keys, "data"), i, key)
        {
            print_key(key);
        }
        more = json_is_true(json_object_get(keys, "has_more"));
        (void)snprintf(after, sizeof(after), "%s", more ? json_string_value(json_object_get(keys, "last_id")) : "");
    }
    return 0;
}

static int key_revoke(struct store *store, int log, const char *id)
{
    AUTO_JSON json_t *key = NULL;

    TRY(store_key_get(store, id, &key));
    TRY(store_key_revoke(store, id));
    return key_audit(log, json_string_value(json_object_get(key, "project")), "delete_api_key", id, 204);
}

static int run(struct store *store, const struct arguments *arguments)
{
    char path[PATH_MAX];
    AUTO_CLOSE int log = -1;

    if (strcmp(arguments->verb, "list") == 0) {
        return list(store);
    }
    TRY(fs_path(path, sizeof(path), "%s/" AUDIT_FILE, arguments->data_dir));
    TRY(audit_open(path, &log));
    return strcmp(arguments->verb, "create") == 0 ? create(store, log, arguments->request)
                                                  : key_revoke(store, log, arguments->id);
}

int key_command(int argc, char **argv)
{
    static const char *const verbs[] = {"create", "list", "revoke"};
    AUTO_JSON json_t *request = json_object();
    struct arguments arguments = {.request = request};
    struct store *store = NULL;
    bool known = false;

    TRY(read_arguments(argc, argv, &arguments));
    for (size_t i = 0; i < sizeof(verbs) / sizeof(verbs[0]); i++) {
        known = known || strcmp(arguments.verb, verbs[i]) == 0;
    }
    if (!known) {
        return err_raise(ERR_CONFIG, "quantd key: \"%.80s\" is none of create, list and revoke", arguments.verb);
    }
    TRY(open_keys(arguments.data_dir, &store));
    int rc = run(store, &arguments);
    store_close(store);
    return rc;
}
