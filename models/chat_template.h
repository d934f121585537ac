#pragma once
/* Chat templates: the Jinja text with which a checkpoint turns messages into the text that it was trained on.
 *
 * The subset of Jinja that published templates use, with the results of jinja2 as transformers sets it up
 * (trim_blocks, lstrip_blocks, loopcontrols, a sandbox that changes nothing it was given); docs/chat-templates.md
 * lists it. A construct outside of it is refused with its line and its name, never skipped. A template is data of a
 * checkpoint: parsing and rendering are bounded in depth, steps, memory and output, and reach no file and no clock. */

#include "base/cleanup.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#define CHAT_TEMPLATE_BYTES_MAX (1u << 20) /* of a template */
#define CHAT_OUTPUT_MAX (16u << 20)        /* of a rendered text */

struct chat_template; /* immutable once made */

/* Parse a template's text. ERR_INVALID_CHAT_TEMPLATE says what is wrong or not supported, and in which line. */
int chat_template_new(const char *text, size_t size, struct chat_template **out);
void chat_template_free(struct chat_template *chat);
CLEANUP_FREE(chat_template, struct chat_template, chat_template_free)

/* Render with the members of the objects `variables` and `tokens` (either may be NULL) as global variables; a name in
 * both has the value of `variables`. *text is the caller's to free, NUL-terminated, of *size bytes.
 * ERR_INVALID_PARAMETER where the template raises an error, ERR_PAYLOAD_TOO_LARGE where it needs more steps, depth,
 * memory or output than a text is given; both with the line. Any thread. */
int chat_template_render(const struct chat_template *chat, const json_t *variables, const json_t *tokens, char **text,
                         size_t *size);
