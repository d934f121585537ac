/* Names of images, and the credentials that a file has for their registries. */

#include "../unit.h"
#include "cli/credentials.h"
#include "cli/reference.h"

static void check_reference(const char *text, const char *server, const char *host, const char *repository,
                            const char *tag)
{
    struct reference reference;

    ck_assert_rc_ok(reference_parse(text, &reference));
    ck_assert_str_eq(reference.server, server);
    ck_assert_str_eq(reference.host, host);
    ck_assert_str_eq(reference.repository, repository);
    ck_assert_str_eq(reference.tag, tag);
}

START_TEST(test_references)
{
    check_reference("localhost/x", "localhost", "localhost", "x", "latest");
    check_reference("localhost:5000/models/llama:W4_1.0-a", "localhost:5000", "localhost", "models/llama", "W4_1.0-a");
    check_reference("[::1]:5000/x", "[::1]:5000", "[::1]", "x", "latest");
    check_reference("[::1]/x", "[::1]", "[::1]", "x", "latest");
    check_reference("Ghcr.io/org/a__b.c-d", "Ghcr.io", "Ghcr.io", "org/a__b.c-d", "latest");
    check_reference("docker.io/ann/x:t", "registry-1.docker.io", "registry-1.docker.io", "ann/x", "t");
    check_reference("docker.io/x", "registry-1.docker.io", "registry-1.docker.io", "library/x", "latest");
}
END_TEST

START_TEST(test_references_refused)
{
    static const char *const cases[] = {"",
                                        "x",
                                        "ann/x",
                                        "https://ghcr.io/x",
                                        "ghcr.io/",
                                        "ghcr.io/X",
                                        "ghcr.io//x",
                                        "ghcr.io/x/",
                                        "ghcr.io/x:",
                                        "ghcr.io/x:.a",
                                        "ghcr.io/x@sha256:00",
                                        "ghcr.io:x/x",
                                        "-a.io/x",
                                        "a@b.io/x",
                                        "ghcr.io/a___b",
                                        "ghcr.io/a\nb"};
    struct reference reference;

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        ck_assert_int_eq(reference_parse(cases[i], &reference), ERR_CONFIG);
    }
}
END_TEST

static int parse(const char *text, const char *registry, struct credentials *out)
{
    return credentials_parse("f", text, strlen(text), registry, out);
}

static void check_user(const char *text, const char *registry, const char *user, const char *password)
{
    struct credentials found = {0};

    ck_assert_rc_ok(parse(text, registry, &found));
    if (user == NULL) {
        ck_assert_ptr_null(found.user);
    } else {
        ck_assert_str_eq(found.user, user);
        ck_assert_str_eq(found.password, password);
    }
    credentials_deinit(&found);
}

START_TEST(test_credentials)
{
    const char *hub =
        "{\"auths\": {\"https://index.docker.io/v1/\": {\"auth\": \"YW5uOnA6cQ==\"}, \"a.io:1\": {\"auth\": "
        "\"eDp5eg==\"}, \"b.io\": {\"username\": \"u\", \"password\": \"\"}, \"c.io\": {}}}";

    check_user(hub, "docker.io", "ann", "p:q");
    check_user(hub, "A.io:1", "x", "yz");
    check_user(hub, "a.io", NULL, NULL);
    check_user(hub, "b.io", "u", "");
    check_user(hub, "c.io", NULL, NULL);
    check_user(hub, "evil-a.io:1", NULL, NULL);
    check_user("{}", "docker.io", NULL, NULL);
    struct credentials found = {0};
    ck_assert_rc_ok(parse("{\"auths\": {\"a.io\": {\"auth\": \"eDo=\", \"identitytoken\": \"t\"}}}", "a.io", &found));
    ck_assert_str_eq(found.identity, "t");
    credentials_deinit(&found);
    ck_assert_rc_ok(parse("{\"credHelpers\": {\"a.io\": \"ecr-login\"}}", "a.io", &found));
    ck_assert(found.elsewhere);
    credentials_deinit(&found);
}
END_TEST

START_TEST(test_credentials_refused)
{
    static const char *const cases[] = {"",
                                        "[]",
                                        "{",
                                        "{\"auths\": {\"a.io\": {\"auth\": \"x\"}}}",
                                        "{\"auths\": {\"a.io\": {\"auth\": \"====\"}}}",
                                        "{\"auths\": {\"a.io\": {\"auth\": \"eHl6\"}}}",
                                        "{\"auths\": {\"a.io\": {\"auth\": \"eAB4Onk=\"}}}"};
    struct credentials found = {0};

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        ck_assert_int_eq(parse(cases[i], "a.io", &found), ERR_CONFIG);
        ck_assert_ptr_null(found.user);
    }
}
END_TEST

START_TEST(test_basic)
{
    struct credentials ann = {.user = (char *)(uintptr_t) "ann", .password = (char *)(uintptr_t) "p:q"};
    char *text = NULL;

    ck_assert_rc_ok(credentials_basic(&ann, &text));
    ck_assert_str_eq(text, "Basic YW5uOnA6cQ==");
    free(text);
}
END_TEST

UNIT_MAIN("reference", test_references, test_references_refused, test_credentials, test_credentials_refused, test_basic)
