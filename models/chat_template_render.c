/* Rendering: statements append to one text, expressions give values. What a macro or a set block makes is taken off the
 * end of that text. Every node costs a step, whatever goes through many items costs one for each, and nodes under way
 * are counted, so neither time nor stack depends on the template alone.
 *
 * Scopes are as jinja2's: a loop's body has a new one for each item, so what is set there is gone after it; an if has
 * none. A macro sees the scope of its definition. */

#include "base/err.h"
#include "models/chat_template_internal.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int chat_raise(const struct chat_render *r, const char *format, ...)
{
    char what[400];
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(what, sizeof(what), format, arguments);
    va_end(arguments);
    return err_raise(ERR_INVALID_PARAMETER, "the chat template, line %u: %s", r->node != NULL ? r->node->line : 0,
                     what);
}

int chat_exceeds(const struct chat_render *r, const char *what)
{
    return err_raise(ERR_PAYLOAD_TOO_LARGE, "the chat template, line %u: %s than a text is given",
                     r->node != NULL ? r->node->line : 0, what);
}

int chat_step(struct chat_render *r, size_t count)
{
    if (count > (size_t)r->steps) {
        return chat_exceeds(r, "it needs more steps");
    }
    r->steps -= (int64_t)count;
    return 0;
}

struct chat_variable *chat_find_variable(const struct chat_scope *scope, struct chat_string name)
{
    for (size_t i = 0; i < scope->count; i++) {
        struct chat_variable *variable = &scope->variables[i];
        if (variable->name.size == name.size && memcmp(variable->name.data, name.data, name.size) == 0) {
            return variable;
        }
    }
    return NULL;
}

int chat_define(struct chat_render *r, struct chat_string name, const struct chat_value *value)
{
    struct chat_scope *scope = r->scope;
    struct chat_variable *variable = chat_find_variable(scope, name);

    if (variable == NULL) {
        if (scope->count == scope->capacity) {
            size_t capacity = scope->capacity < 4 ? 4 : 2 * scope->capacity;
            struct chat_variable *larger = arena_alloc(&r->arena, capacity * sizeof(*larger));
            if (larger == NULL) {
                return chat_exceeds(r, "it needs more memory");
            }
            if (scope->count > 0) {
                memcpy(larger, scope->variables, scope->count * sizeof(*larger));
            }
            scope->variables = larger;
            scope->capacity = capacity;
        }
        variable = &scope->variables[scope->count++];
        variable->name = name;
    }
    variable->value = *value;
    return chat_step(r, 1 + scope->count / 8);
}

int chat_push_scope(struct chat_render *r, struct chat_scope *parent)
{
    struct chat_scope *scope = arena_alloc(&r->arena, sizeof(*scope));

    if (scope == NULL) {
        return chat_exceeds(r, "it needs more memory");
    }
    scope->parent = parent;
    r->scope = scope;
    return 0;
}

/* Give a target its value: names, members of namespaces, or as many names as there are items. */
static int assign(struct chat_render *r, const struct chat_node *target, const struct chat_value *value)
{
    struct chat_value object = {0};

    if (target->kind == NODE_NAME) {
        return chat_define(r, target->text, value);
    }
    if (target->kind == NODE_ATTRIBUTE) {
        const struct chat_value key = {.type = CHAT_STRING, .text = target->text};
        TRY(chat_evaluate(r, target->a, &object));
        if (object.type != CHAT_NAMESPACE) {
            return chat_raise(r, "a member is set of something that is not a namespace");
        }
        return chat_dict_set(r, object.dict, &key, value);
    }
    TRY(chat_items(r, value, &object));
    size_t at = 0;
    for (const struct chat_node *name = target->a; name != NULL; name = name->next, at++) {
        if (at >= object.list->count) {
            return chat_raise(r, "there are more names than values to unpack");
        }
        TRY(chat_define(r, name->text, &object.list->items[at]));
    }
    return at == object.list->count ? 0 : chat_raise(r, "there are more values than names to unpack");
}

/* The items of a loop that its condition lets pass. */
static int filter_loop(struct chat_render *r, const struct chat_node *node, struct chat_value *items)
{
    struct chat_scope *scope = r->scope;
    struct chat_value kept = {0}, truth = {0};

    TRY(chat_list_new(r, 0, &kept));
    for (size_t i = 0; i < items->list->count; i++) {
        TRY(chat_push_scope(r, scope));
        TRY(assign(r, node->a, &items->list->items[i]));
        TRY(chat_evaluate(r, node->e, &truth));
        if (chat_truth(&truth)) {
            TRY(chat_list_add(r, kept.list, &items->list->items[i]));
        }
    }
    r->scope = scope;
    *items = kept;
    return 0;
}

static int run_for(struct chat_render *r, const struct chat_node *node)
{
    static const struct chat_string loop_name = {"loop", 4};
    struct chat_scope *scope = r->scope;
    struct chat_value items, loop = {.type = CHAT_LOOP};

    TRY(chat_evaluate(r, node->b, &items));
    TRY(chat_items(r, &items, &items));
    TRY(node->e != NULL ? filter_loop(r, node, &items) : 0);
    for (size_t i = 0; i < items.list->count; i++) {
        TRY(chat_step(r, 1));
        loop.loop = arena_alloc(&r->arena, sizeof(*loop.loop));
        if (loop.loop == NULL) {
            return chat_exceeds(r, "it needs more memory");
        }
        *loop.loop = (struct chat_loop){items.list, i};
        TRY(chat_push_scope(r, scope));
        TRY(chat_define(r, loop_name, &loop));
        TRY(assign(r, node->a, &items.list->items[i]));
        TRY(chat_run(r, node->c));
        int jump = r->jump;
        r->jump = 0;
        if (jump == NODE_BREAK) {
            break;
        }
    }
    if (items.list->count == 0) {
        TRY(chat_push_scope(r, scope));
        TRY(chat_run(r, node->d));
    }
    r->scope = scope;
    return 0;
}

static int run_set(struct chat_render *r, const struct chat_node *node)
{
    struct chat_scope *scope = r->scope;
    size_t start = r->out.size;
    struct chat_value value = {0};

    if (node->kind == NODE_SET) {
        TRY(chat_evaluate(r, node->b, &value));
        return assign(r, node->a, &value);
    }
    TRY(chat_push_scope(r, scope));
    TRY(chat_run(r, node->c));
    r->scope = scope;
    TRY(chat_take(r, start, &value));
    return assign(r, node->a, &value);
}

static int run_macro(struct chat_render *r, const struct chat_node *node)
{
    struct chat_value macro = {.type = CHAT_CALLABLE};

    macro.callable = arena_alloc(&r->arena, sizeof(*macro.callable));
    if (macro.callable == NULL) {
        return chat_exceeds(r, "it needs more memory");
    }
    *macro.callable = (struct chat_callable){.macro = node, .scope = r->scope};
    return chat_define(r, node->text, &macro);
}

static int run_output(struct chat_render *r, const struct chat_node *node)
{
    struct chat_value value = {0};

    TRY(chat_evaluate(r, node->a, &value));
    return chat_print(r, &value, &r->out);
}

static int run_node(struct chat_render *r, const struct chat_node *node)
{
    struct chat_scope *scope = r->scope;
    struct chat_value value = {0};

    switch (node->kind) {
    case NODE_DATA:
        return tokenizer_text_append(&r->out, node->text.data, node->text.size);
    case NODE_OUTPUT:
        return run_output(r, node);
    case NODE_IF:
        for (; node != NULL && node->kind == NODE_IF; node = node->c) {
            TRY(chat_evaluate(r, node->a, &value));
            if (chat_truth(&value)) {
                return chat_run(r, node->b);
            }
            if (node->c != NULL && (node->c->kind != NODE_IF || node->c->next != NULL)) {
                return chat_run(r, node->c);
            }
        }
        return 0;
    case NODE_FOR:
        return run_for(r, node);
    case NODE_SET:
    case NODE_SETBLOCK:
        return run_set(r, node);
    case NODE_MACRO:
        return run_macro(r, node);
    case NODE_SCOPE:
        TRY(chat_push_scope(r, scope));
        TRY(chat_run(r, node->c));
        r->scope = scope;
        return 0;
    default: /* NODE_BREAK, NODE_CONTINUE */
        r->jump = (int)node->kind;
        return 0;
    }
}

int chat_run(struct chat_render *r, const struct chat_node *body)
{
    const struct chat_node *outer = r->node;

    if (++r->depth > CHAT_DEPTH_MAX) {
        return chat_exceeds(r, "it nests deeper");
    }
    for (const struct chat_node *node = body; node != NULL && r->jump == 0; node = node->next) {
        r->node = node;
        TRY(chat_step(r, 1));
        TRY(run_node(r, node));
        if (r->out.size > CHAT_OUTPUT_MAX) {
            return chat_exceeds(r, "it makes more text");
        }
    }
    r->depth--;
    r->node = outer;
    return 0;
}

static void render_deinit(struct chat_render *r)
{
    arena_deinit(&r->arena);
    free(r->out.data);
}
CLEANUP_DEINIT(chat_render, struct chat_render, render_deinit)

static int define_functions(struct chat_render *r)
{
    static const char *const names[] = {[FUNCTION_RANGE] = "range",
                                        [FUNCTION_NAMESPACE] = "namespace",
                                        [FUNCTION_DICT] = "dict",
                                        [FUNCTION_RAISE] = "raise_exception",
                                        [FUNCTION_STRFTIME] = "strftime_now"};

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        struct chat_value function = {.type = CHAT_CALLABLE};
        function.callable = arena_alloc(&r->arena, sizeof(*function.callable));
        TRY(arena_check(&r->arena));
        function.callable->function = (enum chat_function)i;
        TRY(chat_define(r, (struct chat_string){names[i], strlen(names[i])}, &function));
    }
    return 0;
}

static int define_json(struct chat_render *r, const json_t *object)
{
    const char *name;
    json_t *member;

    json_object_foreach((json_t *)object, name, member)
    {
        struct chat_value value = {0};
        TRY(chat_from_json(r, member, &value));
        TRY(chat_define(r, (struct chat_string){name, strlen(name)}, &value));
    }
    return 0;
}

int chat_template_render(const struct chat_template *chat, const json_t *variables, const json_t *tokens, char **text,
                         size_t *size)
{
    AUTO(chat_render) struct chat_render render = {.steps = CHAT_STEPS_MAX};
    struct chat_render *r = &render;

    arena_init(&r->arena, CHAT_MEMORY_MAX);
    TRY(tokenizer_text_reserve(&r->out, 4096)); /* so that it has an address from here on */
    TRY(chat_push_scope(r, NULL));
    TRY(define_functions(r));
    TRY(chat_push_scope(r, r->scope));
    TRY(define_json(r, tokens));
    TRY(define_json(r, variables));
    TRY(chat_push_scope(r, r->scope));
    TRY(chat_run(r, chat->body));
    TRY(tokenizer_text_append(&r->out, "", 1));
    *size = r->out.size - 1;
    *text = r->out.data;
    r->out = (struct tokenizer_text){0};
    return 0;
}
