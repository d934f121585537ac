/* quantd-tokenize TOKENIZER_JSON [--special] < NDJSON: one line {"text": ".."} in, one JSON array of ids out. The
 * interop tests hold its output to the reference implementation. */

#include "base/err.h"
#include "base/fs.h"
#include "models/tokenizer.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FILE_MAX (256u << 20)

static int fail(int rc)
{
    fprintf(stderr, "%s: %s\n", err_api_code(rc), err_last()->message);
    return EXIT_FAILURE;
}

static int tokenize_line(const struct tokenizer *tokenizer, struct tokenizer_scratch *scratch, const char *line,
                         size_t size, bool special)
{
    const int32_t *ids;
    size_t count;
    json_error_t error;
    json_t *record = json_loadb(line, size, JSON_ALLOW_NUL, &error);
    const json_t *text = json_object_get(record, "text");

    if (!json_is_string(text)) {
        json_decref(record);
        return err_raise(ERR_INVALID_JSON, "a line is not {\"text\": ..}: %s", error.text);
    }
    int rc =
        tokenizer_encode(tokenizer, scratch, json_string_value(text), json_string_length(text), special, &ids, &count);
    json_decref(record);
    if (rc != 0) {
        return rc;
    }
    putchar('[');
    for (size_t i = 0; i < count; i++) {
        printf(i == 0 ? "%d" : ",%d", ids[i]);
    }
    puts("]");
    return 0;
}

int main(int argc, char **argv)
{
    struct tokenizer *tokenizer = NULL;
    struct tokenizer_scratch *scratch = NULL;
    char *json = NULL, *line = NULL;
    size_t size, capacity = 0;
    ssize_t length;
    bool special = argc == 3 && strcmp(argv[2], "--special") == 0;

    if (argc < 2 || argc > 3 || (argc == 3 && !special)) {
        fprintf(stderr, "usage: quantd-tokenize TOKENIZER_JSON [--special] < NDJSON\n");
        return 2;
    }
    int rc = fs_read_file(argv[1], FILE_MAX, &json, &size);
    if (rc == 0) {
        rc = tokenizer_new(json, size, &tokenizer);
    }
    if (rc == 0) {
        rc = tokenizer_scratch_new(tokenizer, &scratch);
    }
    while (rc == 0 && (length = getline(&line, &capacity, stdin)) >= 0) {
        rc = tokenize_line(tokenizer, scratch, line, (size_t)length, special);
    }
    tokenizer_scratch_free(scratch);
    tokenizer_free(tokenizer);
    free(json);
    free(line);
    return rc != 0 ? fail(rc) : EXIT_SUCCESS;
}
