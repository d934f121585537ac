/* The server over real sockets: one request after the other, and what the rules of every route say. */

#include "rig.h"

#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

START_TEST(test_server_live)
{
    struct rig rig;
    rig_open(&rig);
    struct answer *answer = rig_call(&rig, "GET", "/livez", "", NULL);
    check_status(answer, 200);
    check_header(answer, "X-Content-Type-Options", "nosniff");
    check_header(answer, "Cache-Control", "no-store");
    check_header(answer, "Content-Type", "application/json");
    ck_assert_str_eq(answer->body, "{\"status\":\"ok\"}\n");
    ck_assert(!answer->closes);
    answer_free(answer);
    answer = rig_call(&rig, "GET", "/readyz", "", NULL);
    check_status(answer, 200);
    answer_free(answer);
    answer = rig_call(&rig, "HEAD", "/v1/system", "", NULL);
    check_status(answer, 200);
    char *length = answer_header(answer, "Content-Length");
    ck_assert_int_gt(atoi(length), 10);
    free(length);
    answer_free(answer);
    rig_close(&rig);
}
END_TEST

START_TEST(test_server_routing)
{
    struct rig rig;
    rig_open(&rig);
    check_problem(rig_call(&rig, "GET", "/v1/nothing", "", NULL), 404, "not_found");
    check_problem(rig_call(&rig, "GET", "/v1/models/", "", NULL), 404, "not_found");
    check_problem(rig_call(&rig, "GET", "/v1/models/mdl_x", "", NULL), 404, "not_found");
    struct answer *answer = rig_call(&rig, "DELETE", "/v1/quantization/jobs", "", NULL);
    check_header(answer, "Allow", "POST, GET, HEAD");
    check_problem(answer, 405, "method_not_allowed");
    check_problem(rig_call(&rig, "POST", "/v1/nothing", JSON_TYPE, "{}"), 404, "not_found");
    check_problem(rig_call(&rig, "GET", "/livez?x=1", "", NULL), 400, "unknown_parameter");
    check_problem(rig_call(&rig, "GET", "/v1/models?limit=101", "", NULL), 400, "invalid_parameter");
    check_problem(rig_call(&rig, "GET", "/v1/models?limit=0", "", NULL), 400, "invalid_parameter");
    check_problem(rig_call(&rig, "GET", "/v1/models?after=!", "", NULL), 400, "invalid_cursor");
    rig_close(&rig);
}
END_TEST

START_TEST(test_server_bodies)
{
    struct rig rig;
    rig_open(&rig);
    check_problem(rig_call(&rig, "POST", "/v1/models", JSON_TYPE, NULL), 411, "length_required");
    check_problem(rig_call(&rig, "POST", "/v1/models", "", "{}"), 415, "unsupported_media_type");
    check_problem(rig_call(&rig, "POST", "/v1/models", "Content-Type: text/plain\r\n", "{}"), 415,
                  "unsupported_media_type");
    check_problem(rig_call(&rig, "POST", "/v1/models", JSON_TYPE "Content-Encoding: gzip\r\n", "{}"), 415,
                  "unsupported_media_type");
    check_problem(rig_call(&rig, "POST", "/v1/models", JSON_TYPE, ""), 400, "invalid_json");
    check_problem(rig_call(&rig, "POST", "/v1/models", JSON_TYPE, "{\"a\":1,\"a\":2}"), 400, "invalid_json");
    check_problem(rig_call(&rig, "POST", "/v1/models", JSON_TYPE, "[]"), 400, "invalid_json");
    struct answer *answer = rig_call(&rig, "POST", "/v1/models", JSON_TYPE, "{\"nam\":1}");
    json_t *problem = answer_json(answer), *errors = json_object_get(problem, "errors");
    ck_assert_uint_eq(json_array_size(errors), 3);
    ck_assert_str_eq(json_string_value(json_object_get(json_array_get(errors, 0), "param")), "/name");
    ck_assert_str_eq(json_string_value(json_object_get(json_array_get(errors, 2), "param")), "/nam");
    ck_assert_str_eq(json_string_value(json_object_get(json_array_get(errors, 2), "code")), "unknown_parameter");
    json_decref(problem);
    check_problem(answer, 400, "missing_parameter");
    rig_close(&rig);
}
END_TEST

/* Whatever is too large is answered before its end, by either framing. */
START_TEST(test_server_too_large)
{
    struct rig rig;
    rig_open(&rig);
    int fd = rig_connect(&rig);
    rig_print(fd, "POST /v1/models HTTP/1.1\r\nHost: localhost\r\n" JSON_TYPE "Content-Length: 99000000\r\n\r\n{");
    struct answer *answer = rig_read(fd, false);
    ck_assert_ptr_nonnull(answer);
    ck_assert(answer->closes);
    check_problem(answer, 413, "payload_too_large");
    ck_assert(rig_closed(fd, 5000));
    close(fd);

    fd = rig_connect(&rig);
    rig_print(fd, "POST /v1/models HTTP/1.1\r\nHost: localhost\r\n" JSON_TYPE "Content-Length: 1048577\r\n\r\n");
    char *zeros = calloc(1, 1 << 20);
    rig_send(fd, zeros, 1 << 20);
    rig_send(fd, zeros, 1);
    check_problem(rig_read(fd, false), 413, "payload_too_large");
    close(fd);

    fd = rig_connect(&rig);
    rig_print(fd, "POST /v1/models HTTP/1.1\r\nHost: localhost\r\n" JSON_TYPE "Transfer-Encoding: chunked\r\n\r\n");
    for (int i = 0; i < 5; i++) {
        rig_print(fd, "40000\r\n");
        rig_send(fd, zeros, 0x40000);
        rig_print(fd, "\r\n");
    }
    answer = rig_read(fd, false); /* the last chunk never comes */
    ck_assert_ptr_nonnull(answer);
    check_problem(answer, 413, "payload_too_large");
    close(fd);
    free(zeros);
    rig_close(&rig);
}
END_TEST

START_TEST(test_server_objects)
{
    struct rig rig;
    rig_open(&rig);
    struct answer *answer = rig_call(&rig, "POST", "/v1/models", JSON_TYPE, "{\"name\":\"a\",\"uri\":\"file:a\"}");
    check_status(answer, 201);
    char *location = answer_header(answer, "Location");
    ck_assert_int_eq(strncmp(location, "/v1/models/mdl_", 15), 0);
    answer_free(answer);
    answer = rig_call(&rig, "GET", location, "", NULL);
    check_status(answer, 200);
    check_header(answer, "Cache-Control", "private, no-cache");
    char *etag = answer_header(answer, "ETag"), condition[256];
    answer_free(answer);
    (void)snprintf(condition, sizeof(condition), "If-None-Match: \"x\", W/%s\r\n", etag);
    answer = rig_call(&rig, "GET", location, condition, NULL);
    check_status(answer, 304);
    check_header(answer, "ETag", etag);
    ck_assert_uint_eq(answer->size, 0);
    answer_free(answer);
    answer = rig_call(&rig, "DELETE", location, "", NULL);
    check_status(answer, 204);
    answer_free(answer);
    check_problem(rig_call(&rig, "GET", location, "", NULL), 404, "not_found");
    free(location);
    free(etag);
    rig_close(&rig);
}
END_TEST

START_TEST(test_server_pages)
{
    struct rig rig;
    char ids[5][ID_SIZE], target[128];
    rig_open(&rig);
    for (int i = 0; i < 5; i++) {
        fake_service_job(&rig.service, i == 2 ? STATUS_SUCCEEDED : STATUS_QUEUED, ids[i]);
    }
    struct answer *answer = rig_call(&rig, "GET", "/v1/quantization/jobs?limit=2", "", NULL);
    json_t *list = answer_json(answer);
    ck_assert_str_eq(json_string_value(json_object_get(list, "object")), "list");
    ck_assert_str_eq(json_string_value(json_object_get(list, "first_id")), ids[4]);
    ck_assert_str_eq(json_string_value(json_object_get(list, "last_id")), ids[3]);
    ck_assert(json_is_true(json_object_get(list, "has_more")));
    json_decref(list);
    answer_free(answer);
    (void)snprintf(target, sizeof(target), "/v1/quantization/jobs?order=asc&limit=100&after=%s&status=queued", ids[1]);
    answer = rig_call(&rig, "GET", target, "", NULL);
    list = answer_json(answer);
    ck_assert_uint_eq(json_array_size(json_object_get(list, "data")), 2);
    ck_assert_str_eq(json_string_value(json_object_get(list, "first_id")), ids[3]);
    ck_assert(json_is_false(json_object_get(list, "has_more")));
    json_decref(list);
    answer_free(answer);
    check_problem(rig_call(&rig, "GET", "/v1/quantization/jobs?status=lost&order=up", "", NULL), 400,
                  "invalid_parameter");
    rig_close(&rig);
}
END_TEST

static void *create_slowly(void *data)
{
    const struct rig *rig = data;
    return rig_call(rig, "POST", "/v1/quantization/jobs", JSON_TYPE "Idempotency-Key: slow\r\n",
                    "{\"model\":\"m\",\"method\":\"rtn\"}");
}

START_TEST(test_server_idempotency)
{
    static const char body[] = "{\"model\":\"m\",\"method\":\"rtn\"}";
    struct rig rig;
    rig_open(&rig);
    struct answer *first = rig_call(&rig, "POST", "/v1/quantization/jobs", JSON_TYPE "Idempotency-Key: k1\r\n", body);
    struct answer *second = rig_call(&rig, "POST", "/v1/quantization/jobs", JSON_TYPE "Idempotency-Key: k1\r\n", body);
    check_status(first, 201);
    check_status(second, 201);
    check_header(second, "Idempotency-Replayed", "true");
    char *location = answer_header(first, "Location");
    check_header(second, "Location", location);
    ck_assert_str_eq(first->body, second->body);
    ck_assert_int_eq(atomic_load(&rig.service.jobs), 1);
    free(location);
    answer_free(first);
    answer_free(second);
    check_problem(rig_call(&rig, "POST", "/v1/quantization/jobs", JSON_TYPE "Idempotency-Key: k1\r\n",
                           "{\"model\":\"n\",\"method\":\"rtn\"}"),
                  422, "idempotency_key_reused");
    check_problem(rig_call(&rig, "POST", "/v1/quantization/jobs", JSON_TYPE "Idempotency-Key: a b\r\n", body), 400,
                  "invalid_parameter");
    /* A refused request does not use its key up. */
    check_problem(rig_call(&rig, "POST", "/v1/quantization/jobs", JSON_TYPE "Idempotency-Key: k2\r\n", "{}"), 400,
                  "missing_parameter");
    first = rig_call(&rig, "POST", "/v1/quantization/jobs", JSON_TYPE "Idempotency-Key: k2\r\n", body);
    check_status(first, 201);
    answer_free(first);

    pthread_t thread;
    int begun = atomic_load(&rig.service.creating);
    atomic_store(&rig.service.hold_create, true);
    pthread_create(&thread, NULL, create_slowly, &rig);
    RIG_WAIT(atomic_load(&rig.service.creating) > begun);
    second = create_slowly(&rig);
    check_header(second, "Retry-After", "2");
    check_problem(second, 409, "idempotency_in_progress");
    atomic_store(&rig.service.hold_create, false);
    void *slow;
    pthread_join(thread, &slow);
    check_status(slow, 201);
    answer_free(slow);
    rig_close(&rig);
}
END_TEST

START_TEST(test_server_files)
{
    struct rig rig;
    rig_open(&rig);
    check_problem(rig_call(&rig, "POST", "/v1/files", RECORDS_TYPE, "x"), 400, "missing_parameter");
    check_problem(
        rig_call(&rig, "POST", "/v1/files?purpose=evaluation", RECORDS_TYPE "Content-Digest: sha-256=:AAAA:\r\n", "x"),
        422, "digest_mismatch");
    struct answer *answer =
        rig_call(&rig, "POST", "/v1/files?purpose=evaluation&name=n%20m", RECORDS_TYPE, "0123456789");
    check_status(answer, 201);
    json_t *file = answer_json(answer);
    ck_assert_int_eq(json_integer_value(json_object_get(file, "bytes")), 10);
    ck_assert_str_eq(json_string_value(json_object_get(file, "name")), "n m");
    char target[128], range[160];
    (void)snprintf(target, sizeof(target), "/v1/files/%s/content", json_string_value(json_object_get(file, "id")));
    json_decref(file);
    answer_free(answer);

    answer = rig_call(&rig, "GET", target, "", NULL);
    check_status(answer, 200);
    ck_assert_str_eq(answer->body, "0123456789");
    char *etag = answer_header(answer, "ETag"), *repr = answer_header(answer, "Repr-Digest");
    check_header(answer, "Accept-Ranges", "bytes");
    answer_free(answer);
    ck_assert_ptr_nonnull(repr);
    free(repr);

    answer = rig_call(&rig, "GET", target, "Range: bytes=2-4\r\n", NULL);
    check_status(answer, 206);
    ck_assert_str_eq(answer->body, "234");
    check_header(answer, "Content-Range", "bytes 2-4/10");
    answer_free(answer);
    answer = rig_call(&rig, "GET", target, "Range: bytes=-3\r\n", NULL);
    ck_assert_str_eq(answer->body, "789");
    answer_free(answer);
    answer = rig_call(&rig, "HEAD", target, "", NULL);
    check_status(answer, 200);
    check_header(answer, "Content-Length", "10");
    answer_free(answer);
    answer = rig_call(&rig, "GET", target, "Range: bytes=10-\r\n", NULL);
    check_header(answer, "Content-Range", "bytes */10");
    check_problem(answer, 416, "range_not_satisfiable");
    answer = rig_call(&rig, "GET", target, "Range: bytes=2-4\r\nIf-Range: \"other\"\r\n", NULL);
    check_status(answer, 200);
    answer_free(answer);
    (void)snprintf(range, sizeof(range), "Range: bytes=9-20\r\nIf-Range: %s\r\n", etag);
    answer = rig_call(&rig, "GET", target, range, NULL);
    check_status(answer, 206);
    ck_assert_str_eq(answer->body, "9");
    answer_free(answer);
    (void)snprintf(range, sizeof(range), "If-None-Match: %s\r\n", etag);
    answer = rig_call(&rig, "GET", target, range, NULL);
    check_status(answer, 304);
    answer_free(answer);
    (void)snprintf(range, sizeof(range), "If-Match: \"other\", %s\r\n", etag);
    answer = rig_call(&rig, "GET", target, range, NULL);
    check_status(answer, 200);
    answer_free(answer);
    (void)snprintf(range, sizeof(range), "If-Match: W/%s\r\n", etag); /* weak tags never match strongly */
    answer = rig_call(&rig, "GET", target, range, NULL);
    check_problem(answer, 412, "precondition_failed");
    free(etag);
    rig_close(&rig);
}
END_TEST

/* A megabyte through both ends: many fills and many chunks. */
START_TEST(test_server_large_file)
{
    struct rig rig;
    size_t size = (size_t)5 << 20;
    char *bytes = malloc(size), target[128];
    for (size_t i = 0; i < size; i++) {
        bytes[i] = (char)(i * 2654435761u >> 11);
    }
    rig_open(&rig);
    int fd = rig_connect(&rig);
    rig_print(fd, "POST /v1/files?purpose=calibration HTTP/1.1\r\nHost: localhost\r\n" RECORDS_TYPE
                  "Transfer-Encoding: chunked\r\n\r\n");
    for (size_t at = 0, part; at < size; at += part) {
        part = 1 + at % 70000;
        part = part < size - at ? part : size - at;
        rig_print(fd, "%zx\r\n", part);
        rig_send(fd, bytes + at, part);
        rig_print(fd, "\r\n");
    }
    rig_print(fd, "0\r\n\r\n");
    struct answer *answer = rig_read(fd, false);
    check_status(answer, 201);
    json_t *file = answer_json(answer);
    (void)snprintf(target, sizeof(target), "/v1/files/%s/content", json_string_value(json_object_get(file, "id")));
    json_decref(file);
    answer_free(answer);
    rig_print(fd, "GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n", target);
    answer = rig_read(fd, false);
    check_status(answer, 200);
    ck_assert_uint_eq(answer->size, size);
    ck_assert_int_eq(memcmp(answer->body, bytes, size), 0);
    answer_free(answer);
    rig_print(fd, "GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n", target); /* and one who does not stay for it */
    rig_wait_text(fd, "HTTP/1.1 200");
    close(fd);
    free(bytes);
    rig_close(&rig);
}
END_TEST

START_TEST(test_server_pipeline)
{
    struct rig rig;
    rig_open(&rig);
    int fd = rig_connect(&rig);
    rig_print(fd,
              "GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: one\r\n\r\n"
              "POST /v1/models HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: two\r\n" JSON_TYPE
              "Content-Length: 2\r\n\r\n{}"
              "POST /v1/nothing HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: three\r\nContent-Length: 5\r\n\r\nhello"
              "GET /v1/methods/gptq HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: <four>\r\n\r\n");
    static const char *const ids[] = {"one", "two", "three"};
    static const int statuses[] = {200, 400, 404, 200};
    for (int i = 0; i < 4; i++) {
        struct answer *answer = rig_read(fd, false);
        ck_assert_ptr_nonnull(answer);
        check_status(answer, statuses[i]);
        if (i < 3) {
            check_header(answer, "X-Request-Id", ids[i]);
        } else {
            char *id = answer_header(answer, "X-Request-Id");
            ck_assert(id_valid(id, "req"));
            free(id);
        }
        answer_free(answer);
    }
    close(fd);
    rig_close(&rig);
}
END_TEST

START_TEST(test_server_continue)
{
    struct rig rig;
    rig_open(&rig);
    int fd = rig_connect(&rig);
    rig_print(fd, "POST /v1/models HTTP/1.1\r\nHost: localhost\r\n" JSON_TYPE
                  "Content-Length: 27\r\nExpect: 100-continue\r\n\r\n");
    struct answer *answer = rig_read(fd, true);
    check_status(answer, 100);
    answer_free(answer);
    rig_print(fd, "{\"name\":\"a\",\"uri\":\"file:a\"}");
    answer = rig_read(fd, false);
    check_status(answer, 201);
    answer_free(answer);
    rig_print(fd, "POST /v1/files HTTP/1.1\r\nHost: localhost\r\n" RECORDS_TYPE
                  "Content-Length: 2700000\r\nExpect: 100-continue\r\n\r\n");
    check_problem(rig_read(fd, false), 400, "missing_parameter"); /* no 100 before it */
    close(fd);
    rig_close(&rig);
}
END_TEST

/* Every route stands in the description, with its parameters. */
START_TEST(test_server_openapi)
{
    struct rig rig;
    rig_open(&rig);
    struct answer *answer = rig_call(&rig, "GET", "/openapi.json", "", NULL);
    check_status(answer, 200);
    json_t *document = answer_json(answer), *paths = json_object_get(document, "paths");
    ck_assert_str_eq(json_string_value(json_object_get(document, "openapi")), "3.1.0");
    ck_assert_uint_gt(json_object_size(paths), 15);
    const json_t *list = json_object_get(json_object_get(paths, "/v1/quantization/jobs"), "get");
    ck_assert_uint_eq(json_array_size(json_object_get(list, "parameters")), 13);
    const json_t *file = json_object_get(json_object_get(paths, "/v1/artifacts/{artifact_id}/files/{path}"), "get");
    ck_assert_uint_eq(json_array_size(json_object_get(file, "parameters")), 9);
    const char *path;
    json_t *item, *operation;
    json_object_foreach(paths, path, item)
    {
        const char *method;
        json_object_foreach(item, method, operation)
        {
            const json_t *responses = json_object_get(operation, "responses");
            ck_assert_msg(json_is_string(json_object_get(operation, "operationId")), "%s %s", method, path);
            ck_assert_msg(json_is_string(json_object_get(operation, "x-scope")), "%s %s", method, path);
            ck_assert_msg(json_object_get(responses, "400") != NULL && json_object_get(responses, "503") != NULL,
                          "%s %s", method, path);
            /* Objects are named in the path, or in the query of a comparison; a build may be without the dashboard. */
            bool names =
                strchr(path, '{') != NULL || strcmp(path, "/v1/quantization/compare") == 0 || strcmp(path, "/") == 0;
            ck_assert_msg(names == (json_object_get(responses, "404") != NULL), "%s %s", method, path);
        }
    }
    ck_assert_ptr_nonnull(json_object_get(json_object_get(paths, "/v1/models"), "post"));
    ck_assert(json_is_object(json_object_get(json_object_get(document, "components"), "schemas")));
    json_decref(document);
    struct answer *again = rig_call(&rig, "GET", "/openapi.json", "", NULL);
    ck_assert_str_eq(again->body, answer->body);
    ck_assert_int_eq(again->body[again->size - 1], '\n');
    char *tag = answer_header(answer, "ETag"), condition[128];
    check_header(again, "ETag", tag);
    (void)snprintf(condition, sizeof(condition), "If-None-Match: %s\r\n", tag);
    struct answer *same = rig_call(&rig, "GET", "/openapi.json", condition, NULL);
    check_status(same, 304);
    free(tag);
    answer_free(same);
    answer_free(again);
    answer_free(answer);
    rig_close(&rig);
}
END_TEST

UNIT_MAIN("server", test_server_live, test_server_routing, test_server_bodies, test_server_too_large,
          test_server_objects, test_server_pages, test_server_idempotency, test_server_files, test_server_large_file,
          test_server_pipeline, test_server_continue, test_server_openapi)
