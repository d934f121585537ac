/* NDJSON in, token log out.
 *
 * Lines are cut here and read in calibration_record.c. Blank ones are skipped; what is wrong with one becomes an error
 * with its line number.
 *
 * The log grows after the committed bytes only. Records gather in one buffer; counts are of complete records, so that
 * what a failed or missing sync leaves after them is cut off when the log is opened again. After a failed write the
 * writer stays failed: what reached the disk is no longer known. */

#include "base/cleanup.h"
#include "base/err.h"
#include "base/fs.h"
#include "base/mem.h"
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
#define LINE_KEEP (256u << 10) /* a larger line buffer is freed after its line */
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
    AUTO_CLOSE int fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);

    if (fd < 0 && errno == ENOENT) {
        fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        created = true;
    }
    if (fd < 0) {
        return err_raise_errno(errno, "cannot open the token log %s", path);
    }
    if (fstat(fd, &info) != 0) {
        return err_raise_errno(errno, "cannot stat the token log %s", path);
    }
    if (info.st_size < bytes) {
        return err_raise(ERR_SOURCE_CORRUPT, "the token log has %lld bytes, but %lld were committed",
                         (long long)info.st_size, (long long)bytes);
    }
    if (info.st_size > bytes && ftruncate(fd, (off_t)bytes) != 0) {
        return err_raise_errno(errno, "cannot cut the token log %s", path);
    }
    if (created) {
        TRY(fs_sync(fd));
        TRY(fs_sync_parent(path));
    }
    *out = cleanup_move_fd(&fd);
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
    AUTO(calibration_writer) struct calibration_writer *writer = NULL;
    TRY(mem_new(&writer));
    writer->fd = -1;
    writer->counts = (struct calibration_counts){.records = records, .tokens = tokens, .bytes = bytes};
    writer->written = bytes;
    TRY(mem_buffer(&writer->buffer, BUFFER_BYTES));
    TRY(calibration_reader_init(&writer->reader, reading));
    TRY(open_log(path, bytes, &writer->fd));
    *out = MOVE(writer);
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

static int writer_flush(struct calibration_writer *writer)
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
    uint32_t little = htole32(word);

    if (writer->buffered + sizeof(little) > BUFFER_BYTES) {
        TRY(writer_flush(writer));
    }
    memcpy(writer->buffer + writer->buffered, &little, sizeof(little));
    writer->buffered += sizeof(little);
    return 0;
}

static int append_record(struct calibration_writer *writer, const int32_t *ids, size_t count)
{
    TRY(put_word(writer, (uint32_t)count));
    for (size_t i = 0; i < count; i++) {
        TRY(put_word(writer, (uint32_t)ids[i]));
    }
    writer->counts.records++;
    writer->counts.tokens += (int64_t)count;
    writer->counts.bytes += 4 + 4 * (int64_t)count;
    writer->counts.accepted++;
    return 0;
}

__attribute__((format(printf, 3, 4))) static void writer_refuse(struct calibration_writer *writer, int code,
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

/* One complete line, without its newline. Negative: the writer cannot continue. */
static int writer_take_line(struct calibration_writer *writer, const char *line, size_t size)
{
    struct calibration_record record;

    if (is_blank(line, size)) {
        return 0;
    }
    TRY(calibration_record_read(&writer->reader, line, size, &record));
    if (record.code != 0) {
        writer_refuse(writer, record.code, "%s", record.detail);
        return 0;
    }
    return append_record(writer, record.ids, record.count);
}

/* Free the memory that a large record took. */
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
static int writer_keep(struct calibration_writer *writer, const char *data, size_t size)
{
    if (writer->overlong || size > CALIBRATION_LINE_MAX - writer->pending_size) {
        writer->overlong = true;
        writer->pending_size = 0;
        return 0;
    }
    size_t total = writer->pending_size + size;
    if (total > writer->pending_capacity) {
        size_t capacity = writer->pending_capacity < 4096 ? 4096 : writer->pending_capacity;
        while (capacity < total) {
            capacity *= 2;
        }
        TRY(mem_resize(&writer->pending, capacity));
        writer->pending_capacity = capacity;
    }
    if (size > 0) {
        memcpy(writer->pending + writer->pending_size, data, size);
    }
    writer->pending_size = total;
    return 0;
}

/* The last part of a line, of which the parts before it are pending. */
static int take_rest(struct calibration_writer *writer, const char *data, size_t size)
{
    if (writer->pending_size == 0 && !writer->overlong && size <= CALIBRATION_LINE_MAX) {
        return writer_take_line(writer, data, size);
    }
    TRY(writer_keep(writer, data, size));
    if (writer->overlong) {
        writer_refuse(writer, ERR_PAYLOAD_TOO_LARGE, "the line is longer than %u bytes", CALIBRATION_LINE_MAX);
        return 0;
    }
    return writer_take_line(writer, writer->pending, writer->pending_size);
}

/* A line ended: its last part is data. */
static int writer_end_line(struct calibration_writer *writer, const char *data, size_t size)
{
    writer->line++;
    int rc = take_rest(writer, data, size);
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
        int rc = newline != NULL ? writer_end_line(writer, data, part) : writer_keep(writer, data, part);
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

static int writer_write_out(struct calibration_writer *writer, bool end_of_stream)
{
    if (end_of_stream && (writer->pending_size > 0 || writer->overlong)) {
        TRY(writer_end_line(writer, NULL, 0));
    }
    TRY(writer_flush(writer));
    return fs_sync(writer->fd);
}

int calibration_writer_sync(struct calibration_writer *writer, bool end_of_stream)
{
    if (writer->failed != 0) {
        return err_raise(writer->failed, "an earlier write of the token log failed");
    }
    writer->failed = writer_write_out(writer, end_of_stream);
    return writer->failed;
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
