#pragma once
/* A command is one row: its name, arguments, options and function. Parsing, --help, usage errors and the words for the
 * shell's completion come from the rows. */

#include "cli/objects.h"

#include <stddef.h>
#include <stdint.h>

#define OPTION_UNSET INT64_MIN /* of an OPTION_INT that was not given */
#define OPTION_TEXTS_MAX 64

enum option_type { OPTION_END, OPTION_FLAG, OPTION_TEXT, OPTION_TEXTS, OPTION_INT };

/* The value of a repeatable option. */
struct option_texts {
    size_t count;
    const char *items[OPTION_TEXTS_MAX];
};

struct option_row {
    const char *name; /* --name */
    char letter;      /* -l, or 0 */
    enum option_type type;
    const char *argument; /* in --help; NULL for a flag */
    size_t offset;        /* in the command's struct of options: bool, const char *, struct option_texts, int64_t */
    const char *help;
    int64_t min, max; /* of an OPTION_INT */
};

struct command {
    const char *name;                 /* one word or two: "jobs", "jobs show" */
    const char *arguments;            /* in --help: "JOB...", or NULL */
    const char *summary;              /* one line without a full stop */
    const char *details;              /* further paragraphs of --help, or NULL */
    int min, max;                     /* number of arguments; max -1 = any */
    const struct option_row *options; /* to OPTION_END; NULL = none */
    size_t size;                      /* of the struct of options; at most COMMAND_OPTIONS_MAX */
    int (*run)(struct cli *cli, const void *options, int count, char **arguments);
    /* Or, of a command that only names objects: their kind, and what is done with them. */
    const struct objects *objects;
    int (*act)(struct cli *cli, const struct objects *objects, int count, char **ids);
};
#define COMMAND_OPTIONS_MAX 4096

/* Every command, in the order of --help; NULL-terminated. */
extern const struct command *const commands[];

/* Parse argv and run the command that it names. Returns what the command returns; ERR_CONFIG for a usage error. */
int command_run(int argc, char **argv, struct cli *cli);
