/* Members, items and slices of values, as jinja2 finds them: foo.name is an attribute first and an item second, foo[x]
 * the other way round, and what is not there is undefined. */

#include "base/err.h"
#include "models/chat_template_internal.h"

#include <string.h>

static struct chat_value undefined_of(struct chat_string name)
{
    return (struct chat_value){.type = CHAT_UNDEFINED, .text = name};
}

static int refuse_undefined(struct chat_render *r, const struct chat_value *object)
{
    return chat_raise(r, "\"%.*s\" is not defined, so it has no members",
                      (int)(object->text.size < 60 ? object->text.size : 60), object->text.data);
}

/* The method of this name, if values of the type have it. */
static int bind_method(struct chat_render *r, const struct chat_value *object, struct chat_string name,
                       struct chat_value *out)
{
    const char *method = chat_method_find(object->type, name);

    *out = undefined_of(name);
    if (method == NULL) {
        return 0;
    }
    struct chat_callable *callable = arena_alloc(&r->arena, sizeof(*callable));
    if (callable == NULL) {
        return chat_exceeds(r, "it needs more memory");
    }
    *callable = (struct chat_callable){.method = method, .self = *object};
    *out = (struct chat_value){.type = CHAT_CALLABLE, .callable = callable};
    return 0;
}

static int loop_member(struct chat_render *r, const struct chat_value *object, struct chat_string name,
                       struct chat_value *out)
{
    const struct chat_loop *loop = object->loop;
    int64_t at = (int64_t)loop->index, count = (int64_t)loop->list->count;
    const struct {
        const char *name;
        enum chat_type type;
        int64_t value;
    } members[] = {{"index", CHAT_INTEGER, at + 1},
                   {"index0", CHAT_INTEGER, at},
                   {"first", CHAT_BOOL, at == 0},
                   {"last", CHAT_BOOL, at + 1 == count},
                   {"length", CHAT_INTEGER, count},
                   {"revindex", CHAT_INTEGER, count - at},
                   {"revindex0", CHAT_INTEGER, count - at - 1}};

    for (size_t i = 0; i < sizeof(members) / sizeof(members[0]); i++) {
        if (chat_equal(name, members[i].name)) {
            *out = members[i].type == CHAT_BOOL
                       ? (struct chat_value){.type = CHAT_BOOL, .boolean = members[i].value != 0}
                       : (struct chat_value){.type = CHAT_INTEGER, .integer = members[i].value};
            return 0;
        }
    }
    *out = undefined_of(name);
    if (chat_equal(name, "previtem") || chat_equal(name, "nextitem")) {
        int64_t other = chat_equal(name, "previtem") ? at - 1 : at + 1;
        if (other >= 0 && other < count) {
            *out = loop->list->items[other];
        }
        return 0;
    }
    return chat_raise(r, "loop.%.*s is not supported", (int)(name.size < 60 ? name.size : 60), name.data);
}

int chat_attribute(struct chat_render *r, const struct chat_value *object, struct chat_string name,
                   struct chat_value *out)
{
    const struct chat_value key = {.type = CHAT_STRING, .text = name}, *found = NULL;

    if (object->type == CHAT_UNDEFINED) {
        return refuse_undefined(r, object);
    }
    if (object->type == CHAT_LOOP) {
        return loop_member(r, object, name, out);
    }
    TRY(bind_method(r, object, name, out));
    if (out->type == CHAT_UNDEFINED && (object->type == CHAT_DICT || object->type == CHAT_NAMESPACE)) {
        TRY(chat_dict_find(r, object->dict, &key, &found));
        *out = found != NULL ? *found : *out;
    }
    return 0;
}

/* The bytes where the characters at `from` and `to` begin. */
static void character_bytes(struct chat_string text, size_t from, size_t to, size_t *begin, size_t *end)
{
    size_t at = 0, i = 0;

    for (; i < from; i++) {
        at += tokenizer_utf8_size(text.data[at]);
    }
    *begin = at;
    for (; i < to; i++) {
        at += tokenizer_utf8_size(text.data[at]);
    }
    *end = at;
}

static int item_at(struct chat_render *r, const struct chat_value *object, int64_t index, struct chat_value *out)
{
    bool text = object->type == CHAT_STRING;
    size_t count = text ? chat_length(object->text) : object->list->count, begin, end;

    TRY(chat_step(r, text ? object->text.size / 64 : 0));
    index += index < 0 ? (int64_t)count : 0;
    if (index < 0 || index >= (int64_t)count) {
        return 0; /* undefined */
    }
    if (!text) {
        *out = object->list->items[index];
        return 0;
    }
    character_bytes(object->text, (size_t)index, (size_t)index + 1, &begin, &end);
    *out = (struct chat_value){.type = CHAT_STRING, .text = {object->text.data + begin, end - begin}};
    return 0;
}

int chat_item(struct chat_render *r, const struct chat_value *object, const struct chat_value *key,
              struct chat_value *out)
{
    const struct chat_value *found = NULL;
    bool number = key->type == CHAT_INTEGER || key->type == CHAT_BOOL;

    if (object->type == CHAT_LIST && (object->list->view || object->list->generator)) {
        return chat_raise(r, "an item of a %s is not supported", chat_type_name(object));
    }
    *out = undefined_of(key->type == CHAT_STRING ? key->text : (struct chat_string){"an item", 7});
    if (object->type == CHAT_UNDEFINED) {
        return refuse_undefined(r, object);
    }
    if (object->type == CHAT_DICT || object->type == CHAT_NAMESPACE) {
        TRY(chat_dict_find(r, object->dict, key, &found));
        if (found != NULL) {
            *out = *found;
            return 0;
        }
    } else if ((object->type == CHAT_LIST || object->type == CHAT_STRING) && number) {
        return item_at(r, object, key->type == CHAT_BOOL ? key->boolean : key->integer, out);
    }
    if (key->type != CHAT_STRING) {
        return 0;
    }
    return object->type == CHAT_LOOP ? loop_member(r, object, key->text, out) : bind_method(r, object, key->text, out);
}

/* A bound of a slice within [low, high], as Python clips it. */
static int slice_bound(struct chat_render *r, const struct chat_value *bound, int64_t fallback, int64_t count,
                       int64_t low, int64_t high, int64_t *out)
{
    if (bound->type == CHAT_NONE) {
        *out = fallback;
        return 0;
    }
    if (bound->type != CHAT_INTEGER && bound->type != CHAT_BOOL) {
        return chat_raise(r, "a slice by a value of type %s", chat_type_name(bound));
    }
    int64_t value = bound->type == CHAT_BOOL ? bound->boolean : bound->integer;
    value += value < 0 ? count : 0;
    *out = value < low ? low : value > high ? high : value;
    return 0;
}

int chat_slice(struct chat_render *r, const struct chat_value *object, const struct chat_value bounds[3],
               struct chat_value *out)
{
    int64_t start = 0, stop = 0, step = 1;
    bool text = object->type == CHAT_STRING;
    size_t begin, end;

    if (object->type == CHAT_UNDEFINED) {
        return refuse_undefined(r, object);
    }
    if (!text && (object->type != CHAT_LIST || object->list->view || object->list->generator)) {
        return chat_raise(r, "a slice of a value of type %s", chat_type_name(object));
    }
    int64_t count = (int64_t)(text ? chat_length(object->text) : object->list->count);
    if (bounds[2].type == CHAT_INTEGER) {
        step = bounds[2].integer;
    } else if (bounds[2].type != CHAT_NONE) {
        return chat_raise(r, "a slice by a value of type %s", chat_type_name(&bounds[2]));
    }
    if (step == 0 || step > INT32_MAX || step < -INT32_MAX) {
        return chat_raise(r, "a slice with a step of %lld", (long long)step);
    }
    int64_t low = step > 0 ? 0 : -1, high = step > 0 ? count : count - 1;
    TRY(slice_bound(r, &bounds[0], step > 0 ? 0 : count - 1, count, low, high, &start));
    TRY(slice_bound(r, &bounds[1], step > 0 ? count : -1, count, low, high, &stop));
    TRY(chat_step(r, text ? object->text.size / 16 : 0));
    if (text && step == 1) {
        character_bytes(object->text, (size_t)start, (size_t)(stop > start ? stop : start), &begin, &end);
        *out = (struct chat_value){.type = CHAT_STRING, .text = {object->text.data + begin, end - begin}};
        return 0;
    }
    struct chat_value items = *object;
    TRY(text ? chat_items(r, object, &items) : 0);
    TRY(chat_list_new(r, 0, out));
    out->list->tuple = !text && object->list->tuple;
    for (int64_t i = start; step > 0 ? i < stop : i > stop; i += step) {
        TRY(chat_list_add(r, out->list, &items.list->items[i]));
    }
    if (!text) {
        return 0;
    }
    size_t mark = r->out.size;
    for (size_t i = 0; i < out->list->count; i++) {
        TRY(tokenizer_text_append(&r->out, out->list->items[i].text.data, out->list->items[i].text.size));
    }
    return chat_take(r, mark, out);
}

int chat_items(struct chat_render *r, const struct chat_value *value, struct chat_value *out)
{
    struct chat_value list = {0};

    if (value->type == CHAT_LIST) {
        if (value->list->used) {
            return chat_raise(r, "going twice through what map, select or a like filter gave is not supported");
        }
        value->list->used = value->list->generator;
        *out = *value;
        return 0;
    }
    if (value->type != CHAT_STRING && value->type != CHAT_DICT && value->type != CHAT_UNDEFINED) {
        return chat_raise(r, "a value of type %s has no items to go through", chat_type_name(value));
    }
    TRY(chat_list_new(r, 0, &list));
    for (size_t at = 0; value->type == CHAT_STRING && at < value->text.size;) {
        size_t size = tokenizer_utf8_size(value->text.data[at]);
        const struct chat_value one = {.type = CHAT_STRING, .text = {value->text.data + at, size}};
        TRY(chat_list_add(r, list.list, &one));
        at += size;
    }
    for (size_t i = 0; value->type == CHAT_DICT && i < value->dict->count; i++) {
        TRY(chat_list_add(r, list.list, &value->dict->keys[i]));
    }
    *out = list;
    return 0;
}
