/* quantctl methods: what a server can do to weights, and with which parameters. */

#include "base/err.h"
#include "base/json.h"
#include "cli/commands.h"
#include "cli/print.h"
#include "cli/safe.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define METHOD_TEXT_MAX 1024

static int list_methods(struct cli *cli)
{
    AUTO_JSON json_t *list = NULL;
    const json_t *method;
    size_t i;

    TRY(client_get(cli, "/v1/methods", &list));
    if (cli->json) {
        print_json(list);
        return 0;
    }
    AUTO(table) struct table *table = table_new((const char *const[]){"NAME", "CALIBRATION", "TITLE", NULL});
    json_array_foreach(json_object_get(list, "data"), i, method)
    {
        TABLE_ROW(table, print_text(method, "name"),
                  json_is_true(json_object_get(method, "needs_calibration")) ? "needed" : "-",
                  print_text(method, "title"));
    }
    return table_print(table, stdout);
}

/* What a parameter's schema allows: "2|3|4|8", "0..64", its types. */
static void describe_range(const json_t *schema, char *out, size_t size)
{
    const json_t *choices = json_object_get(schema, "enum"), *choice, *types = json_object_get(schema, "type");
    char a[PRINT_SIZE], b[PRINT_SIZE];
    size_t i, at = 0;

    out[0] = '\0';
    if (!json_is_array(choices) && json_object_get(schema, "minimum") != NULL) {
        snprintf(out, size, "%s..%s", print_number(schema, "minimum", 12, a), print_number(schema, "maximum", 12, b));
        return;
    }
    json_array_foreach(json_is_array(choices) ? choices : types, i, choice)
    {
        if (at < size) {
            at += (size_t)snprintf(out + at, size - at, "%s%s", i > 0 ? "|" : "", print_value(choice, a));
        }
    }
    if (i == 0) {
        snprintf(out, size, "%s", json_is_string(types) ? json_string_value(types) : "any");
    }
}

/* Text in lines of the terminal's width, indented. */
static int print_paragraph(const char *text, size_t indent)
{
    AUTO_FREE char *safe = NULL;
    size_t width = (size_t)print_columns() - 1;

    TRY(safe_copy(text, &safe));
    width = width > indent + 20 ? width - indent : 20;
    for (const char *at = safe; *at != '\0';) {
        size_t length = strlen(at), cut = length;
        if (length > width) {
            cut = width;
            while (cut > 0 && at[cut] != ' ') {
                cut--;
            }
            cut = cut > 0 ? cut : strcspn(at, " ");
        }
        printf("%*s%.*s\n", (int)indent, "", (int)cut, at);
        at += cut;
        at += strspn(at, " ");
    }
    return 0;
}

static int show_parameters(const json_t *method)
{
    json_t *schema;
    const char *name;

    json_object_foreach(json_object_get(json_object_get(method, "parameters"), "properties"), name, schema)
    {
        char range[METHOD_TEXT_MAX], text[PRINT_SIZE];
        describe_range(schema, range, sizeof(range));
        safe_printf(stdout, "%s = %s  (%s)\n", name, print_value(json_object_get(schema, "default"), text), range);
        TRY(print_paragraph(print_text(schema, "description"), 4));
    }
    return 0;
}

static void show_list(const char *title, const json_t *list)
{
    const json_t *item;
    size_t i;

    printf("%s:", title);
    json_array_foreach(list, i, item)
    {
        const char *name = json_is_object(item) ? json_get_string(item, "name") : json_string_value(item);
        safe_printf(stdout, " %s", name != NULL ? name : "-");
    }
    putchar('\n');
}

static int show_method(struct cli *cli, const char *name)
{
    AUTO_JSON json_t *method = NULL;
    char path[CLIENT_PATH_MAX] = "/v1/methods/";

    TRY(http_escape(path, sizeof(path), name, ""));
    TRY(client_get(cli, path, &method));
    if (cli->json) {
        print_json(method);
        return 0;
    }
    safe_printf(stdout, "%s: %s\n", print_text(method, "name"), print_text(method, "title"));
    TRY(print_paragraph(print_text(method, "description"), 0));
    show_list("formats", json_object_get(method, "formats"));
    putchar('\n');
    return show_parameters(method);
}

static int methods_run(struct cli *cli, const void *given, int count, char **arguments)
{
    return count == 0 ? list_methods(cli) : show_method(cli, arguments[0]);
}

const struct command command_methods = {
    .name = "methods",
    .arguments = "[NAME]",
    .summary = "List the methods, or show one with its parameters",
    .max = 1,
    .run = methods_run,
};
