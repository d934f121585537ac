/* Chat templates, wherever a checkpoint keeps them.
 *
 * chat_template.jinja with the files of additional_chat_templates/ beside it stands above the chat_template of
 * tokenizer_config.json, and that above chat_template.json, as transformers reads them; the next is looked at while
 * there is no default. One without a name, or named "default", is the runtime's tokenizer.chat_template; others are
 * tokenizer.chat_template.<name>, listed in tokenizer.chat_templates. */

#include "formats/gguf.h"

#include "base/err.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TEMPLATES_MAX 64

struct template
{
    char name[GGUF_TEMPLATE_NAME_MAX];
    const char *text;
    size_t size;
};

struct list {
    struct template items[TEMPLATES_MAX];
    size_t count;
};

/* Letters and digits, as the reference converter names them; what comes out equal is told apart by the first. */
static int add(struct list *list, const char *name, const char *text, size_t size)
{
    struct template *item = &list->items[list->count];
    size_t i = 0;

    if (text == NULL || size == 0 || name[0] == '\0') {
        return 0;
    }
    if (list->count == TEMPLATES_MAX) {
        return gguf_refuse_tokenizer("it has more than 64 chat templates");
    }
    for (; name[i] != '\0' && i < sizeof(item->name) - 1; i++) {
        item->name[i] = (char)(isalnum((unsigned char)name[i]) ? name[i] : '_');
    }
    item->name[i] = '\0';
    for (size_t k = 0; k < list->count; k++) {
        if (strcmp(list->items[k].name, item->name) == 0) {
            return 0;
        }
    }
    item->text = text;
    item->size = size;
    list->count++;
    return 0;
}

/* A chat_template of JSON: a string, a list of {"name", "template"}, or an object of names. */
static int add_json(struct list *list, const json_t *value)
{
    const char *name;
    json_t *item;
    size_t i;
    int rc = 0;

    if (json_is_string(value)) {
        return add(list, "default", json_string_value(value), json_string_length(value));
    }
    json_array_foreach((json_t *)value, i, item)
    {
        const json_t *text = json_object_get(item, "template");
        name = json_string_value(json_object_get(item, "name"));
        rc = rc != 0 ? rc : add(list, name != NULL ? name : "", json_string_value(text), json_string_length(text));
    }
    json_object_foreach((json_t *)value, name, item)
    {
        rc = rc != 0 ? rc : add(list, name, json_string_value(item), json_string_length(item));
    }
    return rc;
}

static bool has_default(const struct list *list)
{
    size_t i = 0;

    while (i < list->count && strcmp(list->items[i].name, "default") != 0) {
        i++;
    }
    return i < list->count;
}

static int templates_collect(const struct gguf_tokenizer_files *files, const json_t *config, json_t **parsed,
                             struct list *list)
{
    static const char *const names[] = {"chat_template", NULL};
    int rc = add(list, "default", files->jinja.data, files->jinja.size);

    for (size_t i = 0; rc == 0 && i < files->template_count; i++) {
        rc = add(list, files->templates[i].name, files->templates[i].text.data, files->templates[i].text.size);
    }
    if (rc == 0 && !has_default(list)) {
        rc = add_json(list, json_object_get(config, "chat_template"));
    }
    if (rc == 0 && !has_default(list) && files->json.data != NULL) {
        rc = gguf_read_members(&files->json, "chat_template.json", names, parsed);
        rc = rc != 0 ? rc : add_json(list, json_object_get(*parsed, "chat_template"));
    }
    return rc;
}

int gguf_put_templates(struct gguf_buffer *buffer, const struct gguf_tokenizer_files *files, const json_t *config)
{
    struct list *list = calloc(1, sizeof(*list));
    json_t *parsed = NULL;
    uint64_t named = 0;

    int rc = list == NULL ? err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for chat templates")
                          : templates_collect(files, config, &parsed, list);
    for (size_t i = 0; rc == 0 && i < list->count; i++) {
        char key[GGUF_TEMPLATE_NAME_MAX + 32] = "tokenizer.chat_template";
        if (strcmp(list->items[i].name, "default") != 0) {
            snprintf(key, sizeof(key), "tokenizer.chat_template.%s", list->items[i].name);
            named++;
        }
        gguf_key_text(buffer, key, list->items[i].text, list->items[i].size);
    }
    if (rc == 0 && named > 0) {
        gguf_key_array(buffer, "tokenizer.chat_templates", GGUF_STRING, named);
        for (size_t i = 0; i < list->count; i++) {
            if (strcmp(list->items[i].name, "default") != 0) {
                gguf_put_string(buffer, list->items[i].name, strlen(list->items[i].name));
            }
        }
    }
    json_decref(parsed);
    free(list);
    return rc;
}
