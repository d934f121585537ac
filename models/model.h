#pragma once
/* A checkpoint: config, shards, tensors; its weights are read one block at a time. */

#include "base/cleanup.h"
#include "base/digest.h"
#include "gpu/gpu.h"
#include "models/arch.h"
#include "models/plan.h"
#include "models/safetensors.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct model; /* an open checkpoint directory; immutable, any thread may read */

/* The place of a tensor. */
struct model_tensor {
    const char *name;
    const struct safetensors *file;
    const struct safetensors_entry *entry;
};

/* Open the directory `relative` below root_fd (symlinks may stay inside the root, as HF caches need). Reads headers,
 * checks that every tensor the config asks for is there with its shape and a float dtype, that there is none that the
 * forward pass would ignore, and that no shard repeats one. root_fd need not stay open. ERR_NOT_FOUND,
 * ERR_UNSUPPORTED_ARCHITECTURE, ERR_ALREADY_QUANTIZED, ERR_INVALID_MODEL. */
int model_open(int root_fd, const char *relative, struct model **out);
/* The same, when its architecture may be unknown. */
enum model_reading {
    MODEL_KNOWN, /* what model_open does */
    MODEL_AUTO,  /* bare where there is no row for the architecture's name */
    MODEL_ANY,   /* bare also where config.json has values that the row refuses */
    MODEL_BARE,  /* bare, whatever its architecture is */
};
int model_open_as(int root_fd, const char *relative, enum model_reading reading, struct model **out);
/* Nothing but names, types and shapes is known of it (bare.h): there is no forward pass. Its config has a name and a
 * number of layers, and zeros. */
bool model_is_bare(const struct model *model);
/* Why, for a bare one: "architecture "X" is not supported". */
const char *model_bare_reason(const struct model *model);
void model_close(struct model *model);
CLEANUP_FREE(model, struct model, model_close)
const struct model_config *model_config(const struct model *model);
const json_t *model_config_json(const struct model *model); /* borrowed */
/* What it was opened by, to open it again: the root (borrowed) and the directory below it. */
int model_root_fd(const struct model *model);
const char *model_relative(const struct model *model);
/* Open a file of the checkpoint for reading, beneath the model root: symlinks may leave the checkpoint's directory, not
 * the root. ERR_NOT_FOUND. */
int model_open_file(const struct model *model, const char *name, int *fd);
/* Digest over config.json and every shard's (name, size, header bytes): cheap identity, hex. */
const char *model_digest(const struct model *model);
/* Digest over every shard's name and time of modification, hex: another one after weights were written or replaced,
 * also by others of the same names and shapes. */
void model_modification(const struct model *model, char hex[DIGEST_HEX_SIZE]);
int64_t model_bytes(const struct model *model);      /* of all tensors */
int64_t model_parameters(const struct model *model); /* a tied head counts once, see model_tied */
enum dtype model_dtype(const struct model *model);   /* of the first module's weight; a bare one's most frequent */
size_t model_tensor_count(const struct model *model);
struct model_tensor model_tensor_at(const struct model *model, size_t i); /* in checkpoint order: shard, offset */
/* file == NULL when absent. */
struct model_tensor model_find(const struct model *model, const char *name);
/* Whether the head is the embedding: config.json says so, and there is no head or one with the same values
 * (compared in bounded memory, once for each opened model; where they differ, nearly always at the first piece). Where
 * they differ, the head is the model's own, whatever config.json says. */
int model_tied(const struct model *model, bool *tied);
/* Search what is outside the blocks (final norm, embedding, head unless it is tied; of a bare model all but the weights
 * that are usually quantized) for a NaN or Inf:
 * ERR_NON_FINITE_VALUE with the tensor's name. tick, if any, is called between pieces; what it returns other than 0
 * ends the search. */
typedef int (*model_tick)(void *data);
int model_check_outside(const struct model *model, model_tick tick, void *data);
/* ERR_NON_FINITE_VALUE for element `index` of a tensor. */
int model_raise_nonfinite(const char *name, int64_t index);
/* Whether this names a table of the rotary embedding (frequencies, cosines, sines), which old exports keep, of each
 * layer or of the model, or a causal mask. It follows from config.json: nothing reads it. */
bool model_is_rotary_table(const struct model *model, const char *name);
/* Files of the checkpoint that are neither weights nor index: NULL-terminated names, to copy into artifacts. Those of
 * MODEL_TEMPLATES_FOLDER, the one folder that loaders read, have it in their names. */
#define MODEL_TEMPLATES_FOLDER "additional_chat_templates"
const char *const *model_side_files(const struct model *model);
/* Raises ERR_SOURCE_CHANGED when a shard's (dev, ino, size, mtime, ctime) differ from when it was opened. */
int model_check_unchanged(const struct model *model);
/* The plans of its layers; they live as long as the model. */
const struct plans *model_plans(const struct model *model);
/* The parts next to the language model that pass through into artifacts as they are, towers and projectors and layers
 * that predict further tokens, by the module that they are below: NULL-terminated. */
const char *const *model_extras(const struct model *model);
/* A module's name as loaders of this checkpoint have it, where they differ: its own first. Returns how many. */
#define MODEL_SPELLINGS_MAX 2
int model_spellings(const struct model *model, const char *name, char out[MODEL_SPELLINGS_MAX][PLAN_NAME_MAX]);
/* Names. "<layers>3.<path>", <layers> being what the family puts before a layer's number. */
void model_module_name(const struct model *model, int64_t layer, int module, char out[PLAN_NAME_MAX]);
/* The module of this name in its layer's plan, or -1. Sets *layer. */
int model_find_module(const struct model *model, const char *name, int64_t *layer);
/* The layer of a name and, in *path, what follows its number, "<path>.weight"; -1 when it names no layer of
 * the model. */
int64_t model_find_layer(const struct model *model, const char *name, const char **path);
/* A tensor of a layer: a parameter's, "<layers>3.<path>", or one of a module or norm, "<layers>3.<path>.<member>". */
#define MODEL_NAME_MAX 192
void model_parameter_name(const struct model *model, int64_t layer, const char *path, char out[MODEL_NAME_MAX]);
void model_tensor_name(const struct model *model, int64_t layer, const char *path, const char *member,
                       char out[MODEL_NAME_MAX]);
const char *model_layers_prefix(const struct model *model); /* what a layer's number comes after */
/* The modules outside the layers. */
const char *model_embedding_module(const struct model *model);
const char *model_head_module(const struct model *model);
/* The weight or the bias of a module where the plan says that it is stored (struct plan_stored): the name of the
 * tensor, which may hold other modules' too, and its shape, whose rank is returned. */
void model_part_name(const struct model *model, int64_t layer, const struct plan_module *module, bool bias,
                     char out[MODEL_NAME_MAX]);
int model_part_shape(const struct plan_module *module, bool bias, int64_t shape[3]);
struct model_part {
    struct model_tensor tensor; /* file NULL: missing; its name is the module's path then */
    int64_t rows, cols;         /* of the module; cols 1 for a bias */
    int64_t first;              /* element of the tensor where the module's matrix begins */
    int64_t outputs;            /* of that matrix */
    struct plan_select select;  /* which of them; stride 0: all */
    bool transposed, vector;
};
struct model_part model_part(const struct model *model, int64_t layer, const struct plan_module *module, bool bias);
/* The first module after number `after` (-1: of all) of the layer *layer whose weight, or bias, is in this tensor
 * together with others' or turned; -1: none. */
int model_find_part(const struct model *model, const char *tensor, int after, int64_t *layer, bool *bias);
/* The element of the tensor that is [row, col] of the module. */
int64_t model_part_element(const struct model_part *part, int64_t row, int64_t col);
/* Rows [first, first + count) as [count, cols], in the type that they are stored in. Memory: 32 lines of a matrix that
 * is stored by inputs. Any thread. */
int model_part_read(const struct model_part *part, int64_t first, int64_t count, void *out);
/* The tensors outside the layers. */
const char *model_embedding_name(const struct model *model); /* "model.embed_tokens.weight" */
const char *model_norm_name(const struct model *model);
const char *model_norm_bias_name(const struct model *model); /* NULL: the last norm has no bias */
const char *model_positions_name(const struct model *model); /* NULL: there is no table of positions */
const char *model_head_bias_name(const struct model *model); /* NULL: the head has no bias */
/* What layers get of their tokens next to their input is made by these (arch.h); NULL: they get nothing. The module is
 * the projection's. */
enum model_tokens { MODEL_TOKENS_TABLE, MODEL_TOKENS_PROJECTION, MODEL_TOKENS_NORM, MODEL_TOKENS };
const char *model_tokens_name(const struct model *model, enum model_tokens which);
const char *model_tokens_module(const struct model *model);
const char *model_head_name(const struct model *model); /* whether or not there is such a tensor */
/* tokenizer.json text or ERR_NOT_FOUND. Caller frees. */
int model_read_tokenizer(const struct model *model, char **json, size_t *size);

/* Have the system read a tensor ahead of its load. Returns at once; an unknown name does nothing. */
void model_prefetch_tensor(const struct model *model, const char *name);
/* Load one tensor to the device as `dtype` (F32, or DTYPE_COUNT for its own). A NaN or Inf is
 * ERR_NON_FINITE_VALUE naming tensor and index. */
int model_load_tensor(const struct model *model, const char *name, enum dtype dtype, const struct gpu *gpu,
                      struct gpu_stream *stream, struct tensor *out);
/* The same from the tensor's stored bytes, which are on the device already; NULL: from its file. On return the device
 * no longer reads them. */
int model_load_bytes(const struct model *model, const char *name, const void *bytes, enum dtype dtype,
                     const struct gpu *gpu, struct gpu_stream *stream, struct tensor *out);
/* A module's weight [rows, cols] or bias [rows], as F32; errors as model_load_tensor's. */
int model_load_part(const struct model_part *part, const struct gpu *gpu, struct gpu_stream *stream,
                    struct tensor *out);
/* Rows [first, first + count) of a weight to `out`, F32 [count, cols] of a device that works in the host's memory.
 * bytes: memory for them as they are stored. */
int model_load_rows(const struct model_part *part, int64_t first, int64_t count, void *bytes, const struct gpu *gpu,
                    struct gpu_stream *stream, const struct tensor *out);
