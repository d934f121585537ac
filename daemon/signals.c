/* What each signal does: SIGTERM, SIGINT and SIGXCPU shut the daemon down (quantd.c). SIGQUIT, SIGABRT and SIGSEGV have
 * their default action, which dumps core. SIGHUP reads the certificate of TLS again, where there is one. Without it
 * SIGHUP, and always SIGUSR1, SIGUSR2, SIGIO, SIGPWR and SIGSTKFLT are logged and ignored: the log goes to standard
 * error, so there is no file to reopen, and options are read at startup only. SIGPIPE and
 * SIGXFSZ are ignored, because the write that fails returns an error; so is SIGALRM, except during a shutdown.
 *
 * Ignored signals stay ignored across exec, so a restart in place has no moment at which one of them kills. */

#include "daemon/signals.h"

#include "base/log.h"

#include <signal.h>
#include <string.h>

static const int logged[SIGNALS_LOGGED] = {SIGHUP, SIGUSR1, SIGUSR2, SIGIO, SIGPWR, SIGSTKFLT};
static const int ignored[] = {SIGPIPE, SIGXFSZ, SIGALRM};

void signals_shield(void)
{
    for (size_t i = 0; i < SIGNALS_LOGGED; i++) {
        (void)signal(logged[i], SIG_IGN);
    }
    for (size_t i = 0; i < sizeof(ignored) / sizeof(ignored[0]); i++) {
        (void)signal(ignored[i], SIG_IGN);
    }
    (void)signal(SIGCHLD, SIG_DFL); /* whoever started the daemon may ignore it, and then no process's end is known */
}

const char *signals_name(int number)
{
    static const struct {
        int number;
        const char *name;
    } names[] = {{SIGTERM, "SIGTERM"}, {SIGINT, "SIGINT"},   {SIGXCPU, "SIGXCPU"},
                 {SIGHUP, "SIGHUP"},   {SIGUSR1, "SIGUSR1"}, {SIGUSR2, "SIGUSR2"},
                 {SIGIO, "SIGIO"},     {SIGPWR, "SIGPWR"},   {SIGSTKFLT, "SIGSTKFLT"}};

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (names[i].number == number) {
            return names[i].name;
        }
    }
    return "a signal";
}

static void on_ignored(uv_signal_t *handle, int number)
{
    const struct signals *signals = handle->data;

    if (number == SIGHUP && signals->hang_up != NULL) {
        signals->hang_up(signals->data);
        return;
    }
    if (number == SIGHUP) {
        log_info(
            "signal ignored", LOG_S("signal", signals_name(number)),
            LOG_S("reason",
                  "the log goes to standard error and options are read at startup; restart the daemon to change them"));
        return;
    }
    log_warn("signal ignored", LOG_S("signal", signals_name(number)));
}

int signals_watch(uv_loop_t *loop, struct signals *signals)
{
    int status = 0;

    for (size_t i = 0; i < SIGNALS_LOGGED && status == 0; i++) {
        status = uv_signal_init(loop, &signals->handles[i]);
        signals->handles[i].data = signals;
        status = status != 0 ? status : uv_signal_start(&signals->handles[i], on_ignored, logged[i]);
    }
    return status;
}
