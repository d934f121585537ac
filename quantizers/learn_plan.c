/* Plans of methods that learn, against the calibration set that there is, and what they cost; how learning takes its
 * steps, on blocks and end to end. */

#include "quantizers/learn.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define LANE_TOKENS 2048 /* products of so many rows are fast; micro-batches of devices are of as many or more */

int64_t tune_lane(int64_t sequences, int64_t length)
{
    int64_t lane = length < LANE_TOKENS ? LANE_TOKENS / length : 1;

    return lane < sequences ? lane : sequences;
}

double tune_decay(bool cosine, double floor, double done)
{
    double shape = cosine ? 0.5 * (1 + cos(3.14159265358979323846 * done)) : 1 - done;

    return floor + (1 - floor) * shape;
}

void tune_note(struct tune_curve *curve, const char *format, ...)
{
    size_t size = sizeof(curve->note), used = strlen(curve->note);
    va_list arguments;

    if (used > 0) {
        used += (size_t)snprintf(curve->note + used, size - used, "; ");
    }
    if (used < size) {
        va_start(arguments, format);
        vsnprintf(curve->note + used, size - used, format, arguments);
        va_end(arguments);
    }
}

/* What a small set has: at most half of it is held out, and a batch is at most what is left. */
struct learn_plan learn_fit(const struct learn_plan *asked, int64_t sequences, struct tune_curve *curve)
{
    struct learn_plan plan = *asked;

    plan.held_out = plan.held_out && sequences > 1;
    int64_t most = plan.held_out ? sequences / 2 : sequences;
    plan.checked = plan.checked < most ? plan.checked : most;
    int64_t left = plan.held_out ? sequences - plan.checked : sequences;
    if (plan.batch > left) {
        plan.batch = left;
        tune_note(curve, "batches have %lld sequences: the calibration set has no more", (long long)left);
    }
    plan.checks = plan.checks < plan.steps ? plan.checks : plan.steps;
    return plan;
}

void learn_cost(const struct learn_plan *asked, int64_t sequences, struct tune_cost *out)
{
    struct tune_curve unused;
    const struct learn_plan fitted = learn_fit(asked, sequences, &unused), *plan = &fitted;
    bool latents = plan->rate[LEARN_LATENTS] > 0;
    int64_t floats = 2; /* the gradient and the latent; moving averages; where latents began */

    floats += latents && plan->beta1 > 0 ? 1 : 0;
    floats += latents && !plan->sign ? 1 : 0;
    floats += latents && isfinite(plan->reach) ? 1 : 0;
    *out = (struct tune_cost){
        .state = floats * (int64_t)sizeof(float) + 1, /* and the best code */
        .learned = (double)plan->steps * (double)plan->batch,
        .measured = plan->steps > 0 ? (double)(1 + plan->checks) * (double)plan->checked : 0,
        .at_once = plan->batch > plan->checked ? plan->batch : plan->checked,
    };
}

void learn_model_check(const struct params_row *const *tables, const void *values, bool end_to_end, const char *pointer,
                       struct validation_errors *errors)
{
    static const char *const names[] = {"e2e_epochs", "e2e_batch_size", "e2e_lr", "e2e_norm_lr"};
    json_t *given = end_to_end ? NULL : params_json(tables, values);

    for (size_t i = 0; given != NULL && i < sizeof(names) / sizeof(names[0]); i++) {
        json_t *usual = json_loads(params_find(tables, names[i])->fallback, JSON_DECODE_ANY, NULL);
        if (!json_equal(json_object_get(given, names[i]), usual)) {
            char why[120];
            snprintf(why, sizeof(why), "\"%s\" is of \"end_to_end\", which is false", names[i]);
            quant_refuse(errors, pointer, names[i], why);
            validation_hint(errors, "end_to_end true, or leave it out");
        }
        json_decref(usual);
    }
    json_decref(given);
}
