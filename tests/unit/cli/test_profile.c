/* The profile file: what it sets, who may read it, and that no message has the key. */

#include "cli/profile.h"
#include "tests/unit/unit.h"

#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define KEY "qd_0123456789abcdefghijklmnopqrstuvwxyz"

static char folder[64], path[128];

static void set_up(void)
{
    strcpy(folder, "quantctl-profile-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(folder));
    char *absolute = realpath(folder, NULL);
    ck_assert_int_eq(setenv("XDG_CONFIG_HOME", absolute, 1), 0);
    free(absolute);
    unsetenv("QUANTD_URL");
    unsetenv("QUANTD_API_KEY");
    unsetenv("QUANTD_CA_FILE");
}

static void tear_down(void)
{
    char command[256];

    snprintf(command, sizeof(command), "%s/quantctl/config", folder);
    (void)unlink(command);
    snprintf(command, sizeof(command), "%s/quantctl", folder);
    (void)rmdir(command);
    (void)rmdir(folder);
}

START_TEST(test_saved_is_loaded)
{
    struct profile saved = {
        .url = strdup("https://example.org:8443/q"), .key = strdup(KEY), .ca_file = strdup("/a/ca.pem")};
    struct profile loaded = {0};
    struct stat info;

    set_up();
    ck_assert_rc_ok(profile_path(path, sizeof(path)));
    ck_assert_rc_ok(profile_save(&saved, path));
    ck_assert_int_eq(stat(path, &info), 0);
    ck_assert_uint_eq(info.st_mode & 07777, 0600);
    ck_assert_rc_ok(profile_load(NULL, NULL, &loaded));
    ck_assert_str_eq(loaded.url, saved.url);
    ck_assert_str_eq(loaded.key, KEY);
    ck_assert_str_eq(loaded.ca_file, "/a/ca.pem");
    profile_deinit(&loaded);
    profile_deinit(&saved);
    tear_down();
}
END_TEST

START_TEST(test_precedence)
{
    struct profile saved = {.url = strdup("http://file")}, loaded = {0};

    set_up();
    ck_assert_rc_ok(profile_load(NULL, NULL, &loaded));
    ck_assert_str_eq(loaded.url, PROFILE_DEFAULT_URL);
    ck_assert_rc_ok(profile_path(path, sizeof(path)));
    ck_assert_rc_ok(profile_save(&saved, path));
    ck_assert_rc_ok(profile_load(NULL, NULL, &loaded));
    ck_assert_str_eq(loaded.url, "http://file");
    setenv("QUANTD_URL", "http://environment", 1);
    setenv("QUANTD_API_KEY", KEY, 1);
    ck_assert_rc_ok(profile_load(NULL, NULL, &loaded));
    ck_assert_str_eq(loaded.url, "http://environment");
    ck_assert_str_eq(loaded.key, KEY);
    ck_assert_rc_ok(profile_load("http://line", "/ca", &loaded));
    ck_assert_str_eq(loaded.url, "http://line");
    ck_assert_str_eq(loaded.ca_file, "/ca");
    profile_deinit(&loaded);
    profile_deinit(&saved);
    tear_down();
}
END_TEST

START_TEST(test_others_can_read_the_key)
{
    struct profile saved = {.url = strdup("http://file"), .key = strdup(KEY)}, loaded = {0};

    set_up();
    ck_assert_rc_ok(profile_path(path, sizeof(path)));
    ck_assert_rc_ok(profile_save(&saved, path));
    ck_assert_int_eq(chmod(path, 0644), 0);
    ck_assert_int_eq(profile_load(NULL, NULL, &loaded), ERR_CONFIG);
    ck_assert_ptr_null(strstr(err_last()->message, "qd_"));
    profile_deinit(&saved);
    tear_down();
}
END_TEST

START_TEST(test_faults)
{
    static const char *const faults[] = {"url",          "url =", "host = x",    "api_key " KEY,
                                         "token = " KEY, "= x",   "url = \n" KEY};
    static const struct {
        const char *text, *url;
    } good[] = {{"", NULL}, {"# comment\n\n  url = http://a  \r\n", "http://a"}, {"url=http://b#c", "http://b#c"}};

    for (size_t i = 0; i < sizeof(faults) / sizeof(faults[0]); i++) {
        struct profile profile = {0};
        ck_assert_msg(profile_parse("config", faults[i], strlen(faults[i]), &profile) == ERR_CONFIG, "%s", faults[i]);
        ck_assert_msg(strncmp(err_last()->message, "config:1: ", 10) == 0, "%s", err_last()->message);
        ck_assert_ptr_null(strstr(err_last()->message, "qd_"));
        profile_deinit(&profile);
    }
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        struct profile profile = {0};
        ck_assert_rc_ok(profile_parse("config", good[i].text, strlen(good[i].text), &profile));
        ck_assert_pstr_eq(profile.url, good[i].url);
        profile_deinit(&profile);
    }
    struct profile profile = {0};
    ck_assert_int_eq(profile_parse("config", "url = a\0b", 9, &profile), ERR_CONFIG);
    profile_deinit(&profile);
}
END_TEST

START_TEST(test_keys)
{
    static char large[600];

    ck_assert_rc_ok(profile_check_key(KEY));
    memset(large, 'x', sizeof(large) - 1);
    static const char *const bad[] = {"", "qd_a b", "qd_a\r\nX-Admin: 1", "qd_\xc3\xbc", large};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        ck_assert_int_eq(profile_check_key(bad[i]), ERR_CONFIG);
        ck_assert_ptr_null(strstr(err_last()->message, "qd_"));
    }
}
END_TEST

START_TEST(test_a_line_break_is_not_saved)
{
    struct profile profile = {.url = strdup("http://a\napi_key = x")};

    set_up();
    ck_assert_rc_ok(profile_path(path, sizeof(path)));
    ck_assert_int_eq(profile_save(&profile, path), ERR_CONFIG);
    ck_assert_int_ne(access(path, F_OK), 0);
    profile_deinit(&profile);
    tear_down();
}
END_TEST

UNIT_MAIN("cli_profile", test_saved_is_loaded, test_precedence, test_others_can_read_the_key, test_faults, test_keys,
          test_a_line_break_is_not_saved)
