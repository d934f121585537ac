/* quantctl runtimes: the programs that artifacts are made for, and what each of them loads. */

#include "base/err.h"
#include "base/json.h"
#include "cli/commands.h"
#include "cli/print.h"
#include "cli/safe.h"

#include <stdio.h>
#include <string.h>

/* "4, 8"; "any" where the list is empty. */
static void join_numbers(const json_t *list, char *out, size_t size)
{
    const json_t *item;
    char number[PRINT_SIZE];
    size_t i, at = 0;

    snprintf(out, size, "any");
    json_array_foreach(list, i, item)
    {
        if (at < size) {
            at += (size_t)snprintf(out + at, size - at, "%s%s", i > 0 ? "," : "", print_value(item, number));
        }
    }
}

static int list_runtimes(const json_t *list)
{
    const json_t *row;
    size_t i;

    AUTO(table)
    struct table *table =
        table_new((const char *const[]){"NAME", "KNOWN FROM", "CHECKED", ">CONDITIONS", "TITLE", NULL});
    json_array_foreach(json_object_get(list, "data"), i, row)
    {
        char count[PRINT_SIZE];
        snprintf(count, sizeof(count), "%zu", json_array_size(json_object_get(row, "loads")));
        TABLE_ROW(table, print_text(row, "name"), print_text(row, "oldest_version"), print_text(row, "checked_version"),
                  count, print_text(row, "title"));
    }
    return table_print(table, stdout);
}

static int show_runtime(const json_t *runtime)
{
    const json_t *row;
    size_t i;

    safe_printf(stdout, "%s: %s\n", print_text(runtime, "name"), print_text(runtime, "title"));
    safe_printf(stdout, "load: %s\n\n", print_text(runtime, "load"));
    AUTO(table)
    struct table *table =
        table_new((const char *const[]){"FORMAT", "FORM", "BITS", "SYMMETRY", "GROUPS", "SINCE", "NEEDS", NULL});
    json_array_foreach(json_object_get(runtime, "loads"), i, row)
    {
        char bits[PRINT_SIZE], groups[PRINT_SIZE];
        join_numbers(json_object_get(row, "bits"), bits, sizeof(bits));
        join_numbers(json_object_get(row, "group_sizes"), groups, sizeof(groups));
        TABLE_ROW(table, print_text(row, "format"), print_text(row, "form"), bits, print_text(row, "symmetry"), groups,
                  print_text(row, "since"), print_text(row, "needs"));
    }
    return table_print(table, stdout);
}

static int runtimes_run(struct cli *cli, const void *given, int count, char **arguments)
{
    AUTO_JSON json_t *list = NULL;
    const json_t *row;
    size_t i;

    TRY(client_get(cli, "/v1/runtimes", &list));
    json_array_foreach(json_object_get(list, "data"), i, row)
    {
        if (count == 0 || strcmp(print_text(row, "name"), arguments[0]) != 0) {
            continue;
        }
        if (cli->json) {
            print_json(row);
            return 0;
        }
        return show_runtime(row);
    }
    if (count > 0) {
        int rc = err_raise(ERR_CONFIG, "the server knows no runtime \"%.60s\"", arguments[0]);
        return err_set_hint(rc, "quantctl runtimes lists them");
    }
    if (cli->json) {
        print_json(list);
        return 0;
    }
    return list_runtimes(list);
}

const struct command command_runtimes = {
    .name = "runtimes",
    .arguments = "[NAME]",
    .summary = "List the runtimes that artifacts are made for, or show what one loads",
    .max = 1,
    .run = runtimes_run,
};
