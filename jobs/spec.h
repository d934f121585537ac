#pragma once
/* A job's request, checked: JSON in, plain struct out, and back to JSON with every default filled in. */

#include "base/cleanup.h"
#include "base/ids.h"
#include "base/validation.h"
#include "formats/format.h"
#include "formats/runtimes.h"
#include "jobs/gate.h"
#include "jobs/targets.h"
#include "pipeline/disk_plan.h"
#include "pipeline/memory_plan.h"
#include "pipeline/recipe.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

struct spec_calibration {
    char file_id[ID_SIZE]; /* "" = none */
    bool stream;
    int64_t num_samples;     /* sequences; 0 = all there are */
    int64_t sequence_length; /* 0 = the smaller of 2048 and the model's positions */
    char text_field[64];
    bool add_special_tokens;
    bool packing, shuffle;
    int64_t report_tokens; /* that errors are measured on where codes need none; 0 = all */
};

struct spec_evaluation {
    char file_id[ID_SIZE]; /* "" = the held-back tail of the calibration set */
    double hold_back;      /* fraction of the calibration sequences kept for evaluation when there is no file */
    int64_t max_tokens;
    int64_t sequence_length; /* 0 = the calibration's */
    char text_field[64];
    bool add_special_tokens;
    json_t *gate; /* as it was given; job_spec.gate is what it says */
};

struct spec_output {
    char format[32]; /* "" = chosen against the model, as spec_check does */
    int64_t max_shard_bytes;
    int sign;        /* enum params_switch; PARAMS_AUTO: where the daemon has a key */
    json_t *targets; /* as they are written, or NULL */
    int64_t tensor_parallel_size;
};

struct spec_resources {
    char device[32];
    int64_t host_memory_bytes; /* 0 = the daemon's budget */
};

/* By what a model is quantized. */
enum spec_mode {
    SPEC_AUTO,         /* by its architecture where that is known, else model-free; spec_check says which */
    SPEC_ARCHITECTURE, /* block by block, with a forward pass */
    SPEC_MODEL_FREE,   /* by names and shapes alone (models/bare.h) */
};
extern const char *const spec_modes[]; /* NULL-terminated */

struct job_spec {
    char name[128];
    char model[ID_SIZE];
    char webhook_id[ID_SIZE]; /* "" = none */
    int64_t seed, priority, max_attempts, timeout_seconds, expires_after_seconds;
    enum spec_mode mode;
    struct recipe recipe;
    const struct format *format; /* NULL until it is chosen */
    struct spec_calibration calibration;
    struct spec_evaluation evaluation;
    struct gate gate;
    int rung; /* of the gate's ladder, which `recipe` is */
    struct spec_output output;
    struct format_targets targets; /* of output, read */
    struct spec_resources resources;
    json_t *metadata;       /* object or NULL */
    json_t *recommendation; /* of a job that was of method "auto", as recommend_resolve leaves it; or NULL */
    struct disk_plan disk;  /* as spec_check finds it, but for activations, which admission adds */
    int64_t source_bytes;   /* of the model's tensors; 0 until admission has looked at the job */
    int64_t device_bytes;   /* of the device at the peak, as planned; likewise */
    /* What the targets decided of what the request left open, in sentences for its owner; "" each: nothing. */
    char group_note[TARGETS_NOTE_SIZE], format_note[TARGETS_NOTE_SIZE];
};

/* Parse everything that can be judged without the model; every error is named. *out is set on success only. */
int spec_parse(const json_t *body, struct validation_errors *errors, struct job_spec *out);
/* Of a zeroed spec too. */
void spec_deinit(struct job_spec *spec);
CLEANUP_DEINIT(job_spec, struct job_spec, spec_deinit)
/* The request with defaults filled in, in canonical member order. New reference. */
json_t *spec_json(const struct job_spec *spec);
/* Make `recipe` that of a rung, 0 being the request's own; gate.ladder keeps the others. */
void spec_use_rung(struct job_spec *spec, int rung);
/* The job runs forwards through the model: it has calibration data or an evaluation set. */
bool spec_has_calibration(const struct job_spec *spec);
/* How a job of this mode opens its model. */
enum model_reading spec_reading(const struct job_spec *spec);
/* Calibration sequence length once the model is known. */
int64_t spec_sequence_length(const struct job_spec *spec, const struct model_config *config);

/* Sequences of a calibration set of so many that pass through the model: all of them where codes or scales depend on
 * inputs, else as many as have report_tokens. */
int64_t spec_passing_sequences(const struct job_spec *spec, int64_t sequences, int64_t length);

/* What PATCH changes. */
struct spec_change {
    bool sets_name, sets_priority, sets_metadata;
    char name[128];
    int64_t priority;
    json_t *metadata; /* object or NULL */
};
int spec_change_parse(const json_t *body, struct validation_errors *errors, struct spec_change *out);
void spec_change_deinit(struct spec_change *change);
CLEANUP_DEINIT(spec_change, struct spec_change, spec_change_deinit)
/* In the request as it is stored. */
void spec_change_apply(const struct spec_change *change, json_t *request);
/* JSON Schema of the body. New reference. */
json_t *spec_change_schema(void);
/* The stored request with the members of a retry's body (NULL: none) in place of its own. *merged: a new reference,
 * still to be parsed. */
int spec_retry(const json_t *request, const json_t *body, struct validation_errors *errors, json_t **merged);
void spec_check_metadata(const json_t *metadata, struct validation_errors *errors);

/* JSON Schema of a job body, whatever its method. New reference. */
json_t *spec_schema(void);
/* JSON Schema of a job body's "quantization" object for one method. New reference. */
json_t *spec_quantization_schema(const struct quantizer *quantizer);

/* --- against the model */
/* What passes through the model, for memory_plan. */
struct memory_load spec_load(const struct job_spec *spec, const struct model_config *config);
/* Append a warning for each choice that the targets made. */
void spec_warn_targets(const struct job_spec *spec, json_t *warnings);
/* Everything that a job of this spec on this model would run into, from headers alone. Defaults that depend on the
 * model (format, sequence lengths) and what it stores are filled in, the latter also where it is only too large.
 * device: the one that will run it, or NULL when there is none (which is the caller's to refuse). 0 or errors filled.
 */
int spec_check(struct job_spec *spec, const struct model *model, const struct gpu_info *device,
               struct validation_errors *errors);
