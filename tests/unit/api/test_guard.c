/* Every hostile form that the guard must refuse, and the plain ones that it must let through. */

#include "../unit.h"
#include "api/guard.h"

#include <stdio.h>
#include <string.h>

static const struct guard_hosts loopback = {.listen = "127.0.0.1"};

struct line {
    const char *name, *value;
};

#define HOST                     \
    {                            \
        "Host", "localhost:8080" \
    }

static int check(const char *method, const char *uri, const char *version, const struct line *lines, size_t count,
                 struct guard_verdict *verdict)
{
    struct guard_request request = {.method = method, .version = version, .uri = uri, .header_count = count};
    for (size_t i = 0; i < count; i++) {
        request.headers[i] = (struct guard_header){.name = lines[i].name,
                                                   .value = lines[i].value,
                                                   .name_size = strlen(lines[i].name),
                                                   .value_size = strlen(lines[i].value)};
    }
    return guard_check(&request, &loopback, verdict);
}

struct form {
    const char *method;
    struct line lines[4];
    int code, status;
    bool framing;
};

/* Framing and headers, all against "/livez" in HTTP/1.1. */
static const struct form forms[] = {
    {"GET", {HOST}, 0, 0, false},
    {"POST", {HOST, {"Content-Length", "5"}}, 0, 0, false},
    {"POST", {HOST, {"content-length", "0"}}, 0, 0, false},
    {"POST", {HOST, {"Transfer-Encoding", "chunked"}}, 0, 0, false},
    {"POST", {HOST, {"TRANSFER-ENCODING", "Chunked"}}, 0, 0, false},
    {"POST", {HOST, {"Content-Length", "5"}, {"Expect", "100-Continue"}}, 0, 0, false},
    {"POST", {HOST, {"Content-Length", "5"}, {"Origin", "http://localhost:3000"}}, 0, 0, false},
    {"POST", {HOST, {"Content-Length", "5"}, {"Content-Length", "5"}}, ERR_BAD_REQUEST, 0, true},
    {"POST", {HOST, {"Content-Length", "5"}, {"content-length", "6"}}, ERR_BAD_REQUEST, 0, true},
    {"POST", {HOST, {"Content-Length", "5, 5"}}, ERR_BAD_REQUEST, 0, true},
    {"POST", {HOST, {"Content-Length", "+5"}}, ERR_BAD_REQUEST, 0, true},
    {"POST", {HOST, {"Content-Length", "-5"}}, ERR_BAD_REQUEST, 0, true},
    {"POST", {HOST, {"Content-Length", "0x5"}}, ERR_BAD_REQUEST, 0, true},
    {"POST", {HOST, {"Content-Length", "5 "}}, ERR_BAD_REQUEST, 0, true},
    {"POST", {HOST, {"Content-Length", "5 6"}}, ERR_BAD_REQUEST, 0, true},
    {"POST", {HOST, {"Content-Length", ""}}, ERR_BAD_REQUEST, 0, true},
    {"POST", {HOST, {"Content-Length", "9223372036854775808"}}, ERR_BAD_REQUEST, 0, true},
    {"POST", {HOST, {"Content-Length", "99999999999999999999999"}}, ERR_BAD_REQUEST, 0, true},
    {"POST", {HOST, {"Content-Length", "5"}, {"Transfer-Encoding", "chunked"}}, ERR_BAD_REQUEST, 0, true},
    {"POST", {HOST, {"Transfer-Encoding", "chunked"}, {"Transfer-Encoding", "chunked"}}, ERR_BAD_REQUEST, 0, true},
    {"POST", {HOST, {"Transfer-Encoding", "gzip, chunked"}}, ERR_BAD_REQUEST, 0, true},
    {"POST", {HOST, {"Transfer-Encoding", "chunked, identity"}}, ERR_BAD_REQUEST, 0, true},
    {"POST", {HOST, {"Transfer-Encoding", "identity"}}, ERR_BAD_REQUEST, 0, true},
    {"POST", {HOST, {"Transfer-Encoding", "xchunked"}}, ERR_BAD_REQUEST, 0, true},
    {"POST", {HOST, {"Transfer-Encoding", "\vchunked"}}, ERR_BAD_REQUEST, 0, true},
    {"POST", {HOST, {"Transfer-Encoding", " chunked"}}, ERR_BAD_REQUEST, 0, true},
    {"POST", {HOST, {"Transfer-Encoding", ""}}, ERR_BAD_REQUEST, 0, true},
    {"POST", {HOST}, 0, 0, false}, /* no length means no body */
    {"PUT", {HOST}, 0, 0, false},
    {"PATCH", {HOST}, 0, 0, false},
    {"GET", {HOST, {"Content-Length", "5"}}, ERR_BAD_REQUEST, 0, true},
    {"DELETE", {HOST, {"Transfer-Encoding", "chunked"}}, ERR_BAD_REQUEST, 0, true},
    {"GET", {HOST, {"Content-Length ", "5"}}, ERR_BAD_REQUEST, 0, true},
    {"GET", {HOST, {"Content-Length200", ""}}, ERR_BAD_REQUEST, 0, true},
    {"GET", {HOST, {"transfer-encodingchunked", ""}}, ERR_BAD_REQUEST, 0, true},
    {"GET", {HOST, {" X", "5"}}, ERR_BAD_REQUEST, 0, true},
    {"GET", {HOST, {"X(Y)", "5"}}, ERR_BAD_REQUEST, 0, true},
    {"GET", {HOST, {"", "5"}}, ERR_BAD_REQUEST, 0, true},
    {"GET", {HOST, {"X", "a\rb"}}, ERR_BAD_REQUEST, 0, true},
    {"GET", {HOST, {"X", "a\nb"}}, ERR_BAD_REQUEST, 0, true},
    {"GET", {HOST, {"X", "a\x01"}}, ERR_BAD_REQUEST, 0, true},
    {"GET", {HOST, {"X", "a\x7f"}}, ERR_BAD_REQUEST, 0, true},
    {"GET", {{"X", "y"}}, ERR_BAD_REQUEST, 0, true},
    {"GET", {HOST, HOST}, ERR_BAD_REQUEST, 0, true},
    {"GET", {{"Host", ""}}, ERR_BAD_REQUEST, 0, true},
    {"GET", {{"Host", "a b"}}, ERR_BAD_REQUEST, 0, true},
    {"GET", {{"Host", "localhost:99999"}}, ERR_BAD_REQUEST, 0, true},
    {"GET", {{"Host", "localhost@evil.example"}}, ERR_BAD_REQUEST, 0, true},
    {"GET", {{"Host", "[::1"}}, ERR_BAD_REQUEST, 0, true},
    {"GET", {{"Host", "[::1]:8080"}}, 0, 0, false},
    {"GET", {{"Host", "[localhost]"}}, ERR_BAD_REQUEST, 0, true},
    {"GET", {{"Host", "[127.0.0.1]"}}, ERR_BAD_REQUEST, 0, true},
    {"GET", {{"Host", "[]"}}, ERR_BAD_REQUEST, 0, true},
    {"GET", {{"Host", "evil.example"}}, ERR_FORBIDDEN_HOST, 0, true},
    {"GET", {{"Host", "localhost.evil.example"}}, ERR_FORBIDDEN_HOST, 0, true},
    {"GET", {{"Host", "10.0.0.1"}}, ERR_FORBIDDEN_HOST, 0, true},
    {"POST", {HOST, {"Content-Length", "5"}, {"Origin", "http://evil.example"}}, ERR_FORBIDDEN_HOST, 0, true},
    {"POST", {HOST, {"Content-Length", "5"}, {"Origin", "null"}}, ERR_FORBIDDEN_HOST, 0, true},
    {"DELETE", {HOST, {"Origin", "http://evil.example"}}, ERR_FORBIDDEN_HOST, 0, true},
    {"POST", {HOST, {"Content-Length", "5"}, {"Expect", "a-miracle"}}, ERR_BAD_REQUEST, 417, true},
    {"POST", {HOST, {"Content-Length", "5"}, {"Content-Encoding", "gzip"}}, ERR_UNSUPPORTED_MEDIA_TYPE, 0, true},
};

START_TEST(test_guard_forms)
{
    for (size_t i = 0; i < sizeof(forms) / sizeof(forms[0]); i++) {
        const struct form *form = &forms[i];
        struct guard_verdict verdict;
        size_t count = 0;
        while (count < 4 && form->lines[count].name != NULL) {
            count++;
        }
        int rc = check(form->method, "/livez", "HTTP/1.1", form->lines, count, &verdict);
        ck_assert_msg(rc == form->code && verdict.code == rc, "form %zu: %d, not %d", i, rc, form->code);
        ck_assert_msg(verdict.status == form->status && verdict.framing == form->framing, "form %zu", i);
        ck_assert(rc == 0 || verdict.detail != NULL);
    }
}
END_TEST

START_TEST(test_guard_lengths)
{
    static const struct line fixed[] = {HOST, {"Content-Length", "9223372036854775807"}};
    static const struct line chunked[] = {HOST, {"Transfer-Encoding", "chunked"}, {"Expect", "100-continue"}};
    struct guard_verdict verdict;
    ck_assert_int_eq(check("POST", "/", "HTTP/1.1", fixed, 2, &verdict), 0);
    ck_assert_int_eq(verdict.length, INT64_MAX);
    ck_assert(!verdict.expects);
    ck_assert_int_eq(check("POST", "/", "HTTP/1.1", chunked, 3, &verdict), 0);
    ck_assert_int_eq(verdict.length, -1);
    ck_assert(verdict.expects);
    ck_assert_int_eq(check("GET", "/", "HTTP/1.1", fixed, 1, &verdict), 0);
    ck_assert_int_eq(verdict.length, 0);
}
END_TEST

START_TEST(test_guard_versions)
{
    static const struct line lines[] = {HOST, {"Transfer-Encoding", "chunked"}};
    struct guard_verdict verdict;
    ck_assert_int_eq(check("GET", "/", "HTTP/1.0", lines, 1, &verdict), 0);
    ck_assert_int_eq(check("POST", "/", "HTTP/1.0", lines, 2, &verdict), ERR_BAD_REQUEST);
    ck_assert(verdict.framing);
    static const char *const bad[] = {"HTTP/0.9", "HTTP/2.0", "HTTP/1.2", "http/1.1", "HTTP/1.1 ", ""};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        ck_assert_int_eq(check("GET", "/", bad[i], lines, 1, &verdict), ERR_BAD_REQUEST);
        ck_assert_int_eq(verdict.status, 505);
        ck_assert(verdict.framing);
    }
}
END_TEST

START_TEST(test_guard_targets)
{
    static const struct line lines[] = {HOST};
    static const char *const good[] = {
        "/", "/v1/models?limit=1&after=x%20y", "/v1/%6dodels", "/a/%2e%2ehidden/b", "/a//b", "/a?%25=%00"};
    static const char *const bad[] = {
        "",
        "*",
        "http://localhost/",
        "localhost:80",
        "//x/%2F",
        "/a/../b",
        "/a/%2e%2e/b",
        "/a/%2E./b",
        "/a/./b",
        "/a/..",
        "/a%00b",
        "/a%2fb",
        "/a%5Cb",
        "/a%25b",
        "/a%1fb",
        "/a%7fb",
        "/a%",
        "/a%4",
        "/a%zz",
        "/a%4g?x",
        "/a b",
        "/a\tb",
        "/a\x80z",
        "/a#b",
        "/a\\b",
        "/a\"b",
        "/a<b>",
        "/a?b%",
        "/a?b%f",
        "/a?%zz",
        "/a?b c",
        "/a|b",
        "/a{b}",
    };
    struct guard_verdict verdict;
    for (size_t i = 0; i + 1 < sizeof(good) / sizeof(good[0]); i++) {
        ck_assert_msg(check("GET", good[i], "HTTP/1.1", lines, 1, &verdict) == 0, "%s", good[i]);
    }
    ck_assert_int_eq(check("GET", good[5], "HTTP/1.1", lines, 1, &verdict), ERR_BAD_REQUEST); /* NUL in a query */
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        ck_assert_msg(check("GET", bad[i], "HTTP/1.1", lines, 1, &verdict) == ERR_BAD_REQUEST, "%s", bad[i]);
    }
}
END_TEST

START_TEST(test_guard_sizes)
{
    static const struct line lines[] = {HOST};
    char uri[GUARD_URI_MAX + 2], value[GUARD_HEADER_BYTES];
    struct guard_verdict verdict;
    memset(uri, 'a', sizeof(uri));
    uri[sizeof(uri) - 1] = '\0';
    uri[0] = '/';
    ck_assert_int_eq(check("GET", uri, "HTTP/1.1", lines, 1, &verdict), ERR_BAD_REQUEST);
    ck_assert_int_eq(verdict.status, 414);
    uri[GUARD_SEGMENT_MAX + 1] = '\0'; /* one segment, one byte too long */
    ck_assert_int_eq(check("GET", uri, "HTTP/1.1", lines, 1, &verdict), ERR_BAD_REQUEST);
    memset(value, 'a', sizeof(value));
    value[sizeof(value) - 1] = '\0';
    const struct line large[] = {HOST, {"X", value}};
    ck_assert_int_eq(check("GET", "/", "HTTP/1.1", large, 2, &verdict), ERR_BAD_REQUEST);
    ck_assert_int_eq(verdict.status, 431);
    struct guard_request many = {.method = "GET", .version = "HTTP/1.1", .uri = "/", .overflow = true};
    ck_assert_int_eq(guard_check(&many, &loopback, &verdict), ERR_BAD_REQUEST);
    ck_assert_int_eq(verdict.status, 431);
    /* A NUL inside a name or value, as a size that does not agree shows it. */
    many.overflow = false;
    many.header_count = 1;
    many.headers[0] = (struct guard_header){.name = "X", .value = "a", .name_size = 1, .value_size = 3};
    ck_assert_int_eq(guard_check(&many, &loopback, &verdict), ERR_BAD_REQUEST);
}
END_TEST

START_TEST(test_guard_hosts)
{
    static const char *const allowed[] = {"quant.example", NULL};
    const struct guard_hosts wide = {.any_address = true, .listen = "0.0.0.0", .allowed = allowed};
    bool malformed;
    ck_assert(guard_host_allowed(&loopback, "[::1]:80", &malformed));
    ck_assert(guard_host_allowed(&loopback, "LOCALHOST", &malformed));
    ck_assert(!guard_host_allowed(&loopback, "192.168.0.9", &malformed) && !malformed);
    ck_assert(guard_host_allowed(&wide, "192.168.0.9:8080", &malformed));
    ck_assert(guard_host_allowed(&wide, "[fe80::1]", &malformed));
    ck_assert(guard_host_allowed(&wide, "Quant.Example:443", &malformed));
    ck_assert(!guard_host_allowed(&wide, "evil.example", &malformed) && !malformed);
    ck_assert(!guard_host_allowed(&wide, "[quant.example]x", &malformed) && malformed);
}
END_TEST

UNIT_MAIN("guard", test_guard_forms, test_guard_lengths, test_guard_versions, test_guard_targets, test_guard_sizes,
          test_guard_hosts)
