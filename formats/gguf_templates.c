/* Chat templates, wherever a checkpoint has them.
 *
 * As in transformers, chat_template.jinja with the files of additional_chat_templates/ comes before the chat_template
 * of tokenizer_config.json, and that before chat_template.json; the next is read while there is no default. One without
 * a name, or named "default", is the runtime's tokenizer.chat_template; others are
 * tokenizer.chat_template.<name>, listed in tokenizer.chat_templates. */

#include "formats/gguf.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/mem.h"

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
    json_t *parsed; /* chat_template.json, or NULL */
};

/* Letters and digits, as the reference converter names them; of equal names the first counts. */
static int templates_add(struct list *list, const char *name, const char *text, size_t size)
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
static int templates_add_json(struct list *list, const json_t *value)
{
    const char *name;
    json_t *item;
    size_t i;

    if (json_is_string(value)) {
        return templates_add(list, "default", json_string_value(value), json_string_length(value));
    }
    json_array_foreach((json_t *)value, i, item)
    {
        const json_t *text = json_object_get(item, "template");
        name = json_string_value(json_object_get(item, "name"));
        TRY(templates_add(list, name != NULL ? name : "", json_string_value(text), json_string_length(text)));
    }
    json_object_foreach((json_t *)value, name, item)
    {
        TRY(templates_add(list, name, json_string_value(item), json_string_length(item)));
    }
    return 0;
}

static bool templates_have_default(const struct list *list)
{
    size_t i = 0;

    while (i < list->count && strcmp(list->items[i].name, "default") != 0) {
        i++;
    }
    return i < list->count;
}

static int templates_collect(const struct gguf_tokenizer_files *files, const json_t *config, struct list *list)
{
    static const char *const names[] = {"chat_template", NULL};

    TRY(templates_add(list, "default", files->jinja.data, files->jinja.size));
    for (size_t i = 0; i < files->template_count; i++) {
        const struct gguf_named_text *template = &files->templates[i];
        TRY(templates_add(list, template->name, template->text.data, template->text.size));
    }
    if (!templates_have_default(list)) {
        TRY(templates_add_json(list, json_object_get(config, "chat_template")));
    }
    if (!templates_have_default(list) && files->json.data != NULL) {
        TRY(gguf_read_members(&files->json, "chat_template.json", names, &list->parsed));
        TRY(templates_add_json(list, json_object_get(list->parsed, "chat_template")));
    }
    return 0;
}

static void templates_free(struct list *list)
{
    json_decref(list->parsed);
    free(list);
}
CLEANUP_FREE(list, struct list, templates_free)

int gguf_put_templates(struct gguf_buffer *buffer, const struct gguf_tokenizer_files *files, const json_t *config)
{
    AUTO(list) struct list *list = NULL;
    uint64_t named = 0;

    TRY(mem_new(&list));
    TRY(templates_collect(files, config, list));
    for (size_t i = 0; i < list->count; i++) {
        char key[GGUF_TEMPLATE_NAME_MAX + 32] = "tokenizer.chat_template";
        if (strcmp(list->items[i].name, "default") != 0) {
            snprintf(key, sizeof(key), "tokenizer.chat_template.%s", list->items[i].name);
            named++;
        }
        gguf_key_text(buffer, key, list->items[i].text, list->items[i].size);
    }
    if (named > 0) {
        gguf_key_array(buffer, "tokenizer.chat_templates", GGUF_STRING, named);
        for (size_t i = 0; i < list->count; i++) {
            if (strcmp(list->items[i].name, "default") != 0) {
                gguf_put_string(buffer, list->items[i].name, strlen(list->items[i].name));
            }
        }
    }
    return 0;
}
