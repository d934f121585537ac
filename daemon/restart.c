/* Becoming a fresh process by exec.
 *
 * The listening socket goes along as service managers pass theirs (LISTEN_FDS, LISTEN_PID): the kernel keeps queueing
 * connections while nobody accepts them, so clients see no refusal and the port stays. Everything else is closed:
 * descriptors of libraries and drivers, too, which may not be marked for it.
 *
 * All that needs memory is made beforehand, since the shutdown's alarm may have to do the rest in its handler. */

#include "daemon/restart.h"

#include "base/err.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SOCKET_AT 3 /* by convention */

static struct {
    char path[4096];
    char **argv;
    char **environment;
    char pid[32];
    int socket;
    volatile sig_atomic_t due;
} image = {.socket = -1};

void restart_remember(char **argv)
{
    ssize_t length = readlink("/proc/self/exe", image.path, sizeof(image.path) - 1);

    image.path[length > 0 ? length : 0] = '\0';
    image.argv = argv;
}

int restart_prepare(int socket)
{
    size_t count = 0, kept = 0;

    while (environ[count] != NULL) {
        count++;
    }
    int copy = fcntl(socket, F_DUPFD_CLOEXEC, SOCKET_AT + 1);
    if (copy < 0) {
        return err_raise_errno(errno, "cannot keep the listening socket");
    }
    char **environment = calloc(count + 3, sizeof(*environment));
    if (environment == NULL) {
        close(copy);
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a restart");
    }
    for (size_t i = 0; i < count; i++) {
        if (strncmp(environ[i], "LISTEN_", strlen("LISTEN_")) != 0) {
            environment[kept++] = environ[i];
        }
    }
    (void)snprintf(image.pid, sizeof(image.pid), "LISTEN_PID=%ld", (long)getpid());
    environment[kept++] = image.pid;
    environment[kept] = "LISTEN_FDS=1";
    image.environment = environment;
    image.socket = copy;
    image.due = 1;
    return 0;
}

void restart_forget(void)
{
    if (image.due) {
        image.due = 0;
        close(image.socket);
        free(image.environment);
    }
}

int restart_now(void)
{
    sigset_t none;

    if (!image.due) {
        return 0;
    }
    alarm(0);
    (void)sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL); /* a mask outlives exec, and a handler has one */
    if (dup2(image.socket, SOCKET_AT) < 0) {
        return errno;
    }
    (void)close_range(SOCKET_AT + 1, ~0U, CLOSE_RANGE_CLOEXEC);
    if (image.path[0] != '\0') { /* the file that has this name now, as any other restart would take it */
        (void)execve(image.path, image.argv, image.environment);
    }
    (void)execve("/proc/self/exe", image.argv, image.environment);
    return errno;
}
