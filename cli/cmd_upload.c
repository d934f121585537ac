/* quantctl upload: files for calibration and evaluation. */

#include "base/err.h"
#include "cli/commands.h"
#include "cli/print.h"
#include "cli/safe.h"
#include "cli/upload.h"

#include <stdio.h>
#include <string.h>

struct upload_options {
    const char *purpose, *name;
};

static const struct option_row upload_options[] = {
    {"purpose", 'p', OPTION_TEXT, "PURPOSE", offsetof(struct upload_options, purpose),
     .help = "calibration (default) or evaluation"},
    {"name", 0, OPTION_TEXT, "NAME", offsetof(struct upload_options, name),
     .help = "Name on the server (default: the file's)"},
    {0},
};

static int upload_run(struct cli *cli, const void *given, int count, char **arguments)
{
    const struct upload_options *options = given;
    const char *purpose = options->purpose != NULL ? options->purpose : "calibration";

    for (int i = 0; i < count; i++) {
        AUTO_JSON json_t *file = NULL;
        const char *slash = strrchr(arguments[i], '/');
        const char *name = options->name != NULL ? options->name : slash != NULL ? slash + 1 : arguments[i];
        char bytes[PRINT_SIZE];

        TRY(upload_file(cli, arguments[i], purpose, name, &file));
        if (cli->json) {
            print_json(file);
        } else {
            safe_printf(stdout, "%s  %s  %s\n", print_text(file, "id"),
                        print_bytes(json_number_value(json_object_get(file, "bytes")), bytes), arguments[i]);
        }
    }
    return 0;
}

const struct command command_upload = {
    .name = "upload",
    .arguments = "FILE...",
    .summary = "Upload files of records for calibration or evaluation",
    .details = "Each file is hashed first and refused by the server if it arrives damaged. The ids (file_...) go into "
               "submit --calibration and --evaluation.",
    .min = 1,
    .max = -1,
    .options = upload_options,
    .size = sizeof(struct upload_options),
    .run = upload_run,
};
