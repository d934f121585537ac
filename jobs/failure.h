#pragma once
/* How a job's end in failure is told: the error object of the job and the hint for its reader. */

#include "base/err.h"

#include <jansson.h>
#include <stdint.h>

/* {"code","message","param","layer","module","hint","retryable"}. The module is the record's; layer: that of the
 * module, or the open block of a record without one; -1 = none. New reference. */
json_t *failure_json(const struct err_record *record, int64_t layer);
/* The code as jobs name it ("disk_full"). */
const char *failure_code(int code);
