/* quantd: read the configuration, open, run, close.
 *
 * Exit status: 0 after a requested shutdown, 2 for an invalid configuration, 1 for any other failure. */

#include "base/err.h"
#include "base/log.h"
#include "daemon/config.h"
#include "daemon/health_command.h"
#include "daemon/key_command.h"
#include "daemon/listen.h"
#include "daemon/quantd.h"
#include "daemon/restart.h"
#include "pipeline/child.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int print_error(int rc)
{
    const struct err_record *record = err_last();
    fprintf(stderr, "quantd: %s%s%s\n", record->message[0] != '\0' ? record->message : err_sentence(rc),
            record->hint[0] != '\0' ? "; " : "", record->hint);
    return rc == ERR_CONFIG ? 2 : 1;
}

static int main_run(int argc, char **argv, struct config *config, struct quantd **quantd)
{
    int socket = -1;

    TRY(config_load(argc, argv, config));
    TRY(listen_inherited(config, &socket));
    log_set_level((enum log_level)config->log_level);
    TRY(quantd_open(config, socket, quantd));
    return quantd_run(*quantd);
}

int main(int argc, char **argv)
{
    struct config config = {0};
    struct quantd *quantd = NULL;

    if (argc == 3 && strcmp(argv[1], CHILD_COMMAND) == 0) {
        return child_main(argv[2]);
    }
    if (argc >= 2 && strcmp(argv[1], "key") == 0) {
        int failed = key_command(argc - 1, argv + 1);
        return failed != 0 ? print_error(failed) : EXIT_SUCCESS;
    }
    if (argc >= 2 && strcmp(argv[1], "health") == 0) {
        int failed = health_command(argc - 1, argv + 1);
        return failed != 0 ? print_error(failed) : EXIT_SUCCESS;
    }
    restart_remember(argv);
    int rc = main_run(argc, argv, &config, &quantd);
    int status = rc != 0 ? print_error(rc) : EXIT_SUCCESS;
    quantd_close(quantd);
    config_deinit(&config);
    int failed = restart_now();
    if (failed != 0) {
        log_error("cannot restart", LOG_S("reason", strerror(failed)));
        return EXIT_FAILURE;
    }
    return status;
}
