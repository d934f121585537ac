/* Expressions of a chat template, by recursive descent with jinja2's precedence: condition, or, and, not, comparison,
 * + -, ~, * / // %, **, sign, then what follows a value: attributes, items, calls, filters and tests. */

#include "base/err.h"
#include "models/chat_template_internal.h"

#include <string.h>

typedef int parse_function(struct chat_parser *p, struct chat_node **out);
static parse_function parse_or, parse_and, parse_not, parse_compare, parse_sum, parse_concat, parse_product,
    parse_power;
static int parse_unary(struct chat_parser *p, bool filters, struct chat_node **out);

/* Enter one level of nesting; the caller leaves it. */
static int parse_enter(struct chat_parser *p)
{
    return ++p->depth > CHAT_NESTING_MAX ? chat_parse_refuse(p, "nesting this deep") : 0;
}

static int binary_node(struct chat_parser *p, enum chat_kind kind, int symbol, struct chat_node *a,
                       parse_function *operand, struct chat_node **out)
{
    struct chat_node *node = NULL;

    TRY(chat_parse_node(p, kind, &node));
    TRY(chat_parse_advance(p));
    node->integer = symbol;
    node->a = a;
    TRY(operand(p, &node->b));
    *out = node;
    return 0;
}

/* Operands that are joined by one of the symbols, from the left. */
static int parse_left(struct chat_parser *p, const int *symbols, parse_function *operand, struct chat_node **out)
{
    struct chat_node *left = NULL;

    TRY(operand(p, &left));
    for (;;) {
        const int *symbol = symbols;
        while (*symbol != 0 && !chat_is_symbol(p, *symbol)) {
            symbol++;
        }
        if (*symbol == 0) {
            break;
        }
        TRY(binary_node(p, NODE_BINARY, *symbol, left, operand, &left));
    }
    *out = left;
    return 0;
}

static int parse_or(struct chat_parser *p, struct chat_node **out)
{
    TRY(parse_and(p, out));
    while (chat_is_name(p, "or")) {
        TRY(binary_node(p, NODE_OR, 0, *out, parse_and, out));
    }
    return 0;
}

static int parse_and(struct chat_parser *p, struct chat_node **out)
{
    TRY(parse_not(p, out));
    while (chat_is_name(p, "and")) {
        TRY(binary_node(p, NODE_AND, 0, *out, parse_not, out));
    }
    return 0;
}

static int parse_not(struct chat_parser *p, struct chat_node **out)
{
    if (!chat_is_name(p, "not")) {
        return parse_compare(p, out);
    }
    struct chat_node *node = NULL;
    TRY(parse_enter(p));
    TRY(chat_parse_node(p, NODE_NOT, &node));
    TRY(chat_parse_advance(p));
    TRY(parse_not(p, &node->a));
    p->depth--;
    *out = node;
    return 0;
}

/* The symbol of a comparison that comes next, consumed; 0 if there is none. */
static int compare_symbol(struct chat_parser *p, int *symbol)
{
    static const int symbols[] = {CHAT_TWO('=', '='), CHAT_TWO('!', '='), '<', '>',
                                  CHAT_TWO('<', '='), CHAT_TWO('>', '=')};

    *symbol = 0;
    for (size_t i = 0; i < sizeof(symbols) / sizeof(symbols[0]); i++) {
        if (chat_is_symbol(p, symbols[i])) {
            *symbol = symbols[i];
            return chat_parse_advance(p);
        }
    }
    if (chat_is_name(p, "in")) {
        *symbol = CHAT_SYMBOL_IN;
        return chat_parse_advance(p);
    }
    if (chat_is_name(p, "not")) {
        TRY(chat_parse_advance(p));
        if (!chat_is_name(p, "in")) {
            return chat_parse_refuse(p, "\"not\" here without \"in\"");
        }
        *symbol = CHAT_SYMBOL_NOT_IN;
        return chat_parse_advance(p);
    }
    return 0;
}

static int parse_compare(struct chat_parser *p, struct chat_node **out)
{
    struct chat_node *first = NULL, *chain = NULL, **last = NULL;
    int symbol;

    TRY(parse_sum(p, &first));
    *out = first;
    TRY(compare_symbol(p, &symbol));
    while (symbol != 0) {
        struct chat_node *operand = NULL, *wrapped = NULL;
        if (chain == NULL) {
            TRY(chat_parse_node(p, NODE_COMPARE, &chain));
            chain->a = first;
            last = &chain->b;
            *out = chain;
        }
        TRY(parse_sum(p, &operand));
        TRY(chat_parse_node(p, NODE_COMPARE, &wrapped)); /* an operand may be shared in no list */
        wrapped->a = operand;
        wrapped->integer = symbol;
        *last = wrapped;
        last = &wrapped->next;
        TRY(compare_symbol(p, &symbol));
    }
    return 0;
}

static int parse_sum(struct chat_parser *p, struct chat_node **out)
{
    static const int symbols[] = {'+', '-', 0};
    return parse_left(p, symbols, parse_concat, out);
}

static int parse_concat(struct chat_parser *p, struct chat_node **out)
{
    static const int symbols[] = {'~', 0};
    return parse_left(p, symbols, parse_product, out);
}

static int parse_product(struct chat_parser *p, struct chat_node **out)
{
    static const int symbols[] = {'*', '/', CHAT_TWO('/', '/'), '%', 0};
    return parse_left(p, symbols, parse_power, out);
}

static int parse_signed(struct chat_parser *p, struct chat_node **out)
{
    return parse_unary(p, true, out);
}

static int parse_power(struct chat_parser *p, struct chat_node **out)
{
    static const int symbols[] = {CHAT_TWO('*', '*'), 0};
    return parse_left(p, symbols, parse_signed, out);
}

/* Arguments up to ")", which is consumed; "(" was. */
static int parse_arguments(struct chat_parser *p, struct chat_node **out)
{
    struct chat_node **last = out;
    int count = 0;

    while (!chat_is_symbol(p, ')')) {
        struct chat_node *argument = NULL;
        TRY(count > 0 ? chat_parse_expect(p, ',') : 0);
        if (chat_is_symbol(p, ')')) {
            break;
        }
        if (chat_is_symbol(p, '*') || chat_is_symbol(p, CHAT_TWO('*', '*'))) {
            return chat_parse_refuse(p, "arguments from a list (*)");
        }
        if (++count > CHAT_ARGUMENTS_MAX) {
            return chat_parse_refuse(p, "more than 16 arguments");
        }
        TRY(chat_parse_node(p, NODE_CALL, &argument)); /* the wrapper: `text` its name, a its value */
        TRY(chat_parse_expression(p, true, &argument->a));
        if (chat_is_symbol(p, '=') && argument->a->kind == NODE_NAME) {
            argument->text = argument->a->text;
            TRY(chat_parse_advance(p));
            TRY(chat_parse_expression(p, true, &argument->a));
        }
        *last = argument;
        last = &argument->next;
    }
    return chat_parse_advance(p);
}

/* Values up to the closing symbol, which is consumed. */
static int parse_values(struct chat_parser *p, int close, struct chat_node **out)
{
    struct chat_node **last = out;

    while (!chat_is_symbol(p, close)) {
        struct chat_node *item = NULL;
        TRY(last != out ? chat_parse_expect(p, ',') : 0);
        if (chat_is_symbol(p, close)) {
            break;
        }
        TRY(chat_parse_node(p, NODE_LIST, &item)); /* the wrapper */
        TRY(chat_parse_expression(p, true, &item->a));
        if (close == '}') {
            TRY(chat_parse_expect(p, ':'));
            TRY(chat_parse_expression(p, true, &item->value));
        }
        *last = item;
        last = &item->next;
    }
    return chat_parse_advance(p);
}

static int parse_parenthesis(struct chat_parser *p, struct chat_node **out)
{
    if (chat_is_symbol(p, ')')) {
        TRY(chat_parse_node(p, NODE_TUPLE, out));
        return chat_parse_advance(p);
    }
    TRY(chat_parse_tuple(p, true, out));
    return chat_parse_expect(p, ')');
}

static int parse_word(struct chat_parser *p, struct chat_node **out)
{
    static const struct {
        const char *name;
        enum chat_kind kind;
        int value;
    } words[] = {{"true", NODE_BOOL, 1},  {"True", NODE_BOOL, 1}, {"false", NODE_BOOL, 0},
                 {"False", NODE_BOOL, 0}, {"none", NODE_NONE, 0}, {"None", NODE_NONE, 0}};
    struct chat_node *node = NULL;

    TRY(chat_parse_node(p, NODE_NAME, &node));
    node->text = p->token.text;
    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
        if (chat_is_name(p, words[i].name)) {
            node->kind = words[i].kind;
            node->integer = words[i].value;
        }
    }
    static const char *const reserved[] = {"if", "else", "elif", "and", "or", "not", "in", "is"};
    for (size_t i = 0; i < sizeof(reserved) / sizeof(reserved[0]); i++) {
        if (chat_is_name(p, reserved[i])) {
            return chat_parse_refuse(p, "a keyword where a value is expected");
        }
    }
    *out = node;
    return chat_parse_advance(p);
}

/* Neighbouring strings are one. */
static int parse_string(struct chat_parser *p, struct chat_node **out)
{
    struct chat_node *node = NULL;

    TRY(chat_parse_node(p, NODE_STRING, &node));
    node->text = p->token.text;
    TRY(chat_parse_advance(p));
    while (p->token.kind == TOKEN_STRING) {
        size_t size = node->text.size + p->token.text.size;
        char *both = arena_alloc(p->lexer.arena, size + 1);
        TRY(arena_check(p->lexer.arena));
        memcpy(both, node->text.data, node->text.size);
        memcpy(both + node->text.size, p->token.text.data, p->token.text.size);
        node->text = (struct chat_string){both, size};
        TRY(chat_parse_advance(p));
    }
    *out = node;
    return 0;
}

static int parse_primary(struct chat_parser *p, struct chat_node **out)
{
    bool integer = p->token.kind == TOKEN_INTEGER;

    if (p->token.kind == TOKEN_NAME) {
        return parse_word(p, out);
    }
    if (p->token.kind == TOKEN_STRING) {
        return parse_string(p, out);
    }
    if (integer || p->token.kind == TOKEN_FLOAT) {
        TRY(chat_parse_node(p, integer ? NODE_INTEGER : NODE_FLOAT, out));
        (*out)->integer = p->token.integer;
        (*out)->number = p->token.number;
        return chat_parse_advance(p);
    }
    if (chat_is_symbol(p, '(')) {
        TRY(chat_parse_advance(p));
        return parse_parenthesis(p, out);
    }
    if (chat_is_symbol(p, '[') || chat_is_symbol(p, '{')) {
        bool list = chat_is_symbol(p, '[');
        TRY(chat_parse_node(p, list ? NODE_LIST : NODE_DICT, out));
        TRY(chat_parse_advance(p));
        return parse_values(p, list ? ']' : '}', &(*out)->a);
    }
    return chat_parse_refuse(p, "this where a value is expected");
}

/* What stands in brackets after a value; "[" was consumed. */
static int parse_subscript(struct chat_parser *p, struct chat_node *object, struct chat_node **out)
{
    struct chat_node *node = NULL, *bounds[3] = {NULL, NULL, NULL};
    int at = 0;

    TRY(chat_parse_node(p, NODE_ITEM, &node));
    while (!chat_is_symbol(p, ']')) {
        if (chat_is_symbol(p, ':') && at < 2) {
            at++;
            node->kind = NODE_SLICE;
            TRY(chat_parse_advance(p));
        } else if (bounds[at] == NULL) {
            TRY(chat_parse_expression(p, true, &bounds[at]));
        } else {
            return chat_parse_refuse(p, "more than one value in brackets");
        }
    }
    if (node->kind == NODE_ITEM && bounds[0] == NULL) {
        return chat_parse_refuse(p, "empty brackets after a value");
    }
    node->a = object;
    node->b = bounds[0];
    node->c = bounds[1];
    node->d = bounds[2];
    *out = node;
    return chat_parse_advance(p);
}

static int parse_attribute(struct chat_parser *p, struct chat_node *object, struct chat_node **out)
{
    struct chat_node *node = NULL;

    TRY(chat_parse_node(p, NODE_ATTRIBUTE, &node));
    node->a = object;
    if (p->token.kind == TOKEN_INTEGER) {
        node->kind = NODE_ITEM;
        TRY(parse_primary(p, &node->b));
    } else if (p->token.kind == TOKEN_NAME) {
        node->text = p->token.text;
        TRY(chat_parse_advance(p));
    } else {
        return chat_parse_refuse(p, "a dot without a name");
    }
    *out = node;
    return 0;
}

static int parse_call(struct chat_parser *p, struct chat_node *callee, struct chat_node **out)
{
    struct chat_node *node = NULL;

    TRY(chat_parse_node(p, NODE_CALL, &node));
    node->a = callee;
    TRY(chat_parse_advance(p));
    TRY(parse_arguments(p, &node->b));
    *out = node;
    return 0;
}

static int parse_postfix(struct chat_parser *p, struct chat_node **out)
{
    for (;;) {
        if (chat_is_symbol(p, '.')) {
            TRY(chat_parse_advance(p));
            TRY(parse_attribute(p, *out, out));
        } else if (chat_is_symbol(p, '[')) {
            TRY(chat_parse_advance(p));
            TRY(parse_subscript(p, *out, out));
        } else if (chat_is_symbol(p, '(')) {
            TRY(parse_call(p, *out, out));
        } else {
            return 0;
        }
    }
}

static int refuse_named(const struct chat_parser *p, const char *kind)
{
    char what[100];
    struct chat_string name = p->token.text;

    snprintf(what, sizeof(what), "the %s \"%.*s\"", kind, (int)(name.size < 60 ? name.size : 60), name.data);
    return chat_parse_refuse(p, what);
}

static int parse_filter(struct chat_parser *p, struct chat_node *value, struct chat_node **out)
{
    struct chat_node *node = NULL;

    if (p->token.kind != TOKEN_NAME || !chat_filter_known(p->token.text)) {
        return refuse_named(p, "filter");
    }
    TRY(chat_parse_node(p, NODE_FILTER, &node));
    node->a = value;
    node->text = p->token.text;
    TRY(chat_parse_advance(p));
    if (chat_is_symbol(p, '(')) {
        TRY(chat_parse_advance(p));
        TRY(parse_arguments(p, &node->b));
    }
    *out = node;
    return 0;
}

/* Whether the value that comes next is an argument of the test without parentheses. */
static bool is_test_argument(const struct chat_parser *p)
{
    bool word = p->token.kind == TOKEN_NAME && !chat_is_name(p, "else") && !chat_is_name(p, "or") &&
                !chat_is_name(p, "and") && !chat_is_name(p, "is");
    return word || p->token.kind == TOKEN_STRING || p->token.kind == TOKEN_INTEGER || p->token.kind == TOKEN_FLOAT ||
           chat_is_symbol(p, '[') || chat_is_symbol(p, '{');
}

static int parse_test(struct chat_parser *p, struct chat_node *value, struct chat_node **out)
{
    struct chat_node *node = NULL;

    TRY(chat_parse_node(p, NODE_TEST, &node));
    node->a = value;
    if (chat_is_name(p, "not")) {
        node->integer = 1;
        TRY(chat_parse_advance(p));
    }
    if (p->token.kind != TOKEN_NAME || !chat_test_known(p->token.text)) {
        return refuse_named(p, "test");
    }
    node->text = p->token.text;
    TRY(chat_parse_advance(p));
    if (chat_is_symbol(p, '(')) {
        TRY(chat_parse_advance(p));
        TRY(parse_arguments(p, &node->b));
    } else if (is_test_argument(p)) {
        TRY(chat_parse_node(p, NODE_CALL, &node->b));
        TRY(parse_primary(p, &node->b->a));
        TRY(parse_postfix(p, &node->b->a));
    }
    *out = node;
    return 0;
}

static int parse_filters(struct chat_parser *p, struct chat_node **out)
{
    for (;;) {
        if (chat_is_symbol(p, '|')) {
            TRY(chat_parse_advance(p));
            TRY(parse_filter(p, *out, out));
        } else if (chat_is_name(p, "is")) {
            TRY(chat_parse_advance(p));
            TRY(parse_test(p, *out, out));
        } else if (chat_is_symbol(p, '(')) {
            TRY(parse_call(p, *out, out));
        } else {
            return 0;
        }
    }
}

static int parse_unary(struct chat_parser *p, bool filters, struct chat_node **out)
{
    bool negative = chat_is_symbol(p, '-'), sign = negative || chat_is_symbol(p, '+');

    TRY(parse_enter(p));
    if (sign) {
        struct chat_node *node = NULL;
        TRY(chat_parse_node(p, negative ? NODE_NEGATIVE : NODE_POSITIVE, &node));
        TRY(chat_parse_advance(p));
        TRY(parse_unary(p, false, &node->a));
        *out = node;
    } else {
        TRY(parse_primary(p, out));
    }
    TRY(parse_postfix(p, out));
    TRY(filters ? parse_filters(p, out) : 0);
    p->depth--;
    return 0;
}

int chat_parse_expression(struct chat_parser *p, bool condition, struct chat_node **out)
{
    TRY(parse_enter(p));
    TRY(parse_or(p, out));
    while (condition && chat_is_name(p, "if")) {
        struct chat_node *node = NULL;
        TRY(chat_parse_node(p, NODE_CONDITION, &node));
        TRY(chat_parse_advance(p));
        node->b = *out;
        TRY(parse_or(p, &node->a));
        if (chat_is_name(p, "else")) {
            TRY(chat_parse_advance(p));
            TRY(chat_parse_expression(p, true, &node->c));
        }
        *out = node;
    }
    p->depth--;
    return 0;
}

/* a, b: a tuple; a alone: itself. */
int chat_parse_tuple(struct chat_parser *p, bool condition, struct chat_node **out)
{
    struct chat_node *first = NULL, *tuple = NULL, **last = NULL;

    TRY(chat_parse_expression(p, condition, &first));
    *out = first;
    while (chat_is_symbol(p, ',')) {
        struct chat_node *item = NULL;
        TRY(chat_parse_advance(p));
        if (tuple == NULL) {
            TRY(chat_parse_node(p, NODE_TUPLE, &tuple));
            TRY(chat_parse_node(p, NODE_LIST, &tuple->a));
            tuple->a->a = first;
            last = &tuple->a->next;
            *out = tuple;
        }
        if (chat_is_symbol(p, ')') || p->token.kind != TOKEN_OPERATOR) {
            bool more = p->token.kind == TOKEN_NAME || p->token.kind == TOKEN_STRING ||
                        p->token.kind == TOKEN_INTEGER || p->token.kind == TOKEN_FLOAT;
            if (!more) {
                break; /* a comma at the end */
            }
        }
        TRY(chat_parse_node(p, NODE_LIST, &item));
        TRY(chat_parse_expression(p, condition, &item->a));
        *last = item;
        last = &item->next;
    }
    return 0;
}
