/* tokenizer.json as a runtime of GGUF reads it: "gpt2" for byte-level BPE, "llama" for BPE that falls back to bytes.
 *
 * The runtime knows pre-tokenizers by name, not by pattern, so a pattern that has no name here is refused rather than
 * replaced: text would be cut elsewhere than the model was trained on. Every id up to the embedding's rows has a token;
 * ids that the file lacks are unused ones. A model without tokenizer.json gets "no_vocab": it takes ids alone. */

#include "storage/gguf.h"

#include "base/err.h"
#include "base/fs.h"
#include "base/json.h"
#include "base/json_stream.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SIDE_FILE_BYTES_MAX ((size_t)16 << 20)

/* The largest vocabularies of today, a quarter of a million tokens with half a million merges, take about 300 MiB. */
static const struct json_budget tokenizer_budget = {
    .depth = JSON_STREAM_DEPTH_MAX, .memory = (size_t)512 << 20, .flags = JSON_ALLOW_NUL};
static const struct json_budget config_budget = {
    .depth = JSON_STREAM_DEPTH_MAX, .memory = (size_t)64 << 20, .flags = JSON_ALLOW_NUL};

enum token_type { TOKEN_NORMAL = 1, TOKEN_UNKNOWN, TOKEN_CONTROL, TOKEN_USER_DEFINED, TOKEN_UNUSED, TOKEN_BYTE };

struct source {
    const struct model *model;
    json_t *file;   /* tokenizer.json */
    json_t *config; /* tokenizer_config.json, or NULL */
    const json_t *vocab, *merges;
    bool bytes; /* byte fallback */
    int64_t count;
    const char **texts; /* [count], borrowed; NULL = unused */
    int32_t *types;     /* [count] */
};

#define LETTERS "[^\\r\\n\\p{L}\\p{N}]?"
#define TAIL "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define ENDINGS "(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
#define UPPER "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define LOWER "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"

/* Patterns by the runtime's names. */
static const struct {
    const char *pattern, *name;
} patterns[] = {
    {"'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+", "gpt-2"},
    {ENDINGS LETTERS "\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|" TAIL, "llama-bpe"},
    {ENDINGS LETTERS "\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|" TAIL, "qwen2"},
    {LETTERS UPPER "*" LOWER "+|" LETTERS UPPER "+" LOWER "*|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|" TAIL, "tekken"},
};

static int refuse(const char *what)
{
    int rc = err_raise(ERR_INCOMPATIBLE_OPTIONS, "gguf cannot carry this tokenizer: %.200s", what);
    return err_set_hint(rc, "another output.format, which copies tokenizer.json as it is");
}

static const char *string_of(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text != NULL ? text : "";
}

/* The pre-tokenizer's own steps: those of a sequence, or itself. */
static const json_t *step_of(const json_t *pre, size_t i)
{
    return strcmp(string_of(pre, "type"), "Sequence") == 0 ? json_array_get(json_object_get(pre, "pretokenizers"), i)
           : i == 0                                        ? pre
                                                           : NULL;
}

/* Whether the runtime changes text as the normalizer does: not at all, or a space before it and spaces made visible.
 * (It leaves out NFC, which nearly all text is in already.) */
static bool known_normalizer(const json_t *normalizer, bool bytes)
{
    const char *type = string_of(normalizer, "type");
    bool known = normalizer == NULL || json_is_null(normalizer) || (!bytes && strcmp(type, "NFC") == 0) ||
                 (bytes && (strcmp(type, "Prepend") == 0 || strcmp(type, "Replace") == 0));
    const json_t *list = json_object_get(normalizer, "normalizers");

    if (strcmp(type, "Sequence") == 0) {
        known = true;
        for (size_t i = 0; i < json_array_size(list); i++) {
            const char *step = string_of(json_array_get(list, i), "type");
            known = known &&
                    (bytes ? strcmp(step, "Prepend") == 0 || strcmp(step, "Replace") == 0 : strcmp(step, "NFC") == 0);
        }
    }
    return known;
}

/* The name of a byte-level pre-tokenizer: ByteLevel with its own pattern, or a Split before a ByteLevel without. */
static int find_pre(const struct source *source, const char **name)
{
    const json_t *pre = json_object_get(source->file, "pre_tokenizer");
    const json_t *first = step_of(pre, 0), *second = step_of(pre, 1);
    const char *pattern = "";

    if (json_is_true(json_object_get(first, "add_prefix_space")) ||
        json_is_true(json_object_get(second, "add_prefix_space"))) {
        return refuse("its pre-tokenizer puts a space before the text");
    }
    if (strcmp(string_of(first, "type"), "ByteLevel") == 0 && second == NULL) {
        const json_t *use = json_object_get(first, "use_regex");
        pattern = use == NULL || json_is_true(use) ? patterns[0].pattern : "";
    } else if (strcmp(string_of(first, "type"), "Split") == 0 && strcmp(string_of(second, "type"), "ByteLevel") == 0 &&
               step_of(pre, 2) == NULL && strcmp(string_of(first, "behavior"), "Isolated") == 0 &&
               json_is_false(json_object_get(second, "use_regex"))) {
        pattern = string_of(json_object_get(first, "pattern"), "Regex");
    }
    for (size_t i = 0; i < sizeof(patterns) / sizeof(patterns[0]); i++) {
        if (strcmp(pattern, patterns[i].pattern) == 0) {
            *name = patterns[i].name;
            return 0;
        }
    }
    return refuse("its pre-tokenizer has no name there (known: gpt-2, llama-bpe, qwen2, tekken)");
}

static int place_token(struct source *source, const char *text, json_int_t id, int32_t type)
{
    if (id < 0 || id >= source->count) {
        char why[160];
        snprintf(why, sizeof(why), "token id %lld lies beyond the embedding's %lld rows", (long long)id,
                 (long long)source->count);
        return refuse(why);
    }
    source->texts[id] = text;
    source->types[id] = type;
    return 0;
}

static bool is_byte(const char *text)
{
    unsigned value;
    int end = 0;
    return strlen(text) == 6 && sscanf(text, "<0x%2X>%n", &value, &end) == 1 && end == 6;
}

static int list_tokens(struct source *source)
{
    const json_t *model = json_object_get(source->file, "model");
    const char *unknown = string_of(model, "unk_token"), *text;
    json_t *id, *added;
    size_t i;

    json_object_foreach((json_t *)source->vocab, text, id)
    {
        int32_t type = source->bytes && is_byte(text)                     ? TOKEN_BYTE
                       : unknown[0] != '\0' && strcmp(text, unknown) == 0 ? TOKEN_UNKNOWN
                                                                          : TOKEN_NORMAL;
        int rc = place_token(source, text, json_integer_value(id), type);
        if (rc != 0) {
            return rc;
        }
    }
    json_array_foreach(json_object_get(source->file, "added_tokens"), i, added)
    {
        const char *content = string_of(added, "content");
        int32_t type = strcmp(content, unknown) == 0                     ? TOKEN_UNKNOWN
                       : json_is_true(json_object_get(added, "special")) ? TOKEN_CONTROL
                                                                         : TOKEN_USER_DEFINED;
        int rc = place_token(source, content, json_integer_value(json_object_get(added, "id")), type);
        if (rc != 0) {
            return rc;
        }
    }
    return 0;
}

static void put_tokens(struct gguf_buffer *buffer, const struct source *source)
{
    gguf_key_array(buffer, "tokenizer.ggml.tokens", GGUF_STRING, (uint64_t)source->count);
    for (int64_t i = 0; i < source->count; i++) {
        char unused[32];
        snprintf(unused, sizeof(unused), "[PAD%lld]", (long long)i);
        const char *text = source->texts[i] != NULL ? source->texts[i] : unused;
        gguf_put_string(buffer, text, strlen(text));
    }
    gguf_key_array(buffer, "tokenizer.ggml.token_type", GGUF_I32, (uint64_t)source->count);
    gguf_put(buffer, source->types, (size_t)source->count * sizeof(*source->types));
}

bool gguf_merge_halves(const json_t *merge, char *scratch, size_t size, const char **left, const char **right)
{
    *left = json_string_value(json_array_get(merge, 0));
    *right = json_string_value(json_array_get(merge, 1));
    if (json_is_array(merge)) {
        return *left != NULL && *right != NULL && json_array_size(merge) == 2;
    }
    const char *text = json_string_value(merge), *space = text != NULL ? strchr(text, ' ') : NULL;
    if (space == NULL || strlen(text) >= size) {
        return false;
    }
    memcpy(scratch, text, strlen(text) + 1);
    scratch[space - text] = '\0';
    *left = scratch;
    *right = scratch + (space - text) + 1;
    return true;
}

static int put_merges(struct gguf_buffer *buffer, const struct source *source)
{
    size_t i;
    json_t *merge;

    gguf_key_array(buffer, "tokenizer.ggml.merges", GGUF_STRING, json_array_size(source->merges));
    json_array_foreach((json_t *)source->merges, i, merge)
    {
        char scratch[1024];
        const char *left, *right;
        if (!gguf_merge_halves(merge, scratch, sizeof(scratch), &left, &right)) {
            return refuse("one of its merges is not a pair");
        }
        size_t a = strlen(left), b = strlen(right);
        gguf_put_u64(buffer, a + 1 + b);
        gguf_put(buffer, left, a);
        gguf_put(buffer, " ", 1);
        gguf_put(buffer, right, b);
    }
    return 0;
}

static int put_byte_level(struct gguf_buffer *buffer, const struct source *source)
{
    const char *pre = NULL;

    int rc = find_pre(source, &pre);
    if (rc == 0) {
        gguf_key_string(buffer, "tokenizer.ggml.model", "gpt2");
        gguf_key_string(buffer, "tokenizer.ggml.pre", pre);
        put_tokens(buffer, source);
        rc = put_merges(buffer, source);
    }
    return rc;
}

/* A space before the text: by the normalizer's Prepend, or by Metaspace. */
static bool prepends_space(const struct source *source)
{
    const json_t *normalizer = json_object_get(source->file, "normalizer"), *item;
    const json_t *pre = json_object_get(source->file, "pre_tokenizer");
    bool found =
        strcmp(string_of(pre, "type"), "Metaspace") == 0 && strcmp(string_of(pre, "prepend_scheme"), "never") != 0;
    size_t i;

    json_array_foreach(json_object_get(normalizer, "normalizers"), i, item)
    {
        found = found || strcmp(string_of(item, "type"), "Prepend") == 0;
    }
    return found || strcmp(string_of(normalizer, "type"), "Prepend") == 0;
}

static int put_byte_fallback(struct gguf_buffer *buffer, const struct source *source)
{
    float *scores = calloc((size_t)source->count, sizeof(*scores));

    if (scores == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for %lld scores", (long long)source->count);
    }
    int rc = gguf_derive_scores(source->vocab, source->merges, source->texts, source->count, scores);
    if (rc == 0) {
        gguf_key_string(buffer, "tokenizer.ggml.model", "llama");
        gguf_key_string(buffer, "tokenizer.ggml.pre", "default");
        put_tokens(buffer, source);
        gguf_key_array(buffer, "tokenizer.ggml.scores", GGUF_F32, (uint64_t)source->count);
        gguf_put(buffer, scores, (size_t)source->count * sizeof(*scores));
        gguf_key_bool(buffer, "tokenizer.ggml.add_space_prefix", prepends_space(source));
    }
    free(scores);
    return rc;
}

static int64_t find_token(const struct source *source, const char *text)
{
    for (int64_t i = 0; text[0] != '\0' && i < source->count; i++) {
        if (source->texts[i] != NULL && strcmp(source->texts[i], text) == 0) {
            return i;
        }
    }
    return -1;
}

/* "<role>_token" of tokenizer_config.json, a string or an object with one. */
static const char *named_token(const struct source *source, const char *role)
{
    char key[32];

    snprintf(key, sizeof(key), "%s_token", role);
    const json_t *token = json_object_get(source->config, key);
    return json_is_object(token) ? string_of(token, "content") : string_of(source->config, key);
}

/* The tokenizer's own word first: config.json may list several ends of a text. */
static int64_t special_id(const struct source *source, const char *role)
{
    char key[32];
    int64_t id = find_token(source, named_token(source, role));

    snprintf(key, sizeof(key), "%s_token_id", role);
    const json_t *value = json_object_get(model_config_json(source->model), key);
    value = json_is_array(value) ? json_array_get(value, 0) : value;
    if (id < 0 && json_is_integer(value) && json_integer_value(value) >= 0 &&
        json_integer_value(value) < source->count) {
        id = json_integer_value(value);
    }
    return id;
}

/* Whether the post-processor puts this token first (or last) of a single text. */
static bool adds_token(const struct source *source, bool last, const char *text)
{
    const json_t *processor = json_object_get(source->file, "post_processor"), *item;
    const json_t *list =
        strcmp(string_of(processor, "type"), "Sequence") == 0 ? json_object_get(processor, "processors") : NULL;
    bool found = false;

    for (size_t i = 0; i < (list != NULL ? json_array_size(list) : 1); i++) {
        const json_t *single = json_object_get(list != NULL ? json_array_get(list, i) : processor, "single");
        size_t count = json_array_size(single);
        item = json_array_get(single, last && count > 0 ? count - 1 : 0);
        found = found || (text != NULL && strcmp(string_of(json_object_get(item, "SpecialToken"), "id"), text) == 0);
    }
    return found;
}

static void put_specials(struct gguf_buffer *buffer, const struct source *source)
{
    static const struct {
        const char *role, *key;
    } roles[] = {{"bos", "tokenizer.ggml.bos_token_id"},
                 {"eos", "tokenizer.ggml.eos_token_id"},
                 {"unk", "tokenizer.ggml.unknown_token_id"},
                 {"pad", "tokenizer.ggml.padding_token_id"}};
    int64_t ids[4];

    for (int i = 0; i < 4; i++) {
        ids[i] = special_id(source, roles[i].role);
        if (ids[i] >= 0) {
            gguf_key_u32(buffer, roles[i].key, (uint32_t)ids[i]);
        }
    }
    gguf_key_bool(buffer, "tokenizer.ggml.add_bos_token",
                  ids[0] >= 0 && adds_token(source, false, source->texts[ids[0]]));
    gguf_key_bool(buffer, "tokenizer.ggml.add_eos_token",
                  ids[1] >= 0 && adds_token(source, true, source->texts[ids[1]]));
}

/* A side file's text, NUL-terminated; *text NULL when there is none. */
static int read_side_file(const struct model *model, const char *name, char **text, size_t *size)
{
    int fd;

    *text = NULL;
    for (const char *const *file = model_side_files(model); file != NULL && *file != NULL; file++) {
        if (strcmp(*file, name) == 0) {
            int rc = model_open_file(model, name, &fd);
            rc = rc != 0 ? rc : fs_read_fd(fd, SIDE_FILE_BYTES_MAX, text, size);
            if (rc == 0 || *text != NULL) {
                close(fd);
            }
            return rc;
        }
    }
    return 0;
}

static int put_template(struct gguf_buffer *buffer, const struct source *source)
{
    char *text = NULL;
    size_t size;

    int rc = read_side_file(source->model, "chat_template.jinja", &text, &size);
    const char *template = text != NULL ? text : string_of(source->config, "chat_template");
    if (rc == 0 && template[0] != '\0') {
        gguf_key_string(buffer, "tokenizer.chat_template", template);
    }
    free(text);
    return rc;
}

static int source_open(const struct model *model, const char *text, size_t size, struct source *source)
{
    char *config = NULL;
    size_t config_size = 0;

    source->model = model;
    source->count = model_config(model)->vocab_size;
    if (json_parse_within(text, size, &tokenizer_budget, &source->file) != 0) {
        return refuse(err_last()->message);
    }
    const json_t *bpe = json_object_get(source->file, "model");
    source->vocab = json_object_get(bpe, "vocab");
    source->merges = json_object_get(bpe, "merges");
    source->bytes = json_is_true(json_object_get(bpe, "byte_fallback"));
    if (!json_is_object(source->vocab) || !json_is_array(source->merges)) {
        return refuse("its model is not BPE with a vocabulary and merges");
    }
    if (!known_normalizer(json_object_get(source->file, "normalizer"), source->bytes)) {
        return refuse("its normalizer changes text as nothing there does");
    }
    int rc = read_side_file(model, "tokenizer_config.json", &config, &config_size);
    if (rc == 0 && config != NULL && json_parse_within(config, config_size, &config_budget, &source->config) != 0) {
        rc = refuse(err_last()->message);
    }
    free(config);
    source->texts = calloc((size_t)source->count, sizeof(*source->texts));
    source->types = calloc((size_t)source->count, sizeof(*source->types));
    if (rc == 0 && (source->texts == NULL || source->types == NULL)) {
        rc = err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for %lld tokens", (long long)source->count);
    }
    for (int64_t i = 0; rc == 0 && i < source->count; i++) {
        source->types[i] = TOKEN_UNUSED;
    }
    return rc != 0 ? rc : list_tokens(source);
}

int gguf_put_tokenizer(struct gguf_buffer *buffer, const struct model *model)
{
    struct source source = {0};
    char *text = NULL;
    size_t size = 0;

    int rc = model_read_tokenizer(model, &text, &size);
    if (rc == ERR_NOT_FOUND) {
        gguf_key_string(buffer, "tokenizer.ggml.model", "no_vocab");
        return 0;
    }
    rc = rc != 0 ? rc : source_open(model, text, size, &source);
    rc = rc != 0 ? rc : source.bytes ? put_byte_fallback(buffer, &source) : put_byte_level(buffer, &source);
    if (rc == 0) {
        put_specials(buffer, &source);
        rc = put_template(buffer, &source);
    }
    free(text);
    free(source.texts);
    free(source.types);
    json_decref(source.file);
    json_decref(source.config);
    return rc;
}
