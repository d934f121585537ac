/* The tokenizer as its callers see it: a file becomes an immutable struct tokenizer, a text goes through the stages of
 * models/tokenizer_internal.h in one thread's scratch.
 *
 * Ids follow the reference implementation (huggingface/tokenizers) to the letter; where a file asks for more than is
 * supported, opening it fails. truncation and padding of the file are not applied: a calibration text is never cut
 * here. Memory of a scratch follows the largest text since the last trim: buffers that outgrew KEEP_BYTES are freed. */

#include "base/cleanup.h"
#include "base/err.h"
#include "base/json.h"
#include "base/json_stream.h"
#include "base/mem.h"
#include "models/tokenizer_internal.h"

#include <stdlib.h>
#include <string.h>

#define SECTION_DEPTH 24
#define KEEP_BYTES (4u << 20)
#define MATCH_DEPTH (1u << 20)
#define MATCH_HEAP_KIB (64u << 10)
#define JIT_STACK_MAX (4u << 20)

enum section {
    SECTION_ADDED,
    SECTION_NORMALIZER,
    SECTION_PRE,
    SECTION_POST,
    SECTION_MODEL,
    SECTION_VERSION,
    SECTION_COUNT
};
static const char *const section_names[SECTION_COUNT] = {"added_tokens",   "normalizer", "pre_tokenizer",
                                                         "post_processor", "model",      "version"};

struct sections {
    struct {
        const char *data; /* NULL = absent */
        size_t size;
    } at[SECTION_COUNT];
};

static int find_sections(struct json_stream *stream, struct sections *out)
{
    enum json_token token = json_stream_next(stream);
    bool fine = token == JSON_TOKEN_OBJECT_BEGIN;

    while (fine && (token = json_stream_next(stream)) == JSON_TOKEN_KEY) {
        int section = 0;
        while (section < SECTION_COUNT && (strlen(section_names[section]) != stream->length ||
                                           memcmp(section_names[section], stream->text, stream->length) != 0)) {
            section++;
        }
        size_t start = tokenizer_value_start(stream);
        token = json_stream_next(stream);
        fine = json_stream_skip(stream, token);
        if (fine && section < SECTION_COUNT) {
            out->at[section].data = stream->data + start;
            out->at[section].size = stream->at - start;
        }
    }
    if (!fine || token != JSON_TOKEN_OBJECT_END || json_stream_next(stream) != JSON_TOKEN_END) {
        return err_raise(ERR_INVALID_TOKENIZER, "the file is not a JSON object: %s at byte %zu",
                         stream->error != NULL ? stream->error : "unexpected value", stream->at);
    }
    return 0;
}

/* One of the small sections as a tree; NULL when the file has none. */
static int parse_section(const struct sections *sections, enum section section, json_t **out)
{
    const char *name = section_names[section], *data = sections->at[section].data;
    size_t size = sections->at[section].size;

    if (data == NULL) {
        return 0;
    }
    if (size > TOKENIZER_SECTION_MAX) {
        return err_raise(ERR_INVALID_TOKENIZER, "section %s has %zu bytes, more than %u", name, size,
                         TOKENIZER_SECTION_MAX);
    }
    int rc = json_parse(data, size, SECTION_DEPTH, out);
    if (rc != 0) {
        const struct err_record *record = err_last();
        return err_raise(ERR_INVALID_TOKENIZER, "section %s: %.200s", name, record->message);
    }
    return 0;
}

static int load_section(struct tokenizer *tokenizer, const struct sections *sections, enum section section,
                        int (*load)(struct tokenizer *tokenizer, const json_t *section))
{
    AUTO_JSON json_t *tree = NULL;

    TRY(parse_section(sections, section, &tree));
    return load(tokenizer, tree);
}

static int check_version(struct tokenizer *tokenizer, const json_t *version)
{
    const char *text = json_string_value(version);
    return text == NULL || strcmp(text, "1.0") == 0
               ? 0
               : err_raise(ERR_INVALID_TOKENIZER, "version \"%.32s\" is not supported", text);
}

static int tokenizer_load(struct tokenizer *tokenizer, const char *json, size_t size)
{
    AUTO(json_stream) struct json_stream stream = {0};
    struct sections sections = {0};

    json_stream_init(&stream, json, size);
    TRY(find_sections(&stream, &sections));
    if (sections.at[SECTION_MODEL].data == NULL) {
        return err_raise(ERR_INVALID_TOKENIZER, "the file has no model");
    }
    TRY(load_section(tokenizer, &sections, SECTION_VERSION, check_version));
    TRY(tokenizer_load_model(tokenizer, sections.at[SECTION_MODEL].data, sections.at[SECTION_MODEL].size));
    TRY(load_section(tokenizer, &sections, SECTION_NORMALIZER, tokenizer_load_normalizer));
    TRY(load_section(tokenizer, &sections, SECTION_PRE, tokenizer_load_pre_tokenizer));
    TRY(load_section(tokenizer, &sections, SECTION_POST, tokenizer_load_post_processor));
    if (sections.at[SECTION_ADDED].data != NULL) {
        TRY(tokenizer_load_added(tokenizer, sections.at[SECTION_ADDED].data, sections.at[SECTION_ADDED].size));
    }
    return 0;
}

int tokenizer_new(const char *json, size_t size, struct tokenizer **out)
{
    if (size > TOKENIZER_JSON_MAX) {
        return err_raise(ERR_INVALID_TOKENIZER, "the file has %zu bytes, more than %u", size, TOKENIZER_JSON_MAX);
    }
    AUTO(tokenizer) struct tokenizer *tokenizer = NULL;
    TRY(mem_new(&tokenizer));
    TRY(tokenizer_load(tokenizer, json, size));
    *out = MOVE(tokenizer);
    return 0;
}

void tokenizer_free(struct tokenizer *tokenizer)
{
    if (tokenizer == NULL) {
        return;
    }
    tokenizer_vocab_deinit(&tokenizer->vocab);
    tokenizer_merges_deinit(&tokenizer->merges);
    free(tokenizer->unigram.pieces);
    free(tokenizer->unk_token);
    for (int i = 0; i < tokenizer->normalizer_count; i++) {
        tokenizer_normalizer_deinit(&tokenizer->normalizers[i]);
    }
    for (int i = 0; i < tokenizer->step_count; i++) {
        tokenizer_pattern_deinit(&tokenizer->steps[i].pattern);
    }
    tokenizer_added_deinit(&tokenizer->raw);
    tokenizer_added_deinit(&tokenizer->normalized);
    tokenizer_vocab_deinit(&tokenizer->added);
    free(tokenizer);
}

void tokenizer_template(const struct tokenizer *tokenizer, const int32_t **before, size_t *before_count,
                        const int32_t **after, size_t *after_count)
{
    *before = tokenizer->prefix;
    *before_count = (size_t)tokenizer->prefix_count;
    *after = tokenizer->suffix;
    *after_count = (size_t)tokenizer->suffix_count;
}

int tokenizer_scratch_init(struct tokenizer_scratch *scratch)
{
    *scratch = (struct tokenizer_scratch){
        .match_data = pcre2_match_data_create(1, NULL),
        .match_context = pcre2_match_context_create(NULL),
        .jit_stack = pcre2_jit_stack_create(32 << 10, JIT_STACK_MAX, NULL),
    };
    if (scratch->match_data == NULL || scratch->match_context == NULL || scratch->jit_stack == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for pattern matching");
    }
    (void)pcre2_set_depth_limit(scratch->match_context, MATCH_DEPTH);
    (void)pcre2_set_heap_limit(scratch->match_context, MATCH_HEAP_KIB);
    pcre2_jit_stack_assign(scratch->match_context, NULL, scratch->jit_stack);
    return 0;
}

static void free_buffers(struct tokenizer_scratch *scratch, bool all)
{
    struct {
        void **data;
        size_t *capacity, size;
    } buffers[] = {
        {(void **)&scratch->segments.text.data, &scratch->segments.text.capacity, 1},
        {(void **)&scratch->segments.pieces, &scratch->segments.capacity, sizeof(*scratch->segments.pieces)},
        {(void **)&scratch->next.text.data, &scratch->next.text.capacity, 1},
        {(void **)&scratch->next.pieces, &scratch->next.capacity, sizeof(*scratch->next.pieces)},
        {(void **)&scratch->normal.data, &scratch->normal.capacity, 1},
        {(void **)&scratch->spare.data, &scratch->spare.capacity, 1},
        {(void **)&scratch->codepoints, &scratch->codepoint_capacity, sizeof(*scratch->codepoints)},
        {(void **)&scratch->marks, &scratch->mark_capacity, sizeof(*scratch->marks)},
        {(void **)&scratch->symbols, &scratch->symbol_capacity, sizeof(*scratch->symbols)},
        {(void **)&scratch->heap, &scratch->heap_capacity, sizeof(*scratch->heap)},
        {(void **)&scratch->nodes, &scratch->node_capacity, sizeof(*scratch->nodes)},
        {(void **)&scratch->ids, &scratch->id_capacity, sizeof(*scratch->ids)},
    };
    for (size_t i = 0; i < sizeof(buffers) / sizeof(buffers[0]); i++) {
        if (all || *buffers[i].capacity * buffers[i].size > KEEP_BYTES) {
            free(*buffers[i].data);
            *buffers[i].data = NULL;
            *buffers[i].capacity = 0;
        }
    }
}

void tokenizer_scratch_deinit(struct tokenizer_scratch *scratch)
{
    free_buffers(scratch, true);
    free(scratch->cache);
    pcre2_match_data_free(scratch->match_data);
    pcre2_match_context_free(scratch->match_context);
    pcre2_jit_stack_free(scratch->jit_stack);
}

int tokenizer_scratch_new(const struct tokenizer *tokenizer, struct tokenizer_scratch **out)
{
    AUTO(tokenizer_scratch) struct tokenizer_scratch *scratch = NULL;

    TRY(mem_new(&scratch));
    TRY(tokenizer_scratch_init(scratch));
    TRY(mem_array(&scratch->cache, TOKENIZER_CACHE_SIZE));
    *out = MOVE(scratch);
    return 0;
}

void tokenizer_scratch_free(struct tokenizer_scratch *scratch)
{
    if (scratch != NULL) {
        tokenizer_scratch_deinit(scratch);
        free(scratch);
    }
}

void tokenizer_scratch_watch(struct tokenizer_scratch *scratch, int (*watch)(void *data), void *data)
{
    scratch->watch = watch;
    scratch->watch_data = data;
}

bool tokenizer_gave_up(const struct tokenizer_scratch *scratch)
{
    return scratch->budget.used_up;
}

/* Raw pieces in scratch->next to normalized pieces in scratch->segments. */
static int normalize_pieces(const struct tokenizer *tokenizer, struct tokenizer_scratch *scratch)
{
    for (size_t i = 0; i < scratch->next.count; i++) {
        const struct tokenizer_piece *piece = &scratch->next.pieces[i];
        if (piece->id >= 0) {
            TRY(tokenizer_segments_add(&scratch->segments, 0, 0, 0, piece->id));
            continue;
        }
        TRY(tokenizer_normalize(tokenizer, scratch, scratch->next.text.data + piece->start, piece->size, piece->lead));
        TRY(tokenizer_added_split(&tokenizer->normalized, scratch->normal.data, scratch->normal.size,
                                  scratch->normal_lead, &scratch->segments));
        if (scratch->segments.text.size > TOKENIZER_TEXT_MAX) {
            return err_raise(ERR_PAYLOAD_TOO_LARGE, "the normalized text is larger than %u bytes", TOKENIZER_TEXT_MAX);
        }
    }
    return 0;
}

static int push_special(struct tokenizer_scratch *scratch, const int32_t *ids, int count)
{
    for (int i = 0; i < count; i++) {
        TRY(tokenizer_push_id(scratch, ids[i]));
    }
    return 0;
}

static int tokenizer_run(const struct tokenizer *tokenizer, struct tokenizer_scratch *scratch, const char *text,
                         size_t size, bool add_special)
{
    scratch->segments.text.size = scratch->next.text.size = 0;
    scratch->segments.count = scratch->next.count = scratch->id_count = 0;
    TRY(tokenizer_added_split(&tokenizer->raw, text, size, size > 0 ? tokenizer_utf8_size(text[0]) : 0,
                              &scratch->next));
    TRY(normalize_pieces(tokenizer, scratch));
    TRY(tokenizer_pre_tokenize(tokenizer, scratch));
    if (add_special) {
        TRY(push_special(scratch, tokenizer->prefix, tokenizer->prefix_count));
    }
    for (size_t i = 0; i < scratch->segments.count; i++) {
        const struct tokenizer_piece *piece = &scratch->segments.pieces[i];
        TRY(piece->id >= 0
                ? tokenizer_push_id(scratch, piece->id)
                : tokenizer_word(tokenizer, scratch, scratch->segments.text.data + piece->start, piece->size));
    }
    return add_special ? push_special(scratch, tokenizer->suffix, tokenizer->suffix_count) : 0;
}

int tokenizer_encode(const struct tokenizer *tokenizer, struct tokenizer_scratch *scratch, const char *text,
                     size_t size, bool add_special, const int32_t **ids, size_t *count)
{
    if (size > TOKENIZER_TEXT_MAX) {
        return err_raise(ERR_PAYLOAD_TOO_LARGE, "the text has %zu bytes, more than %u", size, TOKENIZER_TEXT_MAX);
    }
    if (!tokenizer_utf8_valid(text, size)) {
        return err_raise(ERR_INVALID_PARAMETER, "the text is not UTF-8");
    }
    free_buffers(scratch, false);
    tokenizer_budget_begin(scratch, size);
    TRY(tokenizer_run(tokenizer, scratch, text, size, add_special));
    *ids = scratch->ids;
    *count = scratch->id_count;
    return 0;
}

size_t tokenizer_utf8_encode(uint32_t codepoint, char out[4])
{
    if (codepoint < 0x80) {
        out[0] = (char)codepoint;
        return 1;
    }
    if (codepoint < 0x800) {
        out[0] = (char)(0xc0 | codepoint >> 6);
        out[1] = (char)(0x80 | (codepoint & 0x3f));
        return 2;
    }
    if (codepoint < 0x10000) {
        out[0] = (char)(0xe0 | codepoint >> 12);
        out[1] = (char)(0x80 | (codepoint >> 6 & 0x3f));
        out[2] = (char)(0x80 | (codepoint & 0x3f));
        return 3;
    }
    out[0] = (char)(0xf0 | codepoint >> 18);
    out[1] = (char)(0x80 | (codepoint >> 12 & 0x3f));
    out[2] = (char)(0x80 | (codepoint >> 6 & 0x3f));
    out[3] = (char)(0x80 | (codepoint & 0x3f));
    return 4;
}

bool tokenizer_utf8_valid(const char *text, size_t size)
{
    const unsigned char *p = (const unsigned char *)text, *end = p + size;
    while (p < end) {
        if (*p < 0x80) {
            p++;
            continue;
        }
        size_t length = *p >= 0xf0 && *p <= 0xf4 ? 4 : *p >= 0xe0 && *p < 0xf0 ? 3 : *p >= 0xc2 && *p < 0xe0 ? 2 : 0;
        if (length == 0 || (size_t)(end - p) < length) {
            return false;
        }
        for (size_t i = 1; i < length; i++) {
            if ((p[i] & 0xc0) != 0x80) {
                return false;
            }
        }
        /* Overlong forms, surrogates, beyond U+10FFFF. */
        if ((*p == 0xe0 && p[1] < 0xa0) || (*p == 0xed && p[1] > 0x9f) || (*p == 0xf0 && p[1] < 0x90) ||
            (*p == 0xf4 && p[1] > 0x8f)) {
            return false;
        }
        p += length;
    }
    return true;
}
