/* Restart by exec.
 *
 * The listening socket is passed on as service managers pass theirs (LISTEN_FDS, LISTEN_PID): the kernel queues
 * connections while nothing accepts them, so that no client is refused and the port stays bound. Every other descriptor
 * is closed, including those of libraries and drivers, which may lack the close-on-exec flag.
 *
 * Everything that needs memory is prepared in advance, because the alarm's handler may have to do the rest. */

#include "daemon/restart.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FIRST_INHERITED 3 /* by sd_listen_fds' convention */

static struct {
    char path[4096];
    char **argv;
    char **environment;
    char pid[32];
    int socket;
    volatile sig_atomic_t prepared;
} image = {.socket = -1};

void restart_remember(char **argv)
{
    ssize_t length = readlink("/proc/self/exe", image.path, sizeof(image.path) - 1);

    image.path[length > 0 ? length : 0] = '\0';
    image.argv = argv;
}

int restart_prepare(int socket)
{
    size_t count = 0, used = 0;

    while (environ[count] != NULL) {
        count++;
    }
    AUTO_CLOSE int copy = fcntl(socket, F_DUPFD_CLOEXEC, FIRST_INHERITED + 1);
    if (copy < 0) {
        return err_raise_errno(errno, "cannot duplicate the listening socket");
    }
    char **environment;
    TRY(mem_array(&environment, count + 3));
    for (size_t i = 0; i < count; i++) {
        if (strncmp(environ[i], "LISTEN_", strlen("LISTEN_")) != 0) {
            environment[used++] = environ[i];
        }
    }
    (void)snprintf(image.pid, sizeof(image.pid), "LISTEN_PID=%ld", (long)getpid());
    environment[used++] = image.pid;
    environment[used] = "LISTEN_FDS=1";
    image.environment = environment;
    image.socket = cleanup_move_fd(&copy);
    image.prepared = 1;
    return 0;
}

void restart_forget(void)
{
    if (image.prepared) {
        image.prepared = 0;
        close(image.socket);
        free(image.environment);
    }
}

int restart_now(void)
{
    sigset_t none;

    if (!image.prepared) {
        return 0;
    }
    alarm(0);
    (void)sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL); /* the mask of a signal handler would survive exec */
    if (dup2(image.socket, FIRST_INHERITED) < 0) {
        return errno;
    }
    (void)close_range(FIRST_INHERITED + 1, ~0U, CLOSE_RANGE_CLOEXEC);
    if (image.path[0] != '\0') { /* the file that has this name now: possibly an upgraded one */
        (void)execve(image.path, image.argv, image.environment);
    }
    (void)execve("/proc/self/exe", image.argv, image.environment);
    return errno;
}
