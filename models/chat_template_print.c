/* Values as text: str() and repr() of Python, and json.dumps as transformers calls it. */

#include "base/err.h"
#include "models/chat_template_internal.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#define PUT(out, text) tokenizer_text_append(out, text, sizeof(text) - 1)

int chat_take(struct chat_render *r, size_t start, struct chat_value *out)
{
    TRY(chat_text(r, r->out.data + start, r->out.size - start, out));
    r->out.size = start;
    return 0;
}

int chat_to_text(struct chat_render *r, const struct chat_value *value, struct chat_value *out)
{
    size_t start = r->out.size;

    if (value->type == CHAT_STRING) {
        *out = *value;
        return 0;
    }
    TRY(chat_print(r, value, &r->out));
    return chat_take(r, start, out);
}

/* The shortest digits that give the number back, as Python writes them. */
static int print_float(double number, struct tokenizer_text *out)
{
    char digits[40], text[64];
    int precision = 0;

    if (!isfinite(number)) {
        return isnan(number) ? PUT(out, "nan") : number > 0 ? PUT(out, "inf") : PUT(out, "-inf");
    }
    do {
        snprintf(digits, sizeof(digits), "%.*e", precision, number);
    } while (strtod(digits, NULL) != number && precision++ < 17);
    char *exponent_at = strchr(digits, 'e');
    int exponent = atoi(exponent_at + 1);
    if (exponent >= -4 && exponent < 16) {
        int decimals = precision - exponent;
        snprintf(text, sizeof(text), "%.*f", decimals > 1 ? decimals : 1, number);
    } else {
        snprintf(text, sizeof(text), "%.*se%c%02d", (int)(exponent_at - digits), digits, exponent < 0 ? '-' : '+',
                 abs(exponent));
    }
    return tokenizer_text_append(out, text, strlen(text));
}

static int print_integer(int64_t number, struct tokenizer_text *out)
{
    char text[32];
    int size = snprintf(text, sizeof(text), "%lld", (long long)number);
    return tokenizer_text_append(out, text, (size_t)size);
}

static bool is_printable(uint32_t codepoint)
{
    switch (utf8proc_category((utf8proc_int32_t)codepoint)) {
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
        return false;
    case UTF8PROC_CATEGORY_ZS:
        return codepoint == ' ';
    default:
        return true;
    }
}

static int repr_character(uint32_t codepoint, const char *text, size_t size, char quote, struct tokenizer_text *out)
{
    char escape[16];

    if (codepoint == '\\' || codepoint == (uint32_t)quote) {
        TRY(PUT(out, "\\"));
    } else if (codepoint == '\n' || codepoint == '\r' || codepoint == '\t') {
        return codepoint == '\n' ? PUT(out, "\\n") : codepoint == '\r' ? PUT(out, "\\r") : PUT(out, "\\t");
    } else if (!is_printable(codepoint)) {
        int length = codepoint < 0x100     ? snprintf(escape, sizeof(escape), "\\x%02x", codepoint)
                     : codepoint < 0x10000 ? snprintf(escape, sizeof(escape), "\\u%04x", codepoint)
                                           : snprintf(escape, sizeof(escape), "\\U%08x", codepoint);
        return tokenizer_text_append(out, escape, (size_t)length);
    }
    return tokenizer_text_append(out, text, size);
}

static int repr_text(struct chat_string text, struct tokenizer_text *out)
{
    bool single = memchr(text.data, '\'', text.size) != NULL, both = memchr(text.data, '"', text.size) != NULL;
    char quote = single && !both ? '"' : '\'';

    TRY(tokenizer_text_append(out, &quote, 1));
    for (size_t at = 0; at < text.size;) {
        uint32_t codepoint;
        size_t size = tokenizer_utf8_decode(text.data + at, &codepoint);
        TRY(repr_character(codepoint, text.data + at, size, quote, out));
        at += size;
    }
    return tokenizer_text_append(out, &quote, 1);
}

static int repr_list(struct chat_render *r, const struct chat_list *list, struct tokenizer_text *out)
{
    if (list->view || list->generator) {
        return chat_raise(r, "the text of a %s is not supported", list->view ? "view" : "generator");
    }
    TRY(list->tuple ? PUT(out, "(") : PUT(out, "["));
    for (size_t i = 0; i < list->count; i++) {
        TRY(i > 0 ? PUT(out, ", ") : 0);
        TRY(chat_repr(r, &list->items[i], out));
    }
    TRY(list->tuple && list->count == 1 ? PUT(out, ",") : 0);
    return list->tuple ? PUT(out, ")") : PUT(out, "]");
}

static int repr_dict(struct chat_render *r, const struct chat_dict *dict, struct tokenizer_text *out)
{
    TRY(PUT(out, "{"));
    for (size_t i = 0; i < dict->count; i++) {
        TRY(i > 0 ? PUT(out, ", ") : 0);
        TRY(chat_repr(r, &dict->keys[i], out));
        TRY(PUT(out, ": "));
        TRY(chat_repr(r, &dict->values[i], out));
    }
    return PUT(out, "}");
}

/* Before a value is printed: its step, its depth, and whether the text is within its limit. */
static int print_enter(struct chat_render *r, const struct tokenizer_text *out)
{
    TRY(chat_step(r, 1));
    if (++r->depth > CHAT_DEPTH_MAX) {
        return chat_exceeds(r, "values nest deeper");
    }
    return out->size <= CHAT_OUTPUT_MAX ? 0 : chat_exceeds(r, "it makes more text");
}

int chat_repr(struct chat_render *r, const struct chat_value *value, struct tokenizer_text *out)
{
    TRY(print_enter(r, out));
    switch (value->type) {
    case CHAT_UNDEFINED:
        TRY(PUT(out, "Undefined"));
        break;
    case CHAT_NONE:
        TRY(PUT(out, "None"));
        break;
    case CHAT_BOOL:
        TRY(value->boolean ? PUT(out, "True") : PUT(out, "False"));
        break;
    case CHAT_INTEGER:
        TRY(print_integer(value->integer, out));
        break;
    case CHAT_FLOAT:
        TRY(print_float(value->number, out));
        break;
    case CHAT_STRING:
        TRY(repr_text(value->text, out));
        break;
    case CHAT_LIST:
        TRY(repr_list(r, value->list, out));
        break;
    case CHAT_DICT:
        TRY(repr_dict(r, value->dict, out));
        break;
    default:
        return chat_raise(r, "the text of a value of type %s is not supported", chat_type_name(value));
    }
    r->depth--;
    return 0;
}

int chat_print(struct chat_render *r, const struct chat_value *value, struct tokenizer_text *out)
{
    if (value->type == CHAT_STRING) {
        TRY(chat_step(r, value->text.size / 64));
        return tokenizer_text_append(out, value->text.data, value->text.size);
    }
    return value->type == CHAT_UNDEFINED ? 0 : chat_repr(r, value, out);
}

/* \uXXXX, as a pair beyond U+FFFF. */
static int json_escape(uint32_t codepoint, struct tokenizer_text *out)
{
    char escape[16];
    int length;

    if (codepoint < 0x10000) {
        length = snprintf(escape, sizeof(escape), "\\u%04x", codepoint);
    } else {
        uint32_t rest = codepoint - 0x10000;
        length = snprintf(escape, sizeof(escape), "\\u%04x\\u%04x", 0xd800 + (rest >> 10), 0xdc00 + (rest & 0x3ff));
    }
    return tokenizer_text_append(out, escape, (size_t)length);
}

static int json_string_text(struct chat_string text, bool ascii, struct tokenizer_text *out)
{
    static const char letters[] = "\"\\\n\r\t\f\b", escapes[] = "\"\\nrtfb";

    TRY(PUT(out, "\""));
    for (size_t at = 0; at < text.size;) {
        uint32_t codepoint;
        size_t size = tokenizer_utf8_decode(text.data + at, &codepoint);
        const char *letter = codepoint != 0 && codepoint < 0x80 ? strchr(letters, (int)codepoint) : NULL;
        if (letter != NULL) {
            char escape[2] = {'\\', escapes[letter - letters]};
            TRY(tokenizer_text_append(out, escape, 2));
        } else {
            TRY(codepoint < 0x20 || (ascii && codepoint > 0x7e) ? json_escape(codepoint, out)
                                                                : tokenizer_text_append(out, text.data + at, size));
        }
        at += size;
    }
    return PUT(out, "\"");
}

/* A new line with `level` times the indent. */
static int json_line(const struct chat_json_options *options, int level, struct tokenizer_text *out)
{
    TRY(PUT(out, "\n"));
    for (int64_t i = 0; i < level * options->indent; i++) {
        TRY(PUT(out, " "));
    }
    return 0;
}

static int json_value(struct chat_render *r, const struct chat_value *value, const struct chat_json_options *options,
                      int level, struct tokenizer_text *out);

/* A key: strings, and what json.dumps makes strings of. */
static int json_key(struct chat_render *r, const struct chat_value *key, const struct chat_json_options *options,
                    struct tokenizer_text *out)
{
    if (key->type == CHAT_STRING) {
        return json_string_text(key->text, options->ascii, out);
    }
    if (key->type == CHAT_LIST || key->type == CHAT_UNDEFINED) {
        return chat_raise(r, "tojson of a key of type %s", chat_type_name(key));
    }
    TRY(PUT(out, "\""));
    TRY(json_value(r, key, options, 0, out));
    return PUT(out, "\"");
}

/* The places of a dict's pairs in the order in which they are written. */
static int json_order(struct chat_render *r, const struct chat_dict *dict, bool sort, size_t **out)
{
    size_t *order = arena_alloc(&r->arena, (dict->count + 1) * sizeof(*order));

    if (order == NULL) {
        return chat_exceeds(r, "it needs more memory");
    }
    for (size_t i = 0; i < dict->count; i++) {
        size_t at = i;
        int less = -1;
        for (; sort && at > 0 && less < 0; at -= less < 0) {
            TRY(chat_step(r, 1));
            TRY(chat_order(r, &dict->keys[i], &dict->keys[order[at - 1]], &less));
            if (less >= 0) {
                break;
            }
        }
        memmove(order + at + 1, order + at, (i - at) * sizeof(*order));
        order[at] = i;
    }
    *out = order;
    return 0;
}

static int json_members(struct chat_render *r, const struct chat_value *value, const struct chat_json_options *options,
                        int level, struct tokenizer_text *out)
{
    bool list = value->type == CHAT_LIST;
    size_t count = list ? value->list->count : value->dict->count, *order = NULL;

    if (list && (value->list->view || value->list->generator)) {
        return chat_raise(r, "tojson of a value of type %s", chat_type_name(value));
    }
    if (count == 0) {
        return list ? PUT(out, "[]") : PUT(out, "{}");
    }
    TRY(list ? 0 : json_order(r, value->dict, options->sort, &order));
    TRY(list ? PUT(out, "[") : PUT(out, "{"));
    for (size_t i = 0; i < count; i++) {
        TRY(i > 0 ? tokenizer_text_append(out, options->comma.data, options->comma.size) : 0);
        TRY(options->indent >= 0 ? json_line(options, level + 1, out) : 0);
        if (!list) {
            TRY(json_key(r, &value->dict->keys[order[i]], options, out));
            TRY(tokenizer_text_append(out, options->colon.data, options->colon.size));
        }
        TRY(json_value(r, list ? &value->list->items[i] : &value->dict->values[order[i]], options, level + 1, out));
    }
    TRY(options->indent >= 0 ? json_line(options, level, out) : 0);
    return list ? PUT(out, "]") : PUT(out, "}");
}

static int json_value(struct chat_render *r, const struct chat_value *value, const struct chat_json_options *options,
                      int level, struct tokenizer_text *out)
{
    TRY(print_enter(r, out));
    switch (value->type) {
    case CHAT_NONE:
        TRY(PUT(out, "null"));
        break;
    case CHAT_BOOL:
        TRY(value->boolean ? PUT(out, "true") : PUT(out, "false"));
        break;
    case CHAT_INTEGER:
        TRY(print_integer(value->integer, out));
        break;
    case CHAT_FLOAT:
        TRY(print_float(value->number, out));
        break;
    case CHAT_STRING:
        TRY(json_string_text(value->text, options->ascii, out));
        break;
    case CHAT_LIST:
    case CHAT_DICT:
        TRY(json_members(r, value, options, level, out));
        break;
    default:
        return chat_raise(r, "tojson of a value of type %s", chat_type_name(value));
    }
    r->depth--;
    return 0;
}

int chat_json(struct chat_render *r, const struct chat_value *value, const struct chat_json_options *options,
              struct tokenizer_text *out)
{
    return json_value(r, value, options, 0, out);
}
