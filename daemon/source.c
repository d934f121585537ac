/* Option text from the environment and from the YAML file.
 *
 * The YAML schema is made from the option table: each option is an optional scalar or a sequence of scalars, so
 * libcyaml checks structure and names (with line numbers), and the values are parsed by the code that parses every
 * source's. libcyaml reports errors through a log callback; its first sentence and the first line number become our
 * message. */

#include "daemon/source.h"

#include "base/err.h"
#include "base/mem.h"

#include <cyaml/cyaml.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SOURCE_TEXT_MAX 4096

static void free_item(struct source_item *item)
{
    free(item->scalar);
    for (unsigned i = 0; i < item->count; i++) {
        free(item->list[i]);
    }
    free((void *)item->list);
    memset(item, 0, sizeof(*item));
}

void source_deinit(struct source *source)
{
    for (size_t i = 0; i < SOURCE_ROWS_MAX; i++) {
        free_item(&source->items[i]);
    }
}

int source_set(struct source *source, size_t row, const char *text, bool list)
{
    struct source_item *item = &source->items[row];

    if (strlen(text) > SOURCE_TEXT_MAX || item->count >= SOURCE_VALUES_MAX) {
        return err_raise(ERR_CONFIG, "%s: a value is too long or given too often", source->name);
    }
    AUTO_FREE char *copy = NULL;
    TRY(mem_strdup(&copy, text));
    if (list) {
        TRY(mem_resize(&item->list, item->count + 1));
        item->list[item->count++] = MOVE(copy);
    } else {
        free(item->scalar);
        item->scalar = MOVE(copy);
    }
    return 0;
}

static int set_items(struct source *source, size_t row, const char *text, char separator)
{
    AUTO_FREE char *copy = NULL;
    const char separators[2] = {separator, '\0'};

    TRY(mem_strdup(&copy, text));
    char *rest = copy;
    for (char *item = strsep(&rest, separators); item != NULL; item = strsep(&rest, separators)) {
        if (item[0] != '\0') {
            TRY(source_set(source, row, item, true));
        }
    }
    return 0;
}

int source_read_environment(struct source *source, const struct source_key *keys, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        const char *text = getenv(keys[i].name);
        if (text != NULL && text[0] != '\0') {
            TRY(keys[i].list ? set_items(source, i, text, keys[i].separator) : source_set(source, i, text, false));
        }
    }
    return 0;
}

/* libcyaml's error: the first sentence, and the line of the last item that it had read. */
struct yaml_error {
    char sentence[256];
    long line; /* 0 = unknown */
};

static void __attribute__((format(printf, 3, 0)))
on_yaml_log(cyaml_log_t level, void *context, const char *format, va_list arguments)
{
    struct yaml_error *error = context;
    char text[256];

    if (level < CYAML_LOG_WARNING) {
        return;
    }
    vsnprintf(text, sizeof(text), format, arguments);
    text[strcspn(text, "\n")] = '\0';
    for (char *at = text; *at != '\0'; at++) { /* it may quote bytes of the file */
        *at = (unsigned char)*at < 0x20 || *at == 0x7f ? '?' : *at;
    }
    const char *place = strstr(text, "(line: ");
    if (place != NULL && error->line == 0) {
        error->line = strtol(place + 7, NULL, 10);
    }
    if (error->sentence[0] == '\0') {
        const char *sentence = strncmp(text, "Load: ", 6) == 0 ? text + 6 : text;
        snprintf(error->sentence, sizeof(error->sentence), "%s", sentence);
    }
}

/* Find the line of an unknown key, because libcyaml reports the line before it. Left alone when the key is not found.
 */
static void find_key(const char *path, struct yaml_error *error)
{
    static const char words[] = "Unexpected key: ";
    AUTO_FREE char *line = NULL;
    size_t capacity = 0;

    AUTO_FILE FILE *file = strncmp(error->sentence, words, sizeof(words) - 1) == 0 ? fopen(path, "re") : NULL;
    const char *key = error->sentence + sizeof(words) - 1;
    for (long number = 1; file != NULL && getline(&line, &capacity, file) > 0; number++) {
        const char *at = line + strspn(line, " \"'");
        if (strncmp(at, key, strlen(key)) == 0 && strchr(" :\"'", at[strlen(key)]) != NULL) {
            error->line = number;
            break;
        }
    }
}

static int raise_yaml_error(const char *path, cyaml_err_t outcome, struct yaml_error *error)
{
    const char *sentence = error->sentence[0] != '\0' ? error->sentence : cyaml_strerror(outcome);

    if (outcome == CYAML_ERR_FILE_OPEN) {
        return err_raise(ERR_CONFIG, "%s: the file cannot be opened", path);
    }
    find_key(path, error);
    return error->line > 0 ? err_raise(ERR_CONFIG, "%s:%ld: %s", path, error->line, sentence)
                           : err_raise(ERR_CONFIG, "%s: %s", path, sentence);
}

static const cyaml_schema_value_t text_value = {
    .type = CYAML_STRING,
    .flags = CYAML_FLAG_POINTER,
    .data_size = sizeof(char),
    .string = {.min = 0, .max = SOURCE_TEXT_MAX},
};

static void make_fields(const struct source_key *keys, size_t count, cyaml_schema_field_t *fields)
{
    for (size_t i = 0; i < count; i++) {
        uint32_t base = (uint32_t)(i * sizeof(struct source_item));
        fields[i].key = keys[i].name;
        if (keys[i].list) {
            fields[i].data_offset = base + (uint32_t)offsetof(struct source_item, list);
            fields[i].count_offset = base + (uint32_t)offsetof(struct source_item, count);
            fields[i].count_size = sizeof(((struct source_item *)NULL)->count);
            fields[i].value = (cyaml_schema_value_t){
                .type = CYAML_SEQUENCE,
                .flags = (enum cyaml_flag)(CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL),
                .data_size = sizeof(char *),
                .sequence = {.entry = &text_value, .min = 0, .max = SOURCE_VALUES_MAX},
            };
        } else {
            fields[i].data_offset = base + (uint32_t)offsetof(struct source_item, scalar);
            fields[i].value = text_value;
            fields[i].value.flags = (enum cyaml_flag)(CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL);
        }
    }
}

static int copy_items(struct source *source, const struct source_item *items, const struct source_key *keys,
                      size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (!keys[i].list && items[i].scalar != NULL) {
            TRY(source_set(source, i, items[i].scalar, false));
        }
        for (unsigned k = 0; keys[i].list && k < items[i].count; k++) {
            TRY(source_set(source, i, items[i].list[k], true));
        }
    }
    return 0;
}

int source_read_yaml(struct source *source, const char *path, const struct source_key *keys, size_t count)
{
    cyaml_schema_field_t fields[SOURCE_ROWS_MAX + 1] = {{0}};
    struct yaml_error error = {{0}, 0};
    struct source_item *items = NULL;

    make_fields(keys, count, fields);
    const cyaml_schema_value_t top = {
        .type = CYAML_MAPPING,
        .flags = CYAML_FLAG_POINTER,
        .data_size = SOURCE_ROWS_MAX * sizeof(struct source_item),
        .mapping = {.fields = fields},
    };
    const cyaml_config_t cyaml = {
        .log_fn = on_yaml_log,
        .log_ctx = &error,
        .mem_fn = cyaml_mem,
        .log_level = CYAML_LOG_WARNING,
        .flags = CYAML_CFG_NO_ALIAS,
    };
    cyaml_err_t outcome = cyaml_load_file(path, &cyaml, &top, (cyaml_data_t **)&items, NULL);
    if (outcome != CYAML_OK) {
        return raise_yaml_error(path, outcome, &error);
    }
    int rc = items != NULL ? copy_items(source, items, keys, count) : 0;
    cyaml_free(&cyaml, &top, items, 0);
    return rc;
}
