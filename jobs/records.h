#pragma once
/* What is said of records that came in: to the job that asked for them, whichever way they came. */

#include "models/calibration.h"

#include <jansson.h>

/* One warning for all lines of a file that were not taken, with the first few by number. */
void records_warn_rejected(json_t *warnings, const char *what, const struct calibration_writer *writer);
/* One warning for each kind of thing that was taken and may not have been meant. Those of an earlier upload give way
 * when `again` is set. */
void records_warn_notes(json_t *warnings, const char *what, const struct calibration_writer *writer, bool again);
/* The warning about lines of this file that were not taken, or NULL. Borrowed. */
const char *records_rejected(const json_t *warnings, const char *what);
