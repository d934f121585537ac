/* The protocol is a datagram of KEY=VALUE lines to a Unix socket; a name that begins with '@' is in the abstract
 * namespace. Too little to depend on a library for. Best effort: a lost notification is the manager's timeout and
 * not a failure of the daemon. */

#include "daemon/notify.h"

#include "base/ids.h"

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

void notify_send(const char *state)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const char *path = getenv("NOTIFY_SOCKET");

    size_t size = path != NULL ? strlen(path) : 0;
    if (size < 2 || size >= sizeof(address.sun_path) || (path[0] != '/' && path[0] != '@')) {
        return;
    }
    memcpy(address.sun_path, path, size);
    if (path[0] == '@') {
        address.sun_path[0] = '\0';
    }
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        return;
    }
    (void)sendto(fd, state, strlen(state), MSG_NOSIGNAL, (const struct sockaddr *)&address,
                 (socklen_t)(offsetof(struct sockaddr_un, sun_path) + size));
    close(fd);
}

void notify_reloading(void)
{
    char state[80];

    snprintf(state, sizeof(state), "RELOADING=1\nMONOTONIC_USEC=%lld", (long long)clock_monotonic_ms() * 1000);
    notify_send(state);
}

static void notify_alive(uv_timer_t *timer)
{
    (void)timer;
    notify_send("WATCHDOG=1");
}

void notify_watchdog(uv_loop_t *loop, uv_timer_t *timer)
{
    const char *interval = getenv("WATCHDOG_USEC"), *pid = getenv("WATCHDOG_PID");
    unsigned long long half_ms = interval != NULL ? strtoull(interval, NULL, 10) / 2000 : 0;

    if (half_ms == 0 || (pid != NULL && strtoll(pid, NULL, 10) != (long long)getpid())) {
        return;
    }
    if (uv_timer_init(loop, timer) == 0) {
        (void)uv_timer_start(timer, notify_alive, 0, half_ms);
    }
}
