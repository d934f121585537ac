/* Filters of one value; those that go through its items are in chat_template_items.c. The table is all that there are:
 * another name is refused when the template is parsed. */

#include "base/err.h"
#include "models/chat_template_internal.h"

#include <stdlib.h>
#include <string.h>

typedef int filter_function(struct chat_render *r, struct chat_string name, const struct chat_value *in,
                            const struct chat_arguments *arguments, struct chat_value *out);

static int filter_trim(struct chat_render *r, struct chat_string name, const struct chat_value *in,
                       const struct chat_arguments *arguments, struct chat_value *out)
{
    const struct chat_value *given = chat_argument(arguments, 0, "chars");
    bool all = given == NULL || given->type == CHAT_NONE;
    struct chat_string characters = {0};

    (void)name;
    TRY(all ? 0 : chat_argument_text(r, arguments, 0, "chars", NULL, &characters));
    TRY(chat_to_text(r, in, out));
    out->text = chat_strip(out->text, all ? NULL : &characters, true, true);
    return chat_step(r, out->text.size / 64);
}

static int filter_case(struct chat_render *r, struct chat_string name, const struct chat_value *in,
                       const struct chat_arguments *arguments, struct chat_value *out)
{
    struct chat_value text = {0};

    (void)arguments;
    TRY(chat_to_text(r, in, &text));
    return chat_change_case(r, text.text,
                            name.data[0] == 'u'   ? CASE_UPPER
                            : name.data[0] == 'l' ? CASE_LOWER
                            : name.data[0] == 't' ? CASE_WORDS
                                                  : CASE_CAPITALIZE,
                            out);
}

static int filter_length(struct chat_render *r, struct chat_string name, const struct chat_value *in,
                         const struct chat_arguments *arguments, struct chat_value *out)
{
    size_t count = 0;

    (void)name;
    (void)arguments;
    if (in->type == CHAT_STRING) {
        TRY(chat_step(r, in->text.size / 64));
        count = chat_length(in->text);
    } else if ((in->type == CHAT_LIST && !in->list->generator) || in->type == CHAT_DICT) {
        count = in->type == CHAT_LIST ? in->list->count : in->dict->count;
    } else if (in->type != CHAT_UNDEFINED) {
        return chat_raise(r, "the length of a value of type %s", chat_type_name(in));
    }
    *out = (struct chat_value){.type = CHAT_INTEGER, .integer = (int64_t)count};
    return 0;
}

/* "," or ", " and ": ", or what `separators` has. */
static int json_separators(struct chat_render *r, const struct chat_value *given, struct chat_json_options *options)
{
    options->comma = options->indent >= 0 ? (struct chat_string){",", 1} : (struct chat_string){", ", 2};
    options->colon = (struct chat_string){": ", 2};
    if (given == NULL || given->type == CHAT_NONE) {
        return 0;
    }
    if (given->type != CHAT_LIST || given->list->count != 2 || given->list->items[0].type != CHAT_STRING ||
        given->list->items[1].type != CHAT_STRING) {
        return chat_raise(r, "the separators of tojson are not two texts");
    }
    options->comma = given->list->items[0].text;
    options->colon = given->list->items[1].text;
    return 0;
}

static int filter_json(struct chat_render *r, struct chat_string name, const struct chat_value *in,
                       const struct chat_arguments *arguments, struct chat_value *out)
{
    const struct chat_value *indent = chat_argument(arguments, 1, "indent");
    const struct chat_value *ascii = chat_argument(arguments, 0, "ensure_ascii");
    const struct chat_value *sort = chat_argument(arguments, 3, "sort_keys");
    struct chat_json_options options = {.indent = -1};
    size_t start = r->out.size;

    (void)name;
    if (indent != NULL && indent->type != CHAT_NONE) {
        TRY(chat_argument_integer(r, arguments, 1, "indent", 0, &options.indent));
        if (options.indent < 0 || options.indent > 100) {
            return chat_raise(r, "tojson with an indent outside of 0..100 is not supported");
        }
    }
    options.ascii = ascii != NULL && chat_truth(ascii);
    options.sort = sort != NULL && chat_truth(sort);
    TRY(json_separators(r, chat_argument(arguments, 2, "separators"), &options));
    TRY(chat_json(r, in, &options, &r->out));
    return chat_take(r, start, out);
}

static int filter_default(struct chat_render *r, struct chat_string name, const struct chat_value *in,
                          const struct chat_arguments *arguments, struct chat_value *out)
{
    const struct chat_value *fallback = chat_argument(arguments, 0, "default_value");
    const struct chat_value *falsy = chat_argument(arguments, 1, "boolean");

    (void)r;
    (void)name;
    bool replaced = in->type == CHAT_UNDEFINED || (falsy != NULL && chat_truth(falsy) && !chat_truth(in));
    *out = !replaced ? *in : fallback != NULL ? *fallback : chat_literal("");
    return 0;
}

static int filter_replace(struct chat_render *r, struct chat_string name, const struct chat_value *in,
                          const struct chat_arguments *arguments, struct chat_value *out)
{
    struct chat_string from = {0}, to = {0};
    struct chat_value text = {0};
    int64_t limit = -1;

    (void)name;
    TRY(chat_argument_text(r, arguments, 0, "old", NULL, &from));
    TRY(chat_argument_text(r, arguments, 1, "new", NULL, &to));
    TRY(chat_argument_integer(r, arguments, 2, "count", -1, &limit));
    TRY(chat_to_text(r, in, &text));
    return chat_replace(r, text.text, from, to, limit, out);
}

static int filter_string(struct chat_render *r, struct chat_string name, const struct chat_value *in,
                         const struct chat_arguments *arguments, struct chat_value *out)
{
    (void)name;
    (void)arguments;
    return chat_to_text(r, in, out);
}

/* A text as a number: 1 a number, 0 none. */
static int text_number(struct chat_string text, double *number)
{
    char literal[64], *end;

    text = chat_strip(text, NULL, true, true);
    if (text.size == 0 || text.size >= sizeof(literal)) {
        return 0;
    }
    memcpy(literal, text.data, text.size);
    literal[text.size] = '\0';
    if (strspn(literal, "+-.0123456789eE") != text.size) {
        return 0;
    }
    *number = strtod(literal, &end);
    return *end == '\0';
}

/* int and float: what is not a number becomes the argument, or zero. */
static int filter_number(struct chat_render *r, struct chat_string name, const struct chat_value *in,
                         const struct chat_arguments *arguments, struct chat_value *out)
{
    const struct chat_value *fallback = chat_argument(arguments, 0, "default");
    bool integer = name.data[0] == 'i';
    double number = 0;

    if (in->type == CHAT_INTEGER && integer) {
        *out = *in;
        return 0;
    }
    if (in->type == CHAT_INTEGER || in->type == CHAT_BOOL || in->type == CHAT_FLOAT) {
        number = in->type == CHAT_FLOAT ? in->number : in->type == CHAT_BOOL ? in->boolean : (double)in->integer;
    } else if (in->type == CHAT_UNDEFINED) {
        return chat_raise(r, "%.*s of something that is not defined", (int)name.size, name.data);
    } else if (in->type != CHAT_STRING || text_number(in->text, &number) == 0) {
        *out = fallback != NULL ? *fallback
               : integer        ? (struct chat_value){.type = CHAT_INTEGER, .integer = 0}
                                : (struct chat_value){.type = CHAT_FLOAT, .number = 0};
        return 0;
    }
    if (!(number > -9e15 && number < 9e15)) {
        return chat_raise(r, "a number this large is not supported by %.*s", (int)name.size, name.data);
    }
    *out = integer ? (struct chat_value){.type = CHAT_INTEGER, .integer = (int64_t)number}
                   : (struct chat_value){.type = CHAT_FLOAT, .number = number};
    return 0;
}

static int filter_abs(struct chat_render *r, struct chat_string name, const struct chat_value *in,
                      const struct chat_arguments *arguments, struct chat_value *out)
{
    static const struct chat_value zero = {.type = CHAT_INTEGER, .integer = 0};
    int order = 0;

    (void)name;
    (void)arguments;
    TRY(chat_order(r, in, &zero, &order));
    return chat_binary(r, order < 0 ? '-' : '+', &zero, in, out);
}

static int filter_safe(struct chat_render *r, struct chat_string name, const struct chat_value *in,
                       const struct chat_arguments *arguments, struct chat_value *out)
{
    return filter_string(r, name, in, arguments, out);
}

/* Every line but the first is moved to the right; empty ones too if `blank`. */
static int filter_indent(struct chat_render *r, struct chat_string name, const struct chat_value *in,
                         const struct chat_arguments *arguments, struct chat_value *out)
{
    const struct chat_value *first = chat_argument(arguments, 1, "first"),
                            *blank = chat_argument(arguments, 2, "blank");
    const struct chat_value *given = chat_argument(arguments, 0, "width");
    struct chat_value text, lines, width = {.type = CHAT_INTEGER, .integer = 4}, space = chat_literal(" ");
    const struct chat_arguments none = {.count = 0};
    size_t start = r->out.size;

    (void)name;
    TRY(chat_to_text(r, in, &text));
    width = given != NULL ? *given : width;
    TRY(width.type == CHAT_STRING ? 0 : chat_binary(r, '*', &space, &width, &width));
    const struct chat_callable split = {.method = chat_method_find(CHAT_STRING, (struct chat_string){"splitlines", 10}),
                                        .self = text};
    TRY(chat_call_method(r, &split, &none, &lines));
    TRY(first != NULL && chat_truth(first) ? chat_print(r, &width, &r->out) : 0);
    size_t count = lines.list->count;
    /* A newline at the end leaves an empty line there. */
    bool open = text.text.size > 0 && text.text.data[text.text.size - 1] == '\n';
    for (size_t i = 0; i < count + (open ? 1 : 0); i++) {
        const struct chat_value line = i < count ? lines.list->items[i] : chat_literal("");
        bool moved = i > 0 && (line.text.size > 0 || (blank != NULL && chat_truth(blank)));
        TRY(i > 0 ? tokenizer_text_append(&r->out, "\n", 1) : 0);
        TRY(moved ? chat_print(r, &width, &r->out) : 0);
        TRY(chat_print(r, &line, &r->out));
    }
    return chat_take(r, start, out);
}

static const struct {
    const char *name;
    filter_function *apply;
} filters[] = {
    {"abs", filter_abs},
    {"capitalize", filter_case},
    {"count", filter_length},
    {"d", filter_default},
    {"default", filter_default},
    {"dictsort", chat_filter_items},
    {"first", chat_filter_items},
    {"float", filter_number},
    {"indent", filter_indent},
    {"int", filter_number},
    {"items", chat_filter_items},
    {"join", chat_filter_items},
    {"last", chat_filter_items},
    {"length", filter_length},
    {"list", chat_filter_items},
    {"lower", filter_case},
    {"map", chat_filter_items},
    {"max", chat_filter_items},
    {"min", chat_filter_items},
    {"reject", chat_filter_items},
    {"rejectattr", chat_filter_items},
    {"replace", filter_replace},
    {"reverse", chat_filter_items},
    {"safe", filter_safe},
    {"select", chat_filter_items},
    {"selectattr", chat_filter_items},
    {"sort", chat_filter_items},
    {"string", filter_string},
    {"sum", chat_filter_items},
    {"title", filter_case},
    {"tojson", filter_json},
    {"trim", filter_trim},
    {"unique", chat_filter_items},
    {"upper", filter_case},
};

static filter_function *find_filter(struct chat_string name)
{
    for (size_t i = 0; i < sizeof(filters) / sizeof(filters[0]); i++) {
        if (chat_equal(name, filters[i].name)) {
            return filters[i].apply;
        }
    }
    return NULL;
}

bool chat_filter_known(struct chat_string name)
{
    return find_filter(name) != NULL;
}

int chat_filter(struct chat_render *r, struct chat_string name, const struct chat_value *in,
                const struct chat_arguments *arguments, struct chat_value *out)
{
    filter_function *filter = find_filter(name);

    if (filter == NULL) { /* the parser knows it, map's argument may be anything */
        return chat_raise(r, "the filter \"%.*s\" is not supported", (int)(name.size < 60 ? name.size : 60), name.data);
    }
    return filter(r, name, in, arguments, out);
}
