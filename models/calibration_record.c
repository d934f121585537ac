/* One line of NDJSON to the ids of one record.
 *
 * The pull parser reads it, so a record costs its own text and tokens and nothing of the lines before it. What is wrong
 * becomes the record's code and detail; members that nothing reads are noted by name, since data sets carry columns and
 * one of them may have been meant to count. Text is encoded with the special tokens of the tokenizer's template, unless
 * told otherwise: a packed set then has the model's own mark where a document begins. Messages are rendered by the
 * checkpoint's chat template once the line is read; such a text gets no special tokens, since the template has its
 * own. Tokens that an attention_mask
 * hides are left out; a hole between others cannot be, since the tokens around it would become neighbours. */

#include "base/cleanup.h"
#include "base/err.h"
#include "base/json.h"
#include "base/json_stream.h"
#include "base/mem.h"
#include "base/text.h"
#include "models/calibration_internal.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ITEMS_KEEP (64u << 10) /* elements of a buffer beyond which it is freed */
#define GIVE_UPS_MAX 8         /* texts that exceeded the limits of patterns, before no more is tried */
#define NAMES_BYTES 96         /* of members, in a detail */
#define CHAT_DEPTH 64          /* of messages and tools */

/* A line under way. */
struct line {
    struct calibration_record *record;
    bool text, input_ids, mask; /* which member was there */
    json_t *messages, *tools, *variables;
    bool generation_prompt;
    bool unknown;
    char names[NAMES_BYTES]; /* of unknown members */
};

int calibration_reader_init(struct calibration_reader *reader, const struct calibration_reading *reading)
{
    *reader = (struct calibration_reader){.reading = *reading};
    reader->reading.text_field = NULL;
    TRY(mem_strdup((char **)&reader->reading.text_field, reading->text_field));
    return reading->tokenizer != NULL ? tokenizer_scratch_new(reading->tokenizer, &reader->scratch) : 0;
}

void calibration_reader_deinit(struct calibration_reader *reader)
{
    tokenizer_scratch_free(reader->scratch);
    free((char *)reader->reading.text_field);
    free(reader->tokens);
    free(reader->mask);
}

void calibration_reader_trim(struct calibration_reader *reader)
{
    if (reader->token_capacity > ITEMS_KEEP) {
        free(reader->tokens);
        reader->tokens = NULL;
        reader->token_capacity = 0;
    }
    if (reader->mask_capacity > ITEMS_KEEP) {
        free(reader->mask);
        reader->mask = NULL;
        reader->mask_capacity = 0;
    }
}

__attribute__((format(printf, 3, 4))) static void record_refuse(struct line *line, int code, const char *format, ...)
{
    va_list arguments;

    if (line->record->code == 0) { /* the first error of a line is reported */
        line->record->code = code;
        va_start(arguments, format);
        vsnprintf(line->record->detail, sizeof(line->record->detail), format, arguments);
        va_end(arguments);
        text_repair(line->record->detail); /* a cut may fall within a character */
    }
}

/* Ask the caller, and remember that it was its word that ended a text. */
static int ask(void *data)
{
    struct calibration_reader *reader = data;

    reader->stopped = reader->reading.watch(reader->reading.watch_data);
    return reader->stopped;
}

/* Whether the template added what the text had already. */
static void note_doubles(struct calibration_reader *reader, const struct calibration_record *record)
{
    const int32_t *before, *after;
    size_t before_count, after_count;

    tokenizer_template(reader->reading.tokenizer, &before, &before_count, &after, &after_count);
    size_t added = before_count + after_count;
    if (record->count <= added) {
        return;
    }
    const int32_t *text = record->ids + before_count, *end = record->ids + record->count - after_count;
    reader->notes.double_begin += before_count > 0 && text[0] == before[before_count - 1];
    reader->notes.double_end += after_count > 0 && end[-1] == after[0];
}

/* A text to the record's ids. Negative only when the reader cannot continue; what is wrong with the text goes into the
 * record. */
static int encode_text(struct calibration_reader *reader, const char *text, size_t size, bool special,
                       struct line *line)
{
    const struct calibration_reading *reading = &reader->reading;

    tokenizer_scratch_watch(reader->scratch, reading->watch != NULL ? ask : NULL, reader);
    int rc = tokenizer_encode(reading->tokenizer, reader->scratch, text, size, special, &line->record->ids,
                              &line->record->count);
    if (rc == ERR_HOST_OUT_OF_MEMORY || reader->stopped != 0) {
        return rc;
    }
    if (rc != 0) {
        reader->gave_up += tokenizer_gave_up(reader->scratch);
        record_refuse(line, rc, "%.150s", err_last()->message);
    }
    return 0;
}

/* What a text needs and the model's file of a tokenizer does not give ends the reading: every other text needs it too.
 */
static int need_tokenizer(const struct calibration_reading *reading)
{
    return reading->tokenizer_error != NULL ? err_raise(ERR_INVALID_TOKENIZER, "%s", reading->tokenizer_error) : 0;
}

/* The record's text, as encode_text. */
static int record_text(struct calibration_reader *reader, const struct json_stream *stream, enum json_token token,
                       struct line *line)
{
    const struct calibration_reading *reading = &reader->reading;
    struct calibration_record *record = line->record;

    if (line->text) {
        record_refuse(line, ERR_INVALID_JSON, "member \"%.64s\" is there twice", reading->text_field);
    }
    line->text = true;
    TRY(need_tokenizer(reading));
    if (token != JSON_TOKEN_STRING) {
        record_refuse(line, ERR_INVALID_PARAMETER, "member \"%.64s\" must be a string", reading->text_field);
    } else if (reading->tokenizer == NULL) {
        record_refuse(line, ERR_INVALID_PARAMETER, "the model has no tokenizer.json: send input_ids");
    } else if (reader->gave_up == GIVE_UPS_MAX) {
        record_refuse(line, ERR_INVALID_PARAMETER,
                      "the tokenizer's patterns gave up on %d texts before this one, so that it was not tried",
                      GIVE_UPS_MAX);
    }
    return record->code != 0 ? 0 : encode_text(reader, stream->text, stream->length, reading->add_special_tokens, line);
}

/* The record's messages, rendered and encoded, as record_text. */
static int record_messages(struct calibration_reader *reader, struct line *line)
{
    const struct calibration_reading *reading = &reader->reading;
    const struct chat_record chat = {.messages = line->messages,
                                     .tools = json_is_null(line->tools) ? NULL : line->tools,
                                     .variables = json_is_null(line->variables) ? NULL : line->variables,
                                     .generation_prompt = line->generation_prompt};
    AUTO_FREE char *text = NULL;
    size_t size = 0;

    TRY(need_tokenizer(reading));
    if (!json_is_array(line->messages)) {
        record_refuse(line, ERR_INVALID_PARAMETER, "member \"messages\" must be a list of objects");
    } else if ((chat.tools != NULL && !json_is_array(chat.tools)) ||
               (chat.variables != NULL && !json_is_object(chat.variables))) {
        record_refuse(line, ERR_INVALID_PARAMETER,
                      "member \"tools\" must be a list, \"chat_template_kwargs\" an object");
    } else if (reading->tokenizer == NULL || reading->chat == NULL) {
        record_refuse(line, ERR_INVALID_PARAMETER, "the model has no %s",
                      reading->tokenizer == NULL ? "tokenizer.json: send input_ids" : "chat template: send text");
    } else if (reader->gave_up == GIVE_UPS_MAX) {
        record_refuse(line, ERR_INVALID_PARAMETER, "%d texts before this one exceeded their limits: it was not tried",
                      GIVE_UPS_MAX);
    }
    if (line->record->code != 0) {
        return 0;
    }
    int rc = chat_render(reading->chat, &chat, &text, &size);
    if (rc == ERR_HOST_OUT_OF_MEMORY) {
        return rc;
    }
    if (rc != 0) {
        reader->gave_up += rc == ERR_PAYLOAD_TOO_LARGE;
        record_refuse(line, rc, "%.150s", err_last()->message);
        return 0;
    }
    return encode_text(reader, text, size, false, line);
}

/* The value of a member of a chat, whose first token is `token`, as a tree: 0, 1 when the JSON is broken. */
static int read_tree(struct json_stream *stream, enum json_token token, const char *name, json_t **out,
                     struct line *line)
{
    bool nested = token == JSON_TOKEN_ARRAY_BEGIN || token == JSON_TOKEN_OBJECT_BEGIN;
    size_t start = stream->at - 1;

    if (!json_stream_skip(stream, token)) {
        return 1;
    }
    if (*out != NULL) {
        record_refuse(line, ERR_INVALID_JSON, "member \"%s\" is there twice", name);
        return 0;
    }
    if (!nested) { /* another type than null is wrong, if the record has messages */
        *out = token == JSON_TOKEN_NULL ? json_null() : json_false();
        return 0;
    }
    int rc = json_parse(stream->data + start, stream->at - start, CHAT_DEPTH, out);
    if (rc == ERR_HOST_OUT_OF_MEMORY) {
        return rc;
    }
    if (rc != 0) {
        record_refuse(line, rc, "member \"%s\": %.100s", name, err_last()->message);
    }
    return 0;
}

/* A member of a chat: 0, 1 when the JSON is broken, negative when memory ran out. */
static int read_chat(struct json_stream *stream, const char *name, struct line *line)
{
    enum json_token token = json_stream_next(stream);

    if (token == JSON_TOKEN_ERROR) {
        return 1;
    }
    if (strcmp(name, "add_generation_prompt") == 0) {
        if (token != JSON_TOKEN_TRUE && token != JSON_TOKEN_FALSE) {
            record_refuse(line, ERR_INVALID_PARAMETER, "member \"%s\" must be a boolean", name);
        }
        line->generation_prompt = token == JSON_TOKEN_TRUE;
        return json_stream_skip(stream, token) ? 0 : 1;
    }
    return read_tree(stream, token, name,
                     strcmp(name, "messages") == 0 ? &line->messages
                     : strcmp(name, "tools") == 0  ? &line->tools
                                                   : &line->variables,
                     line);
}

static int record_grow(void **array, size_t *capacity, size_t count, size_t size)
{
    if (count < *capacity) {
        return 0;
    }
    size_t larger = *capacity == 0 ? 1024 : *capacity * 2;
    TRY(mem_resized(array, larger, size));
    *capacity = larger;
    return 0;
}

/* An element of input_ids: 1 taken, 0 not, negative when memory ran out. */
static int push_id(struct calibration_reader *reader, const struct json_stream *stream, enum json_token token)
{
    uint64_t id;

    if (token != JSON_TOKEN_NUMBER || !json_stream_u64(stream, &id) || id >= (uint64_t)reader->reading.vocab_size ||
        id > INT32_MAX || reader->token_count == CALIBRATION_RECORD_TOKENS_MAX) {
        return 0;
    }
    TRY(record_grow((void **)&reader->tokens, &reader->token_capacity, reader->token_count, sizeof(*reader->tokens)));
    reader->tokens[reader->token_count++] = (int32_t)id;
    return 1;
}

static void refuse_id(const struct calibration_reader *reader, const struct json_stream *stream, enum json_token token,
                      struct line *line)
{
    if (reader->token_count == CALIBRATION_RECORD_TOKENS_MAX) {
        record_refuse(line, ERR_PAYLOAD_TOO_LARGE, "the record has more than %u tokens", CALIBRATION_RECORD_TOKENS_MAX);
    } else if (token == JSON_TOKEN_NUMBER) {
        record_refuse(line, ERR_INVALID_PARAMETER, "input_ids[%zu] = %.*s is not in 0..%lld", reader->token_count,
                      (int)(stream->length < 32 ? stream->length : 32), stream->text,
                      (long long)reader->reading.vocab_size - 1);
    } else {
        record_refuse(line, ERR_INVALID_PARAMETER, "input_ids[%zu] is not an integer", reader->token_count);
    }
}

/* The record's input_ids: 0, 1 when the JSON is broken, negative when memory ran out. */
static int read_ids(struct calibration_reader *reader, struct json_stream *stream, enum json_token token,
                    struct line *line)
{
    if (line->input_ids) {
        record_refuse(line, ERR_INVALID_JSON, "member \"input_ids\" is there twice");
    }
    line->input_ids = true;
    if (token != JSON_TOKEN_ARRAY_BEGIN) {
        record_refuse(line, ERR_INVALID_PARAMETER, "member \"input_ids\" must be a list of integers");
        return json_stream_skip(stream, token) ? 0 : 1;
    }
    reader->token_count = 0;
    while ((token = json_stream_next(stream)) != JSON_TOKEN_ARRAY_END) {
        int rc = push_id(reader, stream, token);
        if (rc < 0) {
            return rc;
        }
        if (rc == 0) {
            refuse_id(reader, stream, token, line);
            if (token == JSON_TOKEN_ERROR || !json_stream_skip(stream, token)) {
                return 1;
            }
        }
    }
    return 0;
}

/* An element of attention_mask: -1 when it is neither 0 nor 1. */
static int mask_value(const struct json_stream *stream, enum json_token token)
{
    uint64_t value;

    if (token == JSON_TOKEN_TRUE || token == JSON_TOKEN_FALSE) {
        return token == JSON_TOKEN_TRUE;
    }
    return token == JSON_TOKEN_NUMBER && json_stream_u64(stream, &value) && value <= 1 ? (int)value : -1;
}

/* The record's attention_mask, as read_ids. */
static int read_mask(struct calibration_reader *reader, struct json_stream *stream, enum json_token token,
                     struct line *line)
{
    if (line->mask) {
        record_refuse(line, ERR_INVALID_JSON, "member \"attention_mask\" is there twice");
    }
    if (token == JSON_TOKEN_NULL) {
        return 0;
    }
    line->mask = true;
    if (token != JSON_TOKEN_ARRAY_BEGIN) {
        record_refuse(line, ERR_INVALID_PARAMETER, "member \"attention_mask\" must be a list of 0 and 1");
        return json_stream_skip(stream, token) ? 0 : 1;
    }
    reader->mask_count = 0;
    while ((token = json_stream_next(stream)) != JSON_TOKEN_ARRAY_END) {
        int value = mask_value(stream, token);
        if (value >= 0 && reader->mask_count < CALIBRATION_RECORD_TOKENS_MAX) {
            TRY(record_grow((void **)&reader->mask, &reader->mask_capacity, reader->mask_count, sizeof(*reader->mask)));
            reader->mask[reader->mask_count++] = (uint8_t)value;
            continue;
        }
        record_refuse(line, ERR_INVALID_PARAMETER, "attention_mask[%zu] must be 0 or 1", reader->mask_count);
        if (token == JSON_TOKEN_ERROR || !json_stream_skip(stream, token)) {
            return 1;
        }
    }
    return 0;
}

static void note_unknown(struct calibration_reader *reader, const char *name, size_t size, struct line *line)
{
    struct calibration_notes *notes = &reader->notes;
    char shown[CALIBRATION_UNKNOWN_BYTES];
    size_t used = strlen(line->names), i = 0;

    if (size > sizeof(shown) - 1) {
        size = sizeof(shown) - 1;
        while (size > 0 && ((unsigned char)name[size] & 0xc0) == 0x80) { /* no part of a character */
            size--;
        }
    }
    for (size_t at = 0; at < size; at++) {
        shown[at] = (char)((unsigned char)name[at] < 0x20 || name[at] == 0x7f ? '?' : name[at]);
    }
    shown[size] = '\0';
    if (used + strlen(shown) + 5 <= sizeof(line->names)) {
        snprintf(line->names + used, sizeof(line->names) - used, "%s\"%s\"", used > 0 ? ", " : "", shown);
    }
    line->unknown = true;
    while (i < notes->unknown_count && strcmp(notes->unknown[i], shown) != 0) {
        i++;
    }
    if (i == CALIBRATION_UNKNOWN_MAX) {
        notes->unknown_more = true;
    } else if (i == notes->unknown_count) {
        memcpy(notes->unknown[notes->unknown_count++], shown, size + 1);
    }
}

static void note_unread(struct calibration_reader *reader, const char *name, const json_t *value, struct line *line)
{
    if (value != NULL) {
        note_unknown(reader, name, strlen(name), line);
    }
}

static bool is_key(const struct json_stream *stream, const char *name)
{
    return stream->length == strlen(name) && memcmp(stream->text, name, stream->length) == 0;
}

/* The static name of a member of a chat, or NULL. */
static const char *chat_key(const struct json_stream *stream)
{
    static const char *const names[] = {"messages", "tools", "add_generation_prompt", "chat_template_kwargs"};

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (is_key(stream, names[i])) {
            return names[i];
        }
    }
    return NULL;
}

/* The members of the line's object: 0, 1 when the JSON is broken, negative when the reader cannot continue. */
static int record_members(struct calibration_reader *reader, struct json_stream *stream, struct line *line)
{
    enum json_token token;

    while ((token = json_stream_next(stream)) == JSON_TOKEN_KEY) {
        bool text = is_key(stream, reader->reading.text_field);
        const char *chat = text ? NULL : chat_key(stream);
        if (chat != NULL) {
            int rc = read_chat(stream, chat, line);
            if (rc != 0) {
                return rc;
            }
            continue;
        }
        bool ids = !text && is_key(stream, "input_ids"), mask = !text && is_key(stream, "attention_mask");
        if (!text && !ids && !mask) {
            note_unknown(reader, stream->text, stream->length, line);
        }
        token = json_stream_next(stream);
        if (token == JSON_TOKEN_ERROR) {
            return 1;
        }
        if (ids || mask) {
            TRY(ids ? read_ids(reader, stream, token, line) : read_mask(reader, stream, token, line));
            continue;
        }
        if (text) {
            TRY(record_text(reader, stream, token, line));
        }
        if (!json_stream_skip(stream, token)) {
            return 1;
        }
    }
    return token == JSON_TOKEN_OBJECT_END && json_stream_next(stream) == JSON_TOKEN_END ? 0 : 1;
}

/* Leave out what the mask hides before and after the rest. */
static void apply_mask(struct calibration_reader *reader, struct line *line)
{
    struct calibration_record *record = line->record;
    const uint8_t *mask = reader->mask;
    size_t first = 0, end = reader->mask_count;

    if (end != record->count) {
        record_refuse(line, ERR_INVALID_PARAMETER, "attention_mask has %zu entries, input_ids %zu", end, record->count);
        return;
    }
    while (first < end && mask[first] == 0) {
        first++;
    }
    while (end > first && mask[end - 1] == 0) {
        end--;
    }
    for (size_t i = first; i < end; i++) {
        if (mask[i] == 0) {
            record_refuse(
                line, ERR_INVALID_PARAMETER,
                "attention_mask[%zu] hides a token between others: only padding before or after can be left out", i);
            return;
        }
    }
    if (first == end) {
        record_refuse(line, ERR_INVALID_PARAMETER, "attention_mask hides every token");
        return;
    }
    reader->notes.masked_tokens += (int64_t)(record->count - (end - first));
    record->ids += first;
    record->count = end - first;
}

/* What is wrong with a record whose members were read. */
static void check_record(struct calibration_reader *reader, struct line *line)
{
    struct calibration_record *record = line->record;
    const char *field = reader->reading.text_field;

    bool chat = line->messages != NULL;

    if (!line->text && !line->input_ids && !chat) {
        record_refuse(line, ERR_MISSING_PARAMETER,
                      "the record has neither \"%.64s\" nor \"messages\" nor \"input_ids\"%s%s", field,
                      line->unknown ? ", but " : "", line->names);
    } else if (line->text + line->input_ids + chat > 1) {
        record_refuse(line, ERR_INVALID_PARAMETER, "the record has both \"%.64s\" and \"%s\"",
                      line->text ? field : "messages", line->input_ids ? "input_ids" : "messages");
    } else if (!line->input_ids && line->mask) {
        record_refuse(line, ERR_INVALID_PARAMETER, "attention_mask goes with input_ids, not with \"%.64s\"",
                      chat ? "messages" : field);
    }
    if (record->code != 0) {
        return;
    }
    if (line->input_ids) {
        record->ids = reader->tokens;
        record->count = reader->token_count;
    }
    if (record->count == 0) {
        record_refuse(line, ERR_INVALID_PARAMETER, "the record has no tokens");
    } else if (record->count > CALIBRATION_RECORD_TOKENS_MAX) {
        record_refuse(line, ERR_PAYLOAD_TOO_LARGE, "the record has %zu tokens, more than %u", record->count,
                      CALIBRATION_RECORD_TOKENS_MAX);
    } else if (line->mask) {
        apply_mask(reader, line);
    }
    for (size_t i = 0; record->code == 0 && i < record->count; i++) {
        if (record->ids[i] >= reader->reading.vocab_size) {
            record_refuse(line, ERR_INVALID_PARAMETER, "token %d of the text is not in the model's 0..%lld",
                          record->ids[i], (long long)reader->reading.vocab_size - 1);
        }
    }
}

int calibration_record_read(struct calibration_reader *reader, const char *text, size_t size,
                            struct calibration_record *out)
{
    struct json_stream stream;
    struct line line = {.record = out};
    int rc = 0;

    *out = (struct calibration_record){0};
    json_stream_init(&stream, text, size);
    enum json_token token = json_stream_next(&stream);
    if (token == JSON_TOKEN_OBJECT_BEGIN) {
        rc = record_members(reader, &stream, &line);
    } else if (token == JSON_TOKEN_ERROR || !json_stream_skip(&stream, token) ||
               json_stream_next(&stream) != JSON_TOKEN_END) {
        rc = 1;
    } else {
        record_refuse(&line, ERR_INVALID_PARAMETER, "the line is not an object");
    }
    if (rc > 0) {
        out->code = 0; /* broken JSON outweighs what was read of it */
        record_refuse(&line, ERR_INVALID_JSON, "%s at byte %zu", stream.error != NULL ? stream.error : "not valid JSON",
                      stream.at);
    }
    json_stream_deinit(&stream);
    if (line.messages == NULL) { /* columns that mean nothing then */
        note_unread(reader, "tools", line.tools, &line);
        note_unread(reader, "chat_template_kwargs", line.variables, &line);
    }
    if (rc >= 0 && out->code == 0 && line.messages != NULL && !line.text && !line.input_ids && !line.mask) {
        rc = record_messages(reader, &line);
    }
    json_decref(line.messages);
    json_decref(line.tools);
    json_decref(line.variables);
    if (rc < 0) {
        return rc;
    }
    check_record(reader, &line);
    if (out->code == 0) {
        reader->notes.unknown_records += line.unknown;
        if (line.text && reader->reading.add_special_tokens) {
            note_doubles(reader, out);
        }
    }
    return 0;
}
