#pragma once
/* The quality gate of a request: limits on what the evaluation measures, and a ladder of other ways to quantize, which
 * a job tries one after the other until one passes. The first rung, number 0, is the request itself. */

#include "base/cleanup.h"
#include "base/validation.h"
#include "pipeline/message.h"
#include "pipeline/recipe.h"

#include <jansson.h>
#include <stdbool.h>

#define GATE_LADDER_MAX 8 /* rungs after the first */

enum gate_on_fail { GATE_FAIL, GATE_WARN };

struct gate {
    bool asked;
    double max_perplexity, max_perplexity_increase_ratio, max_kl_divergence, min_top1_agreement; /* NAN: no limit */
    bool generates;
    int64_t prompts, prompt_tokens, tokens;
    double min_agreement, max_repetition_increase; /* of what is generated; NAN: no limit */
    enum gate_on_fail on_fail;                     /* when the last rung does not pass */
    struct recipe *ladder;                         /* rung 1 is ladder[0] */
    int ladder_count;
};

/* From "evaluation.gate" of a request with that method and quantization, as the client gave them. json NULL: no gate.
 * Every error is named below /evaluation/gate. *out is set in any case and released by gate_deinit. */
void gate_parse(const json_t *json, const json_t *method, const json_t *quantization, struct validation_errors *errors,
                struct gate *out);
void gate_deinit(struct gate *gate); /* zeroed is fine */
/* With defaults filled in and complete rungs, in canonical order; json_null where none is asked for. request: the
 * recipe of rung 0. New reference. */
json_t *gate_json(const struct gate *gate, const struct recipe *request);
/* Of the members of "evaluation.gate". */
extern const struct params_row *const gate_tables[];

/* What a rung measured against the limits: {"rung","method","quantization","perplexity","perplexity_increase_ratio",
 * "kl_divergence","top1_agreement","generation","passed","reasons":[{"limit","allowed","measured","message"}]}. A value
 * that is not finite is null and passes no limit. New reference, NULL: no memory. */
json_t *gate_judge(const struct gate *gate, int rung, const struct recipe *recipe,
                   const struct evaluation_result *result);
/* What generation measured; json_null where it was not asked for. New reference. */
json_t *gate_generation(const struct generation_result *result);
/* The messages of an outcome's reasons, "; " between them. */
void gate_reasons(const json_t *outcome, char *out, size_t size);
