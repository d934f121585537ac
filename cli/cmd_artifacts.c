/* quantctl artifacts: what jobs made. quantctl pull downloads one. */

#include "base/err.h"
#include "base/json.h"
#include "cli/commands.h"
#include "cli/objects.h"
#include "cli/safe.h"

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
    TRY(table_print(table, stdout));
    const char *hint = json_get_string(json_object_get(artifact, "signature"), "key_hint");
    if (hint != NULL) {
        safe_printf(stdout, "signed by the key %s\n", hint);
    } else {
        puts("not signed");
    }
    return 0;
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

static int sign_artifacts(struct cli *cli, const struct objects *objects, int count, char **ids)
{
    for (int i = 0; i < count; i++) {
        AUTO_JSON json_t *artifact = NULL;
        char path[CLIENT_PATH_MAX];

        TRY(objects_path(path, sizeof(path), objects, ids[i]));
        TRY(http_escape(path, sizeof(path), "/signature", "/"));
        TRY(client_send(cli, "POST", path, NULL, &artifact));
        TRY(objects_print(cli, objects, artifact));
    }
    return 0;
}

const struct command command_artifacts_sign = {
    .name = "artifacts sign",
    .arguments = "ARTIFACT...",
    .summary = "Have the server sign artifacts that are not signed, or by an earlier key",
    .min = 1,
    .max = -1,
    .objects = &objects_artifacts,
    .act = sign_artifacts,
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
