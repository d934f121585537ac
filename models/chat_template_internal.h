#pragma once
/* What the parts of the chat template's interpreter share.
 *
 *   text --lex--> tokens --parse--> tree of nodes (the template's arena) --render--> text
 *
 * Values of a rendering live in its own arena, whose limit bounds its memory; nothing is freed before its end. Strings
 * are valid UTF-8, since JSON and templates are checked. */

#include "base/arena.h"
#include "models/chat_template.h"
#include "models/tokenizer_internal.h"

#include <stdint.h>

#define CHAT_NESTING_MAX 100              /* of expressions and blocks in the text */
#define CHAT_DEPTH_MAX 400                /* of nodes and macros under way */
#define CHAT_STEPS_MAX (20 * 1000 * 1000) /* of a rendering */
#define CHAT_MEMORY_MAX ((size_t)128 << 20)
#define CHAT_ARGUMENTS_MAX 16

struct chat_string {
    const char *data;
    size_t size;
};

/* Tokens. Operators are the value of their characters: '=' or CHAT_TWO('=', '='). */
#define CHAT_TWO(a, b) ((a) << 8 | (b))
enum chat_token_kind {
    TOKEN_EOF,
    TOKEN_DATA,
    TOKEN_VARIABLE_BEGIN,
    TOKEN_VARIABLE_END,
    TOKEN_BLOCK_BEGIN,
    TOKEN_BLOCK_END,
    TOKEN_NAME,
    TOKEN_STRING, /* its escapes resolved */
    TOKEN_INTEGER,
    TOKEN_FLOAT,
    TOKEN_OPERATOR,
};
struct chat_token {
    enum chat_token_kind kind;
    uint32_t line;
    struct chat_string text;
    int symbol; /* OPERATOR */
    int64_t integer;
    double number;
};
struct chat_lexer {
    struct arena *arena;
    const char *at, *end;
    uint32_t line;
    bool inside, block; /* a tag; and of the kind {% %} */
    bool line_starting; /* the last that was read ended a line */
    int balance;        /* open brackets */
    int pending;        /* the kind of the tag that the data just returned ends at */
};
int chat_lex_init(struct chat_lexer *lexer, struct arena *arena, const char *text, size_t size);
int chat_lex_next(struct chat_lexer *lexer, struct chat_token *out);

/* The tree. What a, b, c, d, e are is said with each kind; lists are linked by next. */
enum chat_kind {
    /* expressions */
    NODE_STRING,  /* text */
    NODE_INTEGER, /* integer */
    NODE_FLOAT,   /* number */
    NODE_BOOL,    /* integer */
    NODE_NONE,
    NODE_NAME,      /* text */
    NODE_LIST,      /* a: items */
    NODE_TUPLE,     /* a: items */
    NODE_DICT,      /* a: keys, each with its value as `value` */
    NODE_ATTRIBUTE, /* a.text */
    NODE_ITEM,      /* a[b] */
    NODE_SLICE,     /* a[b:c:d], each NULL if absent */
    NODE_CALL,      /* a(b..): arguments, with `text` if by name */
    NODE_FILTER,    /* a | text(b..) */
    NODE_TEST,      /* a is text(b..); integer: negated */
    NODE_CONDITION, /* b if a else c */
    NODE_AND,
    NODE_OR,
    NODE_NOT,
    NODE_NEGATIVE,
    NODE_POSITIVE,
    NODE_BINARY,  /* a <integer: symbol> b */
    NODE_COMPARE, /* a, then operands b with `integer` the symbol before each */
    /* statements */
    NODE_DATA,     /* text */
    NODE_OUTPUT,   /* a */
    NODE_IF,       /* a: condition, b: body, c: what else */
    NODE_FOR,      /* a: target, b: what, c: body, d: else, e: condition */
    NODE_SET,      /* a: target, b: value */
    NODE_SETBLOCK, /* a: target, c: body */
    NODE_MACRO,    /* text, a: parameters with defaults `value`, c: body */
    NODE_SCOPE,    /* c: body */
    NODE_BREAK,
    NODE_CONTINUE,
};
struct chat_node {
    enum chat_kind kind;
    uint32_t line;
    struct chat_string text;
    int64_t integer;
    double number;
    struct chat_node *a, *b, *c, *d, *e, *next, *value;
};
enum { CHAT_SYMBOL_IN = 256 * 256, CHAT_SYMBOL_NOT_IN };

struct chat_template {
    struct arena arena;
    struct chat_node *body;
};

/* The parser's state. */
struct chat_parser {
    struct chat_lexer lexer;
    struct chat_token token; /* the next one */
    int depth, loops;
};
int chat_parse(struct chat_template *chat, const char *text, size_t size);
int chat_parse_expression(struct chat_parser *p, bool condition, struct chat_node **out);
int chat_parse_tuple(struct chat_parser *p, bool condition, struct chat_node **out);
int chat_parse_target(struct chat_parser *p, struct chat_node **out);
int chat_parse_advance(struct chat_parser *p);
int chat_parse_expect(struct chat_parser *p, int symbol);
int chat_parse_refuse(const struct chat_parser *p, const char *what);
int chat_parse_node(struct chat_parser *p, enum chat_kind kind, struct chat_node **out);
static inline bool chat_is_symbol(const struct chat_parser *p, int symbol)
{
    return p->token.kind == TOKEN_OPERATOR && p->token.symbol == symbol;
}
bool chat_is_name(const struct chat_parser *p, const char *name);
bool chat_equal(struct chat_string text, const char *name);

/* Values. */
enum chat_type {
    CHAT_UNDEFINED, /* text: what it is that is not defined */
    CHAT_NONE,
    CHAT_BOOL,
    CHAT_INTEGER,
    CHAT_FLOAT,
    CHAT_STRING,
    CHAT_LIST,
    CHAT_DICT,
    CHAT_NAMESPACE,
    CHAT_LOOP,
    CHAT_CALLABLE,
};
struct chat_value {
    enum chat_type type;
    union {
        bool boolean;
        int64_t integer;
        double number;
        struct chat_string text;
        struct chat_list *list;
        struct chat_dict *dict; /* also of a namespace */
        struct chat_loop *loop;
        struct chat_callable *callable;
    };
};
struct chat_list {
    struct chat_value *items;
    size_t count, capacity;
    bool tuple;
    bool view;            /* a range, or what items(), keys() and values() give: only to go through */
    bool generator, used; /* what map, select and others give: only to go through once */
};
struct chat_dict {
    struct chat_value *keys, *values;
    size_t count, capacity;
};
struct chat_loop {
    const struct chat_list *list;
    size_t index;
};
enum chat_function { FUNCTION_RANGE, FUNCTION_NAMESPACE, FUNCTION_DICT, FUNCTION_RAISE, FUNCTION_STRFTIME };
struct chat_callable {
    const struct chat_node *macro; /* or */
    const char *method;            /* of self, or */
    enum chat_function function;
    struct chat_value self;
    struct chat_scope *scope; /* of the macro's definition */
};
struct chat_scope {
    struct chat_scope *parent;
    struct chat_variable {
        struct chat_string name;
        struct chat_value value;
    } * variables;
    size_t count, capacity;
};
struct chat_arguments {
    struct chat_value values[CHAT_ARGUMENTS_MAX];
    struct chat_string names[CHAT_ARGUMENTS_MAX]; /* size 0: by place */
    size_t count;
};
struct chat_render {
    struct arena arena;
    struct tokenizer_text out;
    struct chat_scope *scope;
    const struct chat_node *node; /* at work: its line is that of an error */
    int64_t steps;
    int depth;
    int jump; /* NODE_BREAK or NODE_CONTINUE under way, or 0 */
};

__attribute__((format(printf, 2, 3))) int chat_raise(const struct chat_render *r, const char *format, ...);
/* The same for what exceeds a limit: ERR_PAYLOAD_TOO_LARGE. */
int chat_exceeds(const struct chat_render *r, const char *what);
int chat_step(struct chat_render *r, size_t count);

int chat_push_scope(struct chat_render *r, struct chat_scope *parent);
/* A variable of this scope alone, or NULL. */
struct chat_variable *chat_find_variable(const struct chat_scope *scope, struct chat_string name);
int chat_run(struct chat_render *r, const struct chat_node *body);
int chat_evaluate(struct chat_render *r, const struct chat_node *node, struct chat_value *out);
int chat_define(struct chat_render *r, struct chat_string name, const struct chat_value *value);
int chat_call(struct chat_render *r, const struct chat_value *callable, const struct chat_arguments *arguments,
              struct chat_value *out);
int chat_call_function(struct chat_render *r, enum chat_function function, const struct chat_arguments *arguments,
                       struct chat_value *out);
int chat_call_method(struct chat_render *r, const struct chat_callable *method, const struct chat_arguments *arguments,
                     struct chat_value *out);
int chat_filter(struct chat_render *r, struct chat_string name, const struct chat_value *in,
                const struct chat_arguments *arguments, struct chat_value *out);
int chat_filter_items(struct chat_render *r, struct chat_string name, const struct chat_value *in,
                      const struct chat_arguments *arguments, struct chat_value *out);
int chat_test(struct chat_render *r, struct chat_string name, const struct chat_value *in,
              const struct chat_arguments *arguments, bool *out);
/* Whether there is one of that name. */
bool chat_filter_known(struct chat_string name);
bool chat_test_known(struct chat_string name);
/* The method of this name that values of a type have: its static name, or NULL. */
const char *chat_method_find(enum chat_type type, struct chat_string name);
/* The argument of this place or name, or NULL. */
const struct chat_value *chat_argument(const struct chat_arguments *arguments, size_t place, const char *name);
int chat_argument_text(struct chat_render *r, const struct chat_arguments *arguments, size_t place, const char *name,
                       const char *fallback, struct chat_string *out);
int chat_argument_integer(struct chat_render *r, const struct chat_arguments *arguments, size_t place, const char *name,
                          int64_t fallback, int64_t *out);

/* foo.name and foo[key]. */
int chat_attribute(struct chat_render *r, const struct chat_value *object, struct chat_string name,
                   struct chat_value *out);
int chat_item(struct chat_render *r, const struct chat_value *object, const struct chat_value *key,
              struct chat_value *out);
int chat_slice(struct chat_render *r, const struct chat_value *object, const struct chat_value bounds[3],
               struct chat_value *out);
int chat_binary(struct chat_render *r, int symbol, const struct chat_value *a, const struct chat_value *b,
                struct chat_value *out);
int chat_compare(struct chat_render *r, int symbol, const struct chat_value *a, const struct chat_value *b, bool *out);
int chat_equals(struct chat_render *r, const struct chat_value *a, const struct chat_value *b, bool *out);
/* -1, 0, 1 for numbers among themselves and strings among themselves; an error for others. */
int chat_order(struct chat_render *r, const struct chat_value *a, const struct chat_value *b, int *out);
bool chat_truth(const struct chat_value *value);
const char *chat_type_name(const struct chat_value *value); /* as Python calls it */

/* Values made in the rendering's arena. */
int chat_text(struct chat_render *r, const char *data, size_t size, struct chat_value *out);
struct chat_value chat_literal(const char *text); /* borrowed */
int chat_list_new(struct chat_render *r, size_t capacity, struct chat_value *out);
int chat_list_add(struct chat_render *r, struct chat_list *list, const struct chat_value *value);
int chat_dict_new(struct chat_render *r, enum chat_type type, struct chat_value *out);
int chat_dict_set(struct chat_render *r, struct chat_dict *dict, const struct chat_value *key,
                  const struct chat_value *value);
int chat_dict_find(struct chat_render *r, const struct chat_dict *dict, const struct chat_value *key,
                   const struct chat_value **out);
/* What a loop over a value goes through: items, keys, characters. */
int chat_items(struct chat_render *r, const struct chat_value *value, struct chat_value *out);
int chat_from_json(struct chat_render *r, const json_t *json, struct chat_value *out);

/* Append to a text: as str(), as repr(), as JSON (indent < 0: on one line). */
int chat_print(struct chat_render *r, const struct chat_value *value, struct tokenizer_text *out);
int chat_repr(struct chat_render *r, const struct chat_value *value, struct tokenizer_text *out);
struct chat_json_options {
    int64_t indent; /* -1: one line */
    bool ascii, sort;
    struct chat_string comma, colon;
};
int chat_json(struct chat_render *r, const struct chat_value *value, const struct chat_json_options *options,
              struct tokenizer_text *out);
/* str() as a value. */
int chat_to_text(struct chat_render *r, const struct chat_value *value, struct chat_value *out);
/* The text appended to r->out since `start`, taken off there. */
int chat_take(struct chat_render *r, size_t start, struct chat_value *out);

/* Characters as Python sees them. */
bool chat_is_space(uint32_t codepoint);
size_t chat_length(struct chat_string text);
struct chat_string chat_strip(struct chat_string text, const struct chat_string *characters, bool left, bool right);
enum chat_case { CASE_UPPER, CASE_LOWER, CASE_TITLE, CASE_CAPITALIZE, CASE_WORDS /* jinja2's title */ };
int chat_change_case(struct chat_render *r, struct chat_string text, enum chat_case kind, struct chat_value *out);
/* Where needle first is in text from `from` on, or -1. */
int64_t chat_find(struct chat_string text, struct chat_string needle, size_t from);
int chat_replace(struct chat_render *r, struct chat_string text, struct chat_string from, struct chat_string to,
                 int64_t limit, struct chat_value *out);
