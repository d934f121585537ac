/* The chat templates of a checkpoint, and the variables that they are given.
 *
 * As in transformers 5, members of a message that are null are left out, and the reasoning of an assistant
 * (reasoning_content, thinking or reasoning) is there under the first two of these names. */

#include "models/chat.h"

#include "base/err.h"
#include "base/fs.h"
#include "base/json.h"
#include "base/json_stream.h"
#include "base/mem.h"
#include "models/chat_template.h"
#include "models/tokenizer_internal.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FILE_BYTES_MAX ((size_t)16 << 20)
#define MEMBER_BYTES_MAX ((size_t)4 << 20)
#define MEMBER_DEPTH 8

struct chat_entry {
    struct chat_template *template; /* NULL: there is none, or */
    char *refusal;                  /* why there is none */
};

struct chat {
    struct chat_entry by_default, tool_use;
    json_t *tokens; /* name -> text */
};

/* Keep the template of a text, or why it is refused; the first one of an entry counts. */
static int entry_set(struct chat_entry *entry, const char *text, size_t size)
{
    if (text == NULL || entry->template != NULL || entry->refusal != NULL) {
        return 0;
    }
    int rc = chat_template_new(text, size, &entry->template);
    if (rc != ERR_INVALID_CHAT_TEMPLATE) {
        return rc;
    }
    return mem_strdup(&entry->refusal, err_last()->message);
}

static int chat_read_file(const struct model *model, const char *name, char **text, size_t *size)
{
    AUTO_CLOSE int fd = -1;

    TRY(model_open_file(model, name, &fd));
    int rc = fs_read_fd(fd, FILE_BYTES_MAX, text, size);
    return rc != 0 ? err_pass(rc, "read %s", name) : 0;
}

/* A chat_template member: a text, or a list of named ones. */
static int take_templates(struct chat *chat, const json_t *value)
{
    const json_t *item;
    size_t i;

    if (json_is_string(value)) {
        return entry_set(&chat->by_default, json_string_value(value), json_string_length(value));
    }
    json_array_foreach((json_t *)value, i, item)
    {
        const char *name = json_get_string(item, "name");
        const json_t *text = json_object_get(item, "template");
        bool tools = name != NULL && strcmp(name, "tool_use") == 0;
        if (name != NULL && (tools || strcmp(name, "default") == 0)) {
            TRY(entry_set(tools ? &chat->tool_use : &chat->by_default, json_string_value(text),
                          json_string_length(text)));
        }
    }
    return 0;
}

/* A special token: a text, or an object with its content. The first file that has it counts. */
static int take_special(struct chat *chat, const char *name, const json_t *value)
{
    value = json_is_object(value) ? json_object_get(value, "content") : value;
    if (!json_is_string(value) || json_object_get(chat->tokens, name) != NULL) {
        return 0;
    }
    return json_object_set(chat->tokens, name, (json_t *)value) == 0
               ? 0
               : err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for special tokens");
}

/* The value of a member that is wanted; its key was just returned. */
static int take_member(struct chat *chat, struct json_stream *stream)
{
    AUTO_JSON json_t *value = NULL;
    char name[64];

    snprintf(name, sizeof(name), "%.*s", (int)stream->length, stream->text);
    size_t start = tokenizer_value_start(stream);
    if (!json_stream_skip(stream, json_stream_next(stream))) {
        return 0; /* the caller sees the error */
    }
    if (stream->at - start > MEMBER_BYTES_MAX ||
        json_parse(stream->data + start, stream->at - start, MEMBER_DEPTH, &value) != 0) {
        return 0; /* as if it were not there */
    }
    return strcmp(name, "chat_template") == 0 ? take_templates(chat, value) : take_special(chat, name, value);
}

static bool is_chat_member(const struct json_stream *stream)
{
    static const char suffix[] = "_token";
    size_t size = stream->length, tail = sizeof(suffix) - 1;
    bool token = size > tail && size < 60 && memcmp(stream->text + size - tail, suffix, tail) == 0;

    return token || (size == 13 && memcmp(stream->text, "chat_template", 13) == 0);
}

/* Read the members of a JSON file that a template needs. A damaged file ends where it is damaged: the tokenizer's
 * loaders say what is wrong with it. */
static int read_members(const struct model *model, const char *name, struct chat *chat)
{
    AUTO(json_stream) struct json_stream stream = {0};
    AUTO_FREE char *text = NULL;
    size_t size = 0;

    int rc = chat_read_file(model, name, &text, &size);
    if (rc != 0) {
        return rc == ERR_NOT_FOUND ? 0 : rc;
    }
    json_stream_init(&stream, text, size);
    if (json_stream_next(&stream) != JSON_TOKEN_OBJECT_BEGIN) {
        return 0;
    }
    while (json_stream_next(&stream) == JSON_TOKEN_KEY) {
        if (is_chat_member(&stream)) {
            TRY(take_member(chat, &stream));
        } else if (!json_stream_skip(&stream, json_stream_next(&stream))) {
            break;
        }
        if (stream.error != NULL) {
            break;
        }
    }
    return 0;
}

static int read_jinja(const struct model *model, const char *name, struct chat_entry *entry)
{
    AUTO_FREE char *text = NULL;
    size_t size = 0;

    int rc = chat_read_file(model, name, &text, &size);
    return rc == ERR_NOT_FOUND ? 0 : rc != 0 ? rc : entry_set(entry, text, size);
}

static int chat_make(struct chat **out)
{
    AUTO(chat) struct chat *chat = NULL;

    TRY(mem_new(&chat));
    chat->tokens = json_object();
    if (chat->tokens == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a chat template");
    }
    *out = MOVE(chat);
    return 0;
}

int chat_open(const struct model *model, struct chat **out)
{
    AUTO(chat) struct chat *chat = NULL;

    TRY(chat_make(&chat));
    TRY(read_jinja(model, "chat_template.jinja", &chat->by_default));
    TRY(read_jinja(model, MODEL_TEMPLATES_FOLDER "/tool_use.jinja", &chat->tool_use));
    TRY(read_members(model, "tokenizer_config.json", chat));
    TRY(read_members(model, "special_tokens_map.json", chat));
    TRY(read_members(model, "chat_template.json", chat));
    *out = MOVE(chat);
    return 0;
}

int chat_new(const char *text, size_t size, const json_t *tokens, struct chat **out)
{
    AUTO(chat) struct chat *chat = NULL;
    const char *name;
    json_t *value;

    TRY(chat_make(&chat));
    TRY(entry_set(&chat->by_default, text, size));
    json_object_foreach((json_t *)tokens, name, value)
    {
        TRY(take_special(chat, name, value));
    }
    *out = MOVE(chat);
    return 0;
}

void chat_free(struct chat *chat)
{
    if (chat == NULL) {
        return;
    }
    chat_template_free(chat->by_default.template);
    chat_template_free(chat->tool_use.template);
    free(chat->by_default.refusal);
    free(chat->tool_use.refusal);
    json_decref(chat->tokens);
    free(chat);
}

/* The reasoning of a message under the names that templates read, before what else it says. */
static int alias_reasoning(json_t *message)
{
    static const char *const names[] = {"reasoning_content", "thinking", "reasoning"};
    json_t *reasoning = NULL;

    for (size_t i = 0; reasoning == NULL && i < sizeof(names) / sizeof(names[0]); i++) {
        reasoning = json_object_get(message, names[i]);
    }
    if (reasoning == NULL) {
        return 0;
    }
    AUTO_JSON json_t *first = json_object();
    int rc = json_object_set(first, "thinking", reasoning);
    rc = rc == 0 ? json_object_update(first, message) : rc;
    rc = rc == 0 ? json_object_set(first, "reasoning_content", reasoning) : rc;
    rc = rc == 0 ? json_object_clear(message) : rc;
    rc = rc == 0 ? json_object_update(message, first) : rc;
    return rc == 0 ? 0 : err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for messages");
}

static int copy_messages(const json_t *messages, json_t **out)
{
    AUTO_JSON json_t *list = json_array();
    const json_t *message;
    const char *name;
    json_t *value;
    size_t i;

    json_array_foreach((json_t *)messages, i, message)
    {
        AUTO_JSON json_t *copy = json_object();
        if (!json_is_object(message)) {
            return err_raise(ERR_INVALID_PARAMETER, "messages[%zu] is not an object", i);
        }
        json_object_foreach((json_t *)message, name, value)
        {
            if (!json_is_null(value) && json_object_set(copy, name, value) != 0) {
                return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for messages");
            }
        }
        TRY(alias_reasoning(copy));
        if (json_array_append(list, copy) != 0) {
            return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for messages");
        }
    }
    *out = MOVE(list);
    return 0;
}

static int make_variables(const struct chat_record *record, json_t **out)
{
    AUTO_JSON json_t *variables = json_object();
    json_t *messages = NULL;

    TRY(copy_messages(record->messages, &messages));
    int rc = json_object_set_new(variables, "messages", messages);
    rc |= json_object_set_new(variables, "tools",
                              record->tools != NULL ? json_incref((json_t *)record->tools) : json_null());
    rc |= json_object_set_new(variables, "documents", json_null());
    rc |= json_object_set_new(variables, "add_generation_prompt", json_boolean(record->generation_prompt));
    rc |= record->variables != NULL ? json_object_update(variables, (json_t *)record->variables) : 0;
    if (rc != 0) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for messages");
    }
    *out = MOVE(variables);
    return 0;
}

int chat_render(const struct chat *chat, const struct chat_record *record, char **text, size_t *size)
{
    AUTO_JSON json_t *variables = NULL;
    bool tools = record->tools != NULL && (chat->tool_use.template != NULL || chat->tool_use.refusal != NULL);
    const struct chat_entry *entry = tools ? &chat->tool_use : &chat->by_default;

    if (entry->template == NULL) {
        return entry->refusal != NULL
                   ? err_raise(ERR_INVALID_CHAT_TEMPLATE, "%s", entry->refusal)
                   : err_raise(ERR_INVALID_CHAT_TEMPLATE, "the model has no chat template: send text or input_ids");
    }
    TRY(make_variables(record, &variables));
    return chat_template_render(entry->template, variables, chat->tokens, text, size);
}
