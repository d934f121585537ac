/* quantd-chat TEMPLATE < NDJSON: one object of variables in, one JSON string of the rendered text out, or an object
 * {"error": ".."}. The interop tests hold its output to jinja2's. */

#include "base/err.h"
#include "base/fs.h"
#include "models/chat_template.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

static json_t *render_line(const struct chat_template *chat, const char *line, size_t size)
{
    json_error_t error;
    json_t *variables = json_loadb(line, size, 0, &error), *out = NULL;
    char *text = NULL;
    size_t length = 0;

    if (chat != NULL && chat_template_render(chat, variables, NULL, &text, &length) == 0) {
        out = json_stringn(text, length);
    } else {
        out = json_pack("{s:s}", "error", err_last()->message);
    }
    free(text);
    json_decref(variables);
    return out;
}

int main(int argc, char **argv)
{
    struct chat_template *chat = NULL;
    char *text = NULL, *line = NULL;
    size_t size, capacity = 0;
    ssize_t length;

    if (argc != 2 || fs_read_file(argv[1], CHAT_TEMPLATE_BYTES_MAX, &text, &size) != 0) {
        fprintf(stderr, "usage: quantd-chat TEMPLATE < NDJSON\n");
        return 2;
    }
    (void)chat_template_new(text, size, &chat); /* a refusal is the answer to every line */
    while ((length = getline(&line, &capacity, stdin)) > 0) {
        json_t *out = render_line(chat, line, (size_t)length);
        json_dumpf(out, stdout, JSON_ENCODE_ANY);
        putchar('\n');
        json_decref(out);
    }
    chat_template_free(chat);
    free(line);
    free(text);
    return 0;
}
