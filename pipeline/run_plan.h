#pragma once
/* What a run takes and does, from headers alone: the pipeline's allocations in their order, layer by layer, and how
 * much work each phase has. memory_plan.h has the upper bound that a run divides its device by; this is what it is
 * expected to be. Bytes of the device as its backend counts them, and of the host beyond the process that is there
 * already. Where the device computes in the host's memory, the host's part has the device's in it. Any thread. */

#include "pipeline/disk_plan.h"
#include "pipeline/memory_plan.h"
#include "pipeline/message.h"

enum run_stage { STAGE_LOADING, STAGE_CALIBRATING, STAGE_QUANTIZING, STAGE_EVALUATING, STAGE_PACKING, STAGE_COUNT };
extern const char *const run_stage_names[STAGE_COUNT];

/* What passes through the model. */
struct run_load {
    const struct recipe *recipe;
    const struct format *format; /* NULL: an analysis */
    int64_t sequences, length;   /* of the calibration set, without what is held back; 0: there is none */
    int64_t eval_sequences, eval_length;
    int64_t host_memory_bytes;                 /* for activations */
    int64_t prompts, prompt_tokens, generated; /* as struct generation of pipeline.h has them */
};

struct run_memory {
    int64_t device, host; /* the peak of a stage; 0: there is no such stage */
};

struct run_plan {
    struct run_memory stages[STAGE_COUNT];
    int64_t activations; /* of all stores together */
    int64_t in_memory;   /* of these in the host's memory; the others are in files */
    int64_t spilled;     /* in files, the residual streams twice: as read and as written */
    int64_t saved;       /* copies of the streams that a resume begins with, of those in memory */
    int64_t
        saved_evaluation; /* of these what is saved after the last block, too: the evaluation's, end_to_end's teacher */
    int64_t moments;      /* files of output moments, and what their pass spills */
    int64_t codes;        /* of a device's own memory: results of a block until they are written */
    double work[PHASE_COUNT]; /* bytes of LOAD, CHECKPOINT and EXPORT; else operations */
    double width;             /* of the linears: the root of outputs by inputs, a mean by their weights; 0: none */
    bool experts;             /* some are experts' */
};

/* 0, ERR_HOST_OUT_OF_MEMORY, or ERR_INSUFFICIENT_MEMORY for sets that no machine could keep. modules: as recipe_modules
 * lists them; artifact_bytes: what EXPORT writes. The recipe is bound to the model (recipe_bind). */
int run_plan_make(const struct run_load *load, const struct model *model, const struct gpu_info *device,
                  int64_t artifact_bytes, struct run_plan *out);
/* What a plan's activations take of the disk, for disk_plan_max. A block's are saved before those of the one before
 * it are removed. */
void run_plan_disk(const struct run_plan *plan, int64_t layers, struct disk_plan *disk);
/* The largest of all stages. */
struct run_memory run_plan_peak(const struct run_plan *plan);
