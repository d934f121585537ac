/* The methods of strings and dicts that a chat template may call. Those that change a value are refused, as the sandbox
 * of transformers refuses them. */

#include "base/err.h"
#include "models/chat_template_internal.h"

#include <ctype.h>
#include <string.h>

typedef int method_function(struct chat_render *r, const struct chat_value *self, const char *name,
                            const struct chat_arguments *arguments, struct chat_value *out);

static int method_case(struct chat_render *r, const struct chat_value *self, const char *name,
                       const struct chat_arguments *arguments, struct chat_value *out)
{
    (void)arguments;
    return chat_change_case(r, self->text,
                            name[0] == 'u'   ? CASE_UPPER
                            : name[0] == 'l' ? CASE_LOWER
                            : name[0] == 't' ? CASE_TITLE
                                             : CASE_CAPITALIZE,
                            out);
}

static int method_strip(struct chat_render *r, const struct chat_value *self, const char *name,
                        const struct chat_arguments *arguments, struct chat_value *out)
{
    const struct chat_value *given = chat_argument(arguments, 0, "chars");
    bool all = given == NULL || given->type == CHAT_NONE;
    struct chat_string characters = {0};

    TRY(all ? 0 : chat_argument_text(r, arguments, 0, "chars", NULL, &characters));
    *out = *self;
    out->text = chat_strip(self->text, all ? NULL : &characters, name[0] != 'r', name[0] != 'l');
    return chat_step(r, self->text.size / 64);
}

static int add_part(struct chat_render *r, struct chat_value *list, const char *data, size_t size)
{
    const struct chat_value part = {.type = CHAT_STRING, .text = {data, size}};
    return chat_list_add(r, list->list, &part);
}

/* By white space, which counts neither at the ends nor twice. */
static int split_space(struct chat_render *r, struct chat_string text, int64_t limit, struct chat_value *out)
{
    struct chat_string rest = chat_strip(text, NULL, true, false);

    while (rest.size > 0) {
        size_t end = 0;
        while (end < rest.size) {
            uint32_t codepoint;
            size_t size = tokenizer_utf8_decode(rest.data + end, &codepoint);
            if (chat_is_space(codepoint)) {
                break;
            }
            end += size;
        }
        if (limit == 0) {
            end = rest.size;
        }
        TRY(add_part(r, out, rest.data, end));
        limit--;
        rest = chat_strip((struct chat_string){rest.data + end, rest.size - end}, NULL, true, false);
    }
    return 0;
}

static int method_split(struct chat_render *r, const struct chat_value *self, const char *name,
                        const struct chat_arguments *arguments, struct chat_value *out)
{
    const struct chat_value *given = chat_argument(arguments, 0, "sep");
    struct chat_string mark = {0}, text = self->text;
    int64_t limit = -1, found;
    size_t at = 0;

    TRY(chat_argument_integer(r, arguments, 1, "maxsplit", -1, &limit));
    TRY(chat_list_new(r, 0, out));
    TRY(chat_step(r, text.size / 16));
    if (given == NULL || given->type == CHAT_NONE) {
        if (name[0] == 'r' && limit >= 0) {
            return chat_raise(r, "rsplit by white space is not supported");
        }
        return split_space(r, text, limit, out);
    }
    TRY(chat_argument_text(r, arguments, 0, "sep", NULL, &mark));
    if (mark.size == 0) {
        return chat_raise(r, "a text is split by an empty one");
    }
    if (name[0] == 'r' && limit >= 0) { /* leave out the first of the marks */
        int64_t count = 0;
        for (size_t k = 0; (found = chat_find(text, mark, k)) >= 0; k = (size_t)found + mark.size) {
            count++;
        }
        size_t from = 0, skip = count > limit ? (size_t)(count - limit) : 0;
        for (size_t i = 0; i < skip; i++) {
            from = (size_t)chat_find(text, mark, from) + mark.size;
        }
        at = skip > 0 ? from : 0;
        TRY(skip > 0 && limit == 0 ? add_part(r, out, text.data, text.size) : 0);
        if (skip > 0 && limit == 0) {
            return 0;
        }
        if (skip > 0) { /* the part that keeps them ends at the next one */
            found = chat_find(text, mark, at);
            TRY(add_part(r, out, text.data, (size_t)found));
            at = (size_t)found + mark.size;
        }
        limit = -1;
    }
    while (limit != 0 && (found = chat_find(text, mark, at)) >= 0) {
        TRY(add_part(r, out, text.data + at, (size_t)found - at));
        at = (size_t)found + mark.size;
        limit--;
    }
    return add_part(r, out, text.data + at, text.size - at);
}

static int method_lines(struct chat_render *r, const struct chat_value *self, const char *name,
                        const struct chat_arguments *arguments, struct chat_value *out)
{
    struct chat_string text = self->text;
    size_t start = 0;

    (void)name;
    if (arguments->count > 0) {
        return chat_raise(r, "splitlines with an argument is not supported");
    }
    TRY(chat_list_new(r, 0, out));
    for (size_t at = 0; at < text.size;) {
        uint32_t c;
        size_t size = tokenizer_utf8_decode(text.data + at, &c);
        bool ends = (c >= 10 && c <= 13) || (c >= 0x1c && c <= 0x1e) || c == 0x85 || c == 0x2028 || c == 0x2029;
        if (ends) {
            TRY(add_part(r, out, text.data + start, at - start));
            size += c == '\r' && at + 1 < text.size && text.data[at + 1] == '\n' ? 1 : 0;
            start = at + size;
        }
        at += size;
    }
    return start < text.size ? add_part(r, out, text.data + start, text.size - start) : 0;
}

static bool affix(struct chat_string text, struct chat_string part, bool front)
{
    return part.size <= text.size &&
           memcmp(front ? text.data : text.data + text.size - part.size, part.data, part.size) == 0;
}

/* startswith, endswith: of one text or any of a tuple. */
static int method_affix(struct chat_render *r, const struct chat_value *self, const char *name,
                        const struct chat_arguments *arguments, struct chat_value *out)
{
    const struct chat_value *given = chat_argument(arguments, 0, "prefix");
    bool found = false, many = given != NULL && given->type == CHAT_LIST && given->list->tuple;

    if (arguments->count != 1) {
        return chat_raise(r, "%s with other than one argument is not supported", name);
    }
    for (size_t i = 0; i < (many ? given->list->count : 1); i++) {
        const struct chat_value *part = many ? &given->list->items[i] : given;
        if (part->type != CHAT_STRING) {
            return chat_raise(r, "%s of a value of type %s", name, chat_type_name(part));
        }
        found = found || affix(self->text, part->text, name[0] == 's');
    }
    *out = (struct chat_value){.type = CHAT_BOOL, .boolean = found};
    return 0;
}

static int method_remove(struct chat_render *r, const struct chat_value *self, const char *name,
                         const struct chat_arguments *arguments, struct chat_value *out)
{
    bool front = strcmp(name, "removeprefix") == 0;
    struct chat_string part = {0};

    TRY(chat_argument_text(r, arguments, 0, "prefix", NULL, &part));
    *out = *self;
    if (affix(self->text, part, front)) {
        out->text.data += front ? part.size : 0;
        out->text.size -= part.size;
    }
    return 0;
}

static int method_replace(struct chat_render *r, const struct chat_value *self, const char *name,
                          const struct chat_arguments *arguments, struct chat_value *out)
{
    struct chat_string from = {0}, to = {0};
    int64_t limit = -1;

    (void)name;
    TRY(chat_argument_text(r, arguments, 0, "old", NULL, &from));
    TRY(chat_argument_text(r, arguments, 1, "new", NULL, &to));
    TRY(chat_argument_integer(r, arguments, 2, "count", -1, &limit));
    return chat_replace(r, self->text, from, to, limit, out);
}

/* find, rfind, index, count: in characters. */
static int method_find(struct chat_render *r, const struct chat_value *self, const char *name,
                       const struct chat_arguments *arguments, struct chat_value *out)
{
    struct chat_string part, text = self->text;
    int64_t last = -1, count = 0, found;

    TRY(chat_argument_text(r, arguments, 0, "sub", NULL, &part));
    if (arguments->count != 1 || part.size == 0) {
        return chat_raise(r, "%s of an empty text or with a range is not supported", name);
    }
    TRY(chat_step(r, text.size / 16));
    for (size_t at = 0; (found = chat_find(text, part, at)) >= 0;) {
        bool overlap = name[0] == 'r';
        last = found;
        count++;
        at = (size_t)found + (overlap ? tokenizer_utf8_size(text.data[found]) : part.size);
        if (strcmp(name, "find") == 0 || strcmp(name, "index") == 0) {
            break;
        }
    }
    if (last < 0 && strcmp(name, "index") == 0) {
        return chat_raise(r, "index of a text that is not there");
    }
    int64_t place = last < 0 ? -1 : (int64_t)chat_length((struct chat_string){text.data, (size_t)last});
    *out = (struct chat_value){.type = CHAT_INTEGER, .integer = strcmp(name, "count") == 0 ? count : place};
    return 0;
}

static int method_join(struct chat_render *r, const struct chat_value *self, const char *name,
                       const struct chat_arguments *arguments, struct chat_value *out)
{
    const struct chat_value *given = chat_argument(arguments, 0, "");
    struct chat_value items = {0};
    size_t start = r->out.size;

    (void)name;
    if (given == NULL) {
        return chat_raise(r, "join without an argument");
    }
    TRY(chat_items(r, given, &items));
    for (size_t i = 0; i < items.list->count; i++) {
        const struct chat_value *item = &items.list->items[i];
        if (item->type != CHAT_STRING) {
            return chat_raise(r, "join of a value of type %s", chat_type_name(item));
        }
        TRY(i > 0 ? chat_print(r, self, &r->out) : 0);
        TRY(chat_print(r, item, &r->out));
    }
    return chat_take(r, start, out);
}

/* isdigit, isspace, isupper, islower, isalpha, isalnum: of ASCII texts. */
static int method_is(struct chat_render *r, const struct chat_value *self, const char *name,
                     const struct chat_arguments *arguments, struct chat_value *out)
{
    bool all = self->text.size > 0, cased = false, digit = strcmp(name, "isdigit") == 0;

    (void)arguments;
    for (size_t i = 0; i < self->text.size; i++) {
        unsigned char c = (unsigned char)self->text.data[i];
        if (c >= 0x80) {
            return chat_raise(r, "%s of a text that is not ASCII is not supported", name);
        }
        all = all && (digit                          ? isdigit(c)
                      : strcmp(name, "isspace") == 0 ? chat_is_space(c)
                      : strcmp(name, "isalpha") == 0 ? isalpha(c)
                      : strcmp(name, "isalnum") == 0 ? isalnum(c)
                      : strcmp(name, "isupper") == 0 ? !islower(c)
                                                     : !isupper(c)) != 0;
        cased = cased || isalpha(c);
    }
    bool needs_case = strcmp(name, "isupper") == 0 || strcmp(name, "islower") == 0;
    *out = (struct chat_value){.type = CHAT_BOOL, .boolean = all && (cased || !needs_case)};
    return 0;
}

/* items, keys, values. */
static int method_pairs(struct chat_render *r, const struct chat_value *self, const char *name,
                        const struct chat_arguments *arguments, struct chat_value *out)
{
    const struct chat_dict *dict = self->dict;

    (void)arguments;
    TRY(chat_list_new(r, dict->count, out));
    out->list->view = true;
    for (size_t i = 0; i < dict->count; i++) {
        struct chat_value pair = {0};
        if (name[0] != 'i') {
            TRY(chat_list_add(r, out->list, name[0] == 'k' ? &dict->keys[i] : &dict->values[i]));
            continue;
        }
        TRY(chat_list_new(r, 2, &pair));
        pair.list->tuple = true;
        TRY(chat_list_add(r, pair.list, &dict->keys[i]));
        TRY(chat_list_add(r, pair.list, &dict->values[i]));
        TRY(chat_list_add(r, out->list, &pair));
    }
    return 0;
}

static int method_get(struct chat_render *r, const struct chat_value *self, const char *name,
                      const struct chat_arguments *arguments, struct chat_value *out)
{
    const struct chat_value *key = chat_argument(arguments, 0, ""), *found = NULL;
    const struct chat_value *fallback = chat_argument(arguments, 1, "default");

    (void)name;
    if (key == NULL) {
        return chat_raise(r, "get without a key");
    }
    TRY(chat_dict_find(r, self->dict, key, &found));
    *out = found != NULL ? *found : fallback != NULL ? *fallback : (struct chat_value){.type = CHAT_NONE};
    return 0;
}

static int method_refuse(struct chat_render *r, const struct chat_value *self, const char *name,
                         const struct chat_arguments *arguments, struct chat_value *out)
{
    (void)arguments;
    (void)out;
    return chat_raise(r, "the method \"%s\" of a %s is not supported", name, chat_type_name(self));
}

static const struct {
    enum chat_type type;
    const char *name;
    method_function *call;
} methods[] = {
    {CHAT_STRING, "upper", method_case},
    {CHAT_STRING, "lower", method_case},
    {CHAT_STRING, "title", method_case},
    {CHAT_STRING, "capitalize", method_case},
    {CHAT_STRING, "strip", method_strip},
    {CHAT_STRING, "lstrip", method_strip},
    {CHAT_STRING, "rstrip", method_strip},
    {CHAT_STRING, "split", method_split},
    {CHAT_STRING, "rsplit", method_split},
    {CHAT_STRING, "splitlines", method_lines},
    {CHAT_STRING, "startswith", method_affix},
    {CHAT_STRING, "endswith", method_affix},
    {CHAT_STRING, "removeprefix", method_remove},
    {CHAT_STRING, "removesuffix", method_remove},
    {CHAT_STRING, "replace", method_replace},
    {CHAT_STRING, "find", method_find},
    {CHAT_STRING, "rfind", method_find},
    {CHAT_STRING, "index", method_find},
    {CHAT_STRING, "count", method_find},
    {CHAT_STRING, "join", method_join},
    {CHAT_STRING, "isdigit", method_is},
    {CHAT_STRING, "isspace", method_is},
    {CHAT_STRING, "isalpha", method_is},
    {CHAT_STRING, "isalnum", method_is},
    {CHAT_STRING, "isupper", method_is},
    {CHAT_STRING, "islower", method_is},
    {CHAT_STRING, "format", method_refuse},
    {CHAT_STRING, "encode", method_refuse},
    {CHAT_DICT, "items", method_pairs},
    {CHAT_DICT, "keys", method_pairs},
    {CHAT_DICT, "values", method_pairs},
    {CHAT_DICT, "get", method_get},
    {CHAT_DICT, "pop", method_refuse},
    {CHAT_DICT, "popitem", method_refuse},
    {CHAT_DICT, "update", method_refuse},
    {CHAT_DICT, "setdefault", method_refuse},
    {CHAT_DICT, "clear", method_refuse},
    {CHAT_DICT, "copy", method_refuse},
    {CHAT_DICT, "fromkeys", method_refuse},
    {CHAT_LIST, "append", method_refuse},
    {CHAT_LIST, "extend", method_refuse},
    {CHAT_LIST, "insert", method_refuse},
    {CHAT_LIST, "remove", method_refuse},
    {CHAT_LIST, "pop", method_refuse},
    {CHAT_LIST, "sort", method_refuse},
    {CHAT_LIST, "reverse", method_refuse},
    {CHAT_LIST, "index", method_refuse},
    {CHAT_LIST, "count", method_refuse},
};

const char *chat_method_find(enum chat_type type, struct chat_string name)
{
    for (size_t i = 0; i < sizeof(methods) / sizeof(methods[0]); i++) {
        if (methods[i].type == type && chat_equal(name, methods[i].name)) {
            return methods[i].name;
        }
    }
    return NULL;
}

int chat_call_method(struct chat_render *r, const struct chat_callable *method, const struct chat_arguments *arguments,
                     struct chat_value *out)
{
    for (size_t i = 0; i < sizeof(methods) / sizeof(methods[0]); i++) {
        if (methods[i].type == method->self.type && methods[i].name == method->method) {
            return methods[i].call(r, &method->self, method->method, arguments, out);
        }
    }
    return err_raise(ERR_INTERNAL, "a method of a chat template's value has no function");
}
