#pragma once
/* What format rows share. Private to formats/. */

#include "formats/format.h"

#define FORMAT_CONFIG_FILE "config.json"

extern const struct format format_compressed_tensors, format_gptq, format_gptq_v2, format_awq;
extern const struct format format_gguf;
extern const struct format format_bitsandbytes;
extern const struct format format_aqlm, format_dense;

/* A plain integer grid for weights alone: positive, the group divides, no rows grouped, inputs as they are. */
int format_check_shape(const struct qscheme *scheme, int64_t rows, int64_t cols);
/* Same bits, symmetry and grouping (per channel, or the same group size)? */
bool format_same_geometry(const struct qscheme *a, const struct qscheme *b);
/* For formats whose config states one geometry: ERR_INCOMPATIBLE_OPTIONS unless all modules have the first one's. */
int format_check_one_geometry(const struct format_config *config, const char *name, const char *hint);
/* stored.c: modules that the checkpoint does not have as linears. ERR_INCOMPATIBLE_OPTIONS where the format's loaders
 * would not find them. */
int format_check_stored(const struct format *format, const struct format_config *config);
/* The modules as a table [plans_modules], NULL = left in float; malloc'ed. */
int format_module_table(const struct format_config *config, const struct format_module ***table);
/* The names of all modules that are left in float, in order. New reference. */
json_t *format_left_in_float(const struct format_config *config, const struct format_module *const *table);
/* These, after the head and, below other modules, what passes through next to the language model: in the words of
 * loaders that take a module's name for all below it. New reference. */
json_t *format_not_quantized(const struct format_config *config, const struct format_module *const *table);
/* skips.c: append a module's name in each spelling that loaders of the checkpoint have for it. */
void format_add_name(json_t *list, const struct model *model, const char *name);
/* A regular expression that matches all modules below one that passes through, whether or not a loader has it below
 * "model". */
void format_below(const char *module, const char *begin, char out[2 * PLAN_NAME_MAX]);
/* The same of a bare model: the owners of its tensors of two dimensions or more that are not quantized. New reference,
 * NULL when memory is out. */
json_t *format_bare_ignored(const struct format_config *config, const struct format_module *const *table);
/* warn.c: append {"code", "message"}. */
void format_warn(json_t *warnings, const char *code, const char *text, ...) __attribute__((format(printf, 3, 4)));
/* The scheme of the first quantized module of an expert, NULL where there is none; *all: every module of every expert
 * is quantized so. */
int format_experts_schemes(const struct format_config *config, const struct qscheme **first, bool *all);
/* Append the text as not_in_transformers where modules of experts are quantized. */
int format_warn_experts(const struct format_config *config, json_t *warnings, const char *text);
/* skips.c: a name as a regular expression that matches it alone, "a.1" as "a\.1"; returns its length. */
size_t format_escape(const char *name, char *out, size_t size);
/* The config's "dynamic", naming each linear left in float; NULL when there is none. New reference. */
json_t *format_dynamic_skips(const struct format_config *config, const struct format_module *const *table);
/* count scales, read at the given stride, as dtype (F32, F16 or BF16). ERR_NON_FINITE_VALUE when one is not a positive
 * number of it; ERR_INTERNAL when one would be rounded, since its codes were made for the exact value. */
int format_encode_scales(const float *scales, int64_t stride, int64_t count, enum dtype dtype, void *out);
/* scale_dtype of formats that store scales as F16 whatever the model's type. */
enum dtype format_scale_f16(enum dtype model_dtype);
/* Floats rounded to what dtype (F32, F16 or BF16) stores. */
void format_narrow(const float *values, int64_t count, enum dtype dtype, void *out);
/* kv_cache.c: for formats whose runtimes read scales of keys and values. */
int format_accepts_cache(const struct cache_scheme *scheme);
/* The config's "kv_cache_scheme"; null for none. New reference. */
json_t *format_cache_config(const struct cache_scheme *scheme);
/* The shape of a tensor of `count` scales by its name; returns its rank, 0 when it holds none. */
int format_cache_shape(const struct cache_scheme *scheme, const char *name, int64_t count,
                       int64_t shape[TENSOR_RANK_MAX]);
