/* NDJSON in, token log out.
 *
 * A line is read by the pull parser, so a record costs its own text and tokens and nothing of the lines before it.
 * Members other than the text field and input_ids are ignored (data sets carry columns), blank lines are skipped,
 * everything else that is wrong becomes a fault with its line number. Text is encoded with the special tokens of the
 * post-processor: a packed set then has the model's own mark where a document begins.
 *
 * The log grows behind the committed bytes only. Records gather in one buffer; counts speak of whole records, so that
 * what a failed or missing sync leaves behind them is cut off when the log is opened again. After a failed write the
 * writer stays failed: what reached the disk is no longer known. */

#include "base/err.h"
#include "base/fs.h"
#include "base/json_stream.h"
#include "models/calibration.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define BUFFER_BYTES (256u << 10)
#define LINE_KEEP (256u << 10)  /* a line buffer beyond this is given back */
#define TOKENS_KEEP (64u << 10) /* elements, likewise */
#define PATH_BYTES 4096

struct calibration_writer {
    int fd;
    int failed;                        /* code of the write that failed, sticky */
    const struct tokenizer *tokenizer; /* borrowed, may be NULL */
    struct tokenizer_scratch *scratch;
    int64_t vocab_size;
    char *text_field;
    struct calibration_counts counts;
    struct calibration_fault faults[CALIBRATION_FAULTS_MAX];
    int64_t line;  /* lines ended so far */
    char *pending; /* the start of a line that has not ended */
    size_t pending_size, pending_capacity;
    bool overlong; /* the pending line is too long and is being skipped */
    int32_t *tokens;
    size_t token_count, token_capacity;
    uint8_t *buffer; /* [BUFFER_BYTES] not yet written */
    size_t buffered;
    int64_t written; /* bytes of the log before the buffer */
};

/* Open the log and cut it back to what was committed. */
static int open_log(const char *path, int64_t bytes, int *out)
{
    struct stat info;
    bool created = false;
    int fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);

    if (fd < 0 && errno == ENOENT) {
        fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        created = true;
    }
    if (fd < 0) {
        return err_raise_errno(errno, "cannot open the token log %s", path);
    }
    int rc = 0;
    if (fstat(fd, &info) != 0) {
        rc = err_raise_errno(errno, "cannot stat the token log %s", path);
    } else if (info.st_size < bytes) {
        rc = err_raise(ERR_SOURCE_CORRUPT, "the token log has %lld bytes, but %lld were committed",
                       (long long)info.st_size, (long long)bytes);
    } else if (info.st_size > bytes && ftruncate(fd, (off_t)bytes) != 0) {
        rc = err_raise_errno(errno, "cannot cut the token log %s", path);
    }
    if (rc == 0 && created) {
        rc = fs_sync(fd);
        rc = rc != 0 ? rc : fs_sync_parent(path);
    }
    if (rc != 0) {
        close(fd);
        return rc;
    }
    *out = fd;
    return 0;
}

int calibration_writer_open(const char *path, int64_t records, int64_t tokens, int64_t bytes,
                            const struct tokenizer *tokenizer, int64_t vocab_size, const char *text_field,
                            struct calibration_writer **out)
{
    if (records < 0 || tokens < 0 || bytes < 0 || records > INT64_MAX / 8 || tokens > INT64_MAX / 8 ||
        bytes != 4 * (records + tokens)) {
        return err_raise(ERR_SOURCE_CORRUPT, "a token log of %lld records and %lld tokens cannot have %lld bytes",
                         (long long)records, (long long)tokens, (long long)bytes);
    }
    struct calibration_writer *writer = calloc(1, sizeof(*writer));
    if (writer == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a calibration writer");
    }
    writer->fd = -1;
    writer->tokenizer = tokenizer;
    writer->vocab_size = vocab_size;
    writer->counts = (struct calibration_counts){.records = records, .tokens = tokens, .bytes = bytes};
    writer->written = bytes;
    writer->text_field = strdup(text_field);
    writer->buffer = malloc(BUFFER_BYTES);
    int rc = writer->text_field == NULL || writer->buffer == NULL
                 ? err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a calibration writer")
                 : 0;
    if (rc == 0 && tokenizer != NULL) {
        rc = tokenizer_scratch_new(tokenizer, &writer->scratch);
    }
    rc = rc != 0 ? rc : open_log(path, bytes, &writer->fd);
    if (rc != 0) {
        calibration_writer_free(writer);
        return rc;
    }
    *out = writer;
    return 0;
}

void calibration_writer_free(struct calibration_writer *writer)
{
    if (writer == NULL) {
        return;
    }
    if (writer->fd >= 0) {
        close(writer->fd);
    }
    tokenizer_scratch_free(writer->scratch);
    free(writer->text_field);
    free(writer->pending);
    free(writer->tokens);
    free(writer->buffer);
    free(writer);
}

static int flush(struct calibration_writer *writer)
{
    int rc = fs_pwrite_full(writer->fd, writer->buffer, writer->buffered, writer->written);
    if (rc != 0) {
        writer->failed = rc;
        return err_pass(rc, "write the token log");
    }
    writer->written += (int64_t)writer->buffered;
    writer->buffered = 0;
    return 0;
}

static int put_word(struct calibration_writer *writer, uint32_t word)
{
    int rc = writer->buffered + 4 > BUFFER_BYTES ? flush(writer) : 0;
    if (rc == 0) {
        uint32_t little = htole32(word);
        memcpy(writer->buffer + writer->buffered, &little, 4);
        writer->buffered += 4;
    }
    return rc;
}

static int append_record(struct calibration_writer *writer, const int32_t *ids, size_t count)
{
    int rc = put_word(writer, (uint32_t)count);
    for (size_t i = 0; rc == 0 && i < count; i++) {
        rc = put_word(writer, (uint32_t)ids[i]);
    }
    if (rc == 0) {
        writer->counts.records++;
        writer->counts.tokens += (int64_t)count;
        writer->counts.bytes += 4 + 4 * (int64_t)count;
        writer->counts.accepted++;
    }
    return rc;
}

__attribute__((format(printf, 3, 4))) static void fault(struct calibration_writer *writer, int code, const char *format,
                                                        ...)
{
    va_list arguments;

    writer->counts.rejected++;
    if (writer->counts.fault_count == CALIBRATION_FAULTS_MAX) {
        return;
    }
    struct calibration_fault *entry = &writer->faults[writer->counts.fault_count++];
    entry->line = writer->line;
    entry->code = code;
    va_start(arguments, format);
    vsnprintf(entry->detail, sizeof(entry->detail), format, arguments);
    va_end(arguments);
}

/* What one line says. Ids point into the writer or its scratch. */
struct record {
    const int32_t *ids;
    size_t count;
    bool text, input_ids; /* which member was there */
    int code;             /* 0, or what is wrong with it */
    char detail[160];
};

__attribute__((format(printf, 3, 4))) static void refuse(struct record *record, int code, const char *format, ...)
{
    va_list arguments;

    if (record->code == 0) { /* the first fault of a line is told */
        record->code = code;
        va_start(arguments, format);
        vsnprintf(record->detail, sizeof(record->detail), format, arguments);
        va_end(arguments);
    }
}

/* The record's text. Negative only when memory ran out; what the text does wrong goes into the record. */
static int read_text(struct calibration_writer *writer, const struct json_stream *stream, enum json_token token,
                     struct record *record)
{
    if (record->text) {
        refuse(record, ERR_INVALID_JSON, "member \"%.64s\" is there twice", writer->text_field);
    }
    record->text = true;
    if (token != JSON_TOKEN_STRING) {
        refuse(record, ERR_INVALID_PARAMETER, "member \"%.64s\" must be a string", writer->text_field);
    } else if (writer->tokenizer == NULL) {
        refuse(record, ERR_INVALID_PARAMETER, "the model has no tokenizer.json: send input_ids");
    }
    if (record->code != 0) {
        return 0;
    }
    int rc = tokenizer_encode(writer->tokenizer, writer->scratch, stream->text, stream->length, true, &record->ids,
                              &record->count);
    if (rc == ERR_HOST_OUT_OF_MEMORY) {
        return rc;
    }
    if (rc != 0) {
        refuse(record, rc, "%.150s", err_last()->message);
    }
    return 0;
}

static int push_token(struct calibration_writer *writer, int32_t id)
{
    if (writer->token_count == writer->token_capacity) {
        size_t capacity = writer->token_capacity == 0 ? 1024 : writer->token_capacity * 2;
        int32_t *grown = realloc(writer->tokens, capacity * sizeof(*grown));
        if (grown == NULL) {
            return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a record of %zu tokens", capacity);
        }
        writer->tokens = grown;
        writer->token_capacity = capacity;
    }
    writer->tokens[writer->token_count++] = id;
    return 0;
}

/* The record's input_ids; as read_text. */
static int read_ids(struct calibration_writer *writer, struct json_stream *stream, enum json_token token,
                    struct record *record)
{
    int rc = 0;

    if (record->input_ids) {
        refuse(record, ERR_INVALID_JSON, "member \"input_ids\" is there twice");
    }
    record->input_ids = true;
    if (token != JSON_TOKEN_ARRAY_BEGIN) {
        refuse(record, ERR_INVALID_PARAMETER, "member \"input_ids\" must be a list of integers");
        return json_stream_skip(stream, token) ? 0 : 1;
    }
    writer->token_count = 0;
    while (rc == 0 && (token = json_stream_next(stream)) != JSON_TOKEN_ARRAY_END) {
        uint64_t id;
        if (token == JSON_TOKEN_NUMBER && json_stream_u64(stream, &id) && id < (uint64_t)writer->vocab_size &&
            id <= INT32_MAX && writer->token_count < CALIBRATION_RECORD_TOKENS_MAX) {
            rc = push_token(writer, (int32_t)id);
            continue;
        }
        if (writer->token_count == CALIBRATION_RECORD_TOKENS_MAX) {
            refuse(record, ERR_PAYLOAD_TOO_LARGE, "the record has more than %u tokens", CALIBRATION_RECORD_TOKENS_MAX);
        } else if (token == JSON_TOKEN_NUMBER) {
            refuse(record, ERR_INVALID_PARAMETER, "input_ids[%zu] = %.*s is not in 0..%lld", writer->token_count,
                   (int)(stream->length < 32 ? stream->length : 32), stream->text, (long long)writer->vocab_size - 1);
        } else {
            refuse(record, ERR_INVALID_PARAMETER, "input_ids[%zu] is not an integer", writer->token_count);
        }
        if (token == JSON_TOKEN_ERROR || !json_stream_skip(stream, token)) {
            return 1;
        }
    }
    record->ids = writer->tokens;
    record->count = writer->token_count;
    return rc;
}

/* The members of the line's object: 0, 1 when the JSON is broken, negative when memory ran out. */
static int read_members(struct calibration_writer *writer, struct json_stream *stream, struct record *record)
{
    enum json_token token;
    int rc = 0;

    while (rc == 0 && (token = json_stream_next(stream)) == JSON_TOKEN_KEY) {
        bool text = stream->length == strlen(writer->text_field) &&
                    memcmp(stream->text, writer->text_field, stream->length) == 0;
        bool ids = !text && stream->length == 9 && memcmp(stream->text, "input_ids", 9) == 0;
        token = json_stream_next(stream);
        if (token == JSON_TOKEN_ERROR) {
            return 1;
        }
        if (ids) {
            rc = read_ids(writer, stream, token, record);
            continue;
        }
        rc = text ? read_text(writer, stream, token, record) : 0;
        rc = rc == 0 && !json_stream_skip(stream, token) ? 1 : rc;
    }
    if (rc == 0 && (token != JSON_TOKEN_OBJECT_END || json_stream_next(stream) != JSON_TOKEN_END)) {
        rc = 1;
    }
    return rc;
}

/* What is wrong with a record whose members were read. */
static void check_record(const struct calibration_writer *writer, struct record *record)
{
    if (!record->text && !record->input_ids) {
        refuse(record, ERR_MISSING_PARAMETER, "the record has neither \"%.64s\" nor \"input_ids\"", writer->text_field);
    } else if (record->text && record->input_ids) {
        refuse(record, ERR_INVALID_PARAMETER, "the record has both \"%.64s\" and \"input_ids\"", writer->text_field);
    } else if (record->code == 0 && record->count == 0) {
        refuse(record, ERR_INVALID_PARAMETER, "the record has no tokens");
    } else if (record->code == 0 && record->count > CALIBRATION_RECORD_TOKENS_MAX) {
        refuse(record, ERR_PAYLOAD_TOO_LARGE, "the record has %zu tokens, more than %u", record->count,
               CALIBRATION_RECORD_TOKENS_MAX);
    }
    for (size_t i = 0; record->code == 0 && i < record->count; i++) {
        if (record->ids[i] >= writer->vocab_size) {
            refuse(record, ERR_INVALID_PARAMETER, "token %d of the text is not in the model's 0..%lld", record->ids[i],
                   (long long)writer->vocab_size - 1);
        }
    }
}

static bool is_blank(const char *line, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        if (line[i] != ' ' && line[i] != '\t' && line[i] != '\r') {
            return false;
        }
    }
    return true;
}

/* One whole line, without its newline. Negative: the writer cannot go on. */
static int take_line(struct calibration_writer *writer, const char *line, size_t size)
{
    struct json_stream stream;
    struct record record = {0};
    int rc = 0;

    if (is_blank(line, size)) {
        return 0;
    }
    json_stream_init(&stream, line, size);
    enum json_token token = json_stream_next(&stream);
    if (token == JSON_TOKEN_OBJECT_BEGIN) {
        rc = read_members(writer, &stream, &record);
    } else if (token == JSON_TOKEN_ERROR || !json_stream_skip(&stream, token) ||
               json_stream_next(&stream) != JSON_TOKEN_END) {
        rc = 1;
    } else {
        refuse(&record, ERR_INVALID_PARAMETER, "the line is not an object");
    }
    if (rc > 0) {
        record.code = 0; /* broken JSON outweighs what was read of it */
        refuse(&record, ERR_INVALID_JSON, "%s at byte %zu", stream.error != NULL ? stream.error : "not valid JSON",
               stream.at);
    }
    json_stream_deinit(&stream);
    if (rc < 0) {
        return rc;
    }
    check_record(writer, &record);
    if (record.code != 0) {
        fault(writer, record.code, "%s", record.detail);
        return 0;
    }
    return append_record(writer, record.ids, record.count);
}

/* Memory that a large record took is given back. */
static void trim(struct calibration_writer *writer)
{
    if (writer->pending_capacity > LINE_KEEP) {
        free(writer->pending);
        writer->pending = NULL;
        writer->pending_capacity = 0;
    }
    if (writer->token_capacity > TOKENS_KEEP) {
        free(writer->tokens);
        writer->tokens = NULL;
        writer->token_capacity = 0;
    }
}

/* Keep the start of a line whose end has not come. */
static int keep(struct calibration_writer *writer, const char *data, size_t size)
{
    if (writer->overlong || size > CALIBRATION_LINE_MAX - writer->pending_size) {
        writer->overlong = true;
        writer->pending_size = 0;
        return 0;
    }
    size_t wanted = writer->pending_size + size;
    if (wanted > writer->pending_capacity) {
        size_t capacity = writer->pending_capacity < 4096 ? 4096 : writer->pending_capacity;
        while (capacity < wanted) {
            capacity *= 2;
        }
        char *grown = realloc(writer->pending, capacity);
        if (grown == NULL) {
            return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a line of %zu bytes", wanted);
        }
        writer->pending = grown;
        writer->pending_capacity = capacity;
    }
    if (size > 0) {
        memcpy(writer->pending + writer->pending_size, data, size);
    }
    writer->pending_size = wanted;
    return 0;
}

/* A line ended: its last part is data. */
static int end_line(struct calibration_writer *writer, const char *data, size_t size)
{
    int rc = 0;

    writer->line++;
    if (writer->pending_size == 0 && !writer->overlong && size <= CALIBRATION_LINE_MAX) {
        rc = take_line(writer, data, size);
    } else if ((rc = keep(writer, data, size)) == 0 && writer->overlong) {
        fault(writer, ERR_PAYLOAD_TOO_LARGE, "the line is longer than %u bytes", CALIBRATION_LINE_MAX);
    } else if (rc == 0) {
        rc = take_line(writer, writer->pending, writer->pending_size);
    }
    writer->pending_size = 0;
    writer->overlong = false;
    trim(writer);
    return rc;
}

int calibration_writer_feed(struct calibration_writer *writer, const char *data, size_t size)
{
    if (writer->failed != 0) {
        return err_raise(writer->failed, "an earlier write of the token log failed");
    }
    while (size > 0) {
        const char *newline = memchr(data, '\n', size);
        size_t part = newline != NULL ? (size_t)(newline - data) : size;
        int rc = newline != NULL ? end_line(writer, data, part) : keep(writer, data, part);
        if (rc != 0) {
            writer->failed = rc;
            return rc;
        }
        part += newline != NULL ? 1 : 0;
        data += part;
        size -= part;
    }
    return 0;
}

int calibration_writer_sync(struct calibration_writer *writer, bool end_of_stream)
{
    int rc = writer->failed != 0 ? err_raise(writer->failed, "an earlier write of the token log failed") : 0;
    if (rc == 0 && end_of_stream && (writer->pending_size > 0 || writer->overlong)) {
        rc = end_line(writer, NULL, 0);
    }
    rc = rc != 0 ? rc : flush(writer);
    rc = rc != 0 ? rc : fs_sync(writer->fd);
    writer->failed = rc;
    return rc;
}

void calibration_writer_counts(const struct calibration_writer *writer, struct calibration_counts *out)
{
    *out = writer->counts;
}

const struct calibration_fault *calibration_writer_faults(const struct calibration_writer *writer)
{
    return writer->faults;
}
