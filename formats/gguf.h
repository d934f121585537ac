#pragma once
/* The parts of a GGUF file, version 3. Private to formats/. */

#include "formats/export.h"
#include "models/tokenizer_view.h"

#define GGUF_ALIGNMENT 32
#define GGUF_NAME_MAX 64 /* bytes of a tensor's name, with its NUL */

/* As numbered in the file; only those that are written. */
enum gguf_type { GGUF_U32 = 4, GGUF_I32 = 5, GGUF_F32 = 6, GGUF_BOOL = 7, GGUF_STRING = 8, GGUF_ARRAY = 9 };

/* The header under way. After a failed allocation everything is dropped and `failed` says so. Zeroed is empty. */
struct gguf_buffer {
    unsigned char *data;
    size_t size, capacity;
    uint64_t pairs; /* keys put */
    bool failed;
};
void gguf_buffer_deinit(struct gguf_buffer *buffer);
CLEANUP_DEINIT(gguf_buffer, struct gguf_buffer, gguf_buffer_deinit)
void gguf_put(struct gguf_buffer *buffer, const void *bytes, size_t size);
void gguf_put_u32(struct gguf_buffer *buffer, uint32_t value);
void gguf_put_u64(struct gguf_buffer *buffer, uint64_t value);
void gguf_put_string(struct gguf_buffer *buffer, const char *text, size_t size);
/* Key and value. */
void gguf_key_u32(struct gguf_buffer *buffer, const char *key, uint32_t value);
void gguf_key_f32(struct gguf_buffer *buffer, const char *key, double value);
void gguf_key_bool(struct gguf_buffer *buffer, const char *key, bool value);
void gguf_key_string(struct gguf_buffer *buffer, const char *key, const char *text);
void gguf_key_text(struct gguf_buffer *buffer, const char *key, const char *text, size_t size);
/* Key, and the head of an array whose `count` elements the caller puts. */
void gguf_key_array(struct gguf_buffer *buffer, const char *key, enum gguf_type type, uint64_t count);

/* gguf_names.c: how the runtime calls things. */
/* "llama", "qwen2", "qwen3", or NULL where it has no such architecture. */
const char *gguf_architecture(const struct model_config *config);
/* The name of a tensor of the model; *module is what it belongs to, or NULL. ERR_INCOMPATIBLE_OPTIONS when the runtime
 * has none. */
int gguf_tensor_name(const struct model *model, const char *name, char out[GGUF_NAME_MAX],
                     const struct plan_module **module);
/* Where row `row` of a module's weight or bias goes, and whether any goes elsewhere: where the runtime rotates
 * neighbours, rows of a head of queries or keys alternate between its halves. module NULL: none. */
int64_t gguf_row(const struct model_config *config, const struct plan_module *module, int64_t row);
bool gguf_turns(const struct model_config *config, const struct plan_module *module);
/* Divisors of the rotary frequencies, [head_dim / 2], for ROPE_LLAMA3. */
void gguf_rope_factors(const struct model_config *config, float *out);

/* The block type that a module of this scheme is stored in. */
int gguf_block_type(const struct qscheme *scheme);

/* gguf_meta.c: general.* and <architecture>.* keys. */
void gguf_put_model(struct gguf_buffer *buffer, const struct format_config *config);

/* A file's text; data NULL: there is none. */
struct gguf_text {
    char *data;
    size_t size;
};
#define GGUF_TEMPLATE_NAME_MAX 256
struct gguf_named_text {
    char name[GGUF_TEMPLATE_NAME_MAX];
    struct gguf_text text;
};
struct gguf_tokenizer_files {
    struct gguf_text tokenizer;        /* tokenizer.json */
    struct gguf_text config;           /* tokenizer_config.json */
    struct gguf_text jinja, json;      /* chat_template.jinja, chat_template.json */
    struct gguf_named_text *templates; /* of additional_chat_templates/, by name */
    size_t template_count;
};

/* gguf_files.c. Without tokenizer.json all is empty, or ERR_INCOMPATIBLE_OPTIONS where a tokenizer lies there in
 * another form. */
int gguf_read_tokenizer_files(const struct model *model, struct gguf_tokenizer_files *out);
void gguf_tokenizer_files_deinit(struct gguf_tokenizer_files *files);
CLEANUP_DEINIT(gguf_tokenizer_files, struct gguf_tokenizer_files, gguf_tokenizer_files_deinit)
/* The members that count, as a new object; *out NULL when there is no file. */
int gguf_read_tokenizer_config(const struct gguf_text *text, json_t **out);
/* Those of these names (NULL-terminated), whatever else is in the file. */
int gguf_read_members(const struct gguf_text *text, const char *file, const char *const *names, json_t **out);

/* gguf_tokenizer.c: tokenizer.* keys, from tokenizer.json and the files next to it; a model without one gets none to
 * speak of. ERR_INCOMPATIBLE_OPTIONS names what the runtime could not do as the file says. */
int gguf_put_tokenizer(struct gguf_buffer *buffer, const struct model *model);
/* The same from texts; tokenizer must be there. rows: of the embedding. */
int gguf_put_tokenizer_files(struct gguf_buffer *buffer, const struct gguf_tokenizer_files *files, int64_t rows,
                             const json_t *model_config);
/* Raise ERR_INCOMPATIBLE_OPTIONS, with the way out. */
int gguf_refuse_tokenizer(const char *what);

/* gguf_templates.c: tokenizer.chat_template and its like. */
int gguf_put_templates(struct gguf_buffer *buffer, const struct gguf_tokenizer_files *files, const json_t *config);

/* gguf_scores.c: the scores of a byte-fallback vocabulary, [count]. ERR_INCOMPATIBLE_OPTIONS when its merges do not
 * follow from scores. tokens[i] NULL: no such token; every token of the view is among them. */
int gguf_derive_scores(const struct tokenizer *tokenizer, const struct tokenizer_view *view,
                       const struct tokenizer_token *const *tokens, int64_t count, float *scores);
