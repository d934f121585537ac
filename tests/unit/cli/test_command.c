/* The table of commands, and arguments that are refused. */

#include "cli/command.h"
#include "tests/unit/unit.h"

#include <stdbool.h>
#include <string.h>

START_TEST(test_rows)
{
    for (size_t i = 0; commands[i] != NULL; i++) {
        const struct command *command = commands[i];
        bool letters[128] = {['s'] = true, ['q'] = true, ['V'] = true, ['?'] = true};

        ck_assert((command->run != NULL) != (command->act != NULL));
        ck_assert_msg((command->objects != NULL) == (command->act != NULL), "%s: objects and act", command->name);
        ck_assert_msg(command->act != objects_show || command->objects->show != NULL, "%s shows nothing",
                      command->name);
        ck_assert_msg(command->summary[strlen(command->summary) - 1] != '.', "%s", command->name);
        ck_assert_uint_le(command->size, COMMAND_OPTIONS_MAX);
        ck_assert_msg((command->arguments != NULL) == (command->max != 0), "%s: arguments and max", command->name);
        for (size_t k = i + 1; commands[k] != NULL; k++) {
            ck_assert_str_ne(command->name, commands[k]->name);
        }
        for (const struct option_row *row = command->options; row != NULL && row->type != OPTION_END; row++) {
            ck_assert_msg((row->argument == NULL) == (row->type == OPTION_FLAG), "%s --%s", command->name, row->name);
            ck_assert_msg(row->type != OPTION_INT || row->max > row->min, "%s --%s", command->name, row->name);
            ck_assert_uint_lt(row->offset, command->size);
            ck_assert_msg(row->letter == 0 || !letters[(int)row->letter], "%s -%c twice", command->name, row->letter);
            letters[(int)row->letter] = row->letter != 0;
        }
    }
}
END_TEST

static int run(const char *a, const char *b, const char *c)
{
    struct cli cli = {0};
    char *words[4] = {strdup("quantctl"), a != NULL ? strdup(a) : NULL, b != NULL ? strdup(b) : NULL,
                      c != NULL ? strdup(c) : NULL};
    char *argv[5] = {words[0], words[1], words[2], words[3], NULL};
    int argc = 1 + (a != NULL) + (b != NULL) + (c != NULL);

    int rc = command_run(argc, argv, &cli);
    client_close(&cli);
    for (int i = 0; i < 4; i++) {
        free(words[i]);
    }
    return rc;
}

START_TEST(test_usage)
{
    ck_assert_int_eq(run(NULL, NULL, NULL), ERR_CONFIG);
    ck_assert_int_eq(run("metods", NULL, NULL), ERR_CONFIG);
    ck_assert_ptr_nonnull(strstr(err_last()->hint, "methods"));
    ck_assert_int_eq(run("jobs", "show", NULL), ERR_CONFIG);
    ck_assert_int_eq(run("system", "extra", NULL), ERR_CONFIG);
    ck_assert_int_eq(run("jobs", "--limit", "0"), ERR_CONFIG);
    ck_assert_int_eq(run("jobs", "--limit", "12x"), ERR_CONFIG);
    ck_assert_int_eq(run("watch", "mdl_01", NULL), ERR_CONFIG);
    ck_assert_int_eq(run("--timeout=99999999", "system", NULL), ERR_CONFIG);
}
END_TEST

START_TEST(test_keys_are_refused_and_not_repeated)
{
    static const char key[] = "qd_0123456789abcdefghijklmnopqrstuvwxyz";
    char option[80];

    snprintf(option, sizeof(option), "--key=%s", key);
    ck_assert_int_eq(run("system", option, NULL), ERR_CONFIG);
    ck_assert_ptr_null(strstr(err_last()->message, "0123"));
    ck_assert_int_eq(run("login", "--api-key", key), ERR_CONFIG);
    ck_assert_ptr_null(strstr(err_last()->message, "0123"));
    ck_assert_int_eq(run(key, NULL, NULL), ERR_CONFIG);
    ck_assert_ptr_null(strstr(err_last()->message, "0123"));
}
END_TEST

UNIT_MAIN("cli_command", test_rows, test_usage, test_keys_are_refused_and_not_repeated)
