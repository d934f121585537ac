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

struct step_case {
    const char *phase, *block; /* as JSON has them */
    double fraction;
    int at, step, steps; /* steps 0: nothing learns */
    const char *line;    /* NULL: none is printed */
};

/* The first step of each block and of the complete model is said, and then each tenth of the steps, 10 seconds apart.
 */
static const struct step_case steps[] = {
    {"quantizing", "1", 0.1, 0, 1, 40,
     " 10%  quantizing, block 1 of 2, step 1 of 40, loss 0.0125 (0.02 at first), rates 75%"},
    {"quantizing", "1", 0.1, 5, 9, 40, NULL},
    {"quantizing", "1", 0.1, 30, 4, 40, NULL},
    {"quantizing", "1", 0.1, 31, 5, 40, " 10%  quantizing, block 1 of 2, step 5 of 40, loss"},
    {"quantizing", "2", 0.1, 32, 1, 40, " 10%  quantizing, block 2 of 2, step 1 of 40, loss"},
    {"quantizing", "2", 0.2, 32, 2, 40, " 20%  quantizing, block 2 of 2, step 2 of 40, loss"},
    {"evaluating", "null", 0.95, 33, 2, 12,
     " 95%  learning end to end, step 2 of 12, loss 0.0125 (0.02 at first), rates 75%"},
    {"evaluating", "null", 0.95, 34, 8, 12, NULL},
    {"evaluating", "null", 0.95, 43, 9, 12, " 95%  learning end to end, step 9 of 12, loss"},
    {"evaluating", "null", 0.95, 44, 0, 0, " 95%  evaluating, ETA -"},
    {"evaluating", "null", 0.95, 60, 0, 0, NULL},
};

static json_t *step_event(const struct step_case *row)
{
    char text[1024], tuning[256] = "null";
    json_error_t error;

    if (row->steps > 0) {
        snprintf(tuning, sizeof(tuning),
                 "{\"step\": %d, \"steps\": %d, \"rate\": 0.75, \"loss\": 0.0125, \"first_loss\": 0.02}", row->step,
                 row->steps);
    }
    snprintf(text, sizeof(text),
             "{\"type\": \"progress\", \"created_at\": %d, \"data\": {\"phase\": \"%s\", \"step\": \"tuning\", "
             "\"block\": %s, \"fraction\": %g, \"layers_done\": 0, \"layers_total\": 2, \"tuning\": %s}}",
             row->at, row->phase, row->block, row->fraction, tuning);
    json_t *event = json_loads(text, 0, &error);
    ck_assert_msg(event != NULL, "%s: %s", text, error.text);
    return event;
}

START_TEST(test_steps)
{
    char *text = NULL;
    size_t size = 0, before = 0;

    FILE *out = open_memstream(&text, &size);
    struct display *display = display_new(out, false, 80, false);
    ck_assert_ptr_nonnull(display);
    for (size_t i = 0; i < sizeof(steps) / sizeof(steps[0]); i++, before = size) {
        json_t *event = step_event(&steps[i]);
        display_event(display, event);
        json_decref(event);
        if (steps[i].line == NULL) {
            ck_assert_msg(size == before, "row %zu: %s", i, text + before);
        } else {
            ck_assert_msg(size > before && strstr(text + before, steps[i].line) != NULL, "row %zu: %s", i,
                          text + before);
        }
    }
    display_free(display);
    fclose(out);
    free(text);
}
END_TEST

START_TEST(test_steps_of_bars)
{
    char *text = NULL;
    size_t size = 0;

    FILE *out = open_memstream(&text, &size);
    struct display *display = display_new(out, true, 200, false);
    ck_assert_ptr_nonnull(display);
    for (size_t i = 0; i < 7; i++) {
        json_t *event = step_event(&steps[i]);
        display_event(display, event);
        json_decref(event);
    }
    display_free(display);
    fclose(out);
    ck_assert_ptr_nonnull(strstr(text, "block 1: tuning, step 9 of 40, loss 0.0125 (0.02 at first), rates 75%\n"));
    ck_assert_ptr_nonnull(strstr(text, "phase   learning end to end, step 2 of 12, loss"));
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

UNIT_MAIN("cli_display", test_lines, test_steps, test_steps_of_bars, test_bars)
