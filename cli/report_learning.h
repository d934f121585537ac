#pragma once
/* What a report says about learning: its `tuning`, and what output moments gained. */

#include <jansson.h>

/* Blocks with their steps and losses, the phase end_to_end with its epochs, and the mean fall of the loss that output
 * moments minimize, on standard output; nothing of a job that learned nothing. ERR_HOST_OUT_OF_MEMORY. */
int report_learning_show(const json_t *report);
