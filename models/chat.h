#pragma once
/* A checkpoint's chat templates with its special tokens: messages of a record to the text that the model was trained
 * on, as apply_chat_template of transformers renders them.
 *
 * The default template is chat_template.jinja, else the chat_template of tokenizer_config.json (a text, or "default" of
 * a list of named ones), else that of chat_template.json. Where there is one named "tool_use", it renders records with
 * tools. Variables are messages, tools, documents, add_generation_prompt, every *_token of tokenizer_config.json and
 * of special_tokens_map.json, and what the record adds. */

#include "base/cleanup.h"
#include "models/model.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

struct chat; /* immutable once open */

/* What a record renders. Borrowed; messages is a list, tools one or NULL, variables an object or NULL. */
struct chat_record {
    const json_t *messages, *tools, *variables;
    bool generation_prompt;
};

/* Read the templates of a checkpoint. One that is missing, damaged or not supported is not a failure: chat_render says
 * it. Fails where a file cannot be read or memory runs out. */
int chat_open(const struct model *model, struct chat **out);
/* The same of a template's text and an object of tokens, or NULL. */
int chat_new(const char *text, size_t size, const json_t *tokens, struct chat **out);
void chat_free(struct chat *chat);
CLEANUP_FREE(chat, struct chat, chat_free)

/* Render a record. *text is the caller's to free, of *size bytes. ERR_INVALID_CHAT_TEMPLATE says why the checkpoint has
 * no template that renders it, ERR_INVALID_PARAMETER why this record is refused, ERR_PAYLOAD_TOO_LARGE that it exceeds
 * the limits of a text. Any thread. */
int chat_render(const struct chat *chat, const struct chat_record *record, char **text, size_t *size);
