/* quantctl files: what was uploaded for calibration and evaluation. */

#include "base/err.h"
#include "cli/commands.h"
#include "cli/objects.h"

#include <stdio.h>

static const struct objects_column files_columns[] = {
    {"ID", objects_text, "id"},
    {"NAME", objects_text, "name"},
    {"PURPOSE", objects_text, "purpose"},
    {">BYTES", objects_bytes, "bytes"},
    {"SHA-256", objects_digest, "sha256"},
    {"CREATED", objects_time, "created_at"},
    {0},
};

const struct objects objects_files = {"/v1/files", "file", "a file", files_columns, NULL};

struct files_options {
    const char *purpose;
};

static const struct option_row files_options[] = {
    {"purpose", 'p', OPTION_TEXT, "PURPOSE", offsetof(struct files_options, purpose),
     .help = "Files of this purpose: calibration, evaluation or model"},
    {0},
};

static int files_list_run(struct cli *cli, const void *given, int count, char **arguments)
{
    const struct files_options *options = given;
    char path[CLIENT_PATH_MAX];

    snprintf(path, sizeof(path), "%s", objects_files.path);
    TRY(options->purpose != NULL ? client_query(path, sizeof(path), "purpose", options->purpose) : 0);
    return objects_list(cli, &objects_files, path, 0);
}

const struct command command_files_list = {
    .name = "files list",
    .summary = "List the uploaded files",
    .options = files_options,
    .size = sizeof(struct files_options),
    .run = files_list_run,
};

const struct command command_files_delete = {
    .name = "files delete",
    .arguments = "FILE...",
    .summary = "Delete uploaded files",
    .min = 1,
    .max = -1,
    .objects = &objects_files,
    .act = objects_delete,
};
