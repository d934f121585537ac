/* tokenizer.json as a runtime of GGUF reads it: "gpt2" for byte-level BPE, "llama" for BPE that falls back to bytes.
 *
 * The file is read by the tokenizer's own parser, so tokens take the ids that encoding gives them: the "id" of an added
 * token is what was written down once and may be stale, and one that is listed twice is one token. Every text has one
 * id here and every id one text, since the runtime stops at anything else. The runtime knows pre-tokenizers by name,
 * not by pattern, so a pattern that has no name here is refused rather than replaced: text would be cut elsewhere than
 * the model was trained on. Every id up to the embedding's rows has a token; ids that the file lacks are unused ones.
 */

#include "formats/gguf.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum token_type { TOKEN_NORMAL = 1, TOKEN_UNKNOWN, TOKEN_CONTROL, TOKEN_USER_DEFINED, TOKEN_UNUSED, TOKEN_BYTE };

struct source {
    const struct tokenizer *tokenizer;
    struct tokenizer_view view;
    const json_t *config;       /* tokenizer_config.json's members, or NULL */
    const json_t *model_config; /* config.json */
    int64_t count;
    const struct tokenizer_token **tokens; /* [count]; NULL = unused */
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

int gguf_refuse_tokenizer(const char *what)
{
    int rc = err_raise(ERR_INCOMPATIBLE_OPTIONS, "gguf cannot carry this tokenizer: %.300s", what);
    return err_set_hint(rc, "another output.format, which copies tokenizer.json as it is");
}

static int gguf_tokens_find_pre(const struct source *source, const char **name)
{
    const char *pattern = source->view.pattern;

    for (size_t i = 0; pattern != NULL && i < sizeof(patterns) / sizeof(patterns[0]); i++) {
        if (strcmp(pattern, patterns[i].pattern) == 0) {
            *name = patterns[i].name;
            return 0;
        }
    }
    return gguf_refuse_tokenizer(
        "its pre-tokenizer has no name there (known: gpt-2, llama-bpe, qwen2, tekken, none of them "
        "with a space put before the text)");
}

static int gguf_tokens_refuse_token(const struct tokenizer_token *token, const char *what)
{
    char why[300];

    snprintf(why, sizeof(why), "token \"%.*s\" %s", (int)(token->size < 60 ? token->size : 60), token->text, what);
    return gguf_refuse_tokenizer(why);
}

/* Each token at its id. */
static int gguf_tokens_place_tokens(struct source *source)
{
    char what[160];

    TRY(mem_array(&source->tokens, (size_t)source->count));
    for (size_t i = 0; i < source->view.token_count; i++) {
        const struct tokenizer_token *token = &source->view.tokens[i];
        if (token->id >= source->count) {
            snprintf(what, sizeof(what), "has id %d, beyond the embedding's %lld rows", token->id,
                     (long long)source->count);
            return gguf_tokens_refuse_token(token, what);
        }
        const struct tokenizer_token *other = source->tokens[token->id];
        if (other != NULL) {
            snprintf(what, sizeof(what),
                     "has the same id %d as \"%.*s\": added tokens are numbered on from the size of "
                     "the vocabulary, whose ids must leave none out",
                     token->id, (int)(other->size < 30 ? other->size : 30), other->text);
            return gguf_tokens_refuse_token(token, what);
        }
        if (memchr(token->text, '\0', token->size) != NULL) {
            return gguf_tokens_refuse_token(token, "holds a NUL, at which the runtime ends it");
        }
        source->tokens[token->id] = token;
    }
    return 0;
}

static int32_t gguf_tokens_type_of(const struct tokenizer_token *token)
{
    return token == NULL    ? TOKEN_UNUSED
           : token->byte    ? TOKEN_BYTE
           : token->unknown ? TOKEN_UNKNOWN
           : !token->added  ? TOKEN_NORMAL
           : token->special ? TOKEN_CONTROL
                            : TOKEN_USER_DEFINED;
}

/* A text for an unused id, which no token has. */
static size_t gguf_tokens_unused_text(const struct source *source, int64_t id, char text[64])
{
    int length = snprintf(text, 64, "[PAD%lld]", (long long)id);

    for (int i = 0; tokenizer_token_id(source->tokenizer, text, (size_t)length) >= 0; i++) {
        length = snprintf(text, 64, "[PAD%lld_%d]", (long long)id, i);
    }
    return (size_t)length;
}

static void gguf_tokens_put_tokens(struct gguf_buffer *buffer, const struct source *source)
{
    gguf_key_array(buffer, "tokenizer.ggml.tokens", GGUF_STRING, (uint64_t)source->count);
    for (int64_t i = 0; i < source->count; i++) {
        const struct tokenizer_token *token = source->tokens[i];
        char unused[64];
        if (token != NULL) {
            gguf_put_string(buffer, token->text, token->size);
        } else {
            gguf_put_string(buffer, unused, gguf_tokens_unused_text(source, i, unused));
        }
    }
    gguf_key_array(buffer, "tokenizer.ggml.token_type", GGUF_I32, (uint64_t)source->count);
    for (int64_t i = 0; i < source->count; i++) {
        gguf_put_u32(buffer, (uint32_t)gguf_tokens_type_of(source->tokens[i]));
    }
}

/* The halves of a merge are one string with a space between them, so none may contain one or be empty. */
static bool gguf_tokens_is_half(const struct tokenizer_token *token)
{
    return token->size > 0 && memchr(token->text, ' ', token->size) == NULL;
}

static int gguf_tokens_put_merges(struct gguf_buffer *buffer, const struct source *source)
{
    const struct tokenizer_view *view = &source->view;

    gguf_key_array(buffer, "tokenizer.ggml.merges", GGUF_STRING, view->merge_count);
    for (size_t i = 0; i < view->merge_count; i++) {
        const struct tokenizer_token *left = source->tokens[view->merges[i][0]];
        const struct tokenizer_token *right = source->tokens[view->merges[i][1]];
        if (!gguf_tokens_is_half(left) || !gguf_tokens_is_half(right)) {
            return gguf_tokens_refuse_token(gguf_tokens_is_half(left) ? right : left,
                                            "is part of a merge, and is empty or holds a space");
        }
        gguf_put_u64(buffer, left->size + 1 + right->size);
        gguf_put(buffer, left->text, left->size);
        gguf_put(buffer, " ", 1);
        gguf_put(buffer, right->text, right->size);
    }
    return 0;
}

static int gguf_tokens_put_byte_level(struct gguf_buffer *buffer, const struct source *source)
{
    const char *pre = NULL;

    TRY(gguf_tokens_find_pre(source, &pre));
    gguf_key_string(buffer, "tokenizer.ggml.model", "gpt2");
    gguf_key_string(buffer, "tokenizer.ggml.pre", pre);
    gguf_tokens_put_tokens(buffer, source);
    return gguf_tokens_put_merges(buffer, source);
}

static int gguf_tokens_put_byte_fallback(struct gguf_buffer *buffer, const struct source *source)
{
    AUTO_FREE float *scores = NULL;

    TRY(mem_array(&scores, (size_t)source->count));
    TRY(gguf_derive_scores(source->tokenizer, &source->view, source->tokens, source->count, scores));
    gguf_key_string(buffer, "tokenizer.ggml.model", "llama");
    gguf_key_string(buffer, "tokenizer.ggml.pre", "default");
    gguf_tokens_put_tokens(buffer, source);
    gguf_key_array(buffer, "tokenizer.ggml.scores", GGUF_F32, (uint64_t)source->count);
    gguf_put(buffer, scores, (size_t)source->count * sizeof(*scores));
    gguf_key_bool(buffer, "tokenizer.ggml.add_space_prefix", source->view.prepends_mark);
    return 0;
}

/* The id of "<role>_token" of tokenizer_config.json, a string or an object with one; -1 without. */
static int64_t gguf_tokens_named_id(const struct source *source, const char *role)
{
    char key[32];

    snprintf(key, sizeof(key), "%s_token", role);
    const json_t *token = json_object_get(source->config, key);
    token = json_is_object(token) ? json_object_get(token, "content") : token;
    return json_string_length(token) > 0
               ? tokenizer_token_id(source->tokenizer, json_string_value(token), json_string_length(token))
               : -1;
}

/* The tokenizer's own id first: config.json may list several ends of a text. */
static int64_t gguf_tokens_special_id(const struct source *source, const char *role)
{
    char key[32];
    int64_t id = gguf_tokens_named_id(source, role);

    snprintf(key, sizeof(key), "%s_token_id", role);
    const json_t *value = json_object_get(source->model_config, key);
    value = json_is_array(value) ? json_array_get(value, 0) : value;
    if (id < 0 && json_is_integer(value) && json_integer_value(value) >= 0 &&
        json_integer_value(value) < source->count) {
        id = json_integer_value(value);
    }
    return id;
}

/* Whether the runtime is to add this token: as add_<role>_token says, else as the template does. */
static bool gguf_tokens_adds_token(const struct source *source, const char *role, int64_t id, bool in_template)
{
    char key[32];

    snprintf(key, sizeof(key), "add_%s_token", role);
    const json_t *said = json_object_get(source->config, key);
    return id >= 0 && (json_is_boolean(said) ? json_is_true(said) : in_template);
}

static void gguf_tokens_put_specials(struct gguf_buffer *buffer, const struct source *source)
{
    static const struct {
        const char *role, *key;
    } roles[] = {{"bos", "tokenizer.ggml.bos_token_id"},
                 {"eos", "tokenizer.ggml.eos_token_id"},
                 {"unk", "tokenizer.ggml.unknown_token_id"},
                 {"pad", "tokenizer.ggml.padding_token_id"}};
    const int32_t *before, *after;
    size_t before_count, after_count;
    int64_t ids[4];

    for (int i = 0; i < 4; i++) {
        ids[i] = gguf_tokens_special_id(source, roles[i].role);
        if (ids[i] >= 0) {
            gguf_key_u32(buffer, roles[i].key, (uint32_t)ids[i]);
        }
    }
    tokenizer_template(source->tokenizer, &before, &before_count, &after, &after_count);
    bool begins = before_count > 0 && before[0] == ids[0], ends = after_count > 0 && after[after_count - 1] == ids[1];
    gguf_key_bool(buffer, "tokenizer.ggml.add_bos_token", gguf_tokens_adds_token(source, "bos", ids[0], begins));
    gguf_key_bool(buffer, "tokenizer.ggml.add_eos_token", gguf_tokens_adds_token(source, "eos", ids[1], ends));
}

static void gguf_tokens_source_deinit(struct source *source)
{
    free(source->tokens);
    tokenizer_view_deinit(&source->view);
}
CLEANUP_DEINIT(source, struct source, gguf_tokens_source_deinit)

static int gguf_tokens_put_vocabulary(struct gguf_buffer *buffer, struct source *source)
{
    TRY(tokenizer_view_init(source->tokenizer, &source->view));
    if (source->view.unigram) {
        return gguf_refuse_tokenizer("its model is a Unigram one, which runtimes know for encoders only");
    }
    if (!(source->view.byte_fallback ? source->view.marks_spaces : source->view.nfc_only)) {
        /* (The runtime leaves out NFC, in which nearly all text is already.) */
        return gguf_refuse_tokenizer(source->view.byte_fallback
                                         ? "it does more to a text than to mark spaces by U+2581, or not even that"
                                         : "its normalizer changes text as nothing there does");
    }
    TRY(gguf_tokens_place_tokens(source));
    TRY(source->view.byte_fallback ? gguf_tokens_put_byte_fallback(buffer, source)
                                   : gguf_tokens_put_byte_level(buffer, source));
    gguf_tokens_put_specials(buffer, source);
    return 0;
}

int gguf_put_tokenizer_files(struct gguf_buffer *buffer, const struct gguf_tokenizer_files *files, int64_t rows,
                             const json_t *model_config)
{
    AUTO(tokenizer) struct tokenizer *tokenizer = NULL;
    AUTO_JSON json_t *config = NULL;

    int rc = tokenizer_new(files->tokenizer.data, files->tokenizer.size, &tokenizer);
    if (rc == ERR_INVALID_TOKENIZER) {
        char why[300];
        snprintf(why, sizeof(why), "%.280s", err_last()->message);
        return gguf_refuse_tokenizer(why);
    }
    TRY(rc);
    TRY(gguf_read_tokenizer_config(&files->config, &config));
    AUTO(source)
    struct source source = {.tokenizer = tokenizer, .config = config, .model_config = model_config, .count = rows};
    TRY(gguf_tokens_put_vocabulary(buffer, &source));
    return gguf_put_templates(buffer, files, config);
}

int gguf_put_tokenizer(struct gguf_buffer *buffer, const struct model *model)
{
    AUTO(gguf_tokenizer_files) struct gguf_tokenizer_files files = {0};

    TRY(gguf_read_tokenizer_files(model, &files));
    if (files.tokenizer.data == NULL) {
        gguf_key_string(buffer, "tokenizer.ggml.model", "no_vocab");
        return 0;
    }
    return gguf_put_tokenizer_files(buffer, &files, model_config(model)->vocab_size, model_config_json(model));
}
