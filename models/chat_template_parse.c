/* Statements of a chat template: a list of nodes for each block. An unknown tag is refused by its name. */

#include "base/err.h"
#include "base/mem.h"
#include "models/chat_template_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TREE_MEMORY_MAX ((size_t)64 << 20)

static int parse_block(struct chat_parser *p, const char *const *ends, struct chat_node **out);

bool chat_equal(struct chat_string text, const char *name)
{
    return text.size == strlen(name) && memcmp(text.data, name, text.size) == 0;
}

bool chat_is_name(const struct chat_parser *p, const char *name)
{
    return p->token.kind == TOKEN_NAME && chat_equal(p->token.text, name);
}

int chat_parse_refuse(const struct chat_parser *p, const char *what)
{
    return err_raise(ERR_INVALID_CHAT_TEMPLATE, "the chat template, line %u: %s is not supported", p->token.line, what);
}

static int parse_expected(const struct chat_parser *p, const char *what)
{
    return err_raise(ERR_INVALID_CHAT_TEMPLATE, "the chat template, line %u: expected %s", p->token.line, what);
}

int chat_parse_advance(struct chat_parser *p)
{
    return chat_lex_next(&p->lexer, &p->token);
}

int chat_parse_expect(struct chat_parser *p, int symbol)
{
    char what[] = "\"?\"";
    what[1] = (char)symbol;
    return chat_is_symbol(p, symbol) ? chat_parse_advance(p) : parse_expected(p, what);
}

int chat_parse_node(struct chat_parser *p, enum chat_kind kind, struct chat_node **out)
{
    struct chat_node *node = arena_alloc(p->lexer.arena, sizeof(*node));

    if (node == NULL) {
        return err_raise(ERR_INVALID_CHAT_TEMPLATE, "the chat template is too large");
    }
    node->kind = kind;
    node->line = p->token.line;
    *out = node;
    return 0;
}

static int parse_end(struct chat_parser *p)
{
    return p->token.kind == TOKEN_BLOCK_END ? chat_parse_advance(p) : parse_expected(p, "the end of the tag");
}

static int parse_keyword(struct chat_parser *p, const char *name)
{
    char what[40];
    snprintf(what, sizeof(what), "\"%s\"", name);
    return chat_is_name(p, name) ? chat_parse_advance(p) : parse_expected(p, what);
}

/* A name, a name's member (for namespaces), or several names between commas. */
int chat_parse_target(struct chat_parser *p, struct chat_node **out)
{
    struct chat_node **last = NULL, *tuple = NULL;

    for (;;) {
        struct chat_node *name = NULL;
        if (p->token.kind != TOKEN_NAME) {
            return chat_parse_refuse(p, "a target that is not a name");
        }
        TRY(chat_parse_node(p, NODE_NAME, &name));
        name->text = p->token.text;
        TRY(chat_parse_advance(p));
        if (chat_is_symbol(p, '.') && tuple == NULL) {
            struct chat_node *member = NULL;
            TRY(chat_parse_advance(p));
            TRY(chat_parse_node(p, NODE_ATTRIBUTE, &member));
            if (p->token.kind != TOKEN_NAME) {
                return parse_expected(p, "a name after the dot");
            }
            member->a = name;
            member->text = p->token.text;
            *out = member;
            return chat_parse_advance(p);
        }
        if (tuple != NULL) {
            *last = name;
        } else if (chat_is_symbol(p, ',')) {
            TRY(chat_parse_node(p, NODE_TUPLE, &tuple));
            tuple->a = name;
            *out = tuple;
        } else {
            *out = name;
        }
        last = &name->next;
        if (!chat_is_symbol(p, ',')) {
            return 0;
        }
        TRY(chat_parse_advance(p));
    }
}

/* {% if %}: what follows an elif is an if in the else. */
static int parse_if(struct chat_parser *p, struct chat_node **out)
{
    static const char *const ends[] = {"elif", "else", "endif", NULL}, *const last[] = {"endif", NULL};
    struct chat_node *node = NULL, **at = out;

    for (;;) {
        TRY(chat_parse_node(p, NODE_IF, &node));
        TRY(chat_parse_tuple(p, false, &node->a));
        TRY(parse_end(p));
        TRY(parse_block(p, ends, &node->b));
        *at = node;
        at = &node->c;
        if (!chat_is_name(p, "elif")) {
            break;
        }
        TRY(chat_parse_advance(p));
    }
    if (chat_is_name(p, "else")) {
        TRY(chat_parse_advance(p));
        TRY(parse_end(p));
        TRY(parse_block(p, last, &node->c));
    }
    TRY(chat_parse_advance(p));
    return parse_end(p);
}

static int parse_for(struct chat_parser *p, struct chat_node **out)
{
    static const char *const ends[] = {"else", "endfor", NULL}, *const last[] = {"endfor", NULL};
    struct chat_node *node = NULL;

    TRY(chat_parse_node(p, NODE_FOR, &node));
    TRY(chat_parse_target(p, &node->a));
    if (node->a->kind == NODE_ATTRIBUTE) {
        return chat_parse_refuse(p, "a member as a loop's target");
    }
    TRY(parse_keyword(p, "in"));
    TRY(chat_parse_tuple(p, false, &node->b));
    if (chat_is_name(p, "if")) {
        TRY(chat_parse_advance(p));
        TRY(chat_parse_expression(p, true, &node->e));
    }
    if (chat_is_name(p, "recursive")) {
        return chat_parse_refuse(p, "a recursive loop");
    }
    TRY(parse_end(p));
    p->loops++;
    TRY(parse_block(p, ends, &node->c));
    p->loops--;
    if (chat_is_name(p, "else")) {
        TRY(chat_parse_advance(p));
        TRY(parse_end(p));
        TRY(parse_block(p, last, &node->d));
    }
    *out = node;
    TRY(chat_parse_advance(p));
    return parse_end(p);
}

static int parse_set(struct chat_parser *p, struct chat_node **out)
{
    static const char *const ends[] = {"endset", NULL};
    struct chat_node *node = NULL;

    TRY(chat_parse_node(p, NODE_SET, &node));
    TRY(chat_parse_target(p, &node->a));
    *out = node;
    if (chat_is_symbol(p, '=')) {
        TRY(chat_parse_advance(p));
        TRY(chat_parse_tuple(p, true, &node->b));
        return parse_end(p);
    }
    if (chat_is_symbol(p, '|')) {
        return chat_parse_refuse(p, "a filter of a set block");
    }
    node->kind = NODE_SETBLOCK;
    TRY(parse_end(p));
    TRY(parse_block(p, ends, &node->c));
    TRY(chat_parse_advance(p));
    return parse_end(p);
}

static int parse_parameters(struct chat_parser *p, struct chat_node **out)
{
    struct chat_node **last = out;
    int count = 0;

    TRY(chat_parse_expect(p, '('));
    while (!chat_is_symbol(p, ')')) {
        struct chat_node *parameter = NULL;
        TRY(count > 0 ? chat_parse_expect(p, ',') : 0);
        if (p->token.kind != TOKEN_NAME || ++count > CHAT_ARGUMENTS_MAX) {
            return chat_parse_refuse(p, "a parameter that is not a name, or a seventeenth");
        }
        TRY(chat_parse_node(p, NODE_NAME, &parameter));
        parameter->text = p->token.text;
        TRY(chat_parse_advance(p));
        if (chat_is_symbol(p, '=')) {
            TRY(chat_parse_advance(p));
            TRY(chat_parse_expression(p, true, &parameter->value));
        }
        *last = parameter;
        last = &parameter->next;
    }
    return chat_parse_advance(p);
}

static int parse_macro(struct chat_parser *p, struct chat_node **out)
{
    static const char *const ends[] = {"endmacro", NULL};
    struct chat_node *node = NULL;
    int loops = p->loops;

    TRY(chat_parse_node(p, NODE_MACRO, &node));
    if (p->token.kind != TOKEN_NAME) {
        return parse_expected(p, "the macro's name");
    }
    node->text = p->token.text;
    TRY(chat_parse_advance(p));
    TRY(parse_parameters(p, &node->a));
    TRY(parse_end(p));
    p->loops = 0;
    TRY(parse_block(p, ends, &node->c));
    p->loops = loops;
    *out = node;
    TRY(chat_parse_advance(p));
    if (p->token.kind == TOKEN_NAME && p->token.text.size == node->text.size &&
        memcmp(p->token.text.data, node->text.data, node->text.size) == 0) {
        TRY(chat_parse_advance(p)); /* {% endmacro name %} */
    }
    return parse_end(p);
}

/* {% generation %}, with which transformers marks what the model wrote: its body as it is. */
static int parse_generation(struct chat_parser *p, struct chat_node **out)
{
    static const char *const ends[] = {"endgeneration", NULL};
    int loops = p->loops;

    TRY(chat_parse_node(p, NODE_SCOPE, out));
    TRY(parse_end(p));
    p->loops = 0;
    TRY(parse_block(p, ends, &(*out)->c));
    p->loops = loops;
    TRY(chat_parse_advance(p));
    return parse_end(p);
}

static int parse_jump(struct chat_parser *p, enum chat_kind kind, struct chat_node **out)
{
    if (p->loops == 0) {
        return chat_parse_refuse(p, "break or continue outside of a loop");
    }
    TRY(chat_parse_node(p, kind, out));
    return parse_end(p);
}

/* A tag whose "{%" was consumed. */
static int parse_statement(struct chat_parser *p, struct chat_node **out)
{
    static const struct {
        const char *name;
        int (*parse)(struct chat_parser *p, struct chat_node **out);
    } tags[] = {{"if", parse_if},
                {"for", parse_for},
                {"set", parse_set},
                {"macro", parse_macro},
                {"generation", parse_generation}};
    char what[100];

    if (p->token.kind != TOKEN_NAME) {
        return parse_expected(p, "a tag's name");
    }
    for (size_t i = 0; i < sizeof(tags) / sizeof(tags[0]); i++) {
        if (chat_is_name(p, tags[i].name)) {
            TRY(chat_parse_advance(p));
            return tags[i].parse(p, out);
        }
    }
    if (chat_is_name(p, "break") || chat_is_name(p, "continue")) {
        bool ends = chat_is_name(p, "break");
        TRY(chat_parse_advance(p));
        return parse_jump(p, ends ? NODE_BREAK : NODE_CONTINUE, out);
    }
    snprintf(what, sizeof(what), "the tag \"%.*s\"", (int)(p->token.text.size < 60 ? p->token.text.size : 60),
             p->token.text.data);
    return chat_parse_refuse(p, what);
}

/* Whether the tag is one of those that end the block: its name is the next token then. */
static bool ends_block(const struct chat_parser *p, const char *const *ends)
{
    while (*ends != NULL && !chat_is_name(p, *ends)) {
        ends++;
    }
    return *ends != NULL;
}

/* Nodes up to a tag of `ends`, or to the end of the text if that list is empty. */
static int parse_block(struct chat_parser *p, const char *const *ends, struct chat_node **out)
{
    struct chat_node **last = out;

    if (++p->depth > CHAT_NESTING_MAX) {
        return chat_parse_refuse(p, "nesting this deep");
    }
    while (p->token.kind != TOKEN_EOF) {
        struct chat_node *node = NULL;
        if (p->token.kind == TOKEN_DATA) {
            TRY(chat_parse_node(p, NODE_DATA, &node));
            node->text = p->token.text;
            TRY(chat_parse_advance(p));
        } else if (p->token.kind == TOKEN_VARIABLE_BEGIN) {
            TRY(chat_parse_node(p, NODE_OUTPUT, &node));
            TRY(chat_parse_advance(p));
            TRY(chat_parse_tuple(p, true, &node->a));
            TRY(p->token.kind == TOKEN_VARIABLE_END ? chat_parse_advance(p) : parse_expected(p, "}}"));
        } else {
            TRY(chat_parse_advance(p));
            if (ends_block(p, ends)) {
                p->depth--;
                return 0;
            }
            TRY(parse_statement(p, &node));
        }
        *last = node;
        last = &node->next;
    }
    p->depth--;
    return ends[0] == NULL ? 0 : parse_expected(p, ends[0]);
}

int chat_parse(struct chat_template *chat, const char *text, size_t size)
{
    static const char *const none[] = {NULL};
    struct chat_parser p = {0};

    TRY(chat_lex_init(&p.lexer, &chat->arena, text, size));
    TRY(chat_parse_advance(&p));
    return parse_block(&p, none, &chat->body);
}

int chat_template_new(const char *text, size_t size, struct chat_template **out)
{
    AUTO(chat_template) struct chat_template *chat = NULL;

    if (size > CHAT_TEMPLATE_BYTES_MAX) {
        return err_raise(ERR_INVALID_CHAT_TEMPLATE, "the chat template has %zu bytes, more than %u", size,
                         CHAT_TEMPLATE_BYTES_MAX);
    }
    TRY(mem_new(&chat));
    arena_init(&chat->arena, TREE_MEMORY_MAX);
    TRY(chat_parse(chat, text, size));
    *out = MOVE(chat);
    return 0;
}

void chat_template_free(struct chat_template *chat)
{
    if (chat != NULL) {
        arena_deinit(&chat->arena);
        free(chat);
    }
}
