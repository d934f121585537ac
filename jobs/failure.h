#pragma once
/* How a job's end in failure is told: the error object of the job and the hint for its reader. */

#include "base/err.h"
#include "models/model.h"

#include <jansson.h>
#include <stdint.h>

/* {"code","message","param","layer","module","hint","retryable"}. layer: the open block, -1 = none was open; a module
 * that the message names overrides it. model may be NULL. New reference. */
json_t *failure_json(const struct err_record *record, int64_t layer, const struct model *model);
/* The code as jobs name it ("disk_full"). */
const char *failure_code(int code);
