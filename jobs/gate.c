/* Parsing of a gate, and its decision.
 *
 * A rung is a JSON merge patch (RFC 7396) of the request's quantization. Where it names another method, the members
 * that the other method does not have are left out before. In a stored request rungs are complete, and a patch by all
 * members changes nothing, so that it reads as what the client sent. */

#include "jobs/gate.h"

#include "base/err.h"
#include "base/mem.h"
#include "base/params.h"

#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define POINTER "/evaluation/gate"

struct gate_members {
    double max_perplexity, max_perplexity_increase_ratio, max_kl_divergence, min_top1_agreement;
    json_t *generation, *ladder;
    int on_fail;
};

struct gate_generation {
    int64_t prompts, prompt_tokens, tokens;
    double min_agreement, max_repetition_increase;
};

struct gate_rung {
    json_t *method, *quantization;
};

#define ROW(type_, struct_, member, fallback_, ...)                                            \
    {                                                                                          \
        .name = #member, .type = (type_), .offset = offsetof(struct struct_, member),          \
        .size = sizeof(((struct struct_ *)NULL)->member), .fallback = (fallback_), __VA_ARGS__ \
    }

static const char *const on_fail_names[] = {"fail", "warn", NULL};

static const struct params_row generation_rows[] = {
    ROW(PARAMS_INT, gate_generation, prompts, "4", .min = 1, .max = 64,
        .help = "Prompts: the first evaluation sequences, each as far as prompt_tokens."),
    ROW(PARAMS_INT, gate_generation, prompt_tokens, "32", .min = 1, .max = 4096,
        .help = "Tokens of a prompt; fewer where sequences are shorter."),
    ROW(PARAMS_INT, gate_generation, tokens, "32", .min = 2, .max = 512, .help = "Greedy tokens after each prompt."),
    ROW(PARAMS_NUMBER, gate_generation, min_agreement, "null", .min = 0, .max = 1,
        .help =
            "Share of a continuation before the first token that differs from the float model's, mean over prompts."),
    ROW(PARAMS_NUMBER, gate_generation, max_repetition_increase, "0.2", .min = 0, .max = 1,
        .help = "Share of pairs of adjacent tokens that the continuation had already, less the float model's share."),
    {.name = NULL},
};
static const struct params_row *const generation_tables[] = {generation_rows, NULL};

static const struct params_row gate_rows[] = {
    ROW(PARAMS_NUMBER, gate_members, max_perplexity, "null", .min = 1, .max = 1e12,
        .help = "Perplexity of the quantized model."),
    ROW(PARAMS_NUMBER, gate_members, max_perplexity_increase_ratio, "null", .min = 0, .max = 1e6,
        .help = "Perplexity after divided by perplexity before, minus 1: 0.03 allows 3 % more."),
    ROW(PARAMS_NUMBER, gate_members, max_kl_divergence, "null", .min = 0, .max = 1e6,
        .help = "Mean KL(float || quantized), in nats."),
    ROW(PARAMS_NUMBER, gate_members, min_top1_agreement, "null", .min = 0, .max = 1,
        .help = "Share of evaluation tokens where both models find the same next token most likely."),
    ROW(PARAMS_JSON, gate_members, generation, "null", .parts = generation_tables,
        .help = "Greedy continuations by both models are compared; {} for defaults."),
    ROW(PARAMS_ENUM, gate_members, on_fail, "\"fail\"", .choices = on_fail_names,
        .help = "When the last rung does not pass: fail makes no artifact, warn makes it with a warning."),
    ROW(PARAMS_JSON, gate_members, ladder, "null",
        .help = "What to try next when the limits are not kept, up to 8 objects {\"method\"?, \"quantization\"?}; "
                "quantization is a merge patch of the job's."),
    {.name = NULL},
};
const struct params_row *const gate_tables[] = {gate_rows, NULL};

static const struct params_row rung_rows[] = {
    ROW(PARAMS_JSON, gate_rung, method, "null", .help = "Another method; null: the job's."),
    ROW(PARAMS_JSON, gate_rung, quantization, "null", .help = "A merge patch of the job's quantization."),
    {.name = NULL},
};
static const struct params_row *const rung_tables[] = {rung_rows, NULL};

/* --- limits */

/* What is measured next to what is allowed. */
struct gate_measure {
    const char *limit, *what;
    double allowed, measured;
    bool at_least;
};
#define GATE_MEASURES 6

static void gate_measures(const struct gate *gate, const struct evaluation_result *e,
                          struct gate_measure out[GATE_MEASURES])
{
    const struct generation_result *g = &e->generation;
    const struct gate_measure all[GATE_MEASURES] = {
        {"max_perplexity", "perplexity", gate->max_perplexity, e->perplexity_after, false},
        {"max_perplexity_increase_ratio", "the increase of perplexity as a ratio", gate->max_perplexity_increase_ratio,
         e->perplexity_after / e->perplexity_before - 1, false},
        {"max_kl_divergence", "KL divergence", gate->max_kl_divergence, e->kl_mean, false},
        {"min_top1_agreement", "top-1 agreement", gate->min_top1_agreement, e->top1_agreement, true},
        {"generation.min_agreement", "agreement of generated tokens", gate->generates ? gate->min_agreement : NAN,
         g->agreement, true},
        {"generation.max_repetition_increase", "the increase of repetition in generated text",
         gate->generates ? gate->max_repetition_increase : NAN, g->repetition_after - g->repetition_before, false},
    };

    memcpy(out, all, sizeof(all));
}

static bool gate_limits_anything(const struct gate *gate)
{
    const struct evaluation_result none = {.done = false};
    struct gate_measure measures[GATE_MEASURES];
    bool any = false;

    gate_measures(gate, &none, measures);
    for (int i = 0; i < GATE_MEASURES; i++) {
        any = any || !isnan(measures[i].allowed);
    }
    return any;
}

/* --- parsing */

static void gate_parse_generation(const json_t *json, struct validation_errors *errors, struct gate *out)
{
    struct gate_generation generation = {0};

    if (json == NULL || params_parse(generation_tables, json, POINTER "/generation", &generation, errors) != 0) {
        return;
    }
    out->generates = true;
    out->prompts = generation.prompts;
    out->prompt_tokens = generation.prompt_tokens;
    out->tokens = generation.tokens;
    out->min_agreement = generation.min_agreement;
    out->max_repetition_increase = generation.max_repetition_increase;
}

/* The row that a method, or one of a list, has for a member. */
static const struct params_row *method_row(const json_t *method, const char *member)
{
    const struct params_row *found = NULL;
    size_t count = json_is_array(method) ? json_array_size(method) : 1;

    for (size_t i = 0; found == NULL && i < count; i++) {
        const char *name = json_string_value(json_is_array(method) ? json_array_get(method, i) : method);
        const struct quantizer *quantizer = name != NULL ? quantizer_find(name) : NULL;
        found = quantizer != NULL ? params_find(quantizer->params, member) : NULL;
    }
    return found;
}

/* The request's members that go into a rung: without those that another method does not have, and those that the patch
 * gives by another of their names. */
static json_t *gate_base(const json_t *quantization, const json_t *method, bool other, const json_t *patch)
{
    json_t *base = json_object(), *value;
    const char *name, *given;
    json_t *unused;

    json_object_foreach((json_t *)quantization, name, value)
    {
        const struct params_row *row = method_row(method, name);
        bool kept = !json_is_null(value) && (!other || row != NULL);
        json_object_foreach((json_t *)patch, given, unused)
        {
            kept = kept && (row == NULL || strcmp(given, name) == 0 || method_row(method, given) != row);
        }
        if (kept) {
            json_object_set_new(base, name, json_deep_copy(value));
        }
    }
    return base;
}

static void gate_merge(json_t *into, const json_t *patch)
{
    const char *name;
    json_t *value;

    json_object_foreach((json_t *)patch, name, value)
    {
        json_t *was = json_object_get(into, name);
        if (json_is_null(value)) {
            json_object_del(into, name);
        } else if (json_is_object(value) && json_is_object(was)) {
            gate_merge(was, value);
        } else {
            json_object_set_new(into, name, json_deep_copy(value));
        }
    }
}

static void gate_parse_rung(const json_t *json, int index, const json_t *method, const json_t *quantization,
                            struct validation_errors *errors, struct gate *out)
{
    char pointer[64], pointer_method[80], pointer_quantization[80];
    struct gate_rung rung = {NULL, NULL};

    (void)snprintf(pointer, sizeof(pointer), POINTER "/ladder/%d", index);
    (void)snprintf(pointer_method, sizeof(pointer_method), "%s/method", pointer);
    (void)snprintf(pointer_quantization, sizeof(pointer_quantization), "%s/quantization", pointer);
    if (!json_is_object(json)) {
        char text[PARAMS_VALUE_SIZE];
        validation_add(errors, ERR_INVALID_PARAMETER, pointer, "a rung is %s; it must be an object",
                       params_value_text(json, text));
        return;
    }
    if (params_parse(rung_tables, json, pointer, &rung, errors) != 0) {
        return;
    }
    if (rung.method == NULL && rung.quantization == NULL) {
        validation_add(errors, ERR_MISSING_PARAMETER, pointer,
                       "the rung changes nothing: it needs \"method\" or \"quantization\"");
    } else if (rung.quantization != NULL && !json_is_object(rung.quantization)) {
        char text[PARAMS_VALUE_SIZE];
        validation_add(errors, ERR_INVALID_PARAMETER, pointer_quantization,
                       "\"quantization\" is %s; it must be an object", params_value_text(rung.quantization, text));
    } else {
        const json_t *used = rung.method != NULL ? rung.method : method;
        AUTO_JSON json_t *merged =
            gate_base(quantization, used, rung.method != NULL && !json_equal(used, method), rung.quantization);
        gate_merge(merged, rung.quantization);
        if (recipe_parse(used, merged, pointer_method, pointer_quantization, errors, &out->ladder[out->ladder_count]) ==
            0) {
            out->ladder_count++;
        }
    }
    params_release(rung_tables, &rung);
}

static void gate_parse_ladder(const json_t *json, const json_t *method, const json_t *quantization,
                              struct validation_errors *errors, struct gate *out)
{
    size_t count = json_array_size(json);

    if (json == NULL) {
        return;
    }
    if (!json_is_array(json) || count == 0 || count > GATE_LADDER_MAX) {
        validation_add(errors, ERR_INVALID_PARAMETER, POINTER "/ladder",
                       "\"ladder\" must be an array of 1 to %d objects {\"method\", \"quantization\"}",
                       GATE_LADDER_MAX);
        return;
    }
    if (mem_array(&out->ladder, count) != 0) {
        validation_add(errors, ERR_HOST_OUT_OF_MEMORY, POINTER "/ladder", "no memory for a ladder");
        return;
    }
    for (size_t i = 0; i < count; i++) {
        gate_parse_rung(json_array_get(json, i), (int)i, method, quantization, errors, out);
    }
}

void gate_parse(const json_t *json, const json_t *method, const json_t *quantization, struct validation_errors *errors,
                struct gate *out)
{
    struct gate_members members = {0};

    *out = (struct gate){.asked = false};
    if (json == NULL || json_is_null(json) || params_parse(gate_tables, json, POINTER, &members, errors) != 0) {
        return;
    }
    *out = (struct gate){.asked = true,
                         .max_perplexity = members.max_perplexity,
                         .max_perplexity_increase_ratio = members.max_perplexity_increase_ratio,
                         .max_kl_divergence = members.max_kl_divergence,
                         .min_top1_agreement = members.min_top1_agreement,
                         .min_agreement = NAN,
                         .max_repetition_increase = NAN,
                         .on_fail = (enum gate_on_fail)members.on_fail};
    size_t before = errors->count;
    gate_parse_generation(members.generation, errors, out);
    if (errors->count == before && !gate_limits_anything(out)) {
        validation_add(errors, ERR_MISSING_PARAMETER, POINTER, "the gate has no limit, so that everything would pass");
        validation_hint(errors, "give max_perplexity_increase_ratio, max_kl_divergence, min_top1_agreement, "
                                "max_perplexity or generation");
    }
    if (method != NULL) { /* its absence is reported where it belongs */
        gate_parse_ladder(members.ladder, method, quantization, errors, out);
    }
    params_release(gate_tables, &members);
}

void gate_deinit(struct gate *gate)
{
    for (int i = 0; i < gate->ladder_count; i++) {
        recipe_deinit(&gate->ladder[i]);
    }
    free(gate->ladder);
    *gate = (struct gate){.asked = false};
}

/* --- canonical form */

static json_t *gate_number(double value)
{
    return isfinite(value) ? json_real(value) : json_null();
}

/* A rung with all its members, and null for those of the request that it has not. */
static json_t *rung_json(const struct recipe *recipe, const struct recipe *request)
{
    AUTO_JSON json_t *base = recipe_parameters_json(request);
    json_t *parameters = recipe_parameters_json(recipe), *value;
    const char *name;

    json_object_foreach(base, name, value)
    {
        if (json_object_get(parameters, name) == NULL) {
            json_object_set_new(parameters, name, json_null());
        }
    }
    return json_pack("{s:o, s:o}", "method", recipe_method_json(recipe), "quantization", parameters);
}

json_t *gate_json(const struct gate *gate, const struct recipe *request)
{
    if (!gate->asked) {
        return json_null();
    }
    json_t *generation = json_null(), *ladder = gate->ladder_count > 0 ? json_array() : json_null();
    if (gate->generates) {
        generation = json_pack("{s:I, s:I, s:I, s:o, s:o}", "prompts", (json_int_t)gate->prompts, "prompt_tokens",
                               (json_int_t)gate->prompt_tokens, "tokens", (json_int_t)gate->tokens, "min_agreement",
                               gate_number(gate->min_agreement), "max_repetition_increase",
                               gate_number(gate->max_repetition_increase));
    }
    for (int i = 0; i < gate->ladder_count; i++) {
        json_array_append_new(ladder, rung_json(&gate->ladder[i], request));
    }
    return json_pack("{s:o, s:o, s:o, s:o, s:o, s:s, s:o}", "max_perplexity", gate_number(gate->max_perplexity),
                     "max_perplexity_increase_ratio", gate_number(gate->max_perplexity_increase_ratio),
                     "max_kl_divergence", gate_number(gate->max_kl_divergence), "min_top1_agreement",
                     gate_number(gate->min_top1_agreement), "generation", generation, "on_fail",
                     on_fail_names[gate->on_fail], "ladder", ladder);
}

/* --- the decision */

static json_t *gate_reason(const struct gate_measure *m)
{
    char message[256];

    if (isfinite(m->measured)) {
        (void)snprintf(message, sizeof(message), "%s is %.6g, and %s is %.6g", m->what, m->measured, m->limit,
                       m->allowed);
    } else {
        (void)snprintf(message, sizeof(message), "%s is not finite, and %s is %.6g", m->what, m->limit, m->allowed);
    }
    return json_pack("{s:s, s:f, s:o, s:s}", "limit", m->limit, "allowed", m->allowed, "measured",
                     gate_number(m->measured), "message", message);
}

json_t *gate_generation(const struct generation_result *g)
{
    if (g->prompts == 0) {
        return json_null();
    }
    return json_pack("{s:I, s:I, s:I, s:f, s:f, s:f}", "prompts", (json_int_t)g->prompts, "prompt_tokens",
                     (json_int_t)g->prompt_tokens, "tokens", (json_int_t)g->tokens, "agreement", g->agreement,
                     "repetition_before", g->repetition_before, "repetition_after", g->repetition_after);
}

json_t *gate_judge(const struct gate *gate, int rung, const struct recipe *recipe,
                   const struct evaluation_result *result)
{
    struct gate_measure measures[GATE_MEASURES];
    json_t *reasons = json_array();

    gate_measures(gate, result, measures);
    for (int i = 0; i < GATE_MEASURES; i++) {
        const struct gate_measure *m = &measures[i];
        bool kept = isnan(m->allowed) || (m->at_least ? m->measured >= m->allowed : m->measured <= m->allowed);
        if (!kept || (!isnan(m->allowed) && !isfinite(m->measured))) {
            json_array_append_new(reasons, gate_reason(m));
        }
    }
    bool passed = json_array_size(reasons) == 0;
    return json_pack("{s:i, s:s, s:o, s:o, s:o, s:o, s:o, s:o, s:b, s:o}", "rung", rung, "method", recipe->name,
                     "quantization", recipe_parameters_json(recipe), "perplexity",
                     gate_number(result->perplexity_after), "perplexity_increase_ratio",
                     gate_number(result->perplexity_after / result->perplexity_before - 1), "kl_divergence",
                     gate_number(result->kl_mean), "top1_agreement", gate_number(result->top1_agreement), "generation",
                     gate_generation(&result->generation), "passed", (int)passed, "reasons", reasons);
}

void gate_reasons(const json_t *outcome, char *out, size_t size)
{
    const json_t *reasons = json_object_get(outcome, "reasons");
    size_t i, used = 0;
    json_t *reason;

    out[0] = '\0';
    json_array_foreach((json_t *)reasons, i, reason)
    {
        if (used < size) {
            int more = snprintf(out + used, size - used, "%s%s", i > 0 ? "; " : "",
                                json_string_value(json_object_get(reason, "message")));
            used += more > 0 ? (size_t)more : 0;
        }
    }
}
