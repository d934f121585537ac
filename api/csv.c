/* CSV from the same column list that makes the rows, so that titles and values match.
 *
 * Text that a spreadsheet would run as a formula (it begins with = + - @ or a control byte) gets an apostrophe
 * in front: module names come from checkpoints, which are not trusted. Numbers are unchanged. */

#include "api/csv.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void csv_put_text(FILE *out, const char *text)
{
    bool formula = text[0] != '\0' && strchr("=+-@\t\r", text[0]) != NULL;
    if (!formula && strpbrk(text, ",\"\r\n") == NULL) {
        fputs(text, out);
        return;
    }
    fputs(formula ? "\"'" : "\"", out);
    for (; *text != '\0'; text++) {
        if (*text == '"') {
            fputc('"', out);
        }
        fputc(*text, out);
    }
    fputc('"', out);
}

static void put_json(FILE *out, const json_t *value)
{
    char *text = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY);
    if (text != NULL && (json_is_object(value) || json_is_array(value))) {
        csv_put_text(out, text);
    } else if (text != NULL) {
        fputs(text, out);
    }
    free(text);
}

char *csv_write(const char *const *columns, const json_t *rows, size_t *size)
{
    char *text = NULL;
    FILE *out = open_memstream(&text, size);
    if (out == NULL) {
        return NULL;
    }
    for (size_t i = 0; columns[i] != NULL; i++) {
        fprintf(out, "%s%s", i > 0 ? "," : "", columns[i]);
    }
    fputs("\r\n", out);
    size_t index;
    json_t *row;
    json_array_foreach(rows, index, row)
    {
        for (size_t i = 0; columns[i] != NULL; i++) {
            const json_t *value = json_object_get(row, columns[i]);
            if (i > 0) {
                fputc(',', out);
            }
            if (json_is_string(value)) {
                csv_put_text(out, json_string_value(value));
            } else if (value != NULL && !json_is_null(value)) {
                put_json(out, value);
            }
        }
        fputs("\r\n", out);
    }
    bool failed = ferror(out) != 0;
    if (fclose(out) != 0 || failed) {
        free(text);
        return NULL;
    }
    return text;
}
