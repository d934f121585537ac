/* NDJSON in, token log out.
 *
 * Lines are cut here and read in calibration_record.c. Blank ones are skipped; what is wrong with one becomes an error
 * with its line number.
 *
 * The log grows behind the committed bytes only. Records gather in one buffer; counts speak of whole records, so that
 * what a failed or missing sync leaves behind them is cut off when the log is opened again. After a failed write the
 * writer stays failed: what reached the disk is no longer known. */

#include "base/err.h"
#include "base/fs.h"
#include "models/calibration_internal.h"

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
#define LINE_KEEP (256u << 10) /* a line buffer beyond this is given back */
#define PATH_BYTES 4096

struct calibration_writer {
    int fd;
    int failed; /* code of the write that failed, sticky */
    struct calibration_reader reader;
    struct calibration_counts counts;
    struct calibration_error errors[CALIBRATION_ERRORS_MAX];
    int64_t line;  /* lines ended so far */
    char *pending; /* the start of a line that has not ended */
    size_t pending_size, pending_capacity;
    bool overlong;   /* the pending line is too long and is being skipped */
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
                            const struct calibration_reading *reading, struct calibration_writer **out)
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
    writer->counts = (struct calibration_counts){.records = records, .tokens = tokens, .bytes = bytes};
    writer->written = bytes;
    writer->buffer = malloc(BUFFER_BYTES);
    int rc = writer->buffer == NULL ? err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a calibration writer") : 0;
    rc = rc != 0 ? rc : calibration_reader_init(&writer->reader, reading);
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
    calibration_reader_deinit(&writer->reader);
    free(writer->pending);
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

__attribute__((format(printf, 3, 4))) static void refuse(struct calibration_writer *writer, int code,
                                                         const char *format, ...)
{
    va_list arguments;

    writer->counts.rejected++;
    if (writer->counts.error_count == CALIBRATION_ERRORS_MAX) {
        return;
    }
    struct calibration_error *entry = &writer->errors[writer->counts.error_count++];
    entry->line = writer->line;
    entry->code = code;
    va_start(arguments, format);
    vsnprintf(entry->detail, sizeof(entry->detail), format, arguments);
    va_end(arguments);
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
    struct calibration_record record;

    if (is_blank(line, size)) {
        return 0;
    }
    int rc = calibration_record_read(&writer->reader, line, size, &record);
    if (rc != 0) {
        return rc;
    }
    if (record.code != 0) {
        refuse(writer, record.code, "%s", record.detail);
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
    calibration_reader_trim(&writer->reader);
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
        refuse(writer, ERR_PAYLOAD_TOO_LARGE, "the line is longer than %u bytes", CALIBRATION_LINE_MAX);
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

const struct calibration_error *calibration_writer_errors(const struct calibration_writer *writer)
{
    return writer->errors;
}

const struct calibration_notes *calibration_writer_notes(const struct calibration_writer *writer)
{
    return &writer->reader.notes;
}
