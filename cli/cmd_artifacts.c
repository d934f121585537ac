/* quantctl artifacts: what jobs made. quantctl pull downloads one. */

#include "base/err.h"
#include "cli/commands.h"
#include "cli/print.h"
#include "cli/safe.h"

#include <stdio.h>

#define ARTIFACTS "/v1/artifacts"

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
    AUTO_JSON json_t *list = NULL;
    const json_t *artifact;
    char path[CLIENT_PATH_MAX] = ARTIFACTS;
    size_t i;

    TRY(options->job != NULL ? client_query(path, sizeof(path), "job_id", options->job) : 0);
    TRY(client_list(cli, path, 0, &list));
    if (cli->json) {
        print_json(list);
        return 0;
    }
    AUTO(table)
    struct table *table =
        table_new((const char *const[]){"ID", "NAME", "METHOD", "FORMAT", ">BITS", ">BYTES", "JOB", "CREATED", NULL});
    json_array_foreach(json_object_get(list, "data"), i, artifact)
    {
        char bits[PRINT_SIZE], bytes[PRINT_SIZE], created[PRINT_SIZE];
        TABLE_ROW(table, print_text(artifact, "id"), print_text(artifact, "name"), print_text(artifact, "method"),
                  print_text(artifact, "format"), print_number(artifact, "bits_per_weight", 4, bits),
                  print_bytes(json_number_value(json_object_get(artifact, "bytes")), bytes),
                  print_text(artifact, "job_id"), print_time(artifact, "created_at", created));
    }
    return table_print(table, stdout);
}

const struct command command_artifacts_list = {
    .name = "artifacts list",
    .summary = "List the artifacts",
    .options = artifacts_options,
    .size = sizeof(struct artifacts_options),
    .run = artifacts_list_run,
};

static int artifacts_show_run(struct cli *cli, const void *given, int count, char **arguments)
{
    AUTO_JSON json_t *artifact = NULL;
    const json_t *file;
    char path[CLIENT_PATH_MAX];
    size_t i;

    TRY(client_path(path, sizeof(path), ARTIFACTS, arguments[0], "art", "an artifact"));
    TRY(client_get(cli, path, &artifact));
    if (cli->json) {
        print_json(artifact);
        return 0;
    }
    AUTO(table) struct table *table = table_new((const char *const[]){">BYTES", "SHA-256", "PATH", NULL});
    json_array_foreach(json_object_get(artifact, "files"), i, file)
    {
        char bytes[PRINT_SIZE];
        TABLE_ROW(table, print_bytes(json_number_value(json_object_get(file, "bytes")), bytes),
                  print_text(file, "sha256"), print_text(file, "path"));
    }
    return table_print(table, stdout);
}

const struct command command_artifacts_show = {
    .name = "artifacts show",
    .arguments = "ARTIFACT",
    .summary = "Show the files of an artifact with their digests",
    .min = 1,
    .max = 1,
    .run = artifacts_show_run,
};

static int artifacts_delete_run(struct cli *cli, const void *given, int count, char **arguments)
{
    return client_delete(cli, ARTIFACTS, "art", "an artifact", count, arguments);
}

const struct command command_artifacts_delete = {
    .name = "artifacts delete",
    .arguments = "ARTIFACT...",
    .summary = "Delete artifacts from the server",
    .min = 1,
    .max = -1,
    .run = artifacts_delete_run,
};
