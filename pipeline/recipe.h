#pragma once
/* What is done to a model's linears: one method, or several in order of which the last one solves and the others only
 * rewrite (["smoothquant", "gptq"]); and overrides that give some modules other parameters, another solver, or none.
 *
 * The "quantization" object of a request holds the parameters of all stages together; each stage reads its own rows,
 * and a member that no stage knows is an error. */

#include "base/cleanup.h"
#include "base/validation.h"
#include "models/cache.h"
#include "pipeline/pattern.h"
#include "quantizers/quantizer.h"

#include <jansson.h>
#include <stdbool.h>

#define RECIPE_STAGES_MAX 4
#define RECIPE_OVERRIDES_MAX 256

struct recipe_stage {
    const struct quantizer *quantizer;
    void *params; /* the quantizer's params struct */
};

/* What a pass over the model tries on every linear (sensitivity.h). */
#define SENSITIVITY_CANDIDATES_MAX 16

struct sensitivity_candidate {
    char name[64];              /* for people, no two alike in a list: "gptq-w3g128", "gptq-w3ch", "nf4" */
    char method[32];            /* that solves */
    int bits;                   /* of a code */
    int64_t group_size;         /* -1: one scale for each output; 0: the method has no such groups */
    struct recipe_stage solver; /* its own parameters; owned by the list */
    json_t *members; /* {"method":..., and what the request says of it}: with "match", an override of the request that
                        it was parsed with; owned by the list */
};

struct sensitivity_candidates {
    struct sensitivity_candidate list[SENSITIVITY_CANDIDATES_MAX];
    int count;
};

/* list: [{"method", "bits", ...}, ...], each with parameters of its method; what it leaves out is as `quantization`
 * has it, whose members that a method does not know do not matter (NULL: none), and its method is `usual`. NULL or JSON
 * null: 2, 3, 4 and 8 bits of `usual`. Errors are named under `pointer`. *out is set on success only. */
int sensitivity_candidates_parse(const struct quantizer *usual, const json_t *quantization, const json_t *list,
                                 const char *pointer, struct validation_errors *errors,
                                 struct sensitivity_candidates *out);
void sensitivity_candidates_deinit(struct sensitivity_candidates *candidates); /* zeroed is fine */

/* --- Automatic mixed precision: "mixed_precision" of a request's quantization. Each linear gets one of several
 * candidates such that the loss that a sensitivity pass predicts is the minimum under a budget (mixture.h). Linears
 * that runtimes load as one, and the experts of a layer, get the same. Linears with an override of their own keep it,
 * and count.
 *
 *   {"bits_per_weight": 3.5}                                      of all quantized linears
 *   {"max_bytes": N}                                              of all tensors of the artifact
 *   {"decode_milliseconds": 5, "memory_bandwidth": 3.35e12}       to read what a token needs once, in bytes per second
 *
 * What a linear takes is what its tensors take in the artifact, with scales, zero points and all else that the format
 * stores for it; in a format of float weights, what its codes and scales would take. */
enum mixture_budget { MIXTURE_BITS, MIXTURE_BYTES, MIXTURE_DECODE };

struct mixture_choice {
    char module[PLAN_NAME_MAX];
    int candidate;
    double kl; /* expected of the unit (sensitivity.h) that the module is in */
};

struct mixture {
    enum mixture_budget budget;
    double bits_per_weight, max_bytes, decode_milliseconds, memory_bandwidth; /* NAN where not given */
    int64_t kl_tokens;                                                        /* that losses are measured on */
    bool listed; /* the request lists the candidates; else those that the format does not take are left out */
    struct sensitivity_candidates candidates;
    /* What modules get: until a run has chosen, each set another candidate in turn, for checks of a mixture as such. */
    struct mixture_choice *choices; /* by name */
    size_t choice_count;
    bool chosen;               /* by a run */
    bool exact;                /* no other choice would lose less; see allocate.h */
    double predicted_kl, bits; /* of the choice: the sum over its units; average bits of all quantized linears */
};

struct recipe_override {
    char match[PATTERN_BYTES_MAX + 1];
    bool skip;
    struct recipe_stage solver; /* unless skip */
};

struct recipe {
    char name[96]; /* "gptq", "smoothquant+gptq" */
    struct recipe_stage stages[RECIPE_STAGES_MAX];
    int count;                 /* the last one solves */
    struct recipe_stage tuner; /* that learns on what they left; quantizer NULL: none of its own */
    struct recipe_override *overrides;
    int override_count;
    struct patterns *patterns;                 /* every pattern of the request */
    struct cache_scheme cache;                 /* of keys and values; element F32: unquantized */
    struct sensitivity_candidates *candidates; /* what is tried on every linear; NULL: nothing is */
    struct mixture *mixture;                   /* that solves modules without an override; NULL: the last stage does */
};

/* method: a name or a list of names. Every error is named under pointer_method and pointer. *out is set on success
 * only. */
int recipe_parse(const json_t *method, const json_t *quantization, const char *pointer_method, const char *pointer,
                 struct validation_errors *errors, struct recipe *out);
void recipe_deinit(struct recipe *recipe); /* zeroed is fine */
/* "method" and "quantization" with every default filled in. New references. */
json_t *recipe_method_json(const struct recipe *recipe);
json_t *recipe_parameters_json(const struct recipe *recipe);
/* The parameters that all methods have in common, as the solving stage has them. */
const struct quant_base *recipe_base(const struct recipe *recipe);
/* The override that decides about this module, which is the last one that matches; RECIPE_USUAL when none does, and
 * RECIPE_LISTED when modules_to_not_convert names it, which no override changes. */
enum { RECIPE_USUAL = -1, RECIPE_LISTED = -2 };
int recipe_override_of(const struct recipe *recipe, const char *module);
/* The stage that solves this module, with its parameters; NULL: it stays in float. */
const struct recipe_stage *recipe_solver(const struct recipe *recipe, const char *module);
/* The same for a module of a plan, which may never be quantized, or only where an override says so. */
const struct recipe_stage *recipe_module_solver(const struct recipe *recipe, const struct plan_module *module,
                                                const char *name);
/* Whether more than the usual solver decides about the module: it stays in float, or has an override of its own. */
bool recipe_decides(const struct recipe *recipe, const struct plan_module *module, const char *name);
/* The stage that learns on solved blocks: of its own, or the last one itself; NULL: nothing does. */
const struct recipe_stage *recipe_tuner(const struct recipe *recipe);
/* Whether scales and the like learn through the complete model after all blocks are done, and how. */
bool recipe_end_to_end(const struct recipe *recipe, struct tune_model_plan *plan);
/* The scheme of a module of that shape under its solver, amended by the earlier stages, without regard to float_inputs.
 */
int recipe_amended_scheme(const struct recipe *recipe, const struct recipe_stage *solver, int64_t rows, int64_t cols,
                          struct qscheme *out);
/* The same, with an unquantized input where a stage's float_inputs names the module. */
int recipe_scheme(const struct recipe *recipe, const struct recipe_stage *solver, const char *module, int64_t rows,
                  int64_t cols, struct qscheme *out);
/* The recipe analyses and makes no artifact. */
bool recipe_analyses(const struct recipe *recipe);
/* It measures the sensitivity of the complete model (sensitivity.h), which is an analysis. */
bool recipe_measures(const struct recipe *recipe);
/* Some stage rewrites blocks. */
bool recipe_rewrites(const struct recipe *recipe);
/* This solver takes a linear's target from the float model, given `tokens` of calibration and `columns` inputs. */
bool recipe_stage_has_targets(const struct recipe_stage *stage, int64_t tokens, int64_t columns);
/* Some solver does. */
bool recipe_has_targets(const struct recipe *recipe, int64_t tokens, int64_t columns);
/* The most calibration tokens on which some solver wants output moments (quantizer.h, `output_tokens`); -1: all. 0:
 * none does. */
int64_t recipe_output_tokens(const struct recipe *recipe);
/* No code and no scale depends on inputs: what passes through the model serves the report alone. */
bool recipe_data_free(const struct recipe *recipe);
/* Some stage or override needs statistics of inputs. */
bool recipe_needs_calibration(const struct recipe *recipe);

/* --- mixtures */
/* object: the member; usual: the method that solves; quantization: the request's. *out is set on success only. */
int mixture_parse(const json_t *object, const struct quantizer *usual, const json_t *quantization, const char *pointer,
                  struct validation_errors *errors, struct mixture **out);
void mixture_free(struct mixture *mixture); /* NULL is fine */
CLEANUP_FREE(mixture, struct mixture, mixture_free)
json_t *mixture_schema(void); /* of the member; new reference */
/* The member of `base`, with candidates completed so that they mean the same next to `all`, which has every parameter
 * filled in. New reference. */
json_t *mixture_request(const struct mixture *mixture, const struct quant_base *base, const json_t *all);
/* What solves a module that no override decides about; NULL: the mixture has nothing for it. */
const struct recipe_stage *mixture_solver(const struct mixture *mixture, const char *module);
