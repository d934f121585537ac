/* Arguments: argp over tables of rows. The options before the command's name and those after it are parsed by the same
 * code; the common ones are allowed in both places. */

#include "cli/command.h"

#include "base/err.h"
#include "base/text.h"
#include "cli/status.h"

#include <argp.h>
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdalign.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ROWS_MAX 48
#define WORDS_MAX 64 /* positional arguments */
#define HELP_MAX 8192
#define HELP_SUMMARY 55 /* columns of a summary in a list of commands */
enum { KEY_OWN = 0x1000, KEY_COMMON = 0x2000, KEY_WORDS = 0x3000 };

#define AT(member) offsetof(struct cli, member)

static const struct option_row common[] = {
    {"server", 's', OPTION_TEXT, "URL", AT(server),
     .help = "Server (QUANTD_URL; default: that of the profile, else " PROFILE_DEFAULT_URL ")"},
    {"ca-file", 0, OPTION_TEXT, "FILE", AT(ca_file),
     .help = "Certificates to trust (QUANTD_CA_FILE; default: the system's)"},
    {"insecure", 0, OPTION_FLAG, NULL, AT(insecure),
     .help = "Do not verify the server's certificate, and send the key unencrypted"},
    {"json", 0, OPTION_FLAG, NULL, AT(json), .help = "Print the server's JSON"},
    {"quiet", 'q', OPTION_FLAG, NULL, AT(quiet), .help = "Print no progress and no notes"},
    {"timeout", 0, OPTION_INT, "SECONDS", AT(timeout_seconds),
     .help = "Give up when nothing arrives for so long (default: 60)", 1, 86400},
    {0},
};

struct parse {
    struct cli *cli;
    const struct command *command; /* NULL: before the name of one */
    void *options;
    char *words[WORDS_MAX];
    int count;
    int rc;
    int next; /* of the first parse: index of the command's name, 0 if there is none */
};

static const struct option_row *command_row_of(const struct parse *parse, int key, void **to)
{
    bool own = key >= KEY_OWN && key < KEY_COMMON;
    const struct option_row *rows = own ? parse->command->options : common;
    size_t index = (size_t)(key & 0xfff);

    if (key < KEY_OWN || key >= KEY_WORDS) {
        return NULL;
    }
    *to = (char *)(own ? parse->options : (void *)parse->cli) + rows[index].offset;
    return &rows[index];
}

static int take_int(const struct option_row *row, const char *text, int64_t *out)
{
    char *end = NULL;

    errno = 0;
    intmax_t value = strtoimax(text, &end, 10);
    if (end == text || *end != '\0' || errno != 0 || value < row->min || value > row->max) {
        return err_raise(ERR_CONFIG, "--%s: \"%.80s\" is not a number from %" PRId64 " to %" PRId64, row->name, text,
                         row->min, row->max);
    }
    *out = (int64_t)value;
    return 0;
}

static int command_take_value(const struct option_row *row, void *to, const char *text)
{
    struct option_texts *texts = to;

    switch (row->type) {
    case OPTION_FLAG:
        *(bool *)to = true;
        return 0;
    case OPTION_TEXT:
        *(const char **)to = text;
        return 0;
    case OPTION_TEXTS:
        if (texts->count >= OPTION_TEXTS_MAX) {
            return err_raise(ERR_CONFIG, "--%s is given more than %d times", row->name, OPTION_TEXTS_MAX);
        }
        texts->items[texts->count++] = text;
        return 0;
    case OPTION_INT:
        return take_int(row, text, to);
    case OPTION_END:
        break;
    }
    return err_raise(ERR_INTERNAL, "an option without a type");
}

static int letter_key(const struct parse *parse, int letter)
{
    const struct option_row *own = parse->command != NULL ? parse->command->options : NULL;

    for (size_t i = 0; own != NULL && own[i].type != OPTION_END; i++) {
        if (own[i].letter == letter) {
            return KEY_OWN + (int)i;
        }
    }
    for (size_t i = 0; common[i].type != OPTION_END; i++) {
        if (common[i].letter == letter) {
            return KEY_COMMON + (int)i;
        }
    }
    return 0;
}

static void print_words(const struct command *command);

static error_t command_take_option(int key, char *argument, struct argp_state *state)
{
    struct parse *parse = state->input;
    void *to = NULL;

    if (key == ARGP_KEY_ARG) {
        if (parse->command == NULL) {
            parse->next = state->next - 1;
            state->next = state->argc; /* the rest is the command's */
            return 0;
        }
        if (parse->count >= WORDS_MAX) {
            parse->rc = err_raise(ERR_CONFIG, "more than %d arguments", WORDS_MAX);
            return EINVAL;
        }
        parse->words[parse->count++] = argument;
        return 0;
    }
    if (key == KEY_WORDS) {
        print_words(parse->command);
        exit(STATUS_OK);
    }
    const struct option_row *row = command_row_of(parse, key > 0 && key < 256 ? letter_key(parse, key) : key, &to);
    if (row == NULL) {
        return ARGP_ERR_UNKNOWN;
    }
    parse->rc = command_take_value(row, to, argument);
    return parse->rc == 0 ? 0 : EINVAL;
}

static size_t add_rows(const struct option_row *rows, int base, int group, struct argp_option *out, size_t at)
{
    for (size_t i = 0; rows != NULL && rows[i].type != OPTION_END && at < ROWS_MAX - 2; i++, at++) {
        out[at] = (struct argp_option){.name = rows[i].name,
                                       .key = rows[i].letter != 0 ? rows[i].letter : base + (int)i,
                                       .arg = rows[i].argument,
                                       .doc = rows[i].help,
                                       .group = group};
    }
    return at;
}

/* argc and argv as main gets them: argv[0] is the name in messages. */
static int parse_words(struct parse *parse, int argc, char **argv, const char *arguments, const char *help)
{
    struct argp_option options[ROWS_MAX] = {{0}};
    size_t count = 0;

    if (parse->command != NULL) {
        count = add_rows(parse->command->options, KEY_OWN, 1, options, count);
    }
    options[count++] = (struct argp_option){.doc = "Common options:", .group = 2};
    count = add_rows(common, KEY_COMMON, 2, options, count);
    options[count] = (struct argp_option){.name = "words", .key = KEY_WORDS, .flags = OPTION_HIDDEN, .group = 2};
    const struct argp argp = {.options = options, .parser = command_take_option, .args_doc = arguments, .doc = help};
    unsigned flags = parse->command == NULL ? ARGP_IN_ORDER : 0;
    error_t outcome = argp_parse(&argp, argc, argv, flags, NULL, parse);
    if (outcome != 0 || parse->rc != 0) {
        return parse->rc != 0 ? parse->rc : err_raise(ERR_CONFIG, "%s", strerror(outcome));
    }
    return 0;
}

/* --- which command */

/* argv[0] and perhaps argv[1] name it; *used is how many words do. "jobs" alone means "jobs list". */
static const struct command *find_command(int argc, char **argv, int *used)
{
    char name[64];

    for (int words = argc > 1 ? 2 : 1; words >= 1; words--) {
        snprintf(name, sizeof(name), words == 2 ? "%s %s" : "%s", argv[0], words == 2 ? argv[1] : "");
        for (size_t i = 0; commands[i] != NULL; i++) {
            if (strcmp(commands[i]->name, name) == 0) {
                *used = words;
                return commands[i];
            }
        }
    }
    snprintf(name, sizeof(name), "%s list", argv[0]);
    for (size_t i = 0; commands[i] != NULL; i++) {
        if (strcmp(commands[i]->name, name) == 0) {
            *used = 1;
            return commands[i];
        }
    }
    return NULL;
}

/* A second word that is none of the first one's: "jobs shwo". NULL, unless one is similar. */
static const char *guess_second(const struct command *command, const char *word)
{
    struct text_guess guess = {.word = word};
    size_t first = strcspn(command->name, " ");

    for (size_t i = 0; command->name[first] != '\0' && commands[i] != NULL; i++) {
        if (strncmp(commands[i]->name, command->name, first + 1) == 0) {
            text_guess_offer_as(&guess, commands[i]->name + first + 1, commands[i]->name);
        }
    }
    return guess.name;
}

static int fail_unknown(const char *name)
{
    struct text_guess guess = {.word = name};

    for (size_t i = 0; commands[i] != NULL; i++) {
        char first[64];
        snprintf(first, sizeof(first), "%.*s", (int)strcspn(commands[i]->name, " "), commands[i]->name);
        text_guess_offer_as(&guess, first, commands[i]->name);
    }
    int rc = err_raise(ERR_CONFIG, "\"%.80s\" is not a command", name);
    return guess.name != NULL ? err_set_hint(rc, "did you mean \"%s\"?", guess.name)
                              : err_set_hint(rc, "quantctl --help lists the commands");
}

static void print_words(const struct command *command)
{
    for (size_t i = 0; command == NULL && commands[i] != NULL; i++) {
        printf("%s\n", commands[i]->name);
    }
    for (size_t i = 0; command != NULL && command->options != NULL && command->options[i].type != OPTION_END; i++) {
        printf("--%s\n", command->options[i].name);
    }
    for (size_t i = 0; common[i].type != OPTION_END; i++) {
        printf("--%s\n", common[i].name);
    }
}

/* One command of the overview. argp wraps a long line to the margin, so it is broken here. */
static void write_entry(char *out, size_t size, int *at, const struct command *command)
{
    const char *text = command->summary;
    char name[32];

    snprintf(name, sizeof(name), "%s", command->name);
    while (*text != '\0' && *at >= 0 && (size_t)*at < size) {
        size_t length = strlen(text);
        if (length > HELP_SUMMARY) {
            for (length = HELP_SUMMARY; length > 0 && text[length] != ' '; length--) {
            }
            length = length > 0 ? length : HELP_SUMMARY;
        }
        *at += snprintf(out + *at, size - (size_t)*at, "  %-20s %.*s\n", name, (int)length, text);
        text += length + strspn(text + length, " ");
        name[0] = '\0';
    }
}

/* The other commands of the first word, whose --help is that of its list. */
static void write_family(char *out, size_t size, const struct command *command)
{
    size_t first = strcspn(command->name, " "), used = strlen(out);

    if (strcmp(command->name + first, " list") != 0) {
        return;
    }
    int at = (int)used + snprintf(out + used, size - used, "%sCommands of %.*s:\n\n",
                                  command->details != NULL ? "\n\n" : "", (int)first, command->name);
    for (size_t i = 0; commands[i] != NULL; i++) {
        if (strncmp(commands[i]->name, command->name, first + 1) == 0) {
            write_entry(out, size, &at, commands[i]);
        }
    }
}

static void write_overview(char *out, size_t size)
{
    int at = snprintf(out, size,
                      "Quantizes language models on a quantd server.\vCommands (quantctl COMMAND --help shows the "
                      "options of one):\n\n");

    for (size_t i = 0; commands[i] != NULL; i++) {
        write_entry(out, size, &at, commands[i]);
    }
    if (at >= 0 && (size_t)at < size) {
        (void)snprintf(out + at, size - (size_t)at,
                       "\nExit status: 0 success; 1 a job failed, was cancelled or expired; 2 usage; 3 no connection; "
                       "4 refused by the server; 5 the server failed; 6 a local file; 7 content differs from its "
                       "digest.");
    }
}

static int run_command(const struct command *command, int argc, char **argv, struct cli *cli)
{
    static alignas(max_align_t) char options[COMMAND_OPTIONS_MAX];
    static struct parse parse;
    char title[96], help[HELP_MAX];

    if (command->size > sizeof(options)) {
        return err_raise(ERR_INTERNAL, "the options of %s are too large", command->name);
    }
    for (size_t i = 0; command->options != NULL && command->options[i].type != OPTION_END; i++) {
        if (command->options[i].type == OPTION_INT) {
            *(int64_t *)(void *)(options + command->options[i].offset) = OPTION_UNSET;
        }
    }
    parse = (struct parse){.cli = cli, .command = command, .options = options};
    snprintf(title, sizeof(title), "quantctl %s", command->name);
    snprintf(help, sizeof(help), "%s.\v%s", command->summary, command->details != NULL ? command->details : "");
    write_family(help, sizeof(help), command);
    argv[0] = title;
    TRY(parse_words(&parse, argc, argv, command->arguments, help));
    if (parse.count < command->min || (command->max >= 0 && parse.count > command->max)) {
        int rc = parse.count < command->min
                     ? err_raise(ERR_CONFIG, "%s: an argument is missing: %s", command->name, command->arguments)
                     : err_raise(ERR_CONFIG, "%s: \"%.80s\" is one argument too many", command->name,
                                 parse.words[command->max]);
        const char *guess = parse.count < command->min ? NULL : guess_second(command, parse.words[command->max]);
        return guess != NULL ? err_set_hint(rc, "did you mean \"%s\"?", guess)
                             : err_set_hint(rc, "quantctl %s --help", command->name);
    }
    return command->act != NULL ? command->act(cli, command->objects, parse.count, parse.words)
                                : command->run(cli, options, parse.count, parse.words);
}

/* A key on the command line could be read by every user of the host, and would be repeated in error messages. */
static int refuse_keys(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        for (const char *at = strstr(argv[i], "qd_"); at != NULL; at = strstr(at + 1, "qd_")) {
            size_t length = 0;
            while (isalnum((unsigned char)at[3 + length]) || at[3 + length] == '-' || at[3 + length] == '_') {
                length++;
            }
            if (length >= 16) {
                return err_set_hint(err_raise(ERR_CONFIG, "an API key must not be on the command line, where other "
                                                          "users can read it"),
                                    "QUANTD_API_KEY, or quantctl login --key-file FILE");
            }
        }
    }
    return 0;
}

int command_run(int argc, char **argv, struct cli *cli)
{
    static struct parse parse;
    char help[HELP_MAX];
    int used = 0;

    argp_program_version = "quantctl " QUANTD_VERSION;
    argp_err_exit_status = STATUS_USAGE;
    TRY(refuse_keys(argc, argv));
    parse = (struct parse){.cli = cli};
    write_overview(help, sizeof(help));
    TRY(parse_words(&parse, argc, argv, "COMMAND [ARGUMENT...]", help));
    if (parse.next == 0) {
        return err_set_hint(err_raise(ERR_CONFIG, "a command is missing"), "quantctl --help lists the commands");
    }
    argc -= parse.next;
    argv += parse.next;
    const struct command *command = find_command(argc, argv, &used);
    if (command == NULL) {
        return fail_unknown(argv[0]);
    }
    return run_command(command, argc - used + 1, argv + used - 1, cli);
}
