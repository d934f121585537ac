/* quantctl system: what the server is and can do. */

#include "base/err.h"
#include "base/ids.h"
#include "base/json.h"
#include "cli/commands.h"
#include "cli/print.h"
#include "cli/safe.h"
#include "cli/status.h"

#include <string.h>
#include <time.h>

#define SYSTEM_PAUSE_MS 100

struct system_options {
    int64_t wait;
};

static const struct option_row system_options[] = {
    {"wait", 'w', OPTION_INT, "SECONDS", offsetof(struct system_options, wait),
     .help = "Wait so long for the server to be ready, such as one that is being started", 1, 86400},
    {0},
};

/* Until the server answers that it is ready. A refused connection is one that is not there yet. */
static int wait_ready(struct cli *cli, int64_t seconds)
{
    int64_t until = clock_monotonic_ms() + seconds * 1000;

    for (;;) {
        AUTO(http_answer) struct http_answer answer = {0};
        int rc = client_raw(cli, &(struct http_call){.method = "GET", .path = "/readyz"}, &answer);
        if (rc == 0 && answer.status == 200) {
            return 0;
        }
        bool later = rc == STATUS_UNREACHABLE || (rc == 0 && answer.status == 503);
        if (!later || clock_monotonic_ms() >= until) {
            return rc != 0 ? rc : client_refused(cli, &answer);
        }
        const struct timespec pause = {.tv_nsec = SYSTEM_PAUSE_MS * 1000000L};
        (void)nanosleep(&pause, NULL);
    }
}

static void print_notes(const json_t *system)
{
    const char *notes = json_get_string(system, "device_notes");

    while (notes != NULL && *notes != '\0') {
        size_t length = strcspn(notes, "\n");
        safe_printf(stdout, "not used      %.*s\n", (int)length, notes);
        notes += length + (notes[length] == '\n');
    }
}

static void print_devices(const json_t *system)
{
    const json_t *device;
    size_t i;
    char bytes[PRINT_SIZE];

    json_array_foreach(json_object_get(system, "devices"), i, device)
    {
        double memory = json_number_value(json_object_get(device, "memory_bytes"));
        safe_printf(stdout, "device        %s: %s, %s (%s)\n", print_text(device, "id"), print_text(device, "name"),
                    print_bytes(memory, bytes), print_text(device, "detail"));
    }
    print_notes(system);
}

static void print_names(const char *title, const json_t *list, const char *key)
{
    const json_t *item;
    size_t i;

    printf("%-13s", title);
    json_array_foreach(list, i, item)
    {
        const char *name = key != NULL ? json_get_string(item, key) : json_string_value(item);
        safe_printf(stdout, " %s", name != NULL ? name : "-");
    }
    putchar('\n');
}

static int system_run(struct cli *cli, const void *given, int count, char **arguments)
{
    const struct system_options *options = given;
    AUTO_JSON json_t *system = NULL;
    const char *key;
    json_t *value;
    char text[PRINT_SIZE];

    TRY(options->wait != OPTION_UNSET ? wait_ready(cli, options->wait) : 0);
    TRY(client_get(cli, "/v1/system", &system));
    if (cli->json) {
        print_json(system);
        return 0;
    }
    safe_printf(stdout, "server        %s %s at %s%s\n", print_text(system, "name"), print_text(system, "version"),
                cli->profile.url, json_is_true(json_object_get(system, "draining")) ? ", shutting down" : "");
    print_devices(system);
    print_names("formats", json_object_get(system, "formats"), "name");
    print_names("architectures", json_object_get(system, "architectures"), NULL);
    const char *hint = json_get_string(json_object_get(system, "signing_key"), "hint");
    if (hint != NULL) {
        safe_printf(stdout, "signing key   %s\n", hint);
    }
    json_object_foreach(json_object_get(system, "jobs"), key, value)
    {
        safe_printf(stdout, "jobs          %s: %s\n", key, print_value(value, text));
    }
    json_object_foreach(json_object_get(system, "limits"), key, value)
    {
        safe_printf(stdout, "limit         %s: %s\n", key, print_value(value, text));
    }
    return 0;
}

const struct command command_system = {
    .name = "system",
    .summary = "Show the server's version, devices, formats and limits",
    .options = system_options,
    .size = sizeof(struct system_options),
    .run = system_run,
};
