/* quantctl verify: a downloaded artifact against its signature, without a server. */

#include "base/err.h"
#include "cli/commands.h"
#include "cli/safe.h"
#include "cli/verify.h"

#include <stdio.h>

struct verify_options {
    const char *public_key, *signature;
};

static const struct option_row verify_options[] = {
    {"public-key", 'k', OPTION_TEXT, "FILE", offsetof(struct verify_options, public_key),
     .help = "The public key of the signer, in PEM; required"},
    {"signature", 0, OPTION_TEXT, "FILE", offsetof(struct verify_options, signature),
     .help = "The signature (default: model.sig in the directory)"},
    {0},
};

static int verify_run(struct cli *cli, const void *given, int count, char **arguments)
{
    const struct verify_options *options = given;
    AUTO(signing_key) struct signing_key *key = NULL;
    int64_t files = 0, bytes = 0;
    char size[PRINT_SIZE];

    if (options->public_key == NULL) {
        return err_set_hint(err_raise(ERR_CONFIG, "--public-key FILE is required: it says whose signature is expected"),
                            "quantctl system --json has the key of a server in signing_key.public_key");
    }
    TRY(verify_read_key(options->public_key, &key));
    TRY(verify_directory(arguments[0], options->signature, key, &files, &bytes));
    if (cli->json) {
        AUTO_JSON json_t *answer =
            json_pack("{s:s, s:s, s:b, s:s, s:I, s:I}", "object", "verification", "directory", arguments[0], "valid", 1,
                      "key_hint", signing_key_hint(key), "files", (json_int_t)files, "bytes", (json_int_t)bytes);
        print_json(answer);
    } else if (!cli->quiet) {
        safe_printf(stdout, "%lld files of %s, signed by the key %s\n", (long long)files,
                    print_bytes((double)bytes, size), signing_key_hint(key));
    }
    return 0;
}

const struct command command_verify = {
    .name = "verify",
    .arguments = "DIR",
    .summary = "Verify the signature of a downloaded artifact, without a server",
    .details =
        "Every file of the directory is hashed. Exit status 7 if one was changed, is missing or was added, or if the "
        "signature is missing or not one of the key.",
    .min = 1,
    .max = 1,
    .options = verify_options,
    .size = sizeof(struct verify_options),
    .run = verify_run,
};
