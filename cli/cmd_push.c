/* quantctl push: an artifact to a registry, as an OCI image. */

#include "base/err.h"
#include "cli/commands.h"
#include "cli/job.h"
#include "cli/push.h"
#include "cli/reference.h"
#include "cli/safe.h"

#include <stdio.h>

#define PUSH_IDLE_SECONDS 60

struct push_arguments {
    const char *username, *ca_file;
    bool password_stdin, plain_http;
};

#define AT(member) offsetof(struct push_arguments, member)

static const struct option_row push_rows[] = {
    {"username", 'u', OPTION_TEXT, "NAME", AT(username), .help = "Who pushes; with --password-stdin"},
    {"password-stdin", 0, OPTION_FLAG, NULL, AT(password_stdin), .help = "Read the password from standard input"},
    {"plain-http", 0, OPTION_FLAG, NULL, AT(plain_http),
     .help = "The registry does not use TLS (default on this host)"},
    {"registry-ca-file", 0, OPTION_TEXT, "FILE", AT(ca_file),
     .help = "Certificates to trust for the registry instead of the system's"},
    {0},
};

static int find_credentials(const struct push_arguments *options, const struct reference *reference,
                            struct credentials *out)
{
    if (options->password_stdin != (options->username != NULL)) {
        return err_set_hint(err_raise(ERR_CONFIG, "--username and --password-stdin need each other"),
                            "a password on the command line could be read by others");
    }
    return options->username != NULL ? credentials_read(options->username, out)
                                     : credentials_load(reference->registry, out);
}

static int show_pushed(const struct cli *cli, const char *artifact, const struct reference *reference,
                       const struct pushed *pushed)
{
    char by_digest[REFERENCE_REGISTRY_MAX + REFERENCE_REPOSITORY_MAX + 128];

    snprintf(by_digest, sizeof(by_digest), "%s/%s@sha256:%s", reference->registry, reference->repository,
             pushed->sha256);
    if (!cli->json) {
        safe_printf(stdout, "%s\n", by_digest);
        return 0;
    }
    AUTO_JSON json_t *answer =
        json_pack("{s:s, s:s, s:o, s:s, s:o, s:O}", "object", "push", "artifact_id", artifact, "image",
                  json_sprintf("%s/%s:%s", reference->registry, reference->repository, reference->tag), "reference",
                  by_digest, "digest", json_sprintf("sha256:%s", pushed->sha256), "blobs", pushed->blobs);
    if (answer == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for the answer");
    }
    print_json(answer);
    return 0;
}

static int push_run(struct cli *cli, const void *given, int count, char **arguments)
{
    const struct push_arguments *options = given;
    AUTO(credentials) struct credentials credentials = {0};
    AUTO(registry) struct registry *registry = NULL;
    AUTO(manifest) struct manifest files = {0};
    AUTO_JSON json_t *artifact = NULL;
    struct pushed pushed = {.blobs = NULL};
    struct reference reference;
    char id[128];

    TRY(reference_parse(arguments[1], &reference));
    TRY(find_credentials(options, &reference, &credentials));
    const struct registry_options how = {
        .reference = &reference,
        .credentials = &credentials,
        .ca_file = options->ca_file,
        .plain_http = options->plain_http,
        .insecure = cli->insecure,
        .idle_seconds = cli->timeout_seconds > 0 ? cli->timeout_seconds : PUSH_IDLE_SECONDS,
    };
    TRY(registry_open(&how, &registry));
    TRY(job_find_artifact(cli, arguments[0], id, sizeof(id)));
    TRY(objects_get(cli, &objects_artifacts, id, &artifact));
    TRY(manifest_read(artifact, &files));
    TRY(push_artifact(cli, id, &files, registry, &pushed));
    int rc = show_pushed(cli, id, &reference, &pushed);
    json_decref(pushed.blobs);
    return rc;
}

const struct command command_push = {
    .name = "push",
    .arguments = "ARTIFACT|JOB REGISTRY/REPOSITORY[:TAG]",
    .summary = "Push an artifact to a registry as an OCI image (CNCF ModelPack)",
    .details = "Each file is a layer, streamed from the server into the registry; what the registry has already is not "
               "sent, so the same command continues after an interruption. Credentials are those of docker login in "
               "$DOCKER_CONFIG/config.json (~/.docker/config.json), or --username. Standard output is the image's name "
               "with its digest.",
    .min = 2,
    .max = 2,
    .options = push_rows,
    .size = sizeof(struct push_arguments),
    .run = push_run,
};
