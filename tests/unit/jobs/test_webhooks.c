/* When messages are tried again, what they say, and what requests about webhooks may be. */

#include "base/random.h"
#include "jobs/webhooks.h"
#include "tests/unit/json.h"
#include "tests/unit/unit.h"

/* A receiver that never answers: attempts until it is given up, by a clock that the test moves. */
START_TEST(a_day_of_attempts)
{
    uint64_t random = 1;

    for (int round = 0; round < 200; round++) {
        const int64_t made = 1000;
        int64_t now = made, attempts = 0, gap = 0;
        for (;;) {
            int64_t next = webhook_next_try(made, now, ++attempts, 0, random_next(&random));
            if (next < 0) {
                break;
            }
            ck_assert_int_gt(next, now);
            ck_assert_int_le(next - now, 3600 * 12 / 10);
            ck_assert_int_le(next, made + 86400);
            if (attempts < 10) {
                ck_assert_int_ge(next - now, gap); /* it grows */
                ck_assert_int_le(next - now, ((int64_t)1 << (attempts - 1)) * 12 / 10 + 1);
                gap = (next - now) * 8 / 10;
            }
            now = next;
        }
        ck_assert_int_eq(now, made + 86400); /* the last one is a day after the first */
        ck_assert_int_ge(attempts, 30);
        ck_assert_int_le(attempts, 45);
    }
}
END_TEST

START_TEST(a_receiver_that_asks_for_time)
{
    ck_assert_int_eq(webhook_next_try(0, 100, 1, 600, 0), 700);
    ck_assert_int_eq(webhook_next_try(0, 100, 1, 1000000, 0), 3700); /* an hour at most */
    ck_assert_int_eq(webhook_next_try(0, 86399, 1, 600, 0), 86400);
    ck_assert_int_eq(webhook_next_try(0, 86400, 1, 0, 0), -1);
    ck_assert_int_eq(webhook_next_try(0, 100, 1000000, 0, 200), 3700);
}
END_TEST

START_TEST(who_is_told)
{
    ck_assert_str_eq(webhook_type_of(STATUS_SUCCEEDED), "quantization.job.succeeded");
    ck_assert_ptr_null(webhook_type_of(STATUS_RUNNING));
    ck_assert_ptr_null(webhook_type_of(STATUS_QUEUED));
    for (int status = 0; status < STATUS_COUNT; status++) {
        bool told = webhook_type_of((enum job_status)status) != NULL;
        ck_assert(told == (job_status_is_final((enum job_status)status) || status == STATUS_PAUSED));
    }
    const struct job_row job = {.id = "job_1", .project = "p", .model = "m", .method = "rtn", .status = STATUS_FAILED};
    json_t *message = webhook_message("quantization.job.failed", &job);
    ck_assert_str_eq(text_at(message, "type"), "quantization.job.failed");
    ck_assert_uint_eq(strlen(text_at(message, "timestamp")), strlen("2026-01-01T00:00:00Z"));
    ck_assert_str_eq(text_at(json_object_get(json_object_get(message, "data"), "job"), "status"), "failed");
    json_decref(message);
}
END_TEST

START_TEST(requests)
{
    static const struct {
        const char *body, *param;
    } bad[] = {
        {"{}", "/url"},
        {"{'url': 5}", "/url"},
        {"{'url': 'u', 'events': []}", "/events"},
        {"{'url': 'u', 'events': 'x'}", "/events"},
        {"{'url': 'u', 'events': ['quantization.job.running']}", "/events/0"},
        {"{'url': 'u', 'jobs': 'some'}", "/jobs"},
        {"{'url': 'u', 'disabled': 1}", "/disabled"},
        {"{'url': 'u', 'secret': 'x'}", "/secret"},
    };
    unsigned set = 0;

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct validation_errors errors = {0};
        struct webhook_request request;
        json_t *body = json_of(bad[i].body);
        ck_assert_int_lt(webhook_create_parse(body, &request, &errors), 0);
        ck_assert_str_eq(errors.items[0].param, bad[i].param);
        json_decref(body);
    }
    struct validation_errors errors = {0};
    struct webhook_request request;
    json_t *body = json_of("{'events': ['quantization.job.failed'], 'disabled': true}");
    ck_assert_rc_ok(webhook_change_parse(body, &request, &set, &errors));
    ck_assert_uint_eq(set, WEBHOOK_SET_EVENTS | WEBHOOK_SET_DISABLED);
    ck_assert_uint_eq(json_array_size(request.events), 1);
    webhook_request_deinit(&request);
    json_decref(body);
}
END_TEST

UNIT_MAIN("webhooks", a_day_of_attempts, a_receiver_that_asks_for_time, who_is_told, requests)
