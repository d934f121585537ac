/* quantctl login: ask for a key, try it, write the profile file. The key is never an argument. */

#include "base/err.h"
#include "base/fs.h"
#include "base/mem.h"
#include "cli/commands.h"
#include "cli/print.h"
#include "cli/safe.h"
#include "cli/status.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

#define LOGIN_KEY_MAX 1024
#define LOGIN_PATH_MAX 4096

struct login_options {
    const char *key_file;
    bool key_stdin, no_key, no_check;
};

#define AT(member) offsetof(struct login_options, member)

static const struct option_row login_options[] = {
    {"key-file", 0, OPTION_TEXT, "FILE", AT(key_file), .help = "Read the API key from the first line of FILE"},
    {"key-stdin", 0, OPTION_FLAG, NULL, AT(key_stdin), .help = "Read the API key from standard input"},
    {"no-key", 0, OPTION_FLAG, NULL, AT(no_key), .help = "The server needs no key"},
    {"no-check", 0, OPTION_FLAG, NULL, AT(no_check), .help = "Write the profile without a request to the server"},
    {0},
};

/* One line without its end; empty at the end of the input. */
static void login_read_line(FILE *in, char *out, size_t size)
{
    if (fgets(out, (int)size, in) == NULL) {
        out[0] = '\0';
    }
    out[strcspn(out, "\r\n")] = '\0';
}

static struct termios login_terminal; /* as it was before the prompt */

/* A signal while the echo is off: restore it, then end as the signal does. */
static void restore_terminal(int number)
{
    (void)tcsetattr(STDIN_FILENO, TCSANOW, &login_terminal);
    (void)signal(number, SIG_DFL);
    (void)raise(number);
}

/* From the terminal, without an echo. */
static void ask_key(char *out, size_t size)
{
    static const int signals[] = {SIGINT, SIGTERM, SIGQUIT, SIGHUP};
    const struct sigaction restore = {.sa_handler = restore_terminal};
    struct sigaction was[sizeof(signals) / sizeof(signals[0])];
    bool known = tcgetattr(STDIN_FILENO, &login_terminal) == 0;

    fputs("API key (empty: none): ", stderr);
    for (size_t i = 0; known && i < sizeof(signals) / sizeof(signals[0]); i++) {
        (void)sigaction(signals[i], &restore, &was[i]);
    }
    if (known) {
        struct termios silent = login_terminal;
        silent.c_lflag &= ~(tcflag_t)ECHO;
        (void)tcsetattr(STDIN_FILENO, TCSAFLUSH, &silent);
    }
    login_read_line(stdin, out, size);
    if (known) {
        (void)tcsetattr(STDIN_FILENO, TCSAFLUSH, &login_terminal);
    }
    for (size_t i = 0; known && i < sizeof(signals) / sizeof(signals[0]); i++) {
        (void)sigaction(signals[i], &was[i], NULL);
    }
    fputc('\n', stderr);
}

static int get_key(const struct login_options *options, char *out, size_t size)
{
    out[0] = '\0';
    if (options->no_key) {
        return 0;
    }
    if (options->key_file != NULL) {
        AUTO_FILE FILE *in = fopen(options->key_file, "re");
        if (in == NULL) {
            return status_fail(STATUS_LOCAL, "%s cannot be opened: %s", options->key_file, strerror(errno));
        }
        login_read_line(in, out, size);
    } else if (options->key_stdin) {
        login_read_line(stdin, out, size);
    } else if (isatty(STDIN_FILENO) != 0) {
        ask_key(out, size);
        return 0; /* empty: none */
    } else {
        return err_set_hint(err_raise(ERR_CONFIG, "standard input is not a terminal, so no key can be asked for"),
                            "use --key-stdin, --key-file FILE or --no-key");
    }
    return out[0] != '\0' ? 0 : err_raise(ERR_CONFIG, "the API key is empty");
}

static int login_set(char **slot, const char *text)
{
    free(*slot);
    *slot = NULL;
    return text[0] != '\0' ? mem_strdup(slot, text) : 0;
}

static int login_run(struct cli *cli, const void *given, int count, char **arguments)
{
    const struct login_options *options = given;
    AUTO_FREE char *ca_file = NULL;
    char key[LOGIN_KEY_MAX], path[LOGIN_PATH_MAX];
    AUTO_JSON json_t *system = NULL;

    TRY(profile_path(path, sizeof(path)));
    if (count > 0) {
        cli->server = arguments[0];
    }
    if (cli->ca_file != NULL) {
        ca_file = realpath(cli->ca_file, NULL); /* the profile is used from other directories */
        if (ca_file == NULL) {
            return status_fail(STATUS_LOCAL, "%s cannot be read: %s", cli->ca_file, strerror(errno));
        }
        cli->ca_file = ca_file;
    }
    TRY(profile_load(cli->server, cli->ca_file, &cli->profile));
    TRY(get_key(options, key, sizeof(key)));
    TRY(login_set(&cli->profile.key, key));
    explicit_bzero(key, sizeof(key));
    TRY(cli->profile.key != NULL ? profile_check_key(cli->profile.key) : 0);
    TRY(client_connect(cli));
    if (!options->no_check) {
        TRY(client_get(cli, "/v1/system", &system));
    }
    TRY(profile_save(&cli->profile, path));
    if (cli->json && system != NULL) {
        print_json(system);
    } else if (!cli->quiet && !cli->json && system != NULL) {
        safe_printf(stdout, "%s %s at %s; profile: %s\n", print_text(system, "name"), print_text(system, "version"),
                    cli->profile.url, path);
    } else if (!cli->quiet && !cli->json) {
        safe_printf(stdout, "%s, not asked; profile: %s\n", cli->profile.url, path);
    }
    return 0;
}

const struct command command_login = {
    .name = "login",
    .arguments = "[URL]",
    .summary = "Remember a server, its API key and its certificates",
    .details = "The profile is written to $XDG_CONFIG_HOME/quantctl/config (~/.config/quantctl/config) with mode 0600. "
               "The key is asked for on a terminal, or read with --key-stdin or --key-file. QUANTD_URL, QUANTD_API_KEY "
               "and QUANTD_CA_FILE take precedence over the profile.",
    .max = 1,
    .options = login_options,
    .size = sizeof(struct login_options),
    .run = login_run,
};
