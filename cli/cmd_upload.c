/* quantctl upload: files for calibration and evaluation. */

#include "base/err.h"
#include "base/mem.h"
#include "cli/commands.h"
#include "cli/print.h"
#include "cli/safe.h"
#include "cli/upload.h"

#include <stdio.h>
#include <string.h>

#define UPLOAD_PARALLEL 4

struct upload_options {
    const char *purpose, *name;
    int64_t parallel;
};

static const struct option_row upload_options[] = {
    {"purpose", 'p', OPTION_TEXT, "PURPOSE", offsetof(struct upload_options, purpose),
     .help = "calibration (default), evaluation or model"},
    {"name", 0, OPTION_TEXT, "NAME", offsetof(struct upload_options, name),
     .help = "Name on the server (default: the file's)"},
    {"parallel", 'j', OPTION_INT, "N", offsetof(struct upload_options, parallel),
     .help = "Large files at a time (default: 4)", 1, HTTP_SLOTS_MAX},
    {0},
};

/* What has arrived, also when another file did not. */
static void upload_show(const struct cli *cli, const struct upload_item *items, int count)
{
    for (int i = 0; i < count; i++) {
        char bytes[PRINT_SIZE];
        if (items[i].file == NULL) {
            continue;
        }
        if (cli->json) {
            print_json(items[i].file);
        } else {
            safe_printf(stdout, "%s  %s  %s\n", print_text(items[i].file, "id"),
                        print_bytes(json_number_value(json_object_get(items[i].file, "bytes")), bytes), items[i].path);
        }
    }
}

static int upload_run(struct cli *cli, const void *given, int count, char **arguments)
{
    const struct upload_options *options = given;
    const char *purpose = options->purpose != NULL ? options->purpose : "calibration";

    AUTO_FREE struct upload_item *items = NULL;

    TRY(mem_array(&items, (size_t)count));
    for (int i = 0; i < count; i++) {
        const char *slash = strrchr(arguments[i], '/');
        items[i].path = arguments[i];
        items[i].name = options->name != NULL ? options->name : slash != NULL ? slash + 1 : arguments[i];
    }
    int parallel = options->parallel != OPTION_UNSET ? (int)options->parallel : UPLOAD_PARALLEL;
    int rc = upload_files(cli, items, (size_t)count, purpose, parallel);
    upload_show(cli, items, count);
    if (rc == 0) {
        upload_forget(cli, items, (size_t)count, purpose);
    }
    upload_items_deinit(items, (size_t)count);
    return rc;
}

const struct command command_upload = {
    .name = "upload",
    .arguments = "FILE...",
    .summary = "Upload files of records for calibration or evaluation",
    .details =
        "The ids (file_...) go into submit --calibration and --evaluation. Large files are sent in pieces; after "
        "an interruption the same command continues them. What arrives damaged is sent again.",
    .min = 1,
    .max = -1,
    .options = upload_options,
    .size = sizeof(struct upload_options),
    .run = upload_run,
};
