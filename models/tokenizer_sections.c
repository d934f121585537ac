/* The small sections of tokenizer.json: normalizer, pre_tokenizer, post_processor. Sequences are flattened into lists
 * of steps; kinds that are only a pattern (Digits, Punctuation, Whitespace) become splits. An unknown kind is refused
 * by name: guessing would give wrong ids without a sign. */

#include "base/err.h"
#include "base/mem.h"
#include "models/tokenizer_internal.h"

#include <stdlib.h>
#include <string.h>

int tokenizer_member_type(const json_t *object, const char **out)
{
    const char *type = json_string_value(json_object_get(object, "type"));
    if (type == NULL) {
        return err_raise(ERR_INVALID_TOKENIZER, "a section has no type");
    }
    *out = type;
    return 0;
}

int tokenizer_member_string(const json_t *object, const char *key, const char **out, size_t *size)
{
    const json_t *value = json_object_get(object, key);
    if (!json_is_string(value)) {
        return err_raise(ERR_INVALID_TOKENIZER, "member \"%s\" is not a string", key);
    }
    *out = json_string_value(value);
    *size = json_string_length(value);
    return 0;
}

int tokenizer_member_bool(const json_t *object, const char *key, bool fallback, bool *out)
{
    const json_t *value = json_object_get(object, key);
    if (value != NULL && !json_is_null(value) && !json_is_boolean(value)) {
        return err_raise(ERR_INVALID_TOKENIZER, "member \"%s\" is not a boolean", key);
    }
    *out = json_is_boolean(value) ? json_is_true(value) : fallback;
    return 0;
}

int tokenizer_member_pattern(const json_t *object, struct tokenizer_pattern *out)
{
    const json_t *pattern = json_object_get(object, "pattern");
    const json_t *literal = json_object_get(pattern, "String"), *regex = json_object_get(pattern, "Regex");

    if (json_is_string(literal)) {
        return tokenizer_pattern_literal(json_string_value(literal), json_string_length(literal), out);
    }
    if (json_is_string(regex)) {
        return tokenizer_pattern_regex(json_string_value(regex), json_string_length(regex), out);
    }
    return err_raise(ERR_INVALID_TOKENIZER, "a pattern is neither a String nor a Regex");
}

int tokenizer_each(struct tokenizer *tokenizer, const json_t *section, const char *list,
                   int (*visit)(struct tokenizer *tokenizer, const json_t *section, const char *type))
{
    const char *type = NULL;

    if (section == NULL || json_is_null(section)) {
        return 0;
    }
    TRY(tokenizer_member_type(section, &type));
    if (strcmp(type, "Sequence") != 0) {
        return visit(tokenizer, section, type);
    }
    const json_t *members = json_object_get(section, list);
    if (!json_is_array(members)) {
        return err_raise(ERR_INVALID_TOKENIZER, "a Sequence has no list \"%s\"", list);
    }
    for (size_t i = 0; i < json_array_size(members); i++) {
        /* Depth was bounded when the section was parsed. */
        TRY(tokenizer_each(tokenizer, json_array_get(members, i), list, visit));
    }
    return 0;
}

static int fill_normalizer(struct tokenizer_normalizer *normalizer, const json_t *section)
{
    const char *content = NULL;

    switch (normalizer->kind) {
    case NORMALIZER_STRIP:
        TRY(tokenizer_member_bool(section, "strip_left", false, &normalizer->left));
        return tokenizer_member_bool(section, "strip_right", false, &normalizer->right);
    case NORMALIZER_PREPEND:
        TRY(tokenizer_member_string(section, "prepend", &content, &normalizer->content_size));
        break;
    case NORMALIZER_REPLACE:
        TRY(tokenizer_member_string(section, "content", &content, &normalizer->content_size));
        TRY(tokenizer_member_pattern(section, &normalizer->pattern));
        break;
    default:
        return 0;
    }
    return mem_strdup(&normalizer->content, content);
}

static int visit_normalizer(struct tokenizer *tokenizer, const json_t *section, const char *type)
{
    static const struct {
        const char *type;
        enum tokenizer_normalizer_kind kind;
    } kinds[] = {{"NFC", NORMALIZER_NFC},
                 {"NFD", NORMALIZER_NFD},
                 {"NFKC", NORMALIZER_NFKC},
                 {"NFKD", NORMALIZER_NFKD},
                 {"Lowercase", NORMALIZER_LOWERCASE},
                 {"Strip", NORMALIZER_STRIP},
                 {"Prepend", NORMALIZER_PREPEND},
                 {"Replace", NORMALIZER_REPLACE},
                 {"ByteLevel", NORMALIZER_BYTE_LEVEL}};

    if (tokenizer->normalizer_count == TOKENIZER_STEPS_MAX) {
        return err_raise(ERR_INVALID_TOKENIZER, "there are more than %d normalizers", TOKENIZER_STEPS_MAX);
    }
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        if (strcmp(type, kinds[i].type) == 0) {
            struct tokenizer_normalizer *normalizer = &tokenizer->normalizers[tokenizer->normalizer_count++];
            normalizer->kind = kinds[i].kind;
            return fill_normalizer(normalizer, section);
        }
    }
    return err_raise(ERR_INVALID_TOKENIZER, "normalizer \"%.64s\" is not supported", type);
}

int tokenizer_load_normalizer(struct tokenizer *tokenizer, const json_t *section)
{
    int rc = tokenizer_each(tokenizer, section, "normalizers", visit_normalizer);
    return rc != 0 ? err_pass(rc, "read the normalizer") : 0;
}

static int member_behavior(const json_t *section, enum tokenizer_behavior fallback, enum tokenizer_behavior *out)
{
    static const char *const names[] = {"Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous"};
    const json_t *value = json_object_get(section, "behavior");

    if (value == NULL) {
        *out = fallback;
        return 0;
    }
    for (size_t i = 0; json_is_string(value) && i < sizeof(names) / sizeof(names[0]); i++) {
        if (strcmp(json_string_value(value), names[i]) == 0) {
            *out = (enum tokenizer_behavior)i;
            return 0;
        }
    }
    return err_raise(ERR_INVALID_TOKENIZER, "a split has an unknown behavior");
}

static int section_pattern(const char *regex, struct tokenizer_pattern *out)
{
    return tokenizer_pattern_regex(regex, strlen(regex), out);
}

static int fill_byte_level(struct tokenizer_step *step, const json_t *section)
{
    bool prefix;
    step->kind = STEP_BYTE_LEVEL;
    TRY(tokenizer_member_bool(section, "add_prefix_space", true, &prefix));
    TRY(tokenizer_member_bool(section, "use_regex", true, &step->split));
    step->prepend = prefix ? PREPEND_ALWAYS : PREPEND_NEVER;
    if (!step->split) {
        return 0;
    }
    /* GPT-2's words */
    return section_pattern("'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+",
                           &step->pattern);
}

static int fill_metaspace(struct tokenizer_step *step, const json_t *section)
{
    const char *mark = "", *scheme = json_string_value(json_object_get(section, "prepend_scheme"));
    size_t size = 0;
    bool prefix = false;

    step->kind = STEP_METASPACE;
    step->behavior = BEHAVIOR_MERGED_WITH_NEXT;
    TRY(tokenizer_member_string(section, "replacement", &mark, &size));
    TRY(tokenizer_member_bool(section, "split", true, &step->split));
    TRY(tokenizer_member_bool(section, "add_prefix_space", true, &prefix));
    if (size == 0 || tokenizer_utf8_size(mark[0]) != size) {
        return err_raise(ERR_INVALID_TOKENIZER, "the Metaspace replacement is not one character");
    }
    TRY(tokenizer_pattern_literal(mark, size, &step->pattern));
    if (!prefix || (scheme != NULL && strcmp(scheme, "never") == 0)) {
        step->prepend = PREPEND_NEVER;
    } else if (scheme == NULL || strcmp(scheme, "always") == 0) {
        step->prepend = PREPEND_ALWAYS;
    } else if (strcmp(scheme, "first") == 0) {
        step->prepend = PREPEND_FIRST;
    } else {
        return err_raise(ERR_INVALID_TOKENIZER, "Metaspace has an unknown prepend_scheme \"%.32s\"", scheme);
    }
    return 0;
}

static int fill_split(struct tokenizer_step *step, const json_t *section)
{
    TRY(tokenizer_member_pattern(section, &step->pattern));
    TRY(member_behavior(section, BEHAVIOR_ISOLATED, &step->behavior));
    return tokenizer_member_bool(section, "invert", false, &step->invert);
}

static int fill_digits(struct tokenizer_step *step, const json_t *section)
{
    bool individual;

    TRY(tokenizer_member_bool(section, "individual_digits", false, &individual));
    step->behavior = individual ? BEHAVIOR_ISOLATED : BEHAVIOR_CONTIGUOUS;
    return section_pattern("\\p{N}", &step->pattern);
}

static int fill_punctuation(struct tokenizer_step *step, const json_t *section)
{
    TRY(member_behavior(section, BEHAVIOR_ISOLATED, &step->behavior));
    return section_pattern("[\\x21-\\x2f\\x3a-\\x40\\x5b-\\x60\\x7b-\\x7e\\p{P}]", &step->pattern);
}

static int fill_whitespace(struct tokenizer_step *step, const json_t *section)
{
    step->behavior = BEHAVIOR_REMOVED;
    step->invert = true;
    /* This one is the Rust crate's \w, not Oniguruma's. */
#define RUST_WORD "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\x{200c}\\x{200d}"
    return section_pattern("[" RUST_WORD "]+|[^" RUST_WORD "\\s]+", &step->pattern);
}

static int fill_char_delimiter(struct tokenizer_step *step, const json_t *section)
{
    const char *mark = "";
    size_t size = 0;

    step->behavior = BEHAVIOR_REMOVED;
    TRY(tokenizer_member_string(section, "delimiter", &mark, &size));
    return tokenizer_pattern_literal(mark, size, &step->pattern);
}

static int fill_whitespace_split(struct tokenizer_step *step, const json_t *section)
{
    step->behavior = BEHAVIOR_REMOVED;
    return section_pattern("\\s", &step->pattern);
}

static int visit_pre_tokenizer(struct tokenizer *tokenizer, const json_t *section, const char *type)
{
    static const struct {
        const char *type;
        int (*fill)(struct tokenizer_step *step, const json_t *section);
    } kinds[] = {{"ByteLevel", fill_byte_level},    {"Split", fill_split},
                 {"Metaspace", fill_metaspace},     {"Digits", fill_digits},
                 {"Punctuation", fill_punctuation}, {"CharDelimiterSplit", fill_char_delimiter},
                 {"Whitespace", fill_whitespace},   {"WhitespaceSplit", fill_whitespace_split}};

    if (tokenizer->step_count == TOKENIZER_STEPS_MAX) {
        return err_raise(ERR_INVALID_TOKENIZER, "there are more than %d pre-tokenizers", TOKENIZER_STEPS_MAX);
    }
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        if (strcmp(type, kinds[i].type) == 0) {
            return kinds[i].fill(&tokenizer->steps[tokenizer->step_count++], section);
        }
    }
    return err_raise(ERR_INVALID_TOKENIZER, "pre_tokenizer \"%.64s\" is not supported", type);
}

int tokenizer_load_pre_tokenizer(struct tokenizer *tokenizer, const json_t *section)
{
    int rc = tokenizer_each(tokenizer, section, "pretokenizers", visit_pre_tokenizer);
    return rc != 0 ? err_pass(rc, "read the pre_tokenizer") : 0;
}

/* The ids of one special token of a template, appended. */
static int add_special_ids(const json_t *section, const char *name, int32_t *ids, int *count)
{
    const json_t *list = json_object_get(json_object_get(json_object_get(section, "special_tokens"), name), "ids");
    if (!json_is_array(list)) {
        return err_raise(ERR_INVALID_TOKENIZER, "the template's token \"%.64s\" is not declared", name);
    }
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *id = json_array_get(list, i);
        if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) >= INT32_MAX ||
            *count == TOKENIZER_TEMPLATE_MAX) {
            return err_raise(ERR_INVALID_TOKENIZER, "the template's token \"%.64s\" has a bad list of ids", name);
        }
        ids[(*count)++] = (int32_t)json_integer_value(id);
    }
    return 0;
}

/* ["</s>", 2] of the two processors that put one token before a text and one after it. */
static int add_framing_id(const json_t *section, const char *key, int32_t *ids, int *count)
{
    const json_t *id = json_array_get(json_object_get(section, key), 1);
    if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) >= INT32_MAX) {
        return err_raise(ERR_INVALID_TOKENIZER, "the post_processor's \"%s\" is not a token and its id", key);
    }
    ids[(*count)++] = (int32_t)json_integer_value(id);
    return 0;
}

static int visit_post_processor(struct tokenizer *tokenizer, const json_t *section, const char *type)
{
    const json_t *single = json_object_get(section, "single");
    bool seen = false;

    if (strcmp(type, "ByteLevel") == 0) {
        return 0; /* moves offsets only */
    }
    bool taken = tokenizer->prefix_count > 0 || tokenizer->suffix_count > 0;
    if (!taken && (strcmp(type, "RobertaProcessing") == 0 || strcmp(type, "BertProcessing") == 0)) {
        TRY(add_framing_id(section, "cls", tokenizer->prefix, &tokenizer->prefix_count));
        return add_framing_id(section, "sep", tokenizer->suffix, &tokenizer->suffix_count);
    }
    if (taken || strcmp(type, "TemplateProcessing") != 0 || !json_is_array(single)) {
        return err_raise(ERR_INVALID_TOKENIZER, "post_processor \"%.64s\" is not supported", type);
    }
    for (size_t i = 0; i < json_array_size(single); i++) {
        const json_t *piece = json_array_get(single, i);
        const json_t *special = json_object_get(json_object_get(piece, "SpecialToken"), "id");
        const char *sequence = json_string_value(json_object_get(json_object_get(piece, "Sequence"), "id"));
        if (json_is_string(special)) {
            TRY(add_special_ids(section, json_string_value(special), seen ? tokenizer->suffix : tokenizer->prefix,
                                seen ? &tokenizer->suffix_count : &tokenizer->prefix_count));
        } else if (sequence == NULL || strcmp(sequence, "A") != 0 || seen) {
            return err_raise(ERR_INVALID_TOKENIZER, "the template is not one sequence A between special tokens");
        } else {
            seen = true;
        }
    }
    return seen ? 0 : err_raise(ERR_INVALID_TOKENIZER, "the template lacks the sequence A");
}

int tokenizer_load_post_processor(struct tokenizer *tokenizer, const json_t *section)
{
    int rc = tokenizer_each(tokenizer, section, "processors", visit_post_processor);
    return rc != 0 ? err_pass(rc, "read the post_processor") : 0;
}
