/* quantd: parse, set up, run, one exit.
 *
 * Exit status: 0 after a shutdown that was asked for, 2 for a configuration that cannot be used, 1 for the rest. */

#include "base/err.h"
#include "base/log.h"
#include "daemon/config.h"
#include "daemon/listen.h"
#include "daemon/quantd.h"
#include "daemon/restart.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int complain(int rc)
{
    const struct err_record *record = err_last();
    fprintf(stderr, "quantd: %s%s%s\n", record->message[0] != '\0' ? record->message : err_sentence(rc),
            record->hint[0] != '\0' ? "; " : "", record->hint);
    return rc == ERR_CONFIG ? 2 : 1;
}

int main(int argc, char **argv)
{
    struct config config = {0};
    struct quantd *quantd = NULL;
    int socket = -1;

    restart_remember(argv);
    int rc = config_load(argc, argv, &config);
    rc = rc != 0 ? rc : listen_inherited(&config, &socket);
    if (rc == 0) {
        log_set_level((enum log_level)config.log_level);
        rc = quantd_open(&config, socket, &quantd);
    }
    rc = rc != 0 ? rc : quantd_run(quantd);
    int status = rc != 0 ? complain(rc) : EXIT_SUCCESS;
    quantd_close(quantd);
    config_deinit(&config);
    int failed = restart_now();
    if (failed != 0) {
        log_error("cannot restart", LOG_S("reason", strerror(failed)));
        return EXIT_FAILURE;
    }
    return status;
}
