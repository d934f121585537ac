/* A job's quality gate, and what its rungs measured. */

#include "api/schema_rows.h"

static const struct schema_row generation_rows[] = {
    MEMBER(prompts, INT),
    MEMBER(prompt_tokens, INT),
    MEMBER(tokens, INT, HELP("Of each continuation.")),
    MEMBER(agreement, NUMBER, HELP("Share of a continuation before the first token that differs, mean over prompts.")),
    MEMBER(repetition_before, NUMBER,
           HELP("Share of the pairs of adjacent tokens that the continuation had already: of "
                "the float model.")),
    MEMBER(repetition_after, NUMBER, HELP("Of the quantized model.")),
    END};
const struct schema schema_generation = {
    .name = "Generation", .help = "Greedy continuations of the same prompts by both models.", .rows = generation_rows};

static const struct schema_row reason_rows[] = {
    MEMBER(limit, STRING, HELP("The member of the gate.")), MEMBER(allowed, NUMBER),
    MEMBER(measured, NUMBER, NULLABLE, HELP("Null: not finite.")), MEMBER(message, STRING), END};
static const struct schema schema_gate_reason = {
    .name = "GateReason", .help = "A limit that was not kept.", .rows = reason_rows};

static const struct schema_row rung_rows[] = {
    MEMBER(rung, INT, HELP("0: the job's own parameters; others: of the ladder, from 1.")),
    MEMBER(method, STRING),
    MEMBER(quantization, OBJECT, HELP("Its parameters, with every default filled in.")),
    MEMBER(perplexity, NUMBER, NULLABLE),
    MEMBER(perplexity_increase_ratio, NUMBER, NULLABLE),
    MEMBER(kl_divergence, NUMBER, NULLABLE),
    MEMBER(top1_agreement, NUMBER, NULLABLE),
    OBJECT(generation, schema_generation, NULLABLE),
    MEMBER(passed, BOOL),
    LIST(reasons, schema_gate_reason),
    END};
static const struct schema schema_gate_rung = {
    .name = "GateRung", .help = "How a rung of the ladder came out.", .rows = rung_rows};

static const struct schema_row gate_rows[] = {
    MEMBER(passed, BOOL, NULLABLE, HELP("Of the rung that is at work; null until it is judged.")),
    MEMBER(rung, INT, HELP("The rung that is at work, or was the last.")),
    MEMBER(rungs_total, INT, HELP("1 without a ladder.")), LIST(rungs, schema_gate_rung), END};
const struct schema schema_gate = {.name = "Gate", .help = "How a job's gate stands.", .rows = gate_rows};

static const char *const on_fail[] = {"fail", "warn", NULL};
static const struct schema_row asked_rows[] = {
    MEMBER(max_perplexity, NUMBER, NULLABLE),
    MEMBER(max_perplexity_increase_ratio, NUMBER, NULLABLE),
    MEMBER(max_kl_divergence, NUMBER, NULLABLE),
    MEMBER(min_top1_agreement, NUMBER, NULLABLE),
    MEMBER(generation, OBJECT, NULLABLE),
    MEMBER(on_fail, ENUM, .choices = on_fail),
    MEMBER(ladder, LIST, NULLABLE, HELP("Rungs after the first, each with its method and all of its parameters.")),
    END};
const struct schema schema_job_gate = {.name = "JobGate", .help = "Limits of a request.", .rows = asked_rows};
