/* The server where time passes: uploads with backpressure, event streams, long polls, drain, and clients that are slow
 * or leave. */

#include "rig.h"

#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static int upload_start(const struct rig *rig, const char *job, const char *query)
{
    int fd = rig_connect(rig);
    rig_print(fd,
              "POST /v1/quantization/jobs/%s/calibration%s HTTP/1.1\r\nHost: localhost\r\n" RECORDS_TYPE
              "Transfer-Encoding: chunked\r\n\r\n",
              job, query);
    return fd;
}

static void send_records(int fd, size_t count)
{
    static const char record[] = "{\"text\":\"twelve thousand eight hundred and thirty-two bottles of blue ink\"}\n";
    size_t size = count * (sizeof(record) - 1);
    char *data = malloc(size);
    for (size_t i = 0; i < count; i++) {
        memcpy(data + i * (sizeof(record) - 1), record, sizeof(record) - 1);
    }
    rig_print(fd, "%zx\r\n", size);
    rig_send(fd, data, size);
    rig_print(fd, "\r\n");
    free(data);
}

START_TEST(test_server_calibration)
{
    struct rig rig;
    char job[ID_SIZE];
    rig_open(&rig);
    fake_service_job(&rig.service, STATUS_AWAITING_CALIBRATION, job);
    int fd = upload_start(&rig, job, "?offset=0");
    send_records(fd, 3);
    rig_print(fd, "0\r\n\r\n");
    struct answer *answer = rig_read(fd, false);
    check_status(answer, 200);
    json_t *counts = answer_json(answer);
    ck_assert_int_eq(json_integer_value(json_object_get(counts, "next_offset")), 3);
    json_decref(counts);
    answer_free(answer);
    close(fd);
    fd = upload_start(&rig, job, "?offset=7");
    rig_print(fd, "0\r\n\r\n");
    answer = rig_read(fd, false);
    counts = answer_json(answer);
    ck_assert_int_eq(json_integer_value(json_object_get(counts, "next_offset")), 3);
    json_decref(counts);
    check_problem(answer, 409, "offset_mismatch");
    close(fd);
    rig_close(&rig);
}
END_TEST

/* A slow consumer: the client is held back, one request never holds more than its buffer, and nothing is lost. */
START_TEST(test_server_backpressure)
{
    struct rig rig;
    char job[ID_SIZE];
    rig_open(&rig);
    fake_service_job(&rig.service, STATUS_AWAITING_CALIBRATION, job);
    atomic_store(&rig.service.feed_delay_ms, 10);
    int fd = upload_start(&rig, job, "");
    for (int i = 0; i < 40; i++) {
        send_records(fd, 4000);
    }
    rig_print(fd, "0\r\n\r\n");
    struct answer *answer = rig_read(fd, false);
    check_status(answer, 200);
    json_t *counts = answer_json(answer);
    ck_assert_int_eq(json_integer_value(json_object_get(counts, "accepted")), 160000);
    ck_assert_int_eq(json_integer_value(json_object_get(counts, "tokens")), atomic_load(&rig.service.fed));
    json_decref(counts);
    answer_free(answer);
    ck_assert_int_le(atomic_load(&rig.service.largest), 256 << 10);
    close(fd);
    rig_close(&rig);
}
END_TEST

/* A live source: what it has sent reaches the service while the request goes on. */
START_TEST(test_server_slow_source)
{
    struct rig rig;
    char job[ID_SIZE];
    rig_open(&rig);
    fake_service_job(&rig.service, STATUS_AWAITING_CALIBRATION, job);
    int fd = upload_start(&rig, job, "");
    for (int i = 0; i < RIG_WAIT_MS && atomic_load(&rig.service.fed) == 0; i++) {
        send_records(fd, 1);
        rig_pause();
    }
    ck_assert_int_gt(atomic_load(&rig.service.fed), 0);
    rig_print(fd, "0\r\n\r\n");
    struct answer *answer = rig_read(fd, false);
    check_status(answer, 200);
    answer_free(answer);
    close(fd);
    rig_close(&rig);
}
END_TEST

START_TEST(test_server_upload_aborted)
{
    struct rig rig;
    char job[ID_SIZE];
    rig_open(&rig);
    fake_service_job(&rig.service, STATUS_AWAITING_CALIBRATION, job);
    atomic_store(&rig.service.feed_delay_ms, 50);
    for (int i = 0; i < 8; i++) {
        int fd = upload_start(&rig, job, "");
        send_records(fd, (size_t)i * 1000 + 1);
        if (i % 2 == 0) {
            const struct linger reset = {1, 0};
            setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
        }
        if (i > 3) { /* the others are gone before the service hears of them */
            RIG_WAIT(atomic_load(&rig.service.uploads) > 0);
            rig_wait_turn(&rig);
        }
        close(fd);
    }
    rig_close(&rig); /* waits until all are gone */
    ck_assert_int_eq(atomic_load(&rig.service.aborts), atomic_load(&rig.service.uploads));
    ck_assert_int_eq(atomic_load(&rig.service.ends), 0);
}
END_TEST

/* The upload dies in the middle: the client hears of it though its body has no end. */
START_TEST(test_server_upload_dies)
{
    struct rig rig;
    char job[ID_SIZE];
    rig_open(&rig);
    fake_service_job(&rig.service, STATUS_AWAITING_CALIBRATION, job);
    atomic_store(&rig.service.fail_after, 100000);
    int fd = upload_start(&rig, job, "");
    struct pollfd wait = {fd, POLLIN, 0};
    for (int i = 0; i < 1000 && poll(&wait, 1, 1) == 0; i++) {
        send_records(fd, 200);
    }
    struct answer *answer = rig_read(fd, false);
    ck_assert_ptr_nonnull(answer);
    ck_assert(answer->closes);
    check_problem(answer, 409, "job_state_conflict");
    close(fd);
    ck_assert_int_eq(atomic_load(&rig.service.aborts), 1);
    rig_close(&rig);
}
END_TEST

static void add_event(struct rig *rig, const char *job, int step)
{
    json_t *data = json_pack("{s:i}", "step", step);
    ck_assert_rc_ok(store_event_append(rig->store, job, "progress", data));
    json_decref(data);
}

static int open_events(const struct rig *rig, const char *job, const char *headers)
{
    int fd = rig_connect(rig);
    rig_print(fd, "GET /v1/quantization/jobs/%s/events HTTP/1.1\r\nHost: localhost\r\n%s\r\n", job, headers);
    return fd;
}

static void cancel(const struct rig *rig, const char *job)
{
    char target[128];
    (void)snprintf(target, sizeof(target), "/v1/quantization/jobs/%s/cancel", job);
    struct answer *answer = rig_call(rig, "POST", target, "", "");
    check_status(answer, 202);
    answer_free(answer);
}

START_TEST(test_server_events)
{
    struct rig rig;
    char job[ID_SIZE], target[160];
    rig_open(&rig);
    fake_service_job(&rig.service, STATUS_QUEUED, job);
    add_event(&rig, job, 1);
    int all = open_events(&rig, job, "Accept: text/event-stream\r\n");
    int later = open_events(&rig, job, "Accept: text/event-stream\r\nLast-Event-ID: 2\r\n");
    int lines = open_events(&rig, job, "Accept: application/x-ndjson\r\n");
    rig_wait_text(all, "id: 2\n");
    rig_wait_text(later, "retry: 3000\n");
    rig_wait_text(lines, "\"seq\":2,");
    add_event(&rig, job, 2);
    rig_wait_text(all, "id: 3\n");
    rig_wait_text(later, "id: 3\n");
    rig_wait_text(lines, "\"seq\":3,");
    cancel(&rig, job);
    struct answer *answer = rig_read(all, false); /* it ends with the job */
    check_status(answer, 200);
    check_header(answer, "Content-Type", "text/event-stream");
    check_header(answer, "Cache-Control", "no-store");
    ck_assert_int_eq(strncmp(answer->body, "retry: 3000\n\nid: 1\nevent: status\ndata: {", 38), 0);
    ck_assert_ptr_nonnull(strstr(answer->body, "\n\nid: 4\nevent: status\n"));
    ck_assert_ptr_null(strstr(answer->body, "id: 5"));
    answer_free(answer);
    answer = rig_read(later, false);
    ck_assert_int_eq(strncmp(answer->body, "retry: 3000\n\nid: 3\nevent: progress\n", 35), 0);
    answer_free(answer);
    answer = rig_read(lines, false);
    ck_assert_int_eq(strncmp(answer->body, "{\"object\":\"event\"", 17), 0);
    answer_free(answer);
    close(all);
    close(later);
    close(lines);

    (void)snprintf(target, sizeof(target), "/v1/quantization/jobs/%s/events?after=1&limit=2", job);
    answer = rig_call(&rig, "GET", target, "", NULL);
    json_t *list = answer_json(answer);
    ck_assert_int_eq(json_integer_value(json_object_get(list, "first_id")), 2);
    ck_assert_int_eq(json_integer_value(json_object_get(list, "last_id")), 3);
    ck_assert(json_is_true(json_object_get(list, "has_more")));
    json_decref(list);
    answer_free(answer);
    check_problem(rig_call(&rig, "GET", target, "Accept: text/html\r\n", NULL), 406, "not_acceptable");
    check_problem(rig_call(&rig, "GET", target, "Last-Event-ID: x\r\n", NULL), 400, "invalid_cursor");
    answer = rig_call(&rig, "HEAD", target, "Accept: text/event-stream\r\n", NULL);
    check_status(answer, 200);
    answer_free(answer);
    rig_close(&rig);
}
END_TEST

START_TEST(test_server_long_poll)
{
    struct rig rig;
    char job[ID_SIZE], target[128], condition[256];
    rig_open(&rig);
    fake_service_job(&rig.service, STATUS_QUEUED, job);
    (void)snprintf(target, sizeof(target), "/v1/quantization/jobs/%s", job);
    struct answer *answer = rig_call(&rig, "GET", target, "", NULL);
    check_header(answer, "Retry-After", "2");
    char *etag = answer_header(answer, "ETag");
    answer_free(answer);
    (void)snprintf(condition, sizeof(condition), "Prefer: wait=1\r\nIf-None-Match: %s\r\n", etag);
    int64_t start = clock_monotonic_ms();
    answer = rig_call(&rig, "GET", target, condition, NULL);
    ck_assert_int_ge(clock_monotonic_ms() - start, 900);
    check_status(answer, 304);
    check_header(answer, "Preference-Applied", "wait=1");
    answer_free(answer);
    free(etag);

    (void)snprintf(condition, sizeof(condition), "%s?wait_for=terminal", target);
    start = clock_monotonic_ms();
    answer = rig_call(&rig, "GET", condition, "Prefer: wait=1\r\nIf-None-Match: \"older\"\r\n", NULL);
    ck_assert_int_ge(clock_monotonic_ms() - start, 900); /* a change is not enough */
    check_status(answer, 200);
    answer_free(answer);

    int fd = rig_connect(&rig), end = rig_connect(&rig);
    rig_print(fd, "GET %s HTTP/1.1\r\nHost: localhost\r\nPrefer: wait=60\r\n\r\n", target);
    rig_print(end, "GET %s?wait_for=terminal HTTP/1.1\r\nHost: localhost\r\n\r\n", target);
    rig_wait_turn(&rig);
    cancel(&rig, job);
    answer = rig_read(end, false);
    check_status(answer, 200);
    answer_free(answer);
    close(end);
    answer = rig_read(fd, false);
    check_status(answer, 200);
    json_t *body = answer_json(answer);
    ck_assert_str_eq(json_string_value(json_object_get(body, "status")), "cancelled");
    json_decref(body);
    answer_free(answer);
    close(fd);
    rig_close(&rig);
}
END_TEST

#define MANY 200

/* All wait for one event while others come and go: none is forgotten. */
START_TEST(test_server_many)
{
    struct rig rig;
    char job[ID_SIZE];
    int polls[MANY], streams[MANY];
    rig_open(&rig);
    fake_service_job(&rig.service, STATUS_QUEUED, job);
    for (int i = 0; i < MANY; i++) {
        polls[i] = rig_connect(&rig);
        rig_print(polls[i], "GET /v1/quantization/jobs/%s HTTP/1.1\r\nHost: localhost\r\nPrefer: wait=60\r\n\r\n", job);
        streams[i] = open_events(&rig, job, "Accept: text/event-stream\r\n");
        if (i % 10 == 0) {
            struct answer *answer = rig_call(&rig, "GET", "/v1/models", "", NULL);
            check_status(answer, 200);
            answer_free(answer);
        }
    }
    for (int i = 0; i < MANY; i++) {
        rig_wait_text(streams[i], "id: 1\n");
    }
    rig_wait_turn(&rig);
    int64_t start = clock_monotonic_ms();
    cancel(&rig, job);
    for (int i = 0; i < MANY; i++) {
        struct answer *answer = rig_read(polls[i], false);
        ck_assert_msg(answer != NULL, "poll %d is not answered", i);
        ck_assert_ptr_nonnull(strstr(answer->body, "\"cancelled\""));
        answer_free(answer);
        answer = rig_read(streams[i], false);
        ck_assert_msg(answer != NULL, "stream %d is not answered", i);
        ck_assert_ptr_nonnull(strstr(answer->body, "id: 2\n"));
        answer_free(answer);
        rig_print(polls[i], "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n");
        answer = rig_read(polls[i], false); /* the connection lives on */
        check_status(answer, 200);
        answer_free(answer);
        close(polls[i]);
        close(streams[i]);
    }
    ck_assert_int_lt(clock_monotonic_ms() - start, 15000);
    rig_close(&rig);
}
END_TEST

START_TEST(test_server_drain)
{
    struct rig rig;
    char job[ID_SIZE];
    rig_open(&rig);
    fake_service_job(&rig.service, STATUS_QUEUED, job);
    int stream = open_events(&rig, job, "Accept: text/event-stream\r\n");
    int poll_fd = rig_connect(&rig);
    rig_print(poll_fd, "GET /v1/quantization/jobs/%s HTTP/1.1\r\nHost: localhost\r\nPrefer: wait=60\r\n\r\n", job);
    rig_wait_text(stream, "id: 1\n");
    rig_wait_turn(&rig);
    atomic_store(&rig.drain, true);
    struct answer *answer = rig_read(stream, false);
    ck_assert_ptr_nonnull(answer);
    answer_free(answer);
    answer = rig_read(poll_fd, false);
    check_status(answer, 200);
    answer_free(answer);
    answer = rig_call(&rig, "POST", "/v1/quantization/jobs", JSON_TYPE, "{\"model\":\"m\",\"method\":\"rtn\"}");
    check_header(answer, "Retry-After", "10");
    check_problem(answer, 503, "draining");
    check_problem(rig_call(&rig, "GET", "/readyz", "", NULL), 503, "draining");
    answer = rig_call(&rig, "GET", "/v1/quantization/jobs", "", NULL);
    check_status(answer, 200);
    ck_assert(answer->closes);
    answer_free(answer);
    close(stream);
    close(poll_fd);
    rig_close(&rig);
}
END_TEST

/* The server is closed under clients in every state. */
START_TEST(test_server_closed_early)
{
    struct rig rig;
    char job[ID_SIZE];
    rig_open(&rig);
    fake_service_job(&rig.service, STATUS_QUEUED, job);
    atomic_store(&rig.service.feed_delay_ms, 300);
    int fds[] = {open_events(&rig, job, "Accept: text/event-stream\r\n"), upload_start(&rig, job, ""),
                 upload_start(&rig, job, ""), rig_connect(&rig), rig_connect(&rig)};
    send_records(fds[1], 10000);
    send_records(fds[2], 1);
    rig_print(fds[3], "GET /v1/quantization/jobs/%s HTTP/1.1\r\nHost: localhost\r\nPrefer: wait=60\r\n\r\n", job);
    rig_print(fds[4], "GET /livez HTTP/1.1\r\nHost: lo");
    RIG_WAIT(atomic_load(&rig.service.uploads) == 2);
    rig_wait_text(fds[0], "id: 1\n");
    rig_wait_turn(&rig);
    rig_cut(&rig);
    ck_assert_int_eq(atomic_load(&rig.service.aborts), 2);
    for (size_t i = 0; i < sizeof(fds) / sizeof(fds[0]); i++) {
        close(fds[i]);
    }
}
END_TEST

/* Drips of a header and of a body, and a body in time: only the first two are cut. */
START_TEST(test_server_slow_clients)
{
    struct rig rig;
    char job[ID_SIZE];
    rig_open(&rig);
    fake_service_job(&rig.service, STATUS_QUEUED, job);
    int header = rig_connect(&rig), body = upload_start(&rig, job, ""), silent = rig_connect(&rig);
    int stream = open_events(&rig, job, "Accept: text/event-stream\r\n");
    rig_print(header, "GET /livez HTTP/1.1\r\nHost: localhost\r\n");
    for (int i = 0; i < 60; i++) { /* until both are answered */
        struct pollfd first = {header, POLLIN, 0};
        struct pollfd next = {poll(&first, 1, 0) == 0 ? header : body, POLLIN, 0};
        rig_print(header, "X");
        rig_print(body, "1\r\nx\r\n");
        if (poll(&next, 1, 500) > 0 && next.fd == body) {
            break;
        }
    }
    check_problem(rig_read(header, false), 408, "request_timeout");
    check_problem(rig_read(body, false), 408, "request_timeout");
    ck_assert(rig_closed(silent, 100));
    cancel(&rig, job);
    struct answer *answer = rig_read(stream, false);
    ck_assert_ptr_nonnull(strstr(answer->body, "id: 2\n"));
    answer_free(answer);
    close(header);
    close(body);
    close(silent);
    close(stream);
    rig_close(&rig);
    ck_assert_int_eq(atomic_load(&rig.service.aborts), 1);
}
END_TEST

UNIT_MAIN("server_flows", test_server_calibration, test_server_backpressure, test_server_slow_source,
          test_server_upload_aborted, test_server_upload_dies, test_server_events, test_server_long_poll,
          test_server_many, test_server_drain, test_server_closed_early, test_server_slow_clients)
