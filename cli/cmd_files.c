/* quantctl files: what was uploaded for calibration and evaluation. */

#include "base/err.h"
#include "cli/commands.h"
#include "cli/print.h"
#include "cli/safe.h"

#include <stdio.h>

#define FILES "/v1/files"

struct files_options {
    const char *purpose;
};

static const struct option_row files_options[] = {
    {"purpose", 'p', OPTION_TEXT, "PURPOSE", offsetof(struct files_options, purpose),
     .help = "Files of this purpose: calibration or evaluation"},
    {0},
};

static int files_list_run(struct cli *cli, const void *given, int count, char **arguments)
{
    const struct files_options *options = given;
    AUTO_JSON json_t *list = NULL;
    const json_t *file;
    char path[CLIENT_PATH_MAX] = FILES;
    size_t i;

    TRY(options->purpose != NULL ? client_query(path, sizeof(path), "purpose", options->purpose) : 0);
    TRY(client_list(cli, path, 0, &list));
    if (cli->json) {
        print_json(list);
        return 0;
    }
    AUTO(table)
    struct table *table =
        table_new((const char *const[]){"ID", "NAME", "PURPOSE", ">BYTES", "SHA-256", "CREATED", NULL});
    json_array_foreach(json_object_get(list, "data"), i, file)
    {
        char bytes[PRINT_SIZE], created[PRINT_SIZE], digest[16];
        snprintf(digest, sizeof(digest), "%.12s", print_text(file, "sha256"));
        TABLE_ROW(table, print_text(file, "id"), print_text(file, "name"), print_text(file, "purpose"),
                  print_bytes(json_number_value(json_object_get(file, "bytes")), bytes), digest,
                  print_time(file, "created_at", created));
    }
    return table_print(table, stdout);
}

const struct command command_files_list = {
    .name = "files list",
    .summary = "List the uploaded files",
    .options = files_options,
    .size = sizeof(struct files_options),
    .run = files_list_run,
};

static int files_delete_run(struct cli *cli, const void *given, int count, char **arguments)
{
    return client_delete(cli, FILES, "file", "a file", count, arguments);
}

const struct command command_files_delete = {
    .name = "files delete",
    .arguments = "FILE...",
    .summary = "Delete uploaded files",
    .min = 1,
    .max = -1,
    .run = files_delete_run,
};
