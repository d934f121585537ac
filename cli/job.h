#pragma once
/* A job as several commands see it: its path, its state, and the exit status that follows from it. */

#include "cli/client.h"
#include "cli/print.h"

#define JOB_METHOD_SIZE 128

/* The path of a job, or of something below it: below is "", "/events", ... ERR_CONFIG when id is not a job's. */
int job_path(char *out, size_t size, const char *id, const char *below);
int job_get(struct cli *cli, const char *id, json_t **out);
/* The artifact that a name means: its id, or a job that made it. */
int job_find_artifact(struct cli *cli, const char *name, char *out, size_t size);
bool job_is_terminal(const char *status);
/* 0 of a job that succeeded; else STATUS_JOB with its error as the sentence. */
int job_outcome(const json_t *job);

/* "gptq", or "smoothquant,gptq". */
const char *job_method(const json_t *job, char out[JOB_METHOD_SIZE]);
const char *job_percent(const json_t *job, char out[PRINT_SIZE]);
const char *job_eta(const json_t *job, char out[PRINT_SIZE]);
/* The error that orders modules: of the output, or of the weights where nothing was calibrated. */
#define JOB_METRIC "output_relative_mse"
#define JOB_METRIC_WEIGHTS "relative_mse"
/* Its members and its result, for people. Returns 0. */
int job_print(const json_t *job);
/* Perplexity, divergence, bits and compression of a result; nothing for null. */
void job_print_result(const json_t *result);
/* What a job of method auto became, and why; nothing for null. */
void job_print_choice(const json_t *chosen);
/* How the rungs of its gate came out; nothing for null. */
void job_print_gate(const json_t *gate);
