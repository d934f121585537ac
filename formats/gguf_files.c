/* The files that a tokenizer is made of, and what tokenizer_config.json says.
 *
 * A model without tokenizer.json takes ids alone, and its GGUF has "no_vocab"; but where a tokenizer lies there in
 * another form, such a file would be of no use and nobody would have been told: it is refused. */

#include "formats/gguf.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/fs.h"
#include "base/json.h"
#include "base/json_stream.h"
#include "base/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SIDE_FILE_BYTES_MAX ((size_t)16 << 20)
#define MEMBER_BYTES_MAX ((size_t)4 << 20) /* of one member of tokenizer_config.json */
#define MEMBER_DEPTH 8
#define TEMPLATE_SUFFIX ".jinja"

/* Tokenizers in forms that nothing here reads. */
static const char *const other_forms[] = {
    "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt",
    "merges.txt",      "tekken.json",  "tiktoken.model",
};

static int gguf_read_side_file(const struct model *model, const char *name, struct gguf_text *out)
{
    AUTO_CLOSE int fd = -1;

    TRY(model_open_file(model, name, &fd));
    int rc = fs_read_fd(fd, SIDE_FILE_BYTES_MAX, &out->data, &out->size);
    return rc != 0 ? err_pass(rc, "read %s", name) : 0;
}

/* additional_chat_templates/<name>.jinja */
static int gguf_read_named(const struct model *model, const char *path, struct gguf_tokenizer_files *files)
{
    const char *name = path + strlen(MODEL_TEMPLATES_FOLDER "/");
    size_t length = strlen(name), suffix = strlen(TEMPLATE_SUFFIX);

    if (length <= suffix || strcmp(name + length - suffix, TEMPLATE_SUFFIX) != 0) {
        return 0;
    }
    TRY(mem_resize(&files->templates, files->template_count + 1));
    struct gguf_named_text *template = &files->templates[files->template_count];
    *template = (struct gguf_named_text){0};
    snprintf(template->name, sizeof(template->name), "%.*s", (int)(length - suffix), name);
    TRY(gguf_read_side_file(model, path, &template->text));
    files->template_count++;
    return 0;
}

static int gguf_check_other_forms(const struct model *model)
{
    for (const char *const *file = model_side_files(model); file != NULL && *file != NULL; file++) {
        const char *end = strrchr(*file, '.');
        bool found = end != NULL && strcmp(end, ".tiktoken") == 0;
        for (size_t i = 0; i < sizeof(other_forms) / sizeof(other_forms[0]); i++) {
            found = found || strcmp(*file, other_forms[i]) == 0;
        }
        if (found) {
            int rc = err_raise(ERR_INCOMPATIBLE_OPTIONS,
                               "gguf carries the tokenizer of tokenizer.json, and the model has only %.100s: the file "
                               "would have no vocabulary",
                               *file);
            return err_set_hint(rc, "write tokenizer.json with transformers (AutoTokenizer.from_pretrained(DIR)"
                                    ".save_pretrained(DIR)) and register the model again; or another output.format");
        }
    }
    return 0;
}

int gguf_read_tokenizer_files(const struct model *model, struct gguf_tokenizer_files *out)
{
    AUTO(gguf_tokenizer_files) struct gguf_tokenizer_files files = {0};

    int rc = model_read_tokenizer(model, &files.tokenizer.data, &files.tokenizer.size);
    if (rc == ERR_NOT_FOUND) {
        return gguf_check_other_forms(model);
    }
    TRY(rc);
    for (const char *const *file = model_side_files(model); file != NULL && *file != NULL; file++) {
        if (strcmp(*file, "tokenizer_config.json") == 0) {
            TRY(gguf_read_side_file(model, *file, &files.config));
        } else if (strcmp(*file, "chat_template.jinja") == 0) {
            TRY(gguf_read_side_file(model, *file, &files.jinja));
        } else if (strcmp(*file, "chat_template.json") == 0) {
            TRY(gguf_read_side_file(model, *file, &files.json));
        } else if (strncmp(*file, MODEL_TEMPLATES_FOLDER "/", strlen(MODEL_TEMPLATES_FOLDER "/")) == 0) {
            TRY(gguf_read_named(model, *file, &files));
        }
    }
    *out = files;
    files = (struct gguf_tokenizer_files){0};
    return 0;
}

void gguf_tokenizer_files_deinit(struct gguf_tokenizer_files *files)
{
    free(files->tokenizer.data);
    free(files->config.data);
    free(files->jinja.data);
    free(files->json.data);
    for (size_t i = 0; i < files->template_count; i++) {
        free(files->templates[i].text.data);
    }
    free(files->templates);
    *files = (struct gguf_tokenizer_files){0};
}

static bool gguf_is_listed(const char *const *names, const char *key, size_t length)
{
    while (*names != NULL && (strlen(*names) != length || memcmp(*names, key, length) != 0)) {
        names++;
    }
    return *names != NULL;
}

/* The value after a key that was just returned, into out under that key. */
static int gguf_take_member(struct json_stream *stream, const char *file, json_t *out)
{
    char key[64];
    json_t *value = NULL;

    snprintf(key, sizeof(key), "%.*s", (int)stream->length, stream->text);
    size_t start = stream->at;
    while (start < stream->size && strchr(" \t\r\n:", stream->data[start]) != NULL && stream->data[start] != '\0') {
        start++;
    }
    if (!json_stream_skip(stream, json_stream_next(stream))) {
        return 0; /* the caller sees the error */
    }
    size_t size = stream->at - start;
    int rc = size <= MEMBER_BYTES_MAX ? json_parse(stream->data + start, size, MEMBER_DEPTH, &value)
                                      : err_raise(ERR_INVALID_JSON, "it has more than %zu bytes", MEMBER_BYTES_MAX);
    if (rc != 0) {
        char why[300];
        snprintf(why, sizeof(why), "%s of %s: %.200s", key, file, err_last()->message);
        return gguf_refuse_tokenizer(why);
    }
    return json_object_set_new(out, key, value) == 0 ? 0 : err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for %s", key);
}

int gguf_read_members(const struct gguf_text *text, const char *file, const char *const *names, json_t **out)
{
    AUTO(json_stream) struct json_stream stream;
    AUTO_JSON json_t *object = json_object();

    json_stream_init(&stream, text->data, text->size);
    if (object == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for %s", file);
    }
    enum json_token token = json_stream_next(&stream);
    bool fine = token == JSON_TOKEN_OBJECT_BEGIN;
    while (fine && (token = json_stream_next(&stream)) == JSON_TOKEN_KEY) {
        if (gguf_is_listed(names, stream.text, stream.length)) {
            TRY(gguf_take_member(&stream, file, object));
            fine = stream.error == NULL;
        } else {
            fine = json_stream_skip(&stream, json_stream_next(&stream));
        }
    }
    if (!fine || token != JSON_TOKEN_OBJECT_END || json_stream_next(&stream) != JSON_TOKEN_END) {
        char why[200];
        snprintf(why, sizeof(why), "%s is not a JSON object: %s at byte %zu", file,
                 stream.error != NULL ? stream.error : "unexpected value", stream.at);
        return gguf_refuse_tokenizer(why);
    }
    *out = MOVE(object);
    return 0;
}

int gguf_read_tokenizer_config(const struct gguf_text *text, json_t **out)
{
    static const char *const names[] = {"bos_token",     "eos_token",     "unk_token",     "pad_token",
                                        "add_bos_token", "add_eos_token", "chat_template", NULL};

    if (text->data == NULL) {
        *out = NULL;
        return 0;
    }
    return gguf_read_members(text, "tokenizer_config.json", names, out);
}
