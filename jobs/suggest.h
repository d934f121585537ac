#pragma once
/* Changes of a job's request that would lower its error, as its report's rows have it. */

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#define SUGGEST_MAX 8

/* What suggestions are drawn from and held to. */
struct suggest {
    const json_t *rows;         /* of the report */
    const json_t *request;      /* of the job, with every default */
    int64_t calibration_tokens; /* that its records have; 0: unknown */
    bool calibrated;            /* it has calibration data */
    /* Whether the job of this request would be accepted. */
    bool (*accepts)(void *data, const json_t *request);
    /* The modules that runtimes join with this one, itself among them: an array of paths; NULL: none. New reference. */
    json_t *(*fused)(void *data, int64_t layer, const char *module);
    void *data;
};

/* At most SUGGEST_MAX, in descending order of the error removed for each byte added; each with its "patch" (RFC 7396)
 * of the request, which accepts it then, "reason", "modules" and "module_count", "error_ratio", "error_removed",
 * "bytes_added" and "basis". Empty where nothing would help. NULL: no memory. New reference. */
json_t *suggest_changes(const struct suggest *from);
