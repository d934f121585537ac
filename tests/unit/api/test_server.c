/* The server over real sockets: one request after the other, and what the rules of every route say. */

#include "rig.h"

#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define JSON_TYPE "Content-Type: application/json\r\n"
#define RECORDS_TYPE "Content-Type: application/x-ndjson\r\n"

static void check_status(const struct answer *answer, int status)
{
    ck_assert_msg(answer->status == status, "%d, not %d: %s%s", answer->status, status, answer->head, answer->body);
}

/* The answer is that problem. */
static void check_problem(struct answer *answer, int status, const char *code)
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

static void check_header(const struct answer *answer, const char *name, const char *value)
{
    char *is = answer_header(answer, name);
    ck_assert_msg(is != NULL, "no %s in %s", name, answer->head);
    ck_assert_str_eq(is, value);
    free(is);
}

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

UNIT_MAIN("server", test_server_live)
