/* Socket activation: LISTEN_PID names the process that is meant, LISTEN_FDS the number of descriptors, starting at 3.
 * The variables are for this process only and are removed from the environment. */

#include "daemon/listen.h"

#include "base/err.h"
#include "base/mem.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define FIRST_INHERITED 3

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

/* Replace the configured address by that of the socket. */
static int use_address_of(int fd, struct config *config)
{
    struct sockaddr_storage bound = {0};
    socklen_t size = sizeof(bound);
    char host[INET6_ADDRSTRLEN];
    const struct sockaddr_in *four = (const struct sockaddr_in *)&bound;
    const struct sockaddr_in6 *six = (const struct sockaddr_in6 *)&bound;

    if (getsockname(fd, (struct sockaddr *)&bound, &size) != 0) {
        return err_raise_errno(errno, "cannot get the address of the inherited socket");
    }
    bool is_six = bound.ss_family == AF_INET6;
    if ((!is_six && bound.ss_family != AF_INET) ||
        inet_ntop(bound.ss_family, is_six ? (const void *)&six->sin6_addr : (const void *)&four->sin_addr, host,
                  sizeof(host)) == NULL) {
        return err_raise(ERR_CONFIG, "the inherited socket is not a TCP socket");
    }
    char *copy;
    TRY(mem_strdup(&copy, host));
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
    int flags = fcntl(FIRST_INHERITED, F_GETFL);
    if (count != 1 || flags < 0 || !listens(FIRST_INHERITED)) {
        return err_raise(ERR_CONFIG, "LISTEN_FDS must pass exactly one listening TCP socket, as descriptor %d",
                         FIRST_INHERITED);
    }
    if (fcntl(FIRST_INHERITED, F_SETFD, FD_CLOEXEC) != 0 || fcntl(FIRST_INHERITED, F_SETFL, flags | O_NONBLOCK) != 0) {
        return err_raise_errno(errno, "cannot use the inherited socket");
    }
    TRY(use_address_of(FIRST_INHERITED, config));
    *socket = FIRST_INHERITED;
    return 0;
}
