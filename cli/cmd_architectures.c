/* quantctl architectures: what a server can quantize, and what of it applies to which architecture. */

#include "base/err.h"
#include "base/json.h"
#include "cli/commands.h"
#include "cli/print.h"
#include "cli/safe.h"

#include <stdio.h>
#include <string.h>

static void show_names(const char *title, const json_t *list)
{
    const json_t *item;
    size_t i;

    printf("%-10s", title);
    json_array_foreach(list, i, item)
    {
        safe_printf(stdout, " %s", json_string_value(item));
    }
    putchar('\n');
}

static int list_rows(const json_t *list)
{
    const json_t *row;
    size_t i;

    AUTO(table)
    struct table *table = table_new((const char *const[]){"NAME", "MODEL TYPE", "GGUF", ">METHODS", ">FORMATS", NULL});
    json_array_foreach(json_object_get(list, "data"), i, row)
    {
        char methods[PRINT_SIZE], formats[PRINT_SIZE];
        snprintf(methods, sizeof(methods), "%zu", json_array_size(json_object_get(row, "methods")));
        snprintf(formats, sizeof(formats), "%zu", json_array_size(json_object_get(row, "formats")));
        TABLE_ROW(table, print_text(row, "name"), print_text(row, "model_type"), print_text(row, "gguf"), methods,
                  formats);
    }
    TRY(table_print(table, stdout));
    const json_t *other = json_object_get(list, "model_free");
    puts("\nAny other one, from names and shapes alone:");
    show_names("methods", json_object_get(other, "methods"));
    show_names("formats", json_object_get(other, "formats"));
    return 0;
}

static int show_row(const struct cli *cli, const json_t *list, const char *name)
{
    const json_t *row;
    size_t i;

    json_array_foreach(json_object_get(list, "data"), i, row)
    {
        if (strcmp(print_text(row, "name"), name) != 0 && strcmp(print_text(row, "model_type"), name) != 0) {
            continue;
        }
        if (cli->json) {
            print_json(row);
            return 0;
        }
        safe_printf(stdout, "%s (%s)\n", print_text(row, "name"), print_text(row, "model_type"));
        show_names("within", json_object_get(row, "composites"));
        show_names("parts", json_object_get(row, "parts"));
        show_names("methods", json_object_get(row, "methods"));
        show_names("formats", json_object_get(row, "formats"));
        return 0;
    }
    int rc = err_raise(ERR_NOT_FOUND, "there is no architecture \"%.80s\"", name);
    return err_set_hint(rc, "quantctl architectures lists them; others are quantized with submit --model-free");
}

static int architectures_run(struct cli *cli, const void *given, int count, char **arguments)
{
    AUTO_JSON json_t *list = NULL;

    (void)given;
    TRY(client_get(cli, "/v1/architectures", &list));
    if (count > 0) {
        return show_row(cli, list, arguments[0]);
    }
    if (cli->json) {
        print_json(list);
        return 0;
    }
    return list_rows(list);
}

const struct command command_architectures = {
    .name = "architectures",
    .arguments = "[NAME]",
    .summary = "List the architectures, or show one with what applies to it",
    .max = 1,
    .run = architectures_run,
};
