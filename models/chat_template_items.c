/* Filters that go through the items of a value. What jinja2 gives as a generator is a list here. */

#include "base/err.h"
#include "models/chat_template_internal.h"

#include <string.h>

typedef int items_function(struct chat_render *r, struct chat_string name, const struct chat_list *items,
                           const struct chat_arguments *arguments, struct chat_value *out);

/* item.a.b, or item[0], as `attribute` arguments have it. */
static int item_member(struct chat_render *r, const struct chat_value *item, const struct chat_value *path,
                       struct chat_value *out)
{
    struct chat_string rest = path->text;

    *out = *item;
    if (path->type == CHAT_INTEGER) {
        return chat_item(r, item, path, out);
    }
    if (path->type != CHAT_STRING) {
        return chat_raise(r, "an attribute is named by a value of type %s", chat_type_name(path));
    }
    for (bool more = true; more;) {
        const char *dot = memchr(rest.data, '.', rest.size);
        const struct chat_value object = *out;
        struct chat_value key = {.type = CHAT_STRING,
                                 .text = {rest.data, dot != NULL ? (size_t)(dot - rest.data) : rest.size}};
        more = dot != NULL;
        rest.size -= key.text.size + (more ? 1 : 0);
        rest.data += key.text.size + (more ? 1 : 0);
        if (key.text.size > 0 && strspn(key.text.data, "0123456789") >= key.text.size) {
            return chat_raise(r, "an attribute that is a number is not supported");
        }
        TRY(chat_item(r, &object, &key, out));
    }
    return 0;
}

/* The arguments from `from` on, as those of another function. */
static void rest_of(const struct chat_arguments *arguments, size_t from, struct chat_arguments *out)
{
    out->count = 0;
    for (size_t i = from; i < arguments->count; i++) {
        out->values[out->count] = arguments->values[i];
        out->names[out->count++] = arguments->names[i];
    }
}

/* select, reject, selectattr, rejectattr: [attribute,] [test, its arguments]. */
static int items_select(struct chat_render *r, struct chat_string name, const struct chat_list *items,
                        const struct chat_arguments *arguments, struct chat_value *out)
{
    bool member = name.size > 6, rejects = name.data[0] == 'r';
    size_t at = member ? 1 : 0;
    struct chat_arguments rest = {0};

    rest_of(arguments, at + 1, &rest);
    if (arguments->count < at || (arguments->count > at && arguments->values[at].type != CHAT_STRING)) {
        return chat_raise(r, "the arguments of %.*s are not texts", (int)name.size, name.data);
    }
    TRY(chat_list_new(r, 0, out));
    for (size_t i = 0; i < items->count; i++) {
        struct chat_value value = items->items[i];
        bool passes = false;
        TRY(member ? item_member(r, &items->items[i], &arguments->values[0], &value) : 0);
        passes = chat_truth(&value);
        TRY(arguments->count > at ? chat_test(r, arguments->values[at].text, &value, &rest, &passes) : 0);
        TRY(passes != rejects ? chat_list_add(r, out->list, &items->items[i]) : 0);
    }
    return 0;
}

static int items_map(struct chat_render *r, struct chat_string name, const struct chat_list *items,
                     const struct chat_arguments *arguments, struct chat_value *out)
{
    bool member = arguments->count > 0 && chat_equal(arguments->names[0], "attribute");
    const struct chat_value *fallback = chat_argument(arguments, CHAT_ARGUMENTS_MAX, "default");
    struct chat_arguments rest = {0};

    (void)name;
    rest_of(arguments, 1, &rest);
    if (arguments->count == 0 ||
        (!member && (arguments->values[0].type != CHAT_STRING || arguments->names[0].size > 0))) {
        return chat_raise(r, "map without an attribute or a filter's name");
    }
    TRY(chat_list_new(r, items->count, out));
    for (size_t i = 0; i < items->count; i++) {
        struct chat_value value = {0};
        TRY(member ? item_member(r, &items->items[i], &arguments->values[0], &value)
                   : chat_filter(r, arguments->values[0].text, &items->items[i], &rest, &value));
        bool replaced = member && fallback != NULL && value.type == CHAT_UNDEFINED;
        TRY(chat_list_add(r, out->list, replaced ? fallback : &value));
    }
    return 0;
}

static int items_join(struct chat_render *r, struct chat_string name, const struct chat_list *items,
                      const struct chat_arguments *arguments, struct chat_value *out)
{
    const struct chat_value *mark = chat_argument(arguments, 0, "d"), *path = chat_argument(arguments, 1, "attribute");
    struct chat_value text = chat_literal("");
    size_t start = r->out.size;

    (void)name;
    TRY(mark != NULL ? chat_to_text(r, mark, &text) : 0);
    for (size_t i = 0; i < items->count; i++) {
        struct chat_value value = items->items[i];
        TRY(path != NULL ? item_member(r, &items->items[i], path, &value) : 0);
        TRY(i > 0 ? chat_print(r, &text, &r->out) : 0);
        TRY(chat_print(r, &value, &r->out));
        if (r->out.size > CHAT_OUTPUT_MAX) {
            return chat_exceeds(r, "it makes more text");
        }
    }
    return chat_take(r, start, out);
}

static int items_end(struct chat_render *r, struct chat_string name, const struct chat_list *items,
                     const struct chat_arguments *arguments, struct chat_value *out)
{
    (void)r;
    (void)arguments;
    *out = (struct chat_value){.type = CHAT_UNDEFINED, .text = {"an item of an empty list", 24}};
    if (items->count > 0) {
        *out = items->items[name.data[0] == 'f' ? 0 : items->count - 1];
    }
    return 0;
}

/* list and reverse. */
static int items_copy(struct chat_render *r, struct chat_string name, const struct chat_list *items,
                      const struct chat_arguments *arguments, struct chat_value *out)
{
    (void)arguments;
    TRY(chat_list_new(r, items->count, out));
    for (size_t i = 0; i < items->count; i++) {
        TRY(chat_list_add(r, out->list, &items->items[name.data[0] == 'l' ? i : items->count - 1 - i]));
    }
    return 0;
}

/* What sorting and comparing without regard to case look at. */
static int item_key(struct chat_render *r, const struct chat_value *item, const struct chat_value *path,
                    bool case_sensitive, struct chat_value *out)
{
    *out = *item;
    TRY(path != NULL && path->type != CHAT_NONE ? item_member(r, item, path, out) : 0);
    return out->type == CHAT_STRING && !case_sensitive ? chat_change_case(r, out->text, CASE_LOWER, out) : 0;
}

/* Sort items by keys, in place: equal ones keep their order, also in reverse. */
static int sort_by_keys(struct chat_render *r, struct chat_list *keys, struct chat_list *items, bool reverse)
{
    for (size_t i = 1; i < items->count; i++) {
        const struct chat_value key = keys->items[i], item = items->items[i];
        size_t at = i;
        int order = -1;
        while (at > 0) {
            TRY(chat_step(r, 1));
            TRY(chat_order(r, &key, &keys->items[at - 1], &order));
            if (reverse ? order <= 0 : order >= 0) {
                break;
            }
            keys->items[at] = keys->items[at - 1];
            items->items[at] = items->items[at - 1];
            at--;
        }
        keys->items[at] = key;
        items->items[at] = item;
    }
    return 0;
}

/* sort(reverse, case_sensitive, attribute) and dictsort(case_sensitive, by, reverse), whose items are pairs. */
static int items_sort(struct chat_render *r, struct chat_string name, const struct chat_list *items,
                      const struct chat_arguments *arguments, struct chat_value *out)
{
    bool pairs = name.data[0] == 'd';
    const struct chat_value *reverse = chat_argument(arguments, pairs ? 2 : 0, "reverse");
    const struct chat_value *sensitive = chat_argument(arguments, pairs ? 0 : 1, "case_sensitive");
    const struct chat_value *path = pairs ? NULL : chat_argument(arguments, 2, "attribute");
    struct chat_value keys, place = {.type = CHAT_INTEGER, .integer = 0};
    struct chat_string by = {0};

    TRY(chat_argument_text(r, arguments, pairs ? 1 : CHAT_ARGUMENTS_MAX, "by", "key", &by));
    place.integer = chat_equal(by, "value");
    path = pairs ? &place : path;
    TRY(items_copy(r, (struct chat_string){"list", 4}, items, arguments, out));
    TRY(chat_list_new(r, items->count, &keys));
    for (size_t i = 0; i < items->count; i++) {
        struct chat_value key = {0};
        TRY(item_key(r, &items->items[i], path, sensitive != NULL && chat_truth(sensitive), &key));
        TRY(chat_list_add(r, keys.list, &key));
    }
    return sort_by_keys(r, keys.list, out->list, reverse != NULL && chat_truth(reverse));
}

static int items_unique(struct chat_render *r, struct chat_string name, const struct chat_list *items,
                        const struct chat_arguments *arguments, struct chat_value *out)
{
    const struct chat_value *sensitive = chat_argument(arguments, 0, "case_sensitive");
    const struct chat_value *path = chat_argument(arguments, 1, "attribute");
    struct chat_value keys = {0}, key = {0};

    (void)name;
    TRY(chat_list_new(r, 0, out));
    TRY(chat_list_new(r, 0, &keys));
    for (size_t i = 0; i < items->count; i++) {
        bool found = false;
        TRY(item_key(r, &items->items[i], path, sensitive != NULL && chat_truth(sensitive), &key));
        TRY(chat_compare(r, CHAT_SYMBOL_IN, &key, &keys, &found));
        TRY(found ? 0 : chat_list_add(r, keys.list, &key));
        TRY(found ? 0 : chat_list_add(r, out->list, &items->items[i]));
    }
    return 0;
}

/* max and min. */
static int items_extreme(struct chat_render *r, struct chat_string name, const struct chat_list *items,
                         const struct chat_arguments *arguments, struct chat_value *out)
{
    const struct chat_value *sensitive = chat_argument(arguments, 0, "case_sensitive");
    const struct chat_value *path = chat_argument(arguments, 1, "attribute");
    struct chat_value best = {0}, key = {0};
    int order;

    *out = (struct chat_value){.type = CHAT_UNDEFINED, .text = {"an item of an empty list", 24}};
    for (size_t i = 0; i < items->count; i++) {
        TRY(item_key(r, &items->items[i], path, sensitive != NULL && chat_truth(sensitive), &key));
        TRY(i > 0 ? chat_order(r, &key, &best, &order) : 0);
        if (i == 0 || (name.data[1] == 'a' ? order > 0 : order < 0)) {
            best = key;
            *out = items->items[i];
        }
    }
    return 0;
}

static int items_sum(struct chat_render *r, struct chat_string name, const struct chat_list *items,
                     const struct chat_arguments *arguments, struct chat_value *out)
{
    const struct chat_value *path = chat_argument(arguments, 0, "attribute");
    const struct chat_value *start = chat_argument(arguments, 1, "start");

    (void)name;
    *out = start != NULL ? *start : (struct chat_value){.type = CHAT_INTEGER, .integer = 0};
    for (size_t i = 0; i < items->count; i++) {
        struct chat_value value = items->items[i];
        const struct chat_value sum = *out;
        TRY(path != NULL && path->type != CHAT_NONE ? item_member(r, &items->items[i], path, &value) : 0);
        TRY(chat_binary(r, '+', &sum, &value, out));
    }
    return 0;
}

/* Items of a dict are pairs to these two. */
static int items_pairs(struct chat_render *r, struct chat_string name, const struct chat_value *in,
                       struct chat_value *out)
{
    const struct chat_arguments none = {.count = 0};

    if (in->type == CHAT_UNDEFINED && chat_equal(name, "items")) {
        return chat_list_new(r, 0, out);
    }
    if (in->type != CHAT_DICT) {
        return chat_raise(r, "%.*s of a value of type %s", (int)name.size, name.data, chat_type_name(in));
    }
    const struct chat_callable items = {.method = chat_method_find(CHAT_DICT, (struct chat_string){"items", 5}),
                                        .self = *in};
    return chat_call_method(r, &items, &none, out);
}

int chat_filter_items(struct chat_render *r, struct chat_string name, const struct chat_value *in,
                      const struct chat_arguments *arguments, struct chat_value *out)
{
    static const struct {
        const char *name;
        items_function *apply;
        bool generator;
    } rows[] = {{"dictsort", items_sort, false},    {"first", items_end, false},   {"join", items_join, false},
                {"last", items_end, false},         {"list", items_copy, false},   {"map", items_map, true},
                {"max", items_extreme, false},      {"min", items_extreme, false}, {"reject", items_select, true},
                {"rejectattr", items_select, true}, {"reverse", items_copy, true}, {"select", items_select, true},
                {"selectattr", items_select, true}, {"sort", items_sort, false},   {"sum", items_sum, false},
                {"unique", items_unique, true}};
    bool pairs = chat_equal(name, "items") || chat_equal(name, "dictsort");
    struct chat_value items = {0};

    TRY(pairs ? items_pairs(r, name, in, &items) : chat_items(r, in, &items));
    if (chat_equal(name, "items")) {
        *out = items;
        out->list->view = false;
        out->list->generator = true;
        return 0;
    }
    if (chat_equal(name, "last") && in->type == CHAT_LIST && in->list->generator) {
        return chat_raise(r, "the last item of a generator");
    }
    if (in->type == CHAT_STRING && chat_equal(name, "reverse")) {
        const struct chat_value none = {.type = CHAT_NONE}, back = {.type = CHAT_INTEGER, .integer = -1};
        const struct chat_value bounds[3] = {none, none, back};
        return chat_slice(r, in, bounds, out);
    }
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        if (chat_equal(name, rows[i].name)) {
            TRY(rows[i].apply(r, name, items.list, arguments, out));
            if (rows[i].generator) {
                out->list->generator = true;
            }
            return 0;
        }
    }
    return err_raise(ERR_INTERNAL, "a filter of chat templates has no function");
}
