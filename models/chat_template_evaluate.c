/* Expressions of a chat template to values. Every node costs a step, and nodes under way are counted. */

#include "base/err.h"
#include "models/chat_template_internal.h"

#include <string.h>

static int evaluate_name(struct chat_render *r, const struct chat_node *node, struct chat_value *out)
{
    static const char *const macro_names[] = {"varargs", "kwargs", "caller", "self", "joiner", "cycler", "lipsum"};

    for (const struct chat_scope *scope = r->scope; scope != NULL; scope = scope->parent) {
        const struct chat_variable *variable = chat_find_variable(scope, node->text);
        if (variable != NULL) {
            *out = variable->value;
            return 0;
        }
    }
    for (size_t i = 0; i < sizeof(macro_names) / sizeof(macro_names[0]); i++) {
        if (chat_equal(node->text, macro_names[i])) {
            return chat_raise(r, "\"%s\" is not supported", macro_names[i]);
        }
    }
    *out = (struct chat_value){.type = CHAT_UNDEFINED, .text = node->text};
    return 0;
}

static int evaluate_list(struct chat_render *r, const struct chat_node *node, struct chat_value *out)
{
    TRY(chat_list_new(r, 0, out));
    out->list->tuple = node->kind == NODE_TUPLE;
    for (const struct chat_node *item = node->a; item != NULL; item = item->next) {
        struct chat_value value = {0};
        TRY(chat_evaluate(r, item->a, &value));
        TRY(chat_list_add(r, out->list, &value));
    }
    return 0;
}

static int evaluate_dict(struct chat_render *r, const struct chat_node *node, struct chat_value *out)
{
    TRY(chat_dict_new(r, CHAT_DICT, out));
    for (const struct chat_node *item = node->a; item != NULL; item = item->next) {
        struct chat_value key = {0}, value = {0};
        TRY(chat_evaluate(r, item->a, &key));
        TRY(chat_evaluate(r, item->value, &value));
        TRY(chat_dict_set(r, out->dict, &key, &value));
    }
    return 0;
}

static int evaluate_slice(struct chat_render *r, const struct chat_node *node, struct chat_value *out)
{
    struct chat_value object, bounds[3] = {{.type = CHAT_NONE}, {.type = CHAT_NONE}, {.type = CHAT_NONE}};

    TRY(chat_evaluate(r, node->a, &object));
    TRY(node->b != NULL ? chat_evaluate(r, node->b, &bounds[0]) : 0);
    TRY(node->c != NULL ? chat_evaluate(r, node->c, &bounds[1]) : 0);
    TRY(node->d != NULL ? chat_evaluate(r, node->d, &bounds[2]) : 0);
    return chat_slice(r, &object, bounds, out);
}

static int evaluate_arguments(struct chat_render *r, const struct chat_node *list, struct chat_arguments *out)
{
    out->count = 0;
    for (const struct chat_node *argument = list; argument != NULL; argument = argument->next) {
        if (argument->text.size == 0 && out->count > 0 && out->names[out->count - 1].size > 0) {
            return chat_raise(r, "an argument by place follows one by name");
        }
        out->names[out->count] = argument->text;
        TRY(chat_evaluate(r, argument->a, &out->values[out->count]));
        out->count++;
    }
    return 0;
}

static int call_macro(struct chat_render *r, const struct chat_callable *callable,
                      const struct chat_arguments *arguments, struct chat_value *out)
{
    struct chat_scope *scope = r->scope;
    const struct chat_node *node = r->node;
    size_t start = r->out.size, place = 0, used = 0;

    TRY(chat_push_scope(r, callable->scope));
    for (const struct chat_node *parameter = callable->macro->a; parameter != NULL; parameter = parameter->next) {
        const struct chat_value *given = NULL;
        for (size_t i = 0; i < arguments->count && given == NULL; i++) {
            struct chat_string name = arguments->names[i];
            bool same = name.size == 0 ? i == place
                                       : name.size == parameter->text.size &&
                                             memcmp(name.data, parameter->text.data, name.size) == 0;
            given = same ? &arguments->values[i] : NULL;
        }
        struct chat_value value = {.type = CHAT_UNDEFINED, .text = parameter->text};
        if (given == NULL && parameter->value != NULL) {
            TRY(chat_evaluate(r, parameter->value, &value));
        }
        used += given != NULL;
        TRY(chat_define(r, parameter->text, given != NULL ? given : &value));
        place++;
    }
    if (used != arguments->count) {
        return chat_raise(r, "the macro \"%.*s\" is given an argument that it does not take",
                          (int)callable->macro->text.size, callable->macro->text.data);
    }
    TRY(chat_run(r, callable->macro->c));
    r->scope = scope;
    r->node = node;
    return chat_take(r, start, out);
}

int chat_call(struct chat_render *r, const struct chat_value *callable, const struct chat_arguments *arguments,
              struct chat_value *out)
{
    if (callable->type == CHAT_UNDEFINED) {
        return chat_raise(r, "\"%.*s\" is called, which is not defined",
                          (int)(callable->text.size < 60 ? callable->text.size : 60), callable->text.data);
    }
    if (callable->type != CHAT_CALLABLE) {
        return chat_raise(r, "a value of type %s is called", chat_type_name(callable));
    }
    if (callable->callable->macro != NULL) {
        return call_macro(r, callable->callable, arguments, out);
    }
    return callable->callable->method != NULL ? chat_call_method(r, callable->callable, arguments, out)
                                              : chat_call_function(r, callable->callable->function, arguments, out);
}

static int evaluate_call(struct chat_render *r, const struct chat_node *node, struct chat_value *out)
{
    struct chat_value callee = {0};
    struct chat_arguments arguments = {0};

    TRY(chat_evaluate(r, node->a, &callee));
    TRY(evaluate_arguments(r, node->b, &arguments));
    return chat_call(r, &callee, &arguments, out);
}

static int evaluate_filter(struct chat_render *r, const struct chat_node *node, struct chat_value *out)
{
    struct chat_value value = {0};
    struct chat_arguments arguments = {0};

    TRY(chat_evaluate(r, node->a, &value));
    TRY(evaluate_arguments(r, node->b, &arguments));
    return chat_filter(r, node->text, &value, &arguments, out);
}

static int evaluate_test(struct chat_render *r, const struct chat_node *node, struct chat_value *out)
{
    struct chat_value value = {0};
    struct chat_arguments arguments = {0};
    bool passes = false;

    TRY(chat_evaluate(r, node->a, &value));
    TRY(evaluate_arguments(r, node->b, &arguments));
    TRY(chat_test(r, node->text, &value, &arguments, &passes));
    *out = (struct chat_value){.type = CHAT_BOOL, .boolean = passes != (node->integer != 0)};
    return 0;
}

static int evaluate_compare(struct chat_render *r, const struct chat_node *node, struct chat_value *out)
{
    struct chat_value left = {0}, right = {0};
    bool holds = true;

    TRY(chat_evaluate(r, node->a, &left));
    for (const struct chat_node *next = node->b; next != NULL && holds; next = next->next) {
        TRY(chat_evaluate(r, next->a, &right));
        TRY(chat_compare(r, (int)next->integer, &left, &right, &holds));
        left = right;
    }
    *out = (struct chat_value){.type = CHAT_BOOL, .boolean = holds};
    return 0;
}

static int evaluate_sign(struct chat_render *r, const struct chat_node *node, struct chat_value *out)
{
    const struct chat_value zero = {.type = CHAT_INTEGER, .integer = 0};
    struct chat_value value = {0};

    TRY(chat_evaluate(r, node->a, &value));
    if (node->kind == NODE_NEGATIVE && value.type == CHAT_FLOAT) {
        *out = (struct chat_value){.type = CHAT_FLOAT, .number = -value.number};
        return 0;
    }
    return chat_binary(r, node->kind == NODE_NEGATIVE ? '-' : '+', &zero, &value, out);
}

/* and, or, if: what need not be evaluated is not. */
static int evaluate_choice(struct chat_render *r, const struct chat_node *node, struct chat_value *out)
{
    TRY(chat_evaluate(r, node->a, out));
    bool truth = chat_truth(out);
    if (node->kind == NODE_CONDITION) {
        const struct chat_node *chosen = truth ? node->b : node->c;
        *out = (struct chat_value){.type = CHAT_UNDEFINED, .text = {"the inline if", 13}};
        return chosen != NULL ? chat_evaluate(r, chosen, out) : 0;
    }
    return truth == (node->kind == NODE_AND) ? chat_evaluate(r, node->b, out) : 0;
}

static int evaluate_pair(struct chat_render *r, const struct chat_node *node, struct chat_value *out)
{
    struct chat_value a = {0}, b = {0};

    TRY(chat_evaluate(r, node->a, &a));
    if (node->kind == NODE_ATTRIBUTE) {
        return chat_attribute(r, &a, node->text, out);
    }
    TRY(chat_evaluate(r, node->b, &b));
    return node->kind == NODE_ITEM ? chat_item(r, &a, &b, out) : chat_binary(r, (int)node->integer, &a, &b, out);
}

static int evaluate_node(struct chat_render *r, const struct chat_node *node, struct chat_value *out)
{
    switch (node->kind) {
    case NODE_STRING:
        *out = (struct chat_value){.type = CHAT_STRING, .text = node->text};
        return 0;
    case NODE_INTEGER:
        *out = (struct chat_value){.type = CHAT_INTEGER, .integer = node->integer};
        return 0;
    case NODE_FLOAT:
        *out = (struct chat_value){.type = CHAT_FLOAT, .number = node->number};
        return 0;
    case NODE_BOOL:
        *out = (struct chat_value){.type = CHAT_BOOL, .boolean = node->integer != 0};
        return 0;
    case NODE_NONE:
        *out = (struct chat_value){.type = CHAT_NONE};
        return 0;
    case NODE_NAME:
        return evaluate_name(r, node, out);
    case NODE_LIST:
    case NODE_TUPLE:
        return evaluate_list(r, node, out);
    case NODE_DICT:
        return evaluate_dict(r, node, out);
    case NODE_ATTRIBUTE:
    case NODE_ITEM:
    case NODE_BINARY:
        return evaluate_pair(r, node, out);
    case NODE_SLICE:
        return evaluate_slice(r, node, out);
    case NODE_CALL:
        return evaluate_call(r, node, out);
    case NODE_FILTER:
        return evaluate_filter(r, node, out);
    case NODE_TEST:
        return evaluate_test(r, node, out);
    case NODE_CONDITION:
    case NODE_AND:
    case NODE_OR:
        return evaluate_choice(r, node, out);
    case NODE_NOT: {
        TRY(chat_evaluate(r, node->a, out));
        *out = (struct chat_value){.type = CHAT_BOOL, .boolean = !chat_truth(out)};
        return 0;
    }
    case NODE_NEGATIVE:
    case NODE_POSITIVE:
        return evaluate_sign(r, node, out);
    case NODE_COMPARE:
        return evaluate_compare(r, node, out);
    default:
        return err_raise(ERR_INTERNAL, "a chat template's expression has a node of kind %d", (int)node->kind);
    }
}

int chat_evaluate(struct chat_render *r, const struct chat_node *node, struct chat_value *out)
{
    const struct chat_node *outer = r->node;

    r->node = node;
    TRY(chat_step(r, 1));
    if (++r->depth > CHAT_DEPTH_MAX) {
        return chat_exceeds(r, "it nests deeper");
    }
    TRY(evaluate_node(r, node, out));
    r->depth--;
    r->node = outer;
    return 0;
}
