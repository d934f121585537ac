/* The functions that a chat template may call, and what they and methods do with arguments. strftime_now has a fixed
 * date, 26 July 2024, so that the same records give the same tokens on every day; it is the one that Llama's templates
 * use where there is no clock. */

#include "base/err.h"
#include "models/chat_template_internal.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

const struct chat_value *chat_argument(const struct chat_arguments *arguments, size_t place, const char *name)
{
    for (size_t i = 0; i < arguments->count; i++) {
        if (arguments->names[i].size == 0 ? i == place : chat_equal(arguments->names[i], name)) {
            return &arguments->values[i];
        }
    }
    return NULL;
}

int chat_argument_text(struct chat_render *r, const struct chat_arguments *arguments, size_t place, const char *name,
                       const char *fallback, struct chat_string *out)
{
    const struct chat_value *value = chat_argument(arguments, place, name);

    if (value == NULL && fallback != NULL) {
        *out = (struct chat_string){fallback, strlen(fallback)};
        return 0;
    }
    if (value == NULL || value->type != CHAT_STRING) {
        return chat_raise(r, "the argument \"%s\" is %s, not a str", name,
                          value == NULL ? "missing" : chat_type_name(value));
    }
    *out = value->text;
    return 0;
}

int chat_argument_integer(struct chat_render *r, const struct chat_arguments *arguments, size_t place, const char *name,
                          int64_t fallback, int64_t *out)
{
    const struct chat_value *value = chat_argument(arguments, place, name);

    if (value != NULL && value->type != CHAT_INTEGER && value->type != CHAT_BOOL) {
        return chat_raise(r, "the argument \"%s\" is %s, not an int", name, chat_type_name(value));
    }
    *out = value == NULL ? fallback : value->type == CHAT_BOOL ? value->boolean : value->integer;
    return 0;
}

static int call_range(struct chat_render *r, const struct chat_arguments *arguments, struct chat_value *out)
{
    int64_t bounds[3] = {0, 0, 1};

    if (arguments->count == 0 || arguments->count > 3) {
        return chat_raise(r, "range takes one to three arguments");
    }
    for (size_t i = 0; i < arguments->count; i++) {
        TRY(chat_argument_integer(r, arguments, i, "", 0, &bounds[arguments->count == 1 ? 1 : i]));
    }
    if (bounds[2] == 0 || bounds[2] > INT32_MAX || bounds[2] < -INT32_MAX || bounds[0] > INT32_MAX ||
        bounds[0] < -INT32_MAX || bounds[1] > INT32_MAX || bounds[1] < -INT32_MAX) {
        return chat_raise(r, "a range beyond 31 bits, or with a step of 0, is not supported");
    }
    TRY(chat_list_new(r, 0, out));
    out->list->view = true;
    for (int64_t i = bounds[0]; bounds[2] > 0 ? i < bounds[1] : i > bounds[1]; i += bounds[2]) {
        const struct chat_value value = {.type = CHAT_INTEGER, .integer = i};
        TRY(chat_list_add(r, out->list, &value));
    }
    return 0;
}

/* namespace(..) and dict(..): an object first, if any, then names. */
static int call_dict(struct chat_render *r, enum chat_type type, const struct chat_arguments *arguments,
                     struct chat_value *out)
{
    TRY(chat_dict_new(r, type, out));
    for (size_t i = 0; i < arguments->count; i++) {
        const struct chat_value *value = &arguments->values[i];
        if (arguments->names[i].size > 0) {
            const struct chat_value key = {.type = CHAT_STRING, .text = arguments->names[i]};
            TRY(chat_dict_set(r, out->dict, &key, value));
            continue;
        }
        if (i > 0 || value->type != CHAT_DICT) {
            return chat_raise(r, "a dict is made of something other than a dict and names");
        }
        for (size_t k = 0; k < value->dict->count; k++) {
            TRY(chat_dict_set(r, out->dict, &value->dict->keys[k], &value->dict->values[k]));
        }
    }
    return 0;
}

static int call_raise(struct chat_render *r, const struct chat_arguments *arguments, struct chat_value *out)
{
    struct chat_value text = chat_literal("");

    (void)out;
    if (arguments->count > 0) {
        TRY(chat_to_text(r, &arguments->values[0], &text));
    }
    return chat_raise(r, "it refuses the messages: %.*s", (int)(text.text.size < 200 ? text.text.size : 200),
                      text.text.data);
}

static int call_strftime(struct chat_render *r, const struct chat_arguments *arguments, struct chat_value *out)
{
    static const char known[] = "dbBYymHMSAajIp%";
    const struct tm date = {.tm_year = 124, .tm_mon = 6, .tm_mday = 26, .tm_wday = 5, .tm_yday = 207};
    struct chat_string format = {0};
    char pattern[64], text[512];

    TRY(chat_argument_text(r, arguments, 0, "format", NULL, &format));
    if (format.size >= sizeof(pattern) || memchr(format.data, '\0', format.size) != NULL) {
        return chat_raise(r, "the format of strftime_now is too long");
    }
    memcpy(pattern, format.data, format.size);
    pattern[format.size] = '\0';
    for (const char *p = pattern; (p = strchr(p, '%')) != NULL; p += 2) {
        if (p[1] == '\0' || strchr(known, p[1]) == NULL) {
            return chat_raise(r, "strftime_now with %%%c is not supported", isprint((unsigned char)p[1]) ? p[1] : '?');
        }
    }
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    size_t size = strftime(text, sizeof(text), pattern, &date);
#pragma GCC diagnostic pop
    return chat_text(r, text, size, out);
}

int chat_call_function(struct chat_render *r, enum chat_function function, const struct chat_arguments *arguments,
                       struct chat_value *out)
{
    switch (function) {
    case FUNCTION_RANGE:
        return call_range(r, arguments, out);
    case FUNCTION_NAMESPACE:
        return call_dict(r, CHAT_NAMESPACE, arguments, out);
    case FUNCTION_DICT:
        return call_dict(r, CHAT_DICT, arguments, out);
    case FUNCTION_RAISE:
        return call_raise(r, arguments, out);
    default:
        return call_strftime(r, arguments, out);
    }
}
