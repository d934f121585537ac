/* Why learning kept nothing: a measured loss that rises comes from rates that are too high, one that stays from steps
 * that change neither a code nor a scale as it is stored. What learned is never worse than the start by that loss, so
 * that nothing else tells. */

#include "jobs/tuning_warn.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ROSE 1.5     /* times the first loss: no noise of sequences */
#define DIVERGED 4.0 /* likewise, where steps before it are kept */
#define STAYED 1e-6  /* changes of a loss within this share are of the order of sums */

const char tuning_kept_nothing[] = "learning_kept_nothing", tuning_diverged[] = "learning_diverged";

/* Of curves that learned. */
struct tuning_found {
    int count, kept, unfinished; /* where the loss was not finite */
    int rose, stayed;            /* of all */
    double most;                 /* last / first at most */
    bool unsolved;               /* one was not finite before any step */
};

static void tuning_look(const json_t *note, struct tuning_found *found)
{
    const json_t *first = json_object_get(note, "first_loss"), *last = json_object_get(note, "last_loss");
    const char *said = json_string_value(json_object_get(note, "note"));
    double first_loss = json_number_value(first), best = json_number_value(json_object_get(note, "best_loss"));
    double ratio = json_number_value(last) / first_loss;

    found->count++;
    found->kept += json_integer_value(json_object_get(note, "best_step")) > 0;
    found->unsolved = found->unsolved || !json_is_number(first);
    found->unfinished += json_is_number(first) && said != NULL && strstr(said, "not finite") != NULL;
    if (json_is_number(first) && json_is_number(last) && isfinite(ratio)) {
        found->rose += ratio > ROSE;
        found->stayed += fabs(ratio - 1) < STAYED && best > first_loss * (1 - STAYED);
        found->most = ratio > found->most ? ratio : found->most;
    }
}

/* `"lr" (5, by default 0.002)` to what is there. */
static void tuning_add_rate(const char *name, double value, const char *usual, bool derived, char *out, size_t size)
{
    size_t used = strlen(out);
    const char *joined = used > 0 ? " and " : "";

    if (derived) {
        snprintf(out + used, size - used, "%s\"%s\" (0, which is 1 / iters)", joined, name);
    } else {
        snprintf(out + used, size - used, "%s\"%s\" (%g, by default %s)", joined, name, value, usual);
    }
}

/* Which rates to name: those above their defaults, of those all that are not 0, of those all there are. */
enum tuning_rates { RATES_ABOVE, RATES_SET, RATES_ALL };

static void tuning_name_rates(const struct recipe_stage *tuner, bool model, enum tuning_rates which, char *out,
                              size_t size)
{
    static const char *const of_blocks[] = {"lr", "scale_lr", "tune_lr", NULL};
    static const char *const of_model[] = {"e2e_lr", "e2e_norm_lr", NULL};
    const struct params_row *const *tables = tuner->quantizer->params;
    json_t *values = params_json(tables, tuner->params);

    out[0] = '\0';
    for (const char *const *name = model ? of_model : of_blocks; *name != NULL; name++) {
        const struct params_row *row = params_find(tables, *name);
        if (row == NULL) {
            continue;
        }
        double value = json_number_value(json_object_get(values, *name)), usual = strtod(row->fallback, NULL);
        bool derived = value == 0 && strcmp(*name, "lr") == 0 && params_find(tables, "iters") != NULL;
        if (which == RATES_ALL || (which == RATES_SET && (value > 0 || derived)) ||
            (which == RATES_ABOVE && value > usual)) {
            tuning_add_rate(*name, value, row->fallback, derived, out, size);
        }
    }
    json_decref(values);
    if (out[0] == '\0' && which != RATES_ALL) {
        tuning_name_rates(tuner, model, which + 1, out, size);
    }
}

static void tuning_reason(const struct tuning_found *found, const struct recipe_stage *tuner, bool model, char *out,
                          size_t size)
{
    char rates[200];
    bool high = found->unfinished > 0 || found->rose > 0;

    tuning_name_rates(tuner, model, high ? RATES_ABOVE : RATES_ALL, rates, sizeof(rates));
    if (found->unsolved) {
        snprintf(out, size, "the loss was not finite before the first step");
    } else if (found->unfinished > 0) {
        snprintf(out, size, "the loss was not finite any more, so rates are too high: lower %s", rates);
    } else if (found->rose > 0) {
        snprintf(out, size, "the loss rose to %.3g times the first, so rates are too high: lower %s", found->most,
                 rates);
    } else if (found->stayed == found->count) {
        snprintf(out, size,
                 "the loss stayed as it was, so steps are too small to change what is stored: raise %s, or make more "
                 "steps",
                 rates);
    } else {
        snprintf(out, size,
                 "no loss was below the first (the last is %.3g times it at most), so that %s has little left to gain, "
                 "or rates are not right: %s",
                 found->most, model ? "this phase" : "the blocks' own loss", rates);
    }
}

const char *tuning_warning(const json_t *blocks, const struct recipe *recipe, bool model,
                           char text[TUNING_WARNING_SIZE])
{
    const struct recipe_stage *tuner = recipe_tuner(recipe);
    struct tuning_found found = {.count = 0};
    char reason[400];
    size_t i;
    json_t *item;

    json_array_foreach((json_t *)blocks, i, item)
    {
        const json_t *notes = json_object_get(item, "notes");
        const json_t *note = json_object_get(notes, model ? "end_to_end" : "tuning");
        if (note != NULL) {
            tuning_look(note, &found);
        }
    }
    if (tuner == NULL || found.count == 0) {
        return NULL;
    }
    tuning_reason(&found, tuner, model, reason, sizeof(reason));
    if (found.kept == 0 || found.stayed == found.count) {
        char of[80];
        (void)snprintf(of, sizeof(of), "%d of %d blocks", found.count, found.count);
        (void)snprintf(text, TUNING_WARNING_SIZE, "%s gained nothing in %s, stored as %s: %s",
                       model ? "end_to_end" : tuner->quantizer->name, model ? "the complete model" : of,
                       model ? "it was before" : "they were solved", reason);
        return tuning_kept_nothing;
    }
    if (found.unfinished > 0 || found.most > DIVERGED) {
        (void)snprintf(text, TUNING_WARNING_SIZE, "%s diverged, and kept the best step it had: %s",
                       model ? "end_to_end" : tuner->quantizer->name, reason);
        return tuning_diverged;
    }
    return NULL;
}
