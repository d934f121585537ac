/* A chat template and the variables it renders, as JSON: the input is cut at its first NUL. What is rendered must be
 * UTF-8, and the same text when it is rendered again. */

#include "base/json.h"
#include "models/chat_template.h"
#include "models/tokenizer_internal.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void render(const struct chat_template *chat, const json_t *variables)
{
    char *text = NULL, *again = NULL;
    size_t length = 0, length_again = 0;

    if (chat_template_render(chat, variables, NULL, &text, &length) == 0) {
        if (!tokenizer_utf8_valid(text, length) ||
            chat_template_render(chat, variables, NULL, &again, &length_again) != 0 || length != length_again ||
            memcmp(text, again, length) != 0) {
            abort();
        }
    }
    free(text);
    free(again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char plain[] =
        "{\"messages\": [{\"role\": \"user\", \"content\": \" H\\u00e9 \"}], \"l\": [3, 1.5, null], "
        "\"d\": {\"a\": {\"b\": true}}, \"s\": \"a,b\\n c\"}";
    const char *template = (const char *)data, *cut = size > 0 ? memchr(template, '\0', size) : NULL;
    size_t template_size = cut != NULL ? (size_t)(cut - template) : size;
    struct chat_template *chat = NULL;
    json_t *variables = NULL;

    if (chat_template_new(template, template_size, &chat) != 0) {
        return 0;
    }
    if (cut == NULL || json_parse(cut + 1, size - template_size - 1, 32, &variables) != 0) {
        variables = json_loads(plain, 0, NULL);
    }
    render(chat, json_is_object(variables) ? variables : NULL);
    json_decref(variables);
    chat_template_free(chat);
    return 0;
}
