/* quantctl artifacts: what jobs made. quantctl pull downloads one. */

#include "base/err.h"
#include "cli/commands.h"
#include "cli/objects.h"

#include <stdio.h>

static const char *bits_cell(const json_t *artifact, const char *key, char *out)
{
    return print_number(artifact, key, 4, out);
}

static int show_artifact(const json_t *artifact)
{
    AUTO(table) struct table *table = table_new((const char *const[]){">BYTES", "SHA-256", "PATH", NULL});
    const json_t *file;
    size_t i;

    json_array_foreach(json_object_get(artifact, "files"), i, file)
    {
        char bytes[PRINT_SIZE];
        TABLE_ROW(table, print_bytes(json_number_value(json_object_get(file, "bytes")), bytes),
                  print_text(file, "sha256"), print_text(file, "path"));
    }
    return table_print(table, stdout);
}

static const struct objects_column artifacts_columns[] = {
    {"ID", objects_text, "id"},         {"NAME", objects_text, "name"},          {"METHOD", objects_text, "method"},
    {"FORMAT", objects_text, "format"}, {">BITS", bits_cell, "bits_per_weight"}, {">BYTES", objects_bytes, "bytes"},
    {"JOB", objects_text, "job_id"},    {"CREATED", objects_time, "created_at"}, {0},
};

const struct objects objects_artifacts = {"/v1/artifacts", "art", "an artifact", artifacts_columns, show_artifact};

struct artifacts_options {
    const char *job;
};

static const struct option_row artifacts_options[] = {
    {"job", 0, OPTION_TEXT, "JOB", offsetof(struct artifacts_options, job), .help = "The artifact of this job"},
    {0},
};

static int artifacts_list_run(struct cli *cli, const void *given, int count, char **arguments)
{
    const struct artifacts_options *options = given;
    char path[CLIENT_PATH_MAX];

    snprintf(path, sizeof(path), "%s", objects_artifacts.path);
    TRY(options->job != NULL ? client_query(path, sizeof(path), "job_id", options->job) : 0);
    return objects_list(cli, &objects_artifacts, path, 0);
}

const struct command command_artifacts_list = {
    .name = "artifacts list",
    .summary = "List the artifacts",
    .options = artifacts_options,
    .size = sizeof(struct artifacts_options),
    .run = artifacts_list_run,
};

const struct command command_artifacts_show = {
    .name = "artifacts show",
    .arguments = "ARTIFACT",
    .summary = "Show the files of an artifact with their digests",
    .min = 1,
    .max = 1,
    .objects = &objects_artifacts,
    .act = objects_show,
};

const struct command command_artifacts_delete = {
    .name = "artifacts delete",
    .arguments = "ARTIFACT...",
    .summary = "Delete artifacts from the server",
    .min = 1,
    .max = -1,
    .objects = &objects_artifacts,
    .act = objects_delete,
};
