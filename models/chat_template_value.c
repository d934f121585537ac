/* Values of a chat template with Python's rules: what equals what, what is true, what the operators do. Memory comes
 * from the rendering's arena. */

#include "base/err.h"
#include "models/chat_template_internal.h"

#include <math.h>
#include <string.h>

static void *value_alloc(struct chat_render *r, size_t size, int *rc)
{
    void *data = arena_alloc(&r->arena, size);
    *rc = data == NULL ? chat_exceeds(r, "it needs more memory") : 0;
    return data;
}

struct chat_value chat_literal(const char *text)
{
    return (struct chat_value){.type = CHAT_STRING, .text = {text, strlen(text)}};
}

int chat_text(struct chat_render *r, const char *data, size_t size, struct chat_value *out)
{
    int rc;
    char *copy = value_alloc(r, size + 1, &rc);

    TRY(rc);
    if (size > 0) {
        memcpy(copy, data, size);
    }
    *out = (struct chat_value){.type = CHAT_STRING, .text = {copy, size}};
    return chat_step(r, size / 64);
}

int chat_list_new(struct chat_render *r, size_t capacity, struct chat_value *out)
{
    int rc;
    struct chat_list *list = value_alloc(r, sizeof(*list), &rc);

    TRY(rc);
    if (capacity > 0) {
        list->items = value_alloc(r, capacity * sizeof(*list->items), &rc);
        TRY(rc);
        list->capacity = capacity;
    }
    *out = (struct chat_value){.type = CHAT_LIST, .list = list};
    return 0;
}

/* Twice the room in arrays of values. */
static int grow_values(struct chat_render *r, struct chat_value **values, size_t count, size_t capacity)
{
    int rc;
    struct chat_value *larger = value_alloc(r, capacity * sizeof(*larger), &rc);

    TRY(rc);
    if (count > 0) {
        memcpy(larger, *values, count * sizeof(*larger));
    }
    *values = larger;
    return 0;
}

int chat_list_add(struct chat_render *r, struct chat_list *list, const struct chat_value *value)
{
    if (list->count == list->capacity) {
        size_t capacity = list->capacity < 4 ? 4 : 2 * list->capacity;
        TRY(grow_values(r, &list->items, list->count, capacity));
        list->capacity = capacity;
    }
    list->items[list->count++] = *value;
    return chat_step(r, 1);
}

int chat_dict_new(struct chat_render *r, enum chat_type type, struct chat_value *out)
{
    int rc;
    struct chat_dict *dict = value_alloc(r, sizeof(*dict), &rc);

    TRY(rc);
    *out = (struct chat_value){.type = type, .dict = dict};
    return 0;
}

/* Where a key is; dict->count if it is not there. */
static int dict_place(struct chat_render *r, const struct chat_dict *dict, const struct chat_value *key, size_t *at)
{
    bool same = false;

    if (key->type >= CHAT_LIST && !(key->type == CHAT_LIST && key->list->tuple)) {
        return chat_raise(r, "a key of type %s", chat_type_name(key));
    }
    for (*at = 0; *at < dict->count; ++*at) {
        TRY(chat_equals(r, &dict->keys[*at], key, &same));
        if (same) {
            return 0;
        }
    }
    return 0;
}

int chat_dict_find(struct chat_render *r, const struct chat_dict *dict, const struct chat_value *key,
                   const struct chat_value **out)
{
    size_t at = 0;

    TRY(dict_place(r, dict, key, &at));
    *out = at < dict->count ? &dict->values[at] : NULL;
    return 0;
}

int chat_dict_set(struct chat_render *r, struct chat_dict *dict, const struct chat_value *key,
                  const struct chat_value *value)
{
    size_t at = 0;

    TRY(dict_place(r, dict, key, &at));
    if (at == dict->capacity) {
        size_t capacity = dict->capacity < 4 ? 4 : 2 * dict->capacity;
        TRY(grow_values(r, &dict->keys, dict->count, capacity));
        TRY(grow_values(r, &dict->values, dict->count, capacity));
        dict->capacity = capacity;
    }
    if (at == dict->count) {
        dict->keys[dict->count++] = *key;
    }
    dict->values[at] = *value;
    return 0;
}

static int object_from_json(struct chat_render *r, const json_t *json, struct chat_value *out)
{
    const char *name;
    json_t *member;

    TRY(chat_dict_new(r, CHAT_DICT, out));
    json_object_foreach((json_t *)json, name, member)
    {
        struct chat_value key = {0}, value = {0};
        TRY(chat_text(r, name, strlen(name), &key));
        TRY(chat_from_json(r, member, &value));
        TRY(chat_dict_set(r, out->dict, &key, &value));
    }
    return 0;
}

int chat_from_json(struct chat_render *r, const json_t *json, struct chat_value *out)
{
    const json_t *item;
    size_t i;

    TRY(chat_step(r, 1));
    switch (json_typeof(json)) {
    case JSON_OBJECT:
        return object_from_json(r, json, out);
    case JSON_ARRAY:
        TRY(chat_list_new(r, json_array_size(json), out));
        json_array_foreach((json_t *)json, i, item)
        {
            struct chat_value value = {0};
            TRY(chat_from_json(r, item, &value));
            TRY(chat_list_add(r, out->list, &value));
        }
        return 0;
    case JSON_STRING:
        return chat_text(r, json_string_value(json), json_string_length(json), out);
    case JSON_INTEGER:
        *out = (struct chat_value){.type = CHAT_INTEGER, .integer = json_integer_value(json)};
        return 0;
    case JSON_REAL:
        *out = (struct chat_value){.type = CHAT_FLOAT, .number = json_real_value(json)};
        return 0;
    case JSON_NULL:
        *out = (struct chat_value){.type = CHAT_NONE};
        return 0;
    default:
        *out = (struct chat_value){.type = CHAT_BOOL, .boolean = json_is_true(json)};
        return 0;
    }
}

bool chat_truth(const struct chat_value *value)
{
    switch (value->type) {
    case CHAT_UNDEFINED:
    case CHAT_NONE:
        return false;
    case CHAT_BOOL:
        return value->boolean;
    case CHAT_INTEGER:
        return value->integer != 0;
    case CHAT_FLOAT:
        return value->number != 0;
    case CHAT_STRING:
        return value->text.size > 0;
    case CHAT_LIST:
        return value->list->count > 0 || value->list->generator;
    case CHAT_DICT:
        return value->dict->count > 0;
    default:
        return true;
    }
}

const char *chat_type_name(const struct chat_value *value)
{
    static const char *const names[] = {"Undefined", "NoneType", "bool",      "int",  "float",   "str",
                                        "list",      "dict",     "namespace", "loop", "function"};
    if (value->type == CHAT_LIST && (value->list->tuple || value->list->view || value->list->generator)) {
        return value->list->tuple ? "tuple" : value->list->view ? "view" : "generator";
    }
    return names[value->type];
}

static bool value_number(const struct chat_value *value, double *number)
{
    *number = value->type == CHAT_FLOAT     ? value->number
              : value->type == CHAT_INTEGER ? (double)value->integer
              : value->type == CHAT_BOOL    ? value->boolean
                                            : 0;
    return value->type == CHAT_FLOAT || value->type == CHAT_INTEGER || value->type == CHAT_BOOL;
}

static bool value_integer(const struct chat_value *value, int64_t *integer)
{
    *integer = value->type == CHAT_INTEGER ? value->integer : value->type == CHAT_BOOL ? value->boolean : 0;
    return value->type == CHAT_INTEGER || value->type == CHAT_BOOL;
}

static int lists_equal(struct chat_render *r, const struct chat_list *a, const struct chat_list *b, bool *out)
{
    *out = a->count == b->count && a->tuple == b->tuple;
    for (size_t i = 0; i < a->count && *out; i++) {
        TRY(chat_equals(r, &a->items[i], &b->items[i], out));
    }
    return 0;
}

static int dicts_equal(struct chat_render *r, const struct chat_dict *a, const struct chat_dict *b, bool *out)
{
    *out = a->count == b->count;
    for (size_t i = 0; i < a->count && *out; i++) {
        const struct chat_value *other = NULL;
        TRY(chat_dict_find(r, b, &a->keys[i], &other));
        *out = other != NULL;
        TRY(*out ? chat_equals(r, &a->values[i], other, out) : 0);
    }
    return 0;
}

int chat_equals(struct chat_render *r, const struct chat_value *a, const struct chat_value *b, bool *out)
{
    double x, y;
    int64_t i, j;

    TRY(chat_step(r, 1));
    if (++r->depth > CHAT_DEPTH_MAX) {
        return chat_exceeds(r, "values nest deeper");
    }
    if (value_integer(a, &i) && value_integer(b, &j)) {
        *out = i == j;
    } else if (value_number(a, &x) && value_number(b, &y)) {
        *out = x == y;
    } else if (a->type != b->type) {
        *out = false;
    } else if (a->type == CHAT_STRING) {
        *out = a->text.size == b->text.size && memcmp(a->text.data, b->text.data, a->text.size) == 0;
    } else if (a->type == CHAT_LIST) {
        TRY(lists_equal(r, a->list, b->list, out));
    } else if (a->type == CHAT_DICT) {
        TRY(dicts_equal(r, a->dict, b->dict, out));
    } else { /* the undefined are equal, others when they are the same */
        *out = a->type == CHAT_UNDEFINED || a->type == CHAT_NONE ||
               (a->type == CHAT_NAMESPACE ? a->dict == b->dict : a->callable == b->callable);
    }
    r->depth--;
    return 0;
}

int chat_order(struct chat_render *r, const struct chat_value *a, const struct chat_value *b, int *out)
{
    double x, y;
    int64_t i, j;

    if (value_integer(a, &i) && value_integer(b, &j)) {
        *out = i < j ? -1 : i > j;
        return 0;
    }
    if (value_number(a, &x) && value_number(b, &y)) {
        *out = x < y ? -1 : x > y;
        return 0;
    }
    if (a->type != CHAT_STRING || b->type != CHAT_STRING) {
        return chat_raise(r, "values of the types %s and %s are ordered", chat_type_name(a), chat_type_name(b));
    }
    size_t shorter = a->text.size < b->text.size ? a->text.size : b->text.size;
    int order = memcmp(a->text.data, b->text.data, shorter); /* bytes of UTF-8 sort as their characters */
    *out = order != 0 ? (order < 0 ? -1 : 1) : (a->text.size > b->text.size) - (a->text.size < b->text.size);
    return chat_step(r, shorter / 64);
}

/* Whether a is in b. */
static int contains(struct chat_render *r, const struct chat_value *a, const struct chat_value *b, bool *out)
{
    *out = false;
    if (b->type == CHAT_STRING) {
        if (a->type != CHAT_STRING) {
            return chat_raise(r, "a value of type %s is looked for in a str", chat_type_name(a));
        }
        TRY(chat_step(r, b->text.size / 64));
        *out = chat_find(b->text, a->text, 0) >= 0;
        return 0;
    }
    if (b->type == CHAT_DICT) {
        const struct chat_value *found = NULL;
        TRY(chat_dict_find(r, b->dict, a, &found));
        *out = found != NULL;
        return 0;
    }
    if (b->type == CHAT_UNDEFINED) {
        return 0;
    }
    if (b->type != CHAT_LIST) {
        return chat_raise(r, "a value is looked for in one of type %s", chat_type_name(b));
    }
    struct chat_value items = {0};
    TRY(chat_items(r, b, &items));
    for (size_t i = 0; i < items.list->count && !*out; i++) {
        TRY(chat_equals(r, &items.list->items[i], a, out));
    }
    return 0;
}

int chat_compare(struct chat_render *r, int symbol, const struct chat_value *a, const struct chat_value *b, bool *out)
{
    int order = 0;

    switch (symbol) {
    case CHAT_TWO('=', '='):
        return chat_equals(r, a, b, out);
    case CHAT_TWO('!', '='):
        TRY(chat_equals(r, a, b, out));
        *out = !*out;
        return 0;
    case CHAT_SYMBOL_IN:
        return contains(r, a, b, out);
    case CHAT_SYMBOL_NOT_IN:
        TRY(contains(r, a, b, out));
        *out = !*out;
        return 0;
    default:
        break;
    }
    TRY(chat_order(r, a, b, &order));
    *out = symbol == '<'                  ? order < 0
           : symbol == '>'                ? order > 0
           : symbol == CHAT_TWO('<', '=') ? order <= 0
                                          : order >= 0;
    return 0;
}

static int operand_error(struct chat_render *r, int symbol, const struct chat_value *a, const struct chat_value *b)
{
    char shown[3] = {(char)(symbol < 256 ? symbol : symbol >> 8), (char)(symbol < 256 ? '\0' : symbol & 255), '\0'};
    const struct chat_value *lacking = a->type == CHAT_UNDEFINED ? a : b;

    if (lacking->type == CHAT_UNDEFINED) {
        return chat_raise(r, "\"%.*s\" is not defined", (int)(lacking->text.size < 60 ? lacking->text.size : 60),
                          lacking->text.data);
    }
    if (symbol == '%' && a->type == CHAT_STRING) {
        return chat_raise(r, "%% of a str is not supported");
    }
    return chat_raise(r, "%s between values of the types %s and %s", shown, chat_type_name(a), chat_type_name(b));
}

static int binary_integer(struct chat_render *r, int symbol, int64_t a, int64_t b, struct chat_value *out)
{
    bool overflow = false;

    *out = (struct chat_value){.type = CHAT_INTEGER};
    switch (symbol) {
    case '+':
        overflow = __builtin_add_overflow(a, b, &out->integer);
        break;
    case '-':
        overflow = __builtin_sub_overflow(a, b, &out->integer);
        break;
    case '*':
        overflow = __builtin_mul_overflow(a, b, &out->integer);
        break;
    case CHAT_TWO('*', '*'):
        out->integer = 1;
        if (b < 0 || b > 64) {
            return chat_raise(r, "a power outside of 0..64 is not supported");
        }
        for (int64_t i = 0; i < b && !overflow; i++) {
            overflow = __builtin_mul_overflow(out->integer, a, &out->integer);
        }
        break;
    case '/':
        if (b == 0) {
            return chat_raise(r, "a division by zero");
        }
        *out = (struct chat_value){.type = CHAT_FLOAT, .number = (double)a / (double)b};
        return 0;
    default: /* // and %: towards minus infinity, the remainder with b's sign */
        if (b == 0 || b == -1) {
            overflow = b == -1 && a == INT64_MIN;
            if (b == 0) {
                return chat_raise(r, "a division by zero");
            }
            out->integer = symbol == '%' || overflow ? 0 : -a;
            break;
        }
        int64_t quotient = a / b, remainder = a % b;
        bool below = remainder != 0 && (remainder < 0) != (b < 0);
        out->integer = symbol == '%' ? remainder + (below ? b : 0) : quotient - (below ? 1 : 0);
        break;
    }
    return overflow ? chat_raise(r, "an integer beyond 64 bits is not supported") : 0;
}

static int binary_float(struct chat_render *r, int symbol, double a, double b, struct chat_value *out)
{
    double value = symbol == '+' ? a + b : symbol == '-' ? a - b : a * b;

    if (symbol == '/' || symbol == '%' || symbol == CHAT_TWO('/', '/')) {
        if (b == 0) {
            return chat_raise(r, "a division by zero");
        }
        value = a / b;
        if (symbol != '/') {
            double remainder = fmod(a, b);
            remainder += remainder != 0 && (remainder < 0) != (b < 0) ? b : 0;
            value = symbol == '%' ? remainder : floor((a - remainder) / b + 0.5);
        }
    } else if (symbol == CHAT_TWO('*', '*')) {
        return chat_raise(r, "a power of floats is not supported");
    }
    *out = (struct chat_value){.type = CHAT_FLOAT, .number = value};
    return isfinite(value) ? 0 : chat_raise(r, "a number that is not finite is not supported");
}

static int repeat(struct chat_render *r, const struct chat_value *what, int64_t times, struct chat_value *out)
{
    size_t count = times > 0 ? (size_t)times : 0;
    int rc;

    if (what->type == CHAT_LIST) {
        TRY(chat_list_new(r, 0, out));
        out->list->tuple = what->list->tuple;
        for (size_t i = 0; i < count && what->list->count > 0; i++) {
            for (size_t k = 0; k < what->list->count; k++) {
                TRY(chat_list_add(r, out->list, &what->list->items[k]));
            }
        }
        return 0;
    }
    if (what->text.size > 0 && count > CHAT_MEMORY_MAX / what->text.size) {
        return chat_exceeds(r, "it needs more memory");
    }
    char *text = value_alloc(r, what->text.size * count + 1, &rc);
    TRY(rc);
    for (size_t i = 0; i < count && what->text.size > 0; i++) {
        memcpy(text + i * what->text.size, what->text.data, what->text.size);
    }
    *out = (struct chat_value){.type = CHAT_STRING, .text = {text, what->text.size * count}};
    return chat_step(r, out->text.size / 64);
}

static int join_two(struct chat_render *r, const struct chat_value *a, const struct chat_value *b,
                    struct chat_value *out)
{
    int rc;

    if (a->type == CHAT_LIST) {
        TRY(chat_list_new(r, a->list->count + b->list->count, out));
        out->list->tuple = a->list->tuple;
        for (size_t i = 0; i < a->list->count + b->list->count; i++) {
            const struct chat_list *from = i < a->list->count ? a->list : b->list;
            TRY(chat_list_add(r, out->list, &from->items[i < a->list->count ? i : i - a->list->count]));
        }
        return 0;
    }
    size_t size = a->text.size + b->text.size;
    char *text = value_alloc(r, size + 1, &rc);
    TRY(rc);
    memcpy(text, a->text.data, a->text.size);
    memcpy(text + a->text.size, b->text.data, b->text.size);
    *out = (struct chat_value){.type = CHAT_STRING, .text = {text, size}};
    return chat_step(r, size / 64);
}

/* A list or a tuple. */
static bool is_plain_list(const struct chat_value *value)
{
    return value->type == CHAT_LIST && !value->list->view && !value->list->generator;
}

int chat_binary(struct chat_render *r, int symbol, const struct chat_value *a, const struct chat_value *b,
                struct chat_value *out)
{
    int64_t i, j;
    double x, y;

    if (symbol == '~') {
        struct chat_value left = {0}, right = {0};
        TRY(chat_to_text(r, a, &left));
        TRY(chat_to_text(r, b, &right));
        return join_two(r, &left, &right, out);
    }
    bool left_integer = value_integer(a, &i), right_integer = value_integer(b, &j);
    if (left_integer && right_integer) {
        return binary_integer(r, symbol, i, j, out);
    }
    if (value_number(a, &x) && value_number(b, &y)) {
        return binary_float(r, symbol, x, y, out);
    }
    bool same = a->type == b->type &&
                (a->type == CHAT_STRING ||
                 (a->type == CHAT_LIST && is_plain_list(a) && is_plain_list(b) && a->list->tuple == b->list->tuple));
    if (symbol == '+' && same) {
        return join_two(r, a, b, out);
    }
    if (symbol == '*' && right_integer && (a->type == CHAT_STRING || is_plain_list(a))) {
        return repeat(r, a, j, out);
    }
    if (symbol == '*' && left_integer && (b->type == CHAT_STRING || is_plain_list(b))) {
        return repeat(r, b, i, out);
    }
    return operand_error(r, symbol, a, b);
}
