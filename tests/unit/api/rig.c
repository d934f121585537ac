/* See rig.h. The reader shares no code with the server, so that both cannot have the same fault. */

#include "rig.h"

#include "base/log.h"

#include <arpa/inet.h>
#include <ftw.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

void rig_pause(void)
{
    const struct timespec time = {0, 1000000L};
    (void)nanosleep(&time, NULL);
}

void rig_wait_text(int fd, const char *text)
{
    char seen[16384];
    ssize_t size = 0;
    RIG_WAIT((size = recv(fd, seen, sizeof(seen), MSG_PEEK | MSG_DONTWAIT)) == 0 ||
             (size > 0 && memmem(seen, (size_t)size, text, strlen(text)) != NULL));
    ck_assert_msg(size > 0, "the connection ended before \"%s\"", text);
}

void rig_wait_turn(const struct rig *rig)
{
    struct answer *answer = rig_call(rig, "GET", "/livez", "", NULL);
    check_status(answer, 200);
    answer_free(answer);
}

static void wake(void *data)
{
    const struct rig *rig = data;
    uint64_t one = 1;
    ck_assert_int_eq(write(rig->wake_fd, &one, sizeof(one)), sizeof(one));
}

static void *loop(void *data)
{
    struct rig *rig = data;
    bool drained = false;
    while (!atomic_load(&rig->stop)) {
        struct pollfd fds[2] = {{api_fd(rig->api), POLLIN, 0}, {rig->wake_fd, POLLIN, 0}};
        int64_t timeout = api_timeout_ms(rig->api);
        (void)poll(fds, 2, timeout < 0 || timeout > 1000 ? 1000 : (int)timeout);
        if ((fds[1].revents & POLLIN) != 0) {
            uint64_t count;
            ck_assert_int_eq(read(rig->wake_fd, &count, sizeof(count)), sizeof(count));
        }
        if (atomic_load(&rig->drain) && !drained) {
            api_drain(rig->api);
            drained = true;
        }
        api_run(rig->api);
    }
    return NULL;
}

static void on_event(void *data, const char *job)
{
    struct rig *rig = data;
    api_job_event(rig->api, job);
}

void rig_open(struct rig *rig)
{
    memset(rig, 0, sizeof(*rig));
    log_set_level(LOG_ERROR);
    (void)snprintf(rig->folder, sizeof(rig->folder), P_tmpdir "/quantd-api-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(rig->folder));
    const struct store_config store = {.data_dir = rig->folder, .state = "sqlite", .blobs = "fs"};
    ck_assert_rc_ok(store_open(&store, &rig->store));
    rig->service.store = rig->store;
    rig->wake_fd = eventfd(0, EFD_CLOEXEC);
    const struct api_config config = {.service = &rig->service, .host = "127.0.0.1", .wake = wake, .wake_data = rig};
    ck_assert_rc_ok(api_open(&config, &rig->api));
    store_on_event(rig->store, on_event, rig);
    ck_assert_int_eq(pthread_create(&rig->loop, NULL, loop, rig), 0);
}

static int remove_one(const char *path, const struct stat *info, int type, struct FTW *walk)
{
    return remove(path);
}

void rig_cut(struct rig *rig)
{
    atomic_store(&rig->stop, true);
    wake(rig);
    pthread_join(rig->loop, NULL);
    api_close(rig->api);
    store_close(rig->store);
    close(rig->wake_fd);
    (void)nftw(rig->folder, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

void rig_close(struct rig *rig)
{
    RIG_WAIT(api_idle(rig->api));
    rig_cut(rig);
}

int rig_connect(const struct rig *rig)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const struct sockaddr_in to = {
        .sin_family = AF_INET, .sin_port = htons(api_port(rig->api)), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    ck_assert_int_eq(connect(fd, (const struct sockaddr *)&to, sizeof(to)), 0);
    return fd;
}

void rig_send(int fd, const char *data, size_t size)
{
    while (size > 0) {
        ssize_t sent = send(fd, data, size, MSG_NOSIGNAL);
        if (sent <= 0) {
            return; /* the test looks at the answer */
        }
        data += sent;
        size -= (size_t)sent;
    }
}

void rig_print(int fd, const char *format, ...)
{
    char *text = NULL;
    va_list arguments;
    va_start(arguments, format);
    int size = vasprintf(&text, format, arguments);
    va_end(arguments);
    ck_assert_int_ge(size, 0);
    rig_send(fd, text, (size_t)size);
    free(text);
}

/* 1 byte, 0 at the end of the connection or after the time. */
static bool get(int fd, char *byte)
{
    struct pollfd wait = {fd, POLLIN, 0};
    if (poll(&wait, 1, RIG_WAIT_MS) <= 0) {
        return false;
    }
    return recv(fd, byte, 1, 0) == 1;
}

static bool get_block(int fd, char *data, size_t size)
{
    while (size > 0) {
        struct pollfd wait = {fd, POLLIN, 0};
        ssize_t got = poll(&wait, 1, RIG_WAIT_MS) > 0 ? recv(fd, data, size, 0) : -1;
        if (got <= 0) {
            return false;
        }
        data += got;
        size -= (size_t)got;
    }
    return true;
}

static void append(struct answer *answer, int fd, size_t size)
{
    answer->body = realloc(answer->body, answer->size + size + 1);
    ck_assert_msg(get_block(fd, answer->body + answer->size, size), "the body ends early");
    answer->size += size;
    answer->body[answer->size] = '\0';
}

static char *get_line(int fd)
{
    char line[512];
    size_t used = 0;
    while (used < sizeof(line) - 1 && get(fd, &line[used])) {
        if (line[used++] == '\n') {
            break;
        }
    }
    line[used] = '\0';
    return strdup(line);
}

static void read_chunks(struct answer *answer, int fd)
{
    for (;;) {
        char *line = get_line(fd);
        size_t size = strtoul(line, NULL, 16);
        ck_assert_msg(line[0] != '\0', "a chunked body ends early");
        free(line);
        if (size > 0) {
            append(answer, fd, size);
        }
        free(get_line(fd));
        if (size == 0) {
            return;
        }
    }
}

static bool read_head(struct answer *answer, int fd)
{
    size_t used = 0, capacity = 16384;
    answer->head = calloc(1, capacity);
    while (used < capacity - 1 && get(fd, &answer->head[used])) {
        used++;
        if (used >= 4 && memcmp(answer->head + used - 4, "\r\n\r\n", 4) == 0) {
            return true;
        }
    }
    return false;
}

struct answer *rig_read(int fd, bool head)
{
    struct answer *answer = calloc(1, sizeof(*answer));
    answer->body = calloc(1, 1);
    if (!read_head(answer, fd)) {
        answer_free(answer);
        return NULL;
    }
    answer->status = atoi(answer->head + strlen("HTTP/1.1 "));
    char *connection = answer_header(answer, "Connection");
    char *length = answer_header(answer, "Content-Length");
    char *coding = answer_header(answer, "Transfer-Encoding");
    answer->closes = connection != NULL && strcasecmp(connection, "close") == 0;
    if (!head && coding != NULL) {
        read_chunks(answer, fd);
    } else if (!head && length != NULL && answer->status != 304) {
        append(answer, fd, strtoul(length, NULL, 10));
    }
    free(connection);
    free(length);
    free(coding);
    return answer;
}

char *answer_header(const struct answer *answer, const char *name)
{
    size_t size = strlen(name);
    for (const char *line = strstr(answer->head, "\r\n"); line != NULL; line = strstr(line, "\r\n")) {
        line += 2;
        if (strncasecmp(line, name, size) == 0 && line[size] == ':') {
            const char *value = line + size + 1 + strspn(line + size + 1, " ");
            return strndup(value, strcspn(value, "\r"));
        }
    }
    return NULL;
}

json_t *answer_json(const struct answer *answer)
{
    json_error_t error;
    json_t *value = json_loadb(answer->body, answer->size, 0, &error);
    ck_assert_msg(value != NULL, "no JSON (%s): %s", error.text, answer->body);
    return value;
}

void answer_free(struct answer *answer)
{
    if (answer != NULL) {
        free(answer->head);
        free(answer->body);
        free(answer);
    }
}

struct answer *rig_call(const struct rig *rig, const char *method, const char *target, const char *headers,
                        const char *body)
{
    int fd = rig_connect(rig);
    rig_print(fd, "%s %s HTTP/1.1\r\nHost: localhost\r\n%s", method, target, headers);
    if (body != NULL) {
        rig_print(fd, "Content-Length: %zu\r\n", strlen(body));
    }
    rig_print(fd, "\r\n%s", body != NULL ? body : "");
    struct answer *answer = rig_read(fd, strcmp(method, "HEAD") == 0);
    ck_assert_msg(answer != NULL, "no answer to %s %s", method, target);
    close(fd);
    return answer;
}

bool rig_closed(int fd, int ms)
{
    struct pollfd wait = {fd, POLLIN, 0};
    char byte;
    return poll(&wait, 1, ms) > 0 && recv(fd, &byte, 1, 0) <= 0;
}

void check_status(const struct answer *answer, int status)
{
    ck_assert_msg(answer->status == status, "%d, not %d: %s%s", answer->status, status, answer->head, answer->body);
}

void check_problem(struct answer *answer, int status, const char *code)
{
    check_status(answer, status);
    char *type = answer_header(answer, "Content-Type");
    ck_assert_str_eq(type, "application/problem+json");
    json_t *problem = answer_json(answer);
    char *id = answer_header(answer, "X-Request-Id");
    ck_assert_str_eq(json_string_value(json_object_get(problem, "code")), code);
    ck_assert_int_eq(json_integer_value(json_object_get(problem, "status")), status);
    ck_assert_str_eq(json_string_value(json_object_get(problem, "request_id")), id);
    ck_assert(json_is_array(json_object_get(problem, "errors")));
    json_decref(problem);
    free(id);
    free(type);
    answer_free(answer);
}

void check_header(const struct answer *answer, const char *name, const char *value)
{
    char *is = answer_header(answer, name);
    ck_assert_msg(is != NULL, "no %s in %s", name, answer->head);
    ck_assert_str_eq(is, value);
    free(is);
}
