/* What is shown of a job: plain lines, bars that are erased before they are drawn again, and hostile texts. */

#include "cli/display.h"
#include "tests/unit/unit.h"

#include <string.h>

static const char *const events[] = {
    "{\"type\": \"status\", \"created_at\": 0, \"data\": {\"status\": \"queued\", \"from\": null}}",
    "{\"type\": \"status\", \"created_at\": 0, \"data\": {\"status\": \"running\", \"from\": \"queued\", \"attempt\": "
    "2}}",
    "{\"type\": \"progress\", \"created_at\": 0, \"data\": {\"phase\": \"quantizing\", \"step\": \"calibrating\", "
    "\"block\": 1,"
    " \"fraction\": 0.25, \"layers_done\": 0, \"layers_total\": 2, \"elapsed_seconds\": 1, \"eta_seconds\": 75}}",
    "{\"type\": \"layer\", \"created_at\": 0, \"data\": {\"layer\": 0, \"layers_total\": 2, \"modules\": ["
    "{\"module\": \"a\", \"output_relative_mse\": 0.001}, {\"module\": \"b\\u001b[H\", \"output_relative_mse\": "
    "0.02}]}}",
    "{\"type\": \"warning\", \"created_at\": 0, \"data\": {\"code\": \"x\", \"message\": \"tex\\nt\"}}",
    "{\"type\": \"metric\", \"created_at\": 0, \"data\": {\"perplexity_before\": 10, \"perplexity_after\": 11}}",
    "{\"type\": \"status\", \"created_at\": 0, \"data\": {\"status\": \"failed\", \"from\": \"running\", \"reason\": "
    "\"disk\"}}",
    /* not what quantd sends */
    "{}",
    "{\"type\": \"progress\", \"data\": {\"fraction\": \"x\", \"block\": -7, \"layers_total\": 1e300}}",
    "{\"type\": \"layer\", \"data\": {\"layer\": 99999999, \"layers_total\": 99999999, \"modules\": 3}}",
    "{\"type\": \"layer\", \"data\": null}",
    "{\"type\": \"status\", \"data\": {\"status\": 3}}",
};

static char *shown(bool live)
{
    char *text = NULL;
    size_t size = 0;

    FILE *out = open_memstream(&text, &size);
    struct display *display = display_new(out, live, 80, false);
    ck_assert_ptr_nonnull(display);
    for (size_t i = 0; i < sizeof(events) / sizeof(events[0]); i++) {
        json_error_t error;
        json_t *event = json_loads(events[i], 0, &error);
        ck_assert_msg(event != NULL, "%s: %s", events[i], error.text);
        display_event(display, event);
        json_decref(event);
    }
    display_end(display);
    display_free(display);
    fclose(out);
    return text;
}

START_TEST(test_lines)
{
    char *text = shown(false);

    ck_assert_ptr_null(strchr(text, '\x1b'));
    ck_assert_ptr_nonnull(strstr(text, "  queued\n"));
    ck_assert_ptr_nonnull(strstr(text, "  queued -> running, attempt 2\n"));
    ck_assert_ptr_nonnull(strstr(text, "  25%  quantizing, block 1 of 2, ETA 1m15s\n"));
    ck_assert_ptr_nonnull(strstr(text, "block 1 of 2 done, worst output error 2.00e-02 in b\\x1b[H\n"));
    ck_assert_ptr_nonnull(strstr(text, "warning: tex\\x0at\n"));
    ck_assert_ptr_nonnull(strstr(text, "perplexity 10 before, 11 after"));
    ck_assert_ptr_nonnull(strstr(text, "running -> failed (disk)\n"));
    free(text);
}
END_TEST

/* The text with every "up N and erase" applied, as a terminal would show it. */
static void apply(const char *text, char *screen, size_t size)
{
    size_t length = 0;

    for (const char *at = text; *at != '\0' && length + 1 < size; at++) {
        int up = 0, used = 0;
        if (*at != '\x1b') {
            screen[length++] = *at;
            continue;
        }
        ck_assert_int_eq(sscanf(at, "\x1b[%dA\x1b[J%n", &up, &used), 1);
        ck_assert_int_gt(used, 0); /* no other sequence, so none of the server's */
        for (; up > 0; up--) {
            ck_assert_uint_gt(length, 0);
            length--;
            while (length > 0 && screen[length - 1] != '\n') {
                length--;
            }
        }
        at += used - 1;
    }
    screen[length] = '\0';
}

START_TEST(test_bars)
{
    char *text = shown(true), screen[8192];
    int bars = 0;

    apply(text, screen, sizeof(screen));
    for (const char *at = strstr(screen, "total   ["); at != NULL; at = strstr(at + 1, "total   [")) {
        bars++;
    }
    ck_assert_int_eq(bars, 1);
    ck_assert_ptr_nonnull(strstr(text, "blocks  [##################------------------] 1 of 2 done"));
    ck_assert_ptr_nonnull(strstr(text, "errors  [1.]  worst 2.00e-02 b\\x1b[H"));
    ck_assert_ptr_nonnull(strstr(screen, "warning: tex\\x0at\n"));
    for (char *line = strtok(screen, "\n"); line != NULL; line = strtok(NULL, "\n")) {
        ck_assert_msg(strncmp(line, "total", 5) != 0 || strlen(line) < 80, "%s wraps", line);
    }
    free(text);
}
END_TEST

UNIT_MAIN("cli_display", test_lines, test_bars)
