/* URLs of servers, and paths: what is refused before anything is sent. */

#include "cli/client.h"
#include "cli/http.h"
#include "cli/objects.h"
#include "tests/unit/unit.h"

#include <string.h>

#define KEY "qd_0123456789abcdefghijklmnopqrstuvwxyz"

static int open_url(const char *url, const char *key, bool insecure)
{
    struct http *http = NULL;
    const struct http_options options = {.url = url, .key = key, .insecure = insecure, .idle_seconds = 1};

    int rc = http_open(&options, &http);
    if (http != NULL) {
        http_close(http);
    }
    return rc;
}

START_TEST(test_urls)
{
    static const char *const good[] = {"http://127.0.0.1:8080", "http://localhost", "https://example.org/quantd/",
                                       "http://[::1]:8080"};
    static const char *const bad[] = {
        "",           "ftp://a", "file:///etc/passwd", "http://user:pw@a", "http://a/?q=1", "http://a/#f",
        "http://a b", "http://", "gopher://127.0.0.1"};

    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        ck_assert_rc_ok(open_url(good[i], NULL, false));
    }
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        ck_assert_msg(open_url(bad[i], NULL, false) == ERR_CONFIG, "%s was accepted", bad[i]);
    }
}
END_TEST

START_TEST(test_a_key_is_not_sent_in_the_clear)
{
    ck_assert_int_eq(open_url("http://example.org", KEY, false), ERR_CONFIG);
    ck_assert_int_eq(open_url("http://127.0.0.1.example.org", KEY, false), ERR_CONFIG);
    ck_assert_int_eq(open_url("http://localhost.example.org", KEY, false), ERR_CONFIG);
    ck_assert_ptr_null(strstr(err_last()->message, "qd_"));
    ck_assert_rc_ok(open_url("http://example.org", KEY, true));
    ck_assert_rc_ok(open_url("https://example.org", KEY, false));
    ck_assert_rc_ok(open_url("http://127.0.0.1:80", KEY, false));
    ck_assert_rc_ok(open_url("http://[::1]:80", KEY, false));
}
END_TEST

START_TEST(test_ids)
{
    static const char *const bad[] = {"",          "job_",    "mdl_1",     "job_1/../x",
                                      "job_1?a=b", "job_%2e", "job_1\r\n", "../job_1"};
    char path[64], small[16];

    ck_assert_rc_ok(objects_path(path, sizeof(path), &objects_jobs, "job_01ABC"));
    ck_assert_str_eq(path, "/v1/quantization/jobs/job_01ABC");
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        ck_assert_int_eq(objects_path(path, sizeof(path), &objects_jobs, bad[i]), ERR_CONFIG);
    }
    ck_assert_int_eq(objects_path(small, sizeof(small), &objects_jobs, "job_01ABC"), ERR_CONFIG);
}
END_TEST

START_TEST(test_queries)
{
    char path[64] = "/v1/jobs", small[20] = "/v1/jobs";

    ck_assert_rc_ok(client_query(path, sizeof(path), "metadata[a b]", "x&y=\xc3\xbc"));
    ck_assert_str_eq(path, "/v1/jobs?metadata%5Ba%20b%5D=x%26y%3D%C3%BC");
    ck_assert_rc_ok(client_query(path, sizeof(path), "n", "1"));
    ck_assert_ptr_nonnull(strstr(path, "&n=1"));
    ck_assert_int_eq(client_query(small, sizeof(small), "name", "a long value"), ERR_CONFIG);
}
END_TEST

UNIT_MAIN("cli_http", test_urls, test_a_key_is_not_sent_in_the_clear, test_ids, test_queries)
