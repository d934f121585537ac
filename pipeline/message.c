/* Names of what messages say. */

#include "pipeline/message.h"

const char *const pipeline_phase_names[PHASE_COUNT] = {
    [PHASE_LOAD] = "load",
    [PHASE_FORWARD] = "forward",
    [PHASE_STATISTICS] = "hessian",
    [PHASE_SOLVE] = "solve",
    [PHASE_MEASURE] = "measure",
    [PHASE_EVALUATE] = "evaluate",
    [PHASE_CHECKPOINT] = "checkpoint",
    [PHASE_EXPORT] = "export",
};

const char *const message_steps[] = {"loading", "calibrating", "quantizing", "evaluating", "measuring", "tuning", NULL};
