#pragma once
/* What a report says in words: where errors come from, and what would lower them. */

#include <jansson.h>
#include <stdint.h>

/* The summary, a sentence for each of the worst modules, and the suggestions. */
void report_advice_show(const json_t *report);
/* The job's request with suggestion number `number`, from 1, on standard output. ERR_CONFIG: there is none. */
int report_advice_apply(const json_t *report, int64_t number);
