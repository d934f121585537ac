#pragma once
/* Artifact formats: one file and one row each. A format says which schemes it can carry, names the tensors that one
 * quantized linear becomes, packs them, and words its quantization_config. It never knows which method made the codes.
 */

#include "base/validation.h"
#include "models/cache.h"
#include "models/model.h"
#include "models/qtensor.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#define FORMAT_TENSORS_MAX 8
#define FORMAT_MANIFEST_FILE "quantd_manifest.json" /* in every artifact: what it is and where it came from */

/* A tensor that module M becomes: "M" + suffix. */
struct format_tensor {
    const char *suffix; /* ".weight_packed" */
    enum dtype dtype;
    int rank;
    int64_t shape[TENSOR_RANK_MAX];
};

/* A quantized module as known before any work (or, at export, after it). */
struct format_module {
    char name[128];
    struct qscheme scheme;
    int64_t rows, cols;
    int64_t outliers; /* weights in float next to its codes, as far as the method's parameters say */
};

struct format_targets; /* formats/runtimes.h */

struct format_config {
    const struct format_module *modules; /* every quantized linear */
    int count;
    const struct model *model;
    const char *method;                   /* for the metadata some formats carry */
    const json_t *parameters;             /* the job's quantization object, defaults filled in */
    struct cache_scheme cache;            /* element F32: keys and values are stored as they are */
    const struct format_targets *targets; /* runtimes that the manifest names; NULL: none */
};

struct format_export;
struct export_plan; /* formats/export.h */

struct format {
    const char *name; /* "compressed-tensors" */
    const char *title;
    const char *help;
    bool plain;            /* any result as float weights, which saves nothing and says nothing of inputs */
    bool bare;             /* carries bare models, too (models/bare.h) */
    bool fuses;            /* loaders take what plan.fused lists as one linear: all of a set or none, and alike */
    bool conv1d;           /* its loaders replace linears that the model stores by inputs */
    const char *side_file; /* extra copy of the config object, or NULL: "quantize_config.json" */
    /* What scales are stored as, for a model of this dtype. */
    enum dtype (*scale_dtype)(enum dtype model_dtype);
    /* One module: 0, or ERR_INCOMPATIBLE_OPTIONS with the reason and a hint. */
    int (*accepts)(const struct qscheme *scheme, int64_t rows, int64_t cols);
    /* All modules together (one global geometry?); may be NULL. */
    int (*accepts_all)(const struct format_config *config);
    /* A quantized key and value cache: 0, or why not; NULL: the format has no place for its scales. */
    int (*accepts_cache)(const struct cache_scheme *scheme);
    /* What a runtime of the format will not do with an accepted result: {"code", "message"} each, appended to warnings.
     * May be NULL. */
    int (*warn)(const struct format_config *config, json_t *warnings);
    /* How the runtime rounds the inputs of such a weight of its own accord, which `scheme` does not say: evaluation
     * does the same. May be NULL. */
    struct gpu_input (*runtime_input)(const struct qscheme *scheme);
    /* The tensors of one module, codes first; returns their number. */
    int (*tensors)(const struct qscheme *scheme, int64_t rows, int64_t cols,
                   struct format_tensor out[FORMAT_TENSORS_MAX]);
    /* Pack tensor `index` of q into out (exactly its bytes, zero before). Several threads at once, of different q.
     * Beyond the first, codes and entries may be NULL: what lies ahead of all codes in a file is not to wait for them.
     */
    int (*encode)(const struct qtensor *q, int index, void *out);
    /* The array of q (struct qtensor_part's suffix) whose bytes in the file of a finished block are those of tensor
     * `index`, which is copied then; NULL: none is, and it is encoded. q has no arrays. May be NULL. */
    const char *(*stored)(const struct qtensor *q, int index);
    /* The quantization_config object. New reference. Unused where `write` is set. NULL: config.json gets none. */
    json_t *(*config)(const struct format_config *config);
    /* Further files, written into request->directory; may be NULL. */
    int (*extra)(const struct format_export *request);
    /* The tensors of one module in these; returns their number. NULL: there are none. */
    int (*extra_tensors)(const struct format_module *module, struct format_tensor out[FORMAT_TENSORS_MAX]);
    /* For a container of its own: write everything but the manifest into request->directory, from the planned pieces.
     * NULL: safetensors shards, config.json and the source's side files. */
    int (*write)(const struct format_export *request, const struct export_plan *plan);
};

const struct format *const *format_list(void); /* NULL-terminated; the first is the default */
const struct format *format_find(const char *name);
/* Whether an artifact's file of this name has weights in it. */
bool format_holds_tensors(const char *path);
/* Whether a format carries models like this one: any does, unless the model is bare. */
bool format_takes_model(const struct format *format, const struct model *model);
/* How many of the modules can be carried, each taken by itself? */
int format_count_taken(const struct format *format, const struct format_config *config);
/* Whether a result can be carried. Any thread. */
bool format_carries(const struct format *format, const struct format_config *config);
/* Why a result cannot be carried, with the formats that can, as one error list. 0 when it can. */
int format_check(const struct format *format, const struct format_config *config, const char *pointer,
                 struct validation_errors *errors);

/* Append what the format's runtimes will not do with an accepted result. */
int format_warnings(const struct format *format, const struct format_config *config, json_t *warnings);

/* Write the artifact of a finished job into `directory` (made): shards, index, config.json, side files.
 * block_files: one qtensor checkpoint per block, in order. Memory: one module a thread. The same bytes whatever the
 * threads. *files = [{"path","bytes","sha256"}...] sorted by path; every file fsynced. tick: nonzero = stop and return
 * it; called by the thread that called format_export. */
struct format_export {
    const struct format *format;
    struct format_config config; /* modules filled by the caller */
    const char *const *block_files;
    int block_count;
    const char *directory;   /* holds nothing else: every file found in it goes into the list */
    int64_t max_shard_bytes; /* 0 = one file */
    int threads;             /* maximum; 0 = the cores. Eight and memory bound both */
    /* What the manifest says of the result's origin: an object, or NULL. The caller puts in what it knows (calibration
     * digest, seed, device); no times and no paths, so that the same job gives the same manifest. */
    const json_t *provenance;
    int (*tick)(void *data, double fraction);
    void *tick_data;
};
int format_export(const struct format_export *request, json_t **files);
