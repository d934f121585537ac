#pragma once
/* What the programs that artifacts are made for load, and have kernels for: rows of facts (runtime_rows.c), and a
 * result held against them. Targets are runtimes that a job names, by version where that matters. Any thread. */

#include "formats/format.h"

#include <stdbool.h>
#include <stdint.h>

#define FORMAT_TARGETS_MAX 8
#define RUNTIME_VERSION_SIZE 24
#define RUNTIME_TENSOR_PARALLEL_MAX 1024

/* How a weight is stored, as far as kernels care; of keys and values, their type. */
enum runtime_form {
    RUNTIME_INT,         /* integers, inputs as they are */
    RUNTIME_INT8_INPUTS, /* INT8 with INT8 inputs */
    RUNTIME_FP8,         /* E4M3 with a scale for each tensor or channel, inputs as they are */
    RUNTIME_FP8_INPUTS,  /* the same with E4M3 inputs */
    RUNTIME_FP8_BLOCKS,  /* E4M3 with a scale for each block, inputs as they are */
    RUNTIME_FP8_BLOCKS_INPUTS,
    RUNTIME_NF4,
    RUNTIME_INT8_OUTLIERS, /* INT8 with the outlier columns of inputs in float */
    RUNTIME_CODEBOOKS,
    RUNTIME_GGML,  /* block types of GGUF files */
    RUNTIME_FLOAT, /* any result as float weights */
    RUNTIME_CACHE_FP8,
    RUNTIME_CACHE_INT8,
    RUNTIME_FORM_COUNT
};
extern const char *const runtime_form_names[RUNTIME_FORM_COUNT];  /* "int", "int8_inputs" */
extern const char *const runtime_form_titles[RUNTIME_FORM_COUNT]; /* "integers", "INT8 with INT8 inputs" */

#define RUNTIME_BITS(width) (1U << (width))
enum runtime_symmetry { RUNTIME_SYM = 1, RUNTIME_ASYM = 2, RUNTIME_BOTH = 3 };
#define RUNTIME_CHANNEL (-1) /* among groups: one scale for each output */

struct runtime {
    const char *name, *title;
    const char *oldest, *checked; /* the versions that the rows are about; `checked` is also "as of now" */
    const char *load;             /* a command or a call; FOLDER stands for the artifact's */
    const char *parallel; /* the option that divides a model over N devices, with a space before it; NULL: none */
    bool experts_alike;   /* all linears of a layer's experts are loaded as one */
};
/* Ends with a row whose name is NULL. */
extern const struct runtime runtime_list[];
const struct runtime *runtime_find(const char *name);

/* One runtime, format and condition under which it loads. Several rows of one form add up. */
struct runtime_row {
    const char *runtime, *format;
    enum runtime_form form;
    const char *since, *until; /* versions in which it was seen, in sources or running; until NULL: it still is so */
    unsigned bits;             /* RUNTIME_BITS of each width; 0: any */
    enum runtime_symmetry symmetry; /* 0: any */
    const int *groups;              /* group sizes, or sides of blocks, up to a 0; NULL: any */
    int outputs, inputs;            /* what those of a linear must be multiples of, on each device; 0: any */
    bool whole_blocks;              /* linears that are loaded as one must end where a block ends */
    bool no_experts;                /* linears of experts are not loaded */
    bool one_device;                /* cannot be divided over devices */
    bool per_tensor;                /* caches: one scale for all heads */
    bool expands;                   /* weights become float weights when they are loaded */
    const char *architecture;       /* of no other model; NULL: of any */
    const char *needs;              /* packages, or an argument, that it needs as well; NULL: none */
    const char *hardware;           /* NULL: any that the runtime takes */
    const char *kernels;            /* what multiplies */
};
/* Ends with a row whose runtime is NULL. */
extern const struct runtime_row runtime_rows[];

/* A runtime that an artifact is made for: "vllm", "vllm>=0.32" (every version from there on), "vllm==0.33.0". */
struct format_target {
    const struct runtime *runtime;
    char from[RUNTIME_VERSION_SIZE]; /* the oldest that must load it */
    bool exact;                      /* and the only one */
    bool given;                      /* a version was given */
};

struct format_targets {
    struct format_target items[FORMAT_TARGETS_MAX];
    int count;
    int64_t tensor_parallel; /* devices that a model is divided over; 0 is 1 */
};

/* Which part of a request a refusal is about. */
enum runtime_part {
    PART_FORMAT,
    PART_TARGET,
    PART_FORM,
    PART_BITS,
    PART_SYMMETRY,
    PART_GROUP,
    PART_PARALLEL,
    PART_CACHE,
};

#define RUNTIME_REFUSALS_MAX 16
struct runtime_refusal {
    enum runtime_part part;
    char module[PLAN_NAME_MAX]; /* the first that it is true of; "" where it is about the model */
    char text[320], hint[320];  /* hint "": nothing else would do */
};

/* Read a target. ERR_INVALID_PARAMETER with a hint. */
int runtime_target_parse(const char *text, struct format_target *out);
/* Why a target does not load a result in this format, which carries it: each reason once. Returns their number; 0: it
 * loads it. Negative: no memory. */
int runtime_check(const struct format *format, const struct format_config *config, const struct format_target *target,
                  int64_t tensor_parallel, struct runtime_refusal out[RUNTIME_REFUSALS_MAX]);
/* Whether each of the targets loads it. */
bool runtime_targets_load(const struct format *format, const struct format_config *config,
                          const struct format_targets *targets);
/* Whether a runtime's checked version has a kernel for a module of this scheme, wherever it is in a model. */
bool runtime_loads_scheme(const char *runtime, const char *format, const struct qscheme *scheme);
/* The row by which a target loads the result's first module, or its cache where no module is quantized; NULL: none. */
const struct runtime_row *runtime_row_of(const struct format *format, const struct format_config *config,
                                         const struct format_target *target);
/* The only group size of integers in this format (NULL: the only one that the target loads, but for float weights) that
 * a target (NULL: any runtime; then the format is named) loads; 0 where there are several. */
int runtime_only_group(const struct format_target *target, const char *format);
/* Runtimes that load something of this format, in the order of the table. An array of names; new reference. */
json_t *runtime_names(const char *format);
/* {"target", "runtime", "version", "checked_version", "tensor_parallel_size"} of each; with a format and a result
 * (which may be NULL) also how to load it there. New reference. */
json_t *runtime_targets_json(const struct format_targets *targets, const struct format *format,
                             const struct format_config *config);
/* All of the table, an object for each runtime with its rows. New reference. */
json_t *runtime_table_json(void);

/* --- within formats/ */
#define RUNTIME_ROWS_MAX 64
/* What is asked of the table: a weight of this scheme, or a cache. */
struct runtime_subject {
    const struct format *format;
    const struct format_target *target;
    enum runtime_form form;
    const struct qscheme *scheme;     /* NULL: of a cache */
    const struct cache_scheme *cache; /* NULL: of a weight */
    const char *architecture;         /* NULL: any */
    bool expert;
    int64_t devices;
    int64_t outputs, inputs; /* on each device, of all that is loaded with it as one; 0: not known */
};
/* The rows that the subject fulfils. Where there are none, *refusal (but for its module) says of what kind the first
 * condition is that none fulfils. Returns their number. */
int runtime_find_rows(const struct runtime_subject *subject, const struct runtime_row *rows[RUNTIME_ROWS_MAX],
                      struct runtime_refusal *refusal);
enum runtime_form runtime_form_of(const struct format *format, const struct qscheme *scheme);
/* A row holds in all versions that the target names. */
bool runtime_row_holds(const struct runtime_row *row, const struct format_target *target);
/* Where a linear is cut when a model is divided: between its outputs, between its inputs, or not at all. */
enum runtime_cut { CUT_OUTPUTS, CUT_INPUTS, CUT_NONE };
enum runtime_cut runtime_cut_of(const struct plan *plan, int module);
/* The first module that is loaded as one with those after it and does not end where a block of its scheme ends, or
 * NULL. 0, or no memory. */
int runtime_find_edge(const struct format_config *config, const struct format_module **found);
