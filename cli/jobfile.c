/* Job files. libyaml parses YAML into events; a stack of the containers that are open builds the tree. */

#include "cli/jobfile.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/fs.h"
#include "base/json.h"
#include "base/mem.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

#define JOBFILE_DEPTH 32
#define JOBFILE_VALUES_MAX 1000000

CLEANUP_DEINIT(yaml_parser, yaml_parser_t, yaml_parser_delete)
CLEANUP_DEINIT(yaml_event, yaml_event_t, yaml_event_delete)

/* --- scalars */

static bool is_number(const char *text, size_t size, bool *integer)
{
    size_t at = text[0] == '-' || text[0] == '+', digits = 0;

    *integer = true;
    for (; at < size && isdigit((unsigned char)text[at]); at++) {
        digits++;
    }
    if (at < size && text[at] == '.') {
        *integer = false;
        for (at++; at < size && isdigit((unsigned char)text[at]); at++) {
            digits++;
        }
    }
    if (digits > 0 && at < size && (text[at] == 'e' || text[at] == 'E')) {
        *integer = false;
        at++;
        at += at < size && (text[at] == '-' || text[at] == '+');
        digits = at < size && isdigit((unsigned char)text[at]) ? 1 : 0;
        while (at < size && isdigit((unsigned char)text[at])) {
            at++;
        }
    }
    return digits > 0 && at == size;
}

static bool is_word(const char *text, size_t size, const char *lower)
{
    static const char *const shapes[] = {"null", "Null", "NULL", "true", "True", "TRUE", "false", "False", "FALSE"};

    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
        if (strcasecmp(shapes[i], lower) == 0 && strlen(shapes[i]) == size && memcmp(shapes[i], text, size) == 0) {
            return true;
        }
    }
    return false;
}

json_t *jobfile_scalar(const char *text, size_t size)
{
    char number[64];
    bool integer;

    if (size == 0 || (size == 1 && text[0] == '~') || is_word(text, size, "null")) {
        return json_null();
    }
    if (is_word(text, size, "true") || is_word(text, size, "false")) {
        return json_boolean(tolower((unsigned char)text[0]) == 't');
    }
    if (size < sizeof(number) && is_number(text, size, &integer)) {
        memcpy(number, text, size);
        number[size] = '\0';
        errno = 0;
        long long whole = strtoll(number, NULL, 10);
        if (integer && errno == 0) {
            return json_integer(whole);
        }
        double real = strtod(number, NULL);
        if (isfinite(real)) {
            return json_real(real);
        }
    }
    return json_stringn(text, size);
}

/* --- the tree */

struct build {
    const char *name;
    json_t *top;
    json_t *open[JOBFILE_DEPTH]; /* borrowed: each is in the one before it, the first is top */
    char *key;                   /* of the open mapping, until its value comes */
    int depth;
    size_t values;
};

static int fail_at(const struct build *build, const yaml_mark_t *mark, const char *why)
{
    return err_raise(ERR_CONFIG, "%s:%zu: %s", build->name, mark->line + 1, why);
}

/* Take value (a new reference) where the next value belongs. */
static int put_value_take(struct build *build, const yaml_event_t *event, json_t *value)
{
    json_t *parent = build->depth > 0 ? build->open[build->depth - 1] : NULL;

    if (value == NULL) {
        return fail_at(build, &event->start_mark, "the text is not UTF-8, or there is no memory");
    }
    if (++build->values > JOBFILE_VALUES_MAX) {
        json_decref(value);
        return fail_at(build, &event->start_mark, "the file has too many values");
    }
    if (parent == NULL) {
        build->top = value;
        return 0;
    }
    if (json_is_array(parent)) {
        return json_array_append_new(parent, value) == 0 ? 0 : err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory");
    }
    int rc = json_object_set_new(parent, build->key, value);
    free(build->key);
    build->key = NULL;
    return rc == 0 ? 0 : fail_at(build, &event->start_mark, "the key is not UTF-8");
}

static int put_key(struct build *build, const yaml_event_t *event)
{
    const char *text = (const char *)event->data.scalar.value;
    size_t size = event->data.scalar.length;

    if (memchr(text, '\0', size) != NULL) {
        return fail_at(build, &event->start_mark, "a key has a NUL");
    }
    if (strcmp(text, "<<") == 0 && event->data.scalar.style == YAML_PLAIN_SCALAR_STYLE) {
        return fail_at(build, &event->start_mark, "merge keys are not supported");
    }
    if (json_object_get(build->open[build->depth - 1], text) != NULL) {
        return err_raise(ERR_CONFIG, "%s:%zu: \"%.80s\" is given twice", build->name, event->start_mark.line + 1, text);
    }
    return mem_strdup(&build->key, text);
}

static int put_scalar(struct build *build, const yaml_event_t *event)
{
    const char *text = (const char *)event->data.scalar.value;
    size_t size = event->data.scalar.length;
    bool in_mapping = build->depth > 0 && json_is_object(build->open[build->depth - 1]);

    if (event->data.scalar.anchor != NULL || event->data.scalar.tag != NULL) {
        return fail_at(build, &event->start_mark, "anchors and tags are not supported");
    }
    if (in_mapping && build->key == NULL) {
        return put_key(build, event);
    }
    bool plain = event->data.scalar.style == YAML_PLAIN_SCALAR_STYLE;
    return put_value_take(build, event, plain ? jobfile_scalar(text, size) : json_stringn(text, size));
}

static int open_container(struct build *build, const yaml_event_t *event)
{
    bool mapping = event->type == YAML_MAPPING_START_EVENT;
    const yaml_char_t *anchor = mapping ? event->data.mapping_start.anchor : event->data.sequence_start.anchor;
    const yaml_char_t *tag = mapping ? event->data.mapping_start.tag : event->data.sequence_start.tag;

    if (anchor != NULL || tag != NULL) {
        return fail_at(build, &event->start_mark, "anchors and tags are not supported");
    }
    if (build->depth > 0 && json_is_object(build->open[build->depth - 1]) && build->key == NULL) {
        return fail_at(build, &event->start_mark, "a key must be text");
    }
    if (build->depth >= JOBFILE_DEPTH) {
        return fail_at(build, &event->start_mark, "nested too deep");
    }
    json_t *container = mapping ? json_object() : json_array();
    TRY(put_value_take(build, event, container));
    build->open[build->depth++] = container;
    return 0;
}

static int take_event(struct build *build, const yaml_event_t *event)
{
    switch (event->type) {
    case YAML_DOCUMENT_START_EVENT:
        return build->top == NULL ? 0 : fail_at(build, &event->start_mark, "a second document begins");
    case YAML_ALIAS_EVENT:
        return fail_at(build, &event->start_mark, "aliases are not supported");
    case YAML_SCALAR_EVENT:
        return put_scalar(build, event);
    case YAML_SEQUENCE_START_EVENT:
    case YAML_MAPPING_START_EVENT:
        return open_container(build, event);
    case YAML_SEQUENCE_END_EVENT:
    case YAML_MAPPING_END_EVENT:
        build->depth--;
        return 0;
    case YAML_NO_EVENT:
    case YAML_STREAM_START_EVENT:
    case YAML_STREAM_END_EVENT:
    case YAML_DOCUMENT_END_EVENT:
        return 0;
    }
    return 0;
}

static int parse_events(struct build *build, yaml_parser_t *parser)
{
    for (bool end = false; !end;) {
        AUTO(yaml_event) yaml_event_t event = {0};
        if (yaml_parser_parse(parser, &event) == 0) {
            return err_raise(ERR_CONFIG, "%s:%zu: %s", build->name, parser->problem_mark.line + 1,
                             parser->problem != NULL ? parser->problem : "not YAML");
        }
        end = event.type == YAML_STREAM_END_EVENT;
        TRY(take_event(build, &event));
    }
    return 0;
}

static int parse_yaml(const char *name, const char *text, size_t size, json_t **out)
{
    AUTO(yaml_parser) yaml_parser_t parser = {0};
    struct build build = {.name = name};

    if (yaml_parser_initialize(&parser) == 0) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for YAML");
    }
    yaml_parser_set_input_string(&parser, (const unsigned char *)text, size);
    int rc = parse_events(&build, &parser);
    free(build.key);
    if (rc != 0) {
        json_decref(build.top);
        return rc;
    }
    *out = build.top;
    return 0;
}

/* --- both */

int jobfile_parse(const char *name, const char *text, size_t size, json_t **out)
{
    AUTO_JSON json_t *value = NULL;
    size_t at = 0;

    while (at < size && isspace((unsigned char)text[at])) {
        at++;
    }
    if (at < size && text[at] == '{') {
        if (json_parse(text, size, JOBFILE_DEPTH, &value) != 0) {
            char why[512];
            snprintf(why, sizeof(why), "%s", err_last()->message);
            return err_raise(ERR_CONFIG, "%s: %s", name, why);
        }
    } else {
        TRY(parse_yaml(name, text, size, &value));
    }
    if (!json_is_object(value)) {
        return err_raise(ERR_CONFIG, "%s: a job file has members such as \"model: NAME\" and \"method: gptq\"", name);
    }
    *out = MOVE(value);
    return 0;
}

static int read_stream(FILE *in, char **text, size_t *size)
{
    AUTO_FREE char *buffer = NULL;

    TRY(mem_buffer(&buffer, JOBFILE_MAX + 1));
    size_t n = fread(buffer, 1, JOBFILE_MAX + 1, in);
    if (ferror(in) != 0 || n > JOBFILE_MAX) {
        return err_raise(ERR_CONFIG, "standard input is not a job file of at most %zu MiB", JOBFILE_MAX >> 20);
    }
    *text = MOVE(buffer);
    *size = n;
    return 0;
}

int jobfile_read(const char *path, json_t **out)
{
    AUTO_FREE char *text = NULL;
    size_t size = 0;
    bool standard = strcmp(path, "-") == 0;

    TRY(standard ? read_stream(stdin, &text, &size) : fs_read_file(path, JOBFILE_MAX, &text, &size));
    return jobfile_parse(standard ? "standard input" : path, text, size, out);
}
