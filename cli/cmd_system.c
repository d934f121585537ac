/* quantctl system: what the server is and can do. */

#include "base/err.h"
#include "base/json.h"
#include "cli/commands.h"
#include "cli/print.h"
#include "cli/safe.h"

#include <string.h>

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
    AUTO_JSON json_t *system = NULL;
    const char *key;
    json_t *value;
    char text[PRINT_SIZE];

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
    .run = system_run,
};
