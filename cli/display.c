/* The display of a running job. Live, the last lines are the bars: they are erased, lines that stay are printed, and
 * the bars are drawn below them again. A line never wraps, so that the number of lines to go up is known. */

#include "cli/display.h"

#include "base/ids.h"
#include "base/json.h"
#include "base/mem.h"
#include "cli/bar.h"
#include "cli/print.h"
#include "cli/safe.h"

#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <wchar.h>

#define DISPLAY_LAYERS_MAX 4096
#define DISPLAY_LINE 512
#define DISPLAY_BAR 40
#define DISPLAY_STEP 0.1            /* plain lines: say so much progress at least */
#define DISPLAY_LEARNING_SECONDS 10 /* plain lines: between two of the same block's steps */
#define DISPLAY_END_TO_END "learning end to end"

struct display {
    FILE *out;
    bool live, unicode;
    int columns;
    int drawn; /* lines of bars on the terminal */
    char phase[64], step[64], status[64];
    double fraction, said; /* -1: none yet */
    double eta;
    int64_t eta_at, elapsed_at; /* when they were said, in ms of the monotonic clock */
    double elapsed;
    int64_t block, layers_done, layers_total;
    char learning[128];   /* ", step 3 of 40, ..." of what learns now, or nothing */
    int64_t said_learner; /* the block of the last step that was said, 0: the complete model, -1: none yet */
    int64_t said_step;
    double said_at;                    /* by the event's time */
    double errors[DISPLAY_LAYERS_MAX]; /* worst output error of each block */
    char worst[256];
};

struct display *display_new(FILE *out, bool live, int columns, bool unicode)
{
    struct display *display = NULL;

    if (mem_new(&display) != 0) {
        return NULL;
    }
    *display = (struct display){.out = out, .live = live, .columns = columns, .unicode = unicode};
    display->fraction = display->said = display->eta = -1;
    display->said_learner = -1;
    return display;
}

void display_free(struct display *display)
{
    free(display);
}

/* --- lines */

static void erase(struct display *display)
{
    if (display->drawn > 0) {
        fprintf(display->out, "\x1b[%dA\x1b[J", display->drawn);
        display->drawn = 0;
    }
}

/* As much of a harmless text as fits into a line. */
static void print_cut(struct display *display, const char *text)
{
    size_t size = strlen(text), at = 0;
    int width = 0;

    while (at < size) {
        unsigned code = 0;
        size_t length = safe_decode(text + at, size - at, &code);
        int columns = length > 0 ? wcwidth((wchar_t)code) : 1;
        width += columns > 0 ? columns : 0;
        if (width > display->columns - 1) {
            break;
        }
        at += length > 0 ? length : 1;
    }
    fwrite(text, 1, at, display->out);
    fputc('\n', display->out);
    display->drawn++;
}

__attribute__((format(printf, 2, 3))) static void draw_line(struct display *display, const char *format, ...)
{
    char line[DISPLAY_LINE + BAR_SIZE];
    AUTO_FREE char *text = NULL;
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(line, sizeof(line), format, arguments);
    va_end(arguments);
    if (safe_copy(line, &text) == 0) {
        print_cut(display, text);
    }
}

/* A line that stays, with its time. */
__attribute__((format(printf, 3, 4))) static void say(struct display *display, const json_t *event, const char *format,
                                                      ...)
{
    char line[DISPLAY_LINE * 2], stamp[16] = "--:--:--";
    va_list arguments;
    struct tm broken;
    const json_t *created = json_object_get(event, "created_at");
    time_t at = json_is_integer(created) ? (time_t)json_integer_value(created) : time(NULL);

    va_start(arguments, format);
    vsnprintf(line, sizeof(line), format, arguments);
    va_end(arguments);
    if (localtime_r(&at, &broken) != NULL) {
        (void)strftime(stamp, sizeof(stamp), "%H:%M:%S", &broken);
    }
    erase(display);
    safe_printf(display->out, "%s  %s\n", stamp, line);
}

static double remaining(const struct display *display)
{
    if (display->eta < 0) {
        return -1;
    }
    double left = display->eta - (double)(clock_monotonic_ms() - display->eta_at) / 1000;
    return left > 0 ? left : 0;
}

/* How far the open block is, about: blocks have equal shares of the job. */
static double display_open_block(const struct display *display)
{
    return display->fraction * (double)display->layers_total - (double)(display->block - 1);
}

static void draw(struct display *display)
{
    char bar[BAR_SIZE], elapsed[PRINT_SIZE], eta[PRINT_SIZE];
    int width = display->columns - 44 < DISPLAY_BAR ? display->columns - 44 : DISPLAY_BAR;

    width = width < 8 ? 8 : width;
    if (display->fraction >= 0) {
        double passed = display->elapsed + (double)(clock_monotonic_ms() - display->elapsed_at) / 1000;
        draw_line(display, "total   [%s] %3.0f%%  elapsed %s  ETA %s", bar_fill(display->fraction, width, bar),
                  floor(display->fraction * 100), print_seconds(passed, elapsed),
                  print_seconds(remaining(display), eta));
    }
    if (display->layers_total > 0) {
        double done = (double)display->layers_done / (double)display->layers_total;
        draw_line(display, "blocks  [%s] %lld of %lld done", bar_fill(done, width, bar),
                  (long long)display->layers_done, (long long)display->layers_total);
        size_t count = display->layers_total < DISPLAY_LAYERS_MAX ? (size_t)display->layers_total : DISPLAY_LAYERS_MAX;
        draw_line(display, "errors  [%s]%s%s", bar_strip(display->errors, count, width, display->unicode, bar),
                  display->worst[0] != '\0' ? "  worst " : "", display->worst);
    }
    if (display->phase[0] != '\0' && display->block > 0) {
        draw_line(display, "open    [%s] block %lld: %s%s", bar_fill(display_open_block(display), width, bar),
                  (long long)display->block, display->step, display->learning);
    } else if (display->phase[0] != '\0') {
        draw_line(display, "phase   %s%s", display->phase, display->learning);
    } else if (display->status[0] != '\0') {
        draw_line(display, "status  %s", display->status);
    }
}

void display_resize(struct display *display, int columns)
{
    display->columns = columns;
}

void display_tick(struct display *display)
{
    if (display->live) {
        erase(display);
        draw(display);
        (void)fflush(display->out);
    }
}

void display_end(struct display *display)
{
    display->drawn = 0;
    (void)fflush(display->out);
}

void display_note(struct display *display, const char *text)
{
    say(display, NULL, "%s", text);
    display_tick(display);
    (void)fflush(display->out);
}

/* --- events */

static void copy_text(char *out, size_t size, const json_t *object, const char *key)
{
    const char *text = json_get_string(object, key);
    snprintf(out, size, "%s", text != NULL ? text : "");
}

static int64_t display_number_of(const json_t *data, const char *key)
{
    const json_t *value = json_object_get(data, key);
    json_int_t number = json_is_integer(value) ? json_integer_value(value) : 0;
    return number > 0 && number < INT32_MAX ? number : 0;
}

static void on_status(struct display *display, const json_t *event, const json_t *data)
{
    const char *from = json_get_string(data, "from"), *reason = json_get_string(data, "reason");
    int64_t attempt = display_number_of(data, "attempt");
    char again[32] = "";

    copy_text(display->status, sizeof(display->status), data, "status");
    if (attempt > 1) {
        snprintf(again, sizeof(again), ", attempt %lld", (long long)attempt);
    }
    say(display, event, "%s%s%s%s%s%s%s", from != NULL ? from : "", from != NULL ? " -> " : "", display->status, again,
        reason != NULL ? " (" : "", reason != NULL ? reason : "", reason != NULL ? ")" : "");
    if (strcmp(display->status, "running") != 0) {
        display->phase[0] = '\0';
        display->eta = -1;
        if (strcmp(display->status, "succeeded") == 0) {
            display->fraction = 1;
        }
    }
}

/* What the event says of a step. The loss is of the step's own sequences, the first of those that all are measured on.
 */
static void take_learning(struct display *display, const json_t *tuning)
{
    char loss[PRINT_SIZE], first[PRINT_SIZE], rate[16] = "-";

    display->learning[0] = '\0';
    if (!json_is_object(tuning)) {
        return;
    }
    if (json_is_number(json_object_get(tuning, "rate"))) {
        snprintf(rate, sizeof(rate), "%.0f%%", 100 * json_number_value(json_object_get(tuning, "rate")));
    }
    snprintf(display->learning, sizeof(display->learning), ", step %lld of %lld, loss %s (%s at first), rates %s",
             (long long)display_number_of(tuning, "step"), (long long)display_number_of(tuning, "steps"),
             print_number(tuning, "loss", 3, loss), print_number(tuning, "first_loss", 3, first), rate);
    if (display->block == 0) { /* the phase is that of the evaluation that follows */
        snprintf(display->phase, sizeof(display->phase), "%s", DISPLAY_END_TO_END);
    }
}

/* A line for a step: the first of each block and of the complete model, then a tenth of the steps apart, and some
 * seconds. */
static bool learning_is_due(struct display *display, const json_t *event, const json_t *tuning, bool said)
{
    int64_t step = display_number_of(tuning, "step"), steps = display_number_of(tuning, "steps");
    double at = json_number_value(json_object_get(event, "created_at"));

    if (!json_is_object(tuning)) {
        return false;
    }
    bool due = said || display->block != display->said_learner || step < display->said_step ||
               ((double)(step - display->said_step) >= DISPLAY_STEP * (double)steps &&
                at - display->said_at >= DISPLAY_LEARNING_SECONDS);
    if (due) {
        display->said_learner = display->block;
        display->said_step = step;
        display->said_at = at;
    }
    return due;
}

static void on_progress(struct display *display, const json_t *event, const json_t *data)
{
    const json_t *fraction = json_object_get(data, "fraction"), *eta = json_object_get(data, "eta_seconds");
    const json_t *tuning = json_object_get(data, "tuning");
    char before[sizeof(display->phase)], text[PRINT_SIZE], block[64] = "";

    memcpy(before, display->phase, sizeof(before));
    copy_text(display->phase, sizeof(display->phase), data, "phase");
    copy_text(display->step, sizeof(display->step), data, "step");
    display->fraction = json_is_number(fraction) ? json_number_value(fraction) : display->fraction;
    display->eta = json_is_number(eta) ? json_number_value(eta) : -1;
    display->eta_at = display->elapsed_at = clock_monotonic_ms();
    display->elapsed = json_number_value(json_object_get(data, "elapsed_seconds"));
    display->block = display_number_of(data, "block");
    display->layers_done = display_number_of(data, "layers_done");
    display->layers_total = display_number_of(data, "layers_total");
    take_learning(display, tuning);
    if (display->live) {
        return;
    }
    bool due = strcmp(before, display->phase) != 0 || display->fraction >= display->said + DISPLAY_STEP;
    if (!learning_is_due(display, event, tuning, due) && !due) {
        return;
    }
    display->said = due ? display->fraction : display->said;
    if (display->block > 0) {
        snprintf(block, sizeof(block), ", block %lld of %lld", (long long)display->block,
                 (long long)display->layers_total);
    }
    say(display, event, "%3.0f%%  %s%s%s, ETA %s", floor(display->fraction * 100), display->phase, block,
        display->learning, print_seconds(display->eta, text));
}

static void on_layer(struct display *display, const json_t *event, const json_t *data)
{
    const json_t *module, *worst = NULL;
    double error, largest = 0;
    char text[PRINT_SIZE];
    size_t i;

    int64_t layer = display_number_of(data, "layer");
    json_array_foreach(json_object_get(data, "modules"), i, module)
    {
        error = json_number_value(json_object_get(module, "output_relative_mse"));
        if (error > largest) {
            largest = error;
            worst = module;
        }
    }
    if (layer < DISPLAY_LAYERS_MAX) {
        display->errors[layer] = largest;
    }
    display->layers_total = display_number_of(data, "layers_total");
    display->layers_done = layer + 1 > display->layers_done ? layer + 1 : display->layers_done;
    display->block = display->block == layer + 1 ? 0 : display->block; /* it is not open any more */
    display->learning[0] = '\0';
    double top = 0;
    for (size_t at = 0; at < DISPLAY_LAYERS_MAX; at++) {
        top = display->errors[at] > top ? display->errors[at] : top;
    }
    if (worst != NULL && largest >= top) {
        snprintf(display->worst, sizeof(display->worst), "%.2e %s", largest, print_text(worst, "module"));
    }
    if (!display->live) {
        say(display, event, "block %lld of %lld done%s%s%s%s", (long long)layer + 1, (long long)display->layers_total,
            worst != NULL ? ", worst output error " : "",
            worst != NULL ? (snprintf(text, sizeof(text), "%.2e", largest), text) : "", worst != NULL ? " in " : "",
            worst != NULL ? print_text(worst, "module") : "");
    }
}

static void on_metric(struct display *display, const json_t *event, const json_t *data)
{
    char before[PRINT_SIZE], after[PRINT_SIZE], divergence[PRINT_SIZE];

    if (json_is_number(json_object_get(data, "perplexity_after"))) {
        say(display, event, "perplexity %s before, %s after; mean KL %s nats",
            print_number(data, "perplexity_before", 6, before), print_number(data, "perplexity_after", 6, after),
            print_number(data, "kl_divergence_mean", 4, divergence));
    }
}

/* How a rung of a gate's ladder came out, and what comes next. */
static void on_gate(struct display *display, const json_t *event, const json_t *data)
{
    const json_t *reason = json_array_get(json_object_get(data, "reasons"), 0);
    char rung[PRINT_SIZE], total[PRINT_SIZE], perplexity[PRINT_SIZE];
    const char *action = print_text(data, "action");

    (void)snprintf(rung, sizeof(rung), "%lld", (long long)display_number_of(data, "rung") + 1);
    (void)snprintf(total, sizeof(total), "%lld", (long long)display_number_of(data, "rungs_total"));
    say(display, event, "gate: rung %s of %s (%s) %s, perplexity %s%s%s; %s", rung, total, print_text(data, "method"),
        json_is_true(json_object_get(data, "passed")) ? "passed" : "failed",
        print_number(data, "perplexity", 6, perplexity), reason != NULL ? ": " : "",
        reason != NULL ? print_text(reason, "message") : "",
        strcmp(action, "next_rung") == 0 ? "going on with the next rung"
        : strcmp(action, "fail") == 0    ? "the job fails"
        : strcmp(action, "warn") == 0    ? "the artifact is made all the same"
                                         : "the artifact is made");
    if (strcmp(action, "next_rung") == 0) { /* its blocks begin with the first */
        display->layers_done = 0;
    }
}

/* A message, and the members that it is about. */
static void on_log(struct display *display, const json_t *event, const json_t *data)
{
    char text[512], value[PRINT_SIZE];
    const char *name;
    const json_t *member;
    int used = snprintf(text, sizeof(text), "%s", print_text(data, "message"));

    json_object_foreach((json_t *)data, name, member)
    {
        if (strcmp(name, "message") != 0 && used < (int)sizeof(text)) {
            bool scalar = json_is_string(member) || json_is_number(member) || json_is_boolean(member);
            used += snprintf(text + used, sizeof(text) - (size_t)used, ", %s%s%s", name, scalar ? " " : "",
                             scalar ? print_value(member, value) : "");
        }
    }
    say(display, event, "%s", text);
}

void display_event(struct display *display, const json_t *event)
{
    const char *type = print_text(event, "type");
    const json_t *data = json_object_get(event, "data");

    if (strcmp(type, "status") == 0) {
        on_status(display, event, data);
    } else if (strcmp(type, "progress") == 0) {
        on_progress(display, event, data);
    } else if (strcmp(type, "layer") == 0) {
        on_layer(display, event, data);
    } else if (strcmp(type, "metric") == 0) {
        on_metric(display, event, data);
    } else if (strcmp(type, "gate") == 0) {
        on_gate(display, event, data);
    } else if (strcmp(type, "log") == 0) {
        on_log(display, event, data);
    } else if (json_get_string(data, "message") != NULL) {
        say(display, event, "%s: %s", type, print_text(data, "message"));
    }
    display_tick(display);
    (void)fflush(display->out);
}
