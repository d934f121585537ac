/* Hostile bytes on the wire. Each must end in a 4xx or 5xx and a closed connection, or in a closed connection, and what
 * stands after it must never be run as a request: every one of them smuggles a request that would create a model. */

#include "rig.h"

#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define SMUGGLED                                                                                                       \
    "POST /v1/models HTTP/1.1\r\nHost: localhost\r\n" JSON_TYPE "X-Request-Id: smuggled\r\nContent-Length: 27\r\n\r\n" \
    "{\"name\":\"a\",\"uri\":\"file:a\"}"
#define BEGIN "POST /v1/quantization/jobs HTTP/1.1\r\nHost: localhost\r\n" JSON_TYPE
#define GET_ "GET /livez HTTP/1.1\r\nHost: localhost\r\n"

struct attack {
    const char *bytes;
    size_t size;
};

#define ATTACK(text)                             \
    {                                            \
        text SMUGGLED, sizeof(text SMUGGLED) - 1 \
    }

static const struct attack attacks[] = {
    ATTACK(BEGIN "Content-Length: 0\r\nContent-Length: 200\r\n\r\n"),
    ATTACK(BEGIN "Content-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    ATTACK(BEGIN "Transfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n0\r\n\r\n"),
    ATTACK(BEGIN "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n"),
    ATTACK(BEGIN "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    ATTACK(BEGIN "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
    ATTACK(BEGIN "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    ATTACK(BEGIN "Transfer-Encoding:\vchunked\r\n\r\n0\r\n\r\n"),
    ATTACK(BEGIN "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n"),
    ATTACK(BEGIN "Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n"),
    ATTACK(BEGIN "Content-Length : 0\r\n\r\n"),
    ATTACK(BEGIN "Content-Length:\r\n 0\r\n\r\n"),
    ATTACK(BEGIN "Content-Length: 0\r\n 5\r\n\r\n"),
    ATTACK(BEGIN "Content-Length: +0\r\n\r\n"),
    ATTACK(BEGIN "Content-Length: -1\r\n\r\n"),
    ATTACK(BEGIN "Content-Length: 0x0\r\n\r\n"),
    ATTACK(BEGIN "Content-Length: 0,0\r\n\r\n"),
    ATTACK(BEGIN "Content-Length: 99999999999999999999\r\n\r\n"),
    ATTACK(BEGIN "Content-Length:\r\n\r\n"),
    ATTACK(BEGIN "\r\n"),
    ATTACK("POST /v1/quantization/jobs HTTP/1.0\r\nHost: localhost\r\n" JSON_TYPE
           "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    ATTACK("POST /v1/quantization/jobs HTTP/1.1\r\n" JSON_TYPE "Content-Length: 0\r\n\r\n"),
    ATTACK("GET /livez HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n"),
    ATTACK("GET /livez HTTP/1.1\r\nHost: evil.example\r\n\r\n"),
    ATTACK("GET /livez HTTP/1.1\r\nHost: localhost, evil.example\r\n\r\n"),
    ATTACK("GET /livez HTTP/1.1\r\nHost:\r\n\r\n"),
    ATTACK(GET_ "Content-Length: 5\r\n\r\n"),
    ATTACK(GET_ "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    ATTACK(GET_ "X\rY: z\r\n\r\n"),
    ATTACK(GET_ "X: a\rb\r\n\r\n"),
    ATTACK(GET_ "X: a\x01\r\n\r\n"),
    ATTACK(GET_ "X(): a\r\n\r\n"),
    ATTACK(GET_ "Content-Length:\r\n 200\r\n\r\n"),
    ATTACK(GET_ "Content-Length: \r\n\t200\r\n\r\n"),
    ATTACK(GET_ "Transfer-Encoding:\r\n chunked\r\n\r\n"),
    ATTACK(GET_ "X: y\r\n Content-Length: 200\r\n\r\n"),
    ATTACK(GET_ "no colon\r\n\r\n"),
    ATTACK("GET /livez HTTP/1.1\r\n Host: localhost\r\n\r\n"),
    ATTACK("GET /livez HTTP/2.0\r\nHost: localhost\r\n\r\n"),
    ATTACK("GET /livez HTTP/1.2\r\nHost: localhost\r\n\r\n"),
    ATTACK("GET /livez HTTP/0.9\r\nHost: localhost\r\n\r\n"),
    ATTACK("GET /livez\r\n\r\n"),
    ATTACK("GET /li vez HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    ATTACK("GET http://localhost/livez HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    ATTACK("CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    ATTACK("OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    ATTACK("GET /livez#x HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    ATTACK("GET /\x80 HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    ATTACK(BEGIN "Content-Length: 5\r\nExpect: a-miracle\r\n\r\n"),
    ATTACK(BEGIN "Transfer-Encoding: chunked\r\n\r\nzz\r\n\r\n"),
    ATTACK(BEGIN "Transfer-Encoding: chunked\r\n\r\n0x2\r\n{}\r\n0\r\n\r\n"),
    ATTACK(BEGIN "Transfer-Encoding: chunked\r\n\r\n-2\r\n{}\r\n0\r\n\r\n"),
    ATTACK(BEGIN "Transfer-Encoding: chunked\r\n\r\n2\r\n{}xx0\r\n\r\n"),
    ATTACK(BEGIN "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n{}\r\n0\r\n\r\n"),
    ATTACK("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"),
};

/* Refused, though the connection may live on: the request's end is not in doubt. */
static const char *const refused[] = {
    "/a/../livez", "/a/%2e%2e/livez", "/livez%00",    "/livez%2f", "/a%5cb",   "/a%25b",    "/a%",
    "/a%zz",       "/a%1f",           "/livez?a=%00", "/livez?%",  "/./livez", "/livez/%2e"};

/* Read until the end; the first status seen. Nothing in it may be a success. */
static int read_all(int fd, size_t attack, bool *closed)
{
    char text[65536];
    size_t used = 0;
    struct pollfd wait = {fd, POLLIN, 0};
    *closed = false;
    while (used < sizeof(text) - 1 && poll(&wait, 1, 3000) > 0) {
        ssize_t got = recv(fd, text + used, sizeof(text) - 1 - used, 0);
        if (got <= 0) {
            *closed = true;
            break;
        }
        used += (size_t)got;
    }
    text[used] = '\0';
    ck_assert_msg(strstr(text, "HTTP/1.1 2") == NULL, "attack %zu: %s", attack, text);
    ck_assert_ptr_null(strstr(text, "X-Request-Id: smuggled"));
    return used > 12 ? atoi(text + 9) : 0;
}

START_TEST(test_hostile_attacks)
{
    struct rig rig;
    rig_open(&rig);
    for (size_t i = 0; i < sizeof(attacks) / sizeof(attacks[0]); i++) {
        int fd = rig_connect(&rig);
        bool closed;
        rig_send(fd, attacks[i].bytes, attacks[i].size);
        int status = read_all(fd, i, &closed);
        close(fd);
        ck_assert_msg(closed, "attack %zu: the connection stays open after %d", i, status);
        ck_assert_msg(status == 0 || status >= 400, "attack %zu: %d", i, status);
        ck_assert_msg(atomic_load(&rig.service.models) == 0, "attack %zu: the smuggled request ran", i);
    }
    struct answer *answer = rig_call(&rig, "GET", "/livez", "", NULL);
    check_status(answer, 200);
    answer_free(answer);
    rig_close(&rig);
}
END_TEST

START_TEST(test_hostile_targets)
{
    struct rig rig;
    rig_open(&rig);
    for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++) {
        check_problem(rig_call(&rig, "GET", refused[i], "", NULL), 400, "bad_request");
    }
    rig_close(&rig);
}
END_TEST

/* One byte at a time, and the largest that passes. */
START_TEST(test_hostile_pieces)
{
    static const char text[] = BEGIN "Transfer-Encoding: chunked\r\n\r\n"
                                     "1\r\n{\r\n1;x=\"y\"\r\n}\r\n0\r\nTrailer: x\r\n\r\n" GET_ "\r\n";
    struct rig rig;
    rig_open(&rig);
    int fd = rig_connect(&rig);
    for (size_t i = 0; i < sizeof(text) - 1; i++) {
        rig_send(fd, text + i, 1);
        if (i % 16 == 0) {
            rig_wait_turn(&rig);
        }
    }
    check_problem(rig_read(fd, false), 400, "missing_parameter");
    struct answer *answer = rig_read(fd, false);
    check_status(answer, 200);
    answer_free(answer);
    close(fd);

    fd = rig_connect(&rig);
    rig_print(fd, GET_);
    for (int i = 0; i < 7; i++) {
        rig_print(fd, "X-%d: %01000d\r\n", i, i);
    }
    rig_print(fd, "\r\n");
    answer = rig_read(fd, false);
    check_status(answer, 200);
    answer_free(answer);
    rig_print(fd, GET_);
    for (int i = 0; i < 9; i++) {
        rig_print(fd, "X-%d: %01000d\r\n", i, i);
    }
    rig_print(fd, "\r\n");
    answer = rig_read(fd, false);
    ck_assert_ptr_nonnull(answer);
    ck_assert(answer->closes);
    check_status(answer, 431);
    answer_free(answer);
    close(fd);
    rig_close(&rig);
}
END_TEST

/* The server's end of a client's connection; -1: there is none. */
static int server_end(int client)
{
    struct sockaddr_storage ours, theirs;
    socklen_t size = sizeof(ours);
    ck_assert_int_eq(getsockname(client, (struct sockaddr *)&ours, &size), 0);
    for (int fd = 3; fd < 256; fd++) {
        socklen_t length = sizeof(theirs);
        if (getpeername(fd, (struct sockaddr *)&theirs, &length) == 0 && length == size &&
            memcmp(&ours, &theirs, size) == 0) {
            return fd;
        }
    }
    return -1;
}

/* A process that is being started has copies of all descriptors for a moment, and what happens on a socket that the
 * server has closed in that moment is still told to who watched it. */
START_TEST(test_hostile_copies)
{
    struct rig rig;
    rig_open(&rig);
    int client = rig_connect(&rig);
    rig_print(client, "GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    int server;
    RIG_WAIT((server = server_end(client)) >= 0);
    int copy = fcntl(server, F_DUPFD_CLOEXEC, 0);
    ck_assert_int_ge(copy, 0);
    answer_free(rig_read(client, false));
    RIG_WAIT(fcntl(server, F_GETFD) < 0); /* it lingers first */
    close(client);                        /* which the copy hears */
    for (int i = 0; i < 3; i++) {
        struct answer *answer = rig_call(&rig, "GET", "/livez", "", NULL);
        check_status(answer, 200);
        answer_free(answer);
    }
    close(copy);
    rig_close(&rig);
}
END_TEST

UNIT_MAIN("hostile", test_hostile_attacks, test_hostile_targets, test_hostile_pieces, test_hostile_copies)
