/* quantctl pull: an artifact's files into a directory. */

#include "base/err.h"
#include "base/json.h"
#include "base/mem.h"
#include "cli/commands.h"
#include "cli/job.h"
#include "cli/objects.h"
#include "cli/print.h"
#include "cli/pull.h"
#include "cli/safe.h"
#include "cli/status.h"
#include "cli/verify.h"

#include <stdio.h>
#include <string.h>

#define PULL_PARALLEL 4

struct pull_arguments {
    const char *output, *public_key;
    int64_t parallel;
    bool force;
};

#define AT(member) offsetof(struct pull_arguments, member)

static const struct option_row pull_rows[] = {
    {"output", 'o', OPTION_TEXT, "DIR", AT(output), .help = "Directory of the files (default: the artifact's id)"},
    {"parallel", 'j', OPTION_INT, "N", AT(parallel), .help = "Transfers at a time (default: 4)", 1, HTTP_SLOTS_MAX},
    {"public-key", 'k', OPTION_TEXT, "FILE", AT(public_key),
     .help = "Refuse the artifact unless this key (PEM) has signed exactly its files"},
    {"force", 0, OPTION_FLAG, NULL, AT(force), .help = "Replace files that are there and differ"},
    {0},
};

/* The digest that the artifact gives of its manifest file is that file's in the list. */
static int check_manifest(const json_t *artifact, const struct manifest *manifest)
{
    const char *digest = json_get_string(artifact, "manifest_sha256");

    for (size_t i = 0; digest != NULL && i < manifest->count; i++) {
        if (strcmp(manifest->files[i].path, "quantd_manifest.json") == 0 &&
            strcmp(manifest->files[i].sha256, digest) != 0) {
            return status_fail(STATUS_MISMATCH, "the artifact has two digests of quantd_manifest.json");
        }
    }
    return 0;
}

static int show_files(const struct cli *cli, const char *id, const struct manifest *manifest, const char *directory,
                      const bool *fetched, const struct signing_key *key)
{
    const char *hint = key != NULL ? signing_key_hint(key) : NULL;
    AUTO_JSON json_t *answer = json_pack("{s:s,s:s,s:s,s:s?,s:[]}", "object", "pull", "artifact_id", id, "directory",
                                         directory, "signed_by", hint, "files");
    json_t *files = json_object_get(answer, "files");

    for (size_t i = 0; i < manifest->count; i++) {
        const struct manifest_file *file = &manifest->files[i];
        if (cli->json) {
            (void)json_array_append_new(files, json_pack("{s:s,s:I,s:s,s:b}", "path", file->path, "bytes",
                                                         (json_int_t)file->bytes, "sha256", file->sha256, "downloaded",
                                                         (int)fetched[i]));
        } else if (!cli->quiet) {
            char bytes[PRINT_SIZE];
            safe_printf(stdout, "%10s  %s%s\n", print_bytes((double)file->bytes, bytes), file->path,
                        fetched[i] ? "" : "  (was there)");
        }
    }
    if (cli->json) {
        print_json(answer);
    } else if (hint != NULL && !cli->quiet) {
        printf("signed by the key %s\n", hint);
    }
    return 0;
}

static int pull_run(struct cli *cli, const void *given, int count, char **arguments)
{
    const struct pull_arguments *options = given;
    const struct pull_options pull = {
        .parallel = options->parallel != OPTION_UNSET ? (int)options->parallel : PULL_PARALLEL,
        .replace = options->force,
    };
    AUTO(manifest) struct manifest manifest = {0};
    AUTO_JSON json_t *artifact = NULL;
    AUTO_FREE bool *fetched = NULL;
    AUTO(signing_key) struct signing_key *key = NULL;
    AUTO(model_signature) struct model_signature signature = {.hint = ""};
    char id[128];

    TRY(options->public_key != NULL ? verify_read_key(options->public_key, &key) : 0);
    TRY(job_find_artifact(cli, arguments[0], id, sizeof(id)));
    TRY(objects_get(cli, &objects_artifacts, id, &artifact));
    TRY(manifest_read(artifact, &manifest));
    TRY(check_manifest(artifact, &manifest));
    TRY(mem_array(&fetched, manifest.count));
    const char *directory = options->output != NULL ? options->output : id;
    if (key != NULL) {
        TRY(verify_artifact(cli, id, &manifest, key, &signature));
        TRY(verify_no_others(directory, &manifest, &signature));
    }
    TRY(pull_files(cli, id, &manifest, directory, &pull, fetched));
    return show_files(cli, id, &manifest, directory, fetched, key);
}

const struct command command_pull = {
    .name = "pull",
    .arguments = "ARTIFACT|JOB",
    .summary = "Download an artifact and verify its digests",
    .details =
        "A file gets its name once its SHA-256 is the manifest's. After an interruption the same command continues; "
        "what is there already is verified and kept. With --public-key nothing is downloaded unless the signature is "
        "one of "
        "that key over exactly the files of the artifact, and the directory has no others.",
    .min = 1,
    .max = 1,
    .options = pull_rows,
    .size = sizeof(struct pull_arguments),
    .run = pull_run,
};
