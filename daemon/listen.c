/* Socket activation: LISTEN_PID names the process that is meant, LISTEN_FDS says how many descriptors begin at 3. The
 * words are for this process alone and are taken out of the environment. */

#include "daemon/listen.h"

#include "base/err.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define SOCKET_AT 3

static long number_of(const char *name)
{
    const char *text = getenv(name);
    char *end = NULL;

    long number = text != NULL && text[0] != '\0' ? strtol(text, &end, 10) : -1;
    return end != NULL && *end == '\0' ? number : -1;
}

static bool listens(int fd)
{
    int type = 0, accepts = 0;
    socklen_t size = sizeof(int);

    return getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) == 0 && type == SOCK_STREAM &&
           getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &accepts, &size) == 0 && accepts != 0;
}

/* The socket's address as the configuration would have it. */
static int take_address(int fd, struct config *config)
{
    struct sockaddr_storage bound = {0};
    socklen_t size = sizeof(bound);
    char host[INET6_ADDRSTRLEN];
    const struct sockaddr_in *four = (const struct sockaddr_in *)&bound;
    const struct sockaddr_in6 *six = (const struct sockaddr_in6 *)&bound;

    if (getsockname(fd, (struct sockaddr *)&bound, &size) != 0) {
        return err_raise_errno(errno, "cannot ask the inherited socket for its address");
    }
    bool is_six = bound.ss_family == AF_INET6;
    if ((!is_six && bound.ss_family != AF_INET) ||
        inet_ntop(bound.ss_family, is_six ? (const void *)&six->sin6_addr : (const void *)&four->sin_addr, host,
                  sizeof(host)) == NULL) {
        return err_raise(ERR_CONFIG, "the inherited socket is not one of TCP");
    }
    char *copy = strdup(host);
    if (copy == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for an address");
    }
    free(config->listen_host);
    config->listen_host = copy;
    config->listen_port = ntohs(is_six ? six->sin6_port : four->sin_port);
    return config_check_address(config);
}

int listen_inherited(struct config *config, int *socket)
{
    bool ours = number_of("LISTEN_PID") == (long)getpid();
    long count = ours ? number_of("LISTEN_FDS") : 0;

    (void)unsetenv("LISTEN_PID");
    (void)unsetenv("LISTEN_FDS");
    (void)unsetenv("LISTEN_FDNAMES");
    if (count <= 0) {
        *socket = -1;
        return 0;
    }
    int flags = fcntl(SOCKET_AT, F_GETFL);
    if (count != 1 || flags < 0 || !listens(SOCKET_AT)) {
        return err_raise(ERR_CONFIG, "LISTEN_FDS must pass one TCP socket that listens, as descriptor %d", SOCKET_AT);
    }
    if (fcntl(SOCKET_AT, F_SETFD, FD_CLOEXEC) != 0 || fcntl(SOCKET_AT, F_SETFL, flags | O_NONBLOCK) != 0) {
        return err_raise_errno(errno, "cannot use the inherited socket");
    }
    int rc = take_address(SOCKET_AT, config);
    if (rc == 0) {
        *socket = SOCKET_AT;
    }
    return rc;
}
