/* Hosts and URLs. */

#include "tests/unit/unit.h"

#include "webhooks/policy.h"

#include <arpa/inet.h>
#include <string.h>

static int ask(bool private, const char *url)
{
    const char *const hosts[] = {"hooks.example.com", "*.Example.org:8443", "10.1.2.3", "[::1]:9000", "8.8.8.8", NULL};
    AUTO(policy) struct policy *policy = NULL;
    AUTO(policy_target) struct policy_target target = {.url = NULL};

    ck_assert_rc_ok(policy_new(hosts, private, &policy));
    return policy_target(policy, url, &target);
}

START_TEST(urls_that_are_allowed)
{
    static const char *const urls[] = {"https://hooks.example.com",
                                       "https://hooks.example.com/a?b=c",
                                       "HTTPS://HOOKS.example.COM:443/",
                                       "https://hooks.example.com./",
                                       "https://a.example.org:8443/",
                                       "https://a.b.example.org:8443/",
                                       "http://10.1.2.3/",
                                       "https://10.1.2.3/",
                                       "http://10.1.515/", /* 10.1.2.3 */
                                       "http://[::ffff:10.1.2.3]/",
                                       "http://[::1]:9000/",
                                       "https://8.8.8.8/",
                                       "https://hooks.example.com/%2e%2e"};

    for (size_t i = 0; i < sizeof(urls) / sizeof(urls[0]); i++) {
        ck_assert_msg(ask(false, urls[i]) == 0, "%s: %s", urls[i], err_last()->message);
    }
    ck_assert_rc_ok(ask(true, "http://hooks.example.com/"));
}
END_TEST

START_TEST(hosts_that_are_not)
{
    static const char *const urls[] = {"https://example.com/",
                                       "https://hooks.example.com:444/",
                                       "https://example.org:8443/",
                                       "https://a.example.org/",
                                       "https://a.example.org:443/",
                                       "https://aexample.org:8443/",
                                       "https://hooks.example.com.evil",
                                       "https://10.1.2.4/",
                                       "https://10.1.2.3:444/",
                                       "https://[::2]:9000/",
                                       "https://127.0.0.1/",
                                       "https://xhooks.example.com/",
                                       "https://.example.org:8443/"};

    for (size_t i = 0; i < sizeof(urls) / sizeof(urls[0]); i++) {
        int rc = ask(true, urls[i]);
        ck_assert_msg(rc == ERR_WEBHOOK_HOST || (rc == ERR_INVALID_PARAMETER && strstr(urls[i], "//.") != NULL),
                      "%s: %d", urls[i], rc);
        ck_assert(err_last()->hint[0] != '\0');
    }
}
END_TEST

START_TEST(urls_that_are_none)
{
    static const char *const urls[] = {
        "",
        "hooks.example.com",
        "//hooks.example.com",
        "https://",
        "ftp://hooks.example.com",
        "file:///etc/passwd",
        "https://a@hooks.example.com",
        "https://a:b@hooks.example.com",
        "https://:b@hooks.example.com",
        "https://evil.com@hooks.example.com",
        "https://hooks.example.com#a",
        "https://hooks.example.com/ a",
        "https://hooks.example.com:0",
        "https://hooks.example.com:65536",
        "https://hooks.example.com:-1",
        "https://hooks_example_com\\@evil.com",
        "https://[fe80::1%25lo]:9000/",
        "https://h\xc3\xb6oks.example.com/",
        "http://hooks.example.com/",
        "http://8.8.8.8/",
        "http://a.example.org:8443/",
    };

    for (size_t i = 0; i < sizeof(urls) / sizeof(urls[0]); i++) {
        int rc = ask(false, urls[i]);
        ck_assert_msg(rc == ERR_INVALID_PARAMETER || rc == ERR_WEBHOOK_HOST, "%s: %d", urls[i], rc);
    }
    ck_assert_int_eq(ask(true, "http://8.8.8.8/"), ERR_INVALID_PARAMETER); /* http to a public address */
}
END_TEST

START_TEST(without_hosts_there_are_none)
{
    AUTO(policy) struct policy *policy = NULL;
    struct policy_target target;

    ck_assert_rc_ok(policy_new(NULL, true, &policy));
    ck_assert_int_eq(policy_target(policy, "https://hooks.example.com/", &target), ERR_WEBHOOK_HOST);
    ck_assert_ptr_nonnull(strstr(err_last()->message, "--webhook-host"));
}
END_TEST

static const char *refuses(const char *url, bool private, const char *address)
{
    const char *const hosts[] = {"hooks.example.com", "10.1.2.3", NULL};
    AUTO(policy) struct policy *policy = NULL;
    AUTO(policy_target) struct policy_target target = {.url = NULL};
    struct sockaddr_in6 six = {.sin6_family = AF_INET6};
    struct sockaddr_in four = {.sin_family = AF_INET};
    bool is_six = inet_pton(AF_INET6, address, &six.sin6_addr) == 1;

    ck_assert(is_six || inet_pton(AF_INET, address, &four.sin_addr) == 1);
    ck_assert_rc_ok(policy_new(hosts, private, &policy));
    ck_assert_rc_ok(policy_target(policy, url, &target));
    return policy_refuses(&target, is_six ? (const void *)&six : (const void *)&four);
}

START_TEST(addresses_are_judged)
{
    const char *https = "https://hooks.example.com/", *http = "http://hooks.example.com/", *own = "http://10.1.2.3/";
    const struct sockaddr local = {.sa_family = AF_UNIX};
    const struct policy_target target = {.private = true};

    ck_assert_ptr_null(refuses(https, false, "8.8.8.8"));
    ck_assert_ptr_null(refuses(https, false, "2600::1"));
    ck_assert_ptr_nonnull(refuses(https, false, "127.0.0.1"));
    ck_assert_ptr_nonnull(refuses(https, false, "::ffff:10.0.0.1"));
    ck_assert_ptr_nonnull(refuses(https, false, "fd00::1"));
    ck_assert_ptr_null(refuses(https, true, "127.0.0.1"));
    ck_assert_ptr_null(refuses(https, true, "fd00::1"));
    ck_assert_ptr_nonnull(refuses(https, true, "169.254.169.254"));
    ck_assert_ptr_nonnull(refuses(https, true, "::ffff:169.254.169.254"));
    ck_assert_ptr_nonnull(refuses(https, true, "64:ff9b::a9fe:a9fe"));
    ck_assert_ptr_nonnull(refuses(https, true, "0.0.0.0"));
    ck_assert_ptr_null(refuses(http, true, "192.168.1.1"));
    ck_assert_ptr_nonnull(refuses(http, true, "8.8.8.8")); /* not encrypted */
    ck_assert_ptr_null(refuses(own, false, "10.1.2.3"));
    ck_assert_ptr_nonnull(policy_refuses(&target, &local));
}
END_TEST

START_TEST(entries_that_are_none)
{
    static const char *const entries[] = {"",
                                          "*",
                                          "*.",
                                          "**.com",
                                          "a b",
                                          "a/b",
                                          "http://a",
                                          "a:",
                                          "a:0",
                                          "a:65536",
                                          "a:b",
                                          "[::1",
                                          "::g",
                                          "[a]:80",
                                          "a..b",
                                          ".a",
                                          "a.",
                                          "u@a",
                                          "0.0.0.0",
                                          "[::]",
                                          "169.254.1.1",
                                          "[fe80::1]",
                                          "255.255.255.255",
                                          "a:80:80"};

    for (size_t i = 0; i < sizeof(entries) / sizeof(entries[0]); i++) {
        const char *const hosts[] = {"good.example", entries[i], NULL};
        struct policy *policy;
        ck_assert_msg(policy_new(hosts, false, &policy) == ERR_CONFIG, "\"%s\" is none", entries[i]);
    }
}
END_TEST

UNIT_MAIN("policy", urls_that_are_allowed, hosts_that_are_not, urls_that_are_none, without_hosts_there_are_none,
          addresses_are_judged, entries_that_are_none)
