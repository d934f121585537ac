#pragma once
/* How blocks learned, between messages of a run, the store and the report. */

#include "pipeline/message.h"

#include <jansson.h>

/* {"step","steps","rate","loss","first_loss"} of what learns, or null. New reference. */
json_t *tuning_progress(const struct tune_progress *progress);
/* A block's note of it; NULL: nothing was learned. New reference. */
json_t *tuning_note(int64_t layer, const struct tune_curve *curve);
/* The report's "tuning" from the rows of finished blocks: {"blocks":[...],"seconds","loss_ratio","end_to_end":{...} or
 * null}, or null. New
 * reference. */
json_t *tuning_report(const json_t *blocks);
