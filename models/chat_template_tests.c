/* Tests: x is defined, x is equalto y. */

#include "base/err.h"
#include "models/chat_template_internal.h"

#include <string.h>

enum test_kind {
    TEST_DEFINED,
    TEST_UNDEFINED,
    TEST_NONE,
    TEST_STRING,
    TEST_MAPPING,
    TEST_ITERABLE,
    TEST_SEQUENCE,
    TEST_NUMBER,
    TEST_INTEGER,
    TEST_FLOAT,
    TEST_BOOLEAN,
    TEST_TRUE,
    TEST_FALSE,
    TEST_CALLABLE,
    TEST_ODD,
    TEST_EVEN,
    TEST_DIVISIBLE,
    TEST_SAME,
    TEST_COMPARE, /* with the row's symbol */
};

static const struct test_row {
    const char *name;
    enum test_kind kind;
    int symbol;
} tests[] = {
    {"defined", TEST_DEFINED, 0},
    {"undefined", TEST_UNDEFINED, 0},
    {"none", TEST_NONE, 0},
    {"string", TEST_STRING, 0},
    {"mapping", TEST_MAPPING, 0},
    {"iterable", TEST_ITERABLE, 0},
    {"sequence", TEST_SEQUENCE, 0},
    {"number", TEST_NUMBER, 0},
    {"integer", TEST_INTEGER, 0},
    {"float", TEST_FLOAT, 0},
    {"boolean", TEST_BOOLEAN, 0},
    {"true", TEST_TRUE, 0},
    {"false", TEST_FALSE, 0},
    {"callable", TEST_CALLABLE, 0},
    {"odd", TEST_ODD, 0},
    {"even", TEST_EVEN, 0},
    {"divisibleby", TEST_DIVISIBLE, 0},
    {"sameas", TEST_SAME, 0},
    {"eq", TEST_COMPARE, CHAT_TWO('=', '=')},
    {"equalto", TEST_COMPARE, CHAT_TWO('=', '=')},
    {"==", TEST_COMPARE, CHAT_TWO('=', '=')},
    {"ne", TEST_COMPARE, CHAT_TWO('!', '=')},
    {"!=", TEST_COMPARE, CHAT_TWO('!', '=')},
    {"lt", TEST_COMPARE, '<'},
    {"lessthan", TEST_COMPARE, '<'},
    {"<", TEST_COMPARE, '<'},
    {"le", TEST_COMPARE, CHAT_TWO('<', '=')},
    {"<=", TEST_COMPARE, CHAT_TWO('<', '=')},
    {"gt", TEST_COMPARE, '>'},
    {"greaterthan", TEST_COMPARE, '>'},
    {">", TEST_COMPARE, '>'},
    {"ge", TEST_COMPARE, CHAT_TWO('>', '=')},
    {">=", TEST_COMPARE, CHAT_TWO('>', '=')},
    {"in", TEST_COMPARE, CHAT_SYMBOL_IN},
};

static const struct test_row *find_test(struct chat_string name)
{
    for (size_t i = 0; i < sizeof(tests) / sizeof(tests[0]); i++) {
        if (chat_equal(name, tests[i].name)) {
            return &tests[i];
        }
    }
    return NULL;
}

bool chat_test_known(struct chat_string name)
{
    return find_test(name) != NULL;
}

/* odd, even, divisibleby. */
static int test_remainder(struct chat_render *r, const struct test_row *row, const struct chat_value *in,
                          const struct chat_arguments *arguments, bool *out)
{
    const struct chat_value two = {.type = CHAT_INTEGER, .integer = 2};
    struct chat_value remainder = {0};

    if (row->kind == TEST_DIVISIBLE && arguments->count == 0) {
        return chat_raise(r, "divisibleby without a number");
    }
    TRY(chat_binary(r, '%', in, row->kind == TEST_DIVISIBLE ? &arguments->values[0] : &two, &remainder));
    *out = chat_truth(&remainder) == (row->kind == TEST_ODD);
    return 0;
}

static bool test_type(enum test_kind kind, const struct chat_value *in)
{
    bool container = in->type == CHAT_LIST || in->type == CHAT_DICT || in->type == CHAT_STRING;

    switch (kind) {
    case TEST_DEFINED:
        return in->type != CHAT_UNDEFINED;
    case TEST_UNDEFINED:
        return in->type == CHAT_UNDEFINED;
    case TEST_NONE:
        return in->type == CHAT_NONE;
    case TEST_STRING:
        return in->type == CHAT_STRING;
    case TEST_MAPPING:
        return in->type == CHAT_DICT;
    case TEST_ITERABLE:
        return container || in->type == CHAT_UNDEFINED;
    case TEST_SEQUENCE:
        return (container && !(in->type == CHAT_LIST && (in->list->view || in->list->generator))) ||
               in->type == CHAT_UNDEFINED;
    case TEST_NUMBER:
        return in->type == CHAT_INTEGER || in->type == CHAT_FLOAT || in->type == CHAT_BOOL;
    case TEST_INTEGER:
        return in->type == CHAT_INTEGER;
    case TEST_FLOAT:
        return in->type == CHAT_FLOAT;
    case TEST_BOOLEAN:
        return in->type == CHAT_BOOL;
    case TEST_TRUE:
        return in->type == CHAT_BOOL && in->boolean;
    case TEST_FALSE:
        return in->type == CHAT_BOOL && !in->boolean;
    default: /* TEST_CALLABLE */
        return in->type == CHAT_CALLABLE;
    }
}

int chat_test(struct chat_render *r, struct chat_string name, const struct chat_value *in,
              const struct chat_arguments *arguments, bool *out)
{
    const struct test_row *row = find_test(name);

    if (row == NULL) { /* the parser knows it, select's argument may be anything */
        return chat_raise(r, "the test \"%.*s\" is not supported", (int)(name.size < 60 ? name.size : 60), name.data);
    }
    if (row->kind == TEST_ODD || row->kind == TEST_EVEN || row->kind == TEST_DIVISIBLE) {
        return test_remainder(r, row, in, arguments, out);
    }
    if (row->kind < TEST_ODD) {
        *out = test_type(row->kind, in);
        return 0;
    }
    if (arguments->count != 1) {
        return chat_raise(r, "the test \"%s\" takes one argument", row->name);
    }
    if (row->kind == TEST_COMPARE) {
        return chat_compare(r, row->symbol, in, &arguments->values[0], out);
    }
    if (in->type > CHAT_BOOL || arguments->values[0].type > CHAT_BOOL) {
        return chat_raise(r, "sameas of other values than none, true and false is not supported");
    }
    *out = in->type == arguments->values[0].type;
    return *out ? chat_equals(r, in, &arguments->values[0], out) : 0;
}
