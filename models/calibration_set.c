/* Token log in, a fixed matrix of ids out.
 *
 * Candidates are numbered in log order: with packing, sequence i is tokens [i*L, (i+1)*L) of all records laid end to
 * end; without, the head of the i-th record that has at least L tokens. Of n candidates k are chosen: without shuffle
 * the first k; with it, k of n drawn uniformly (sequential selection, one draw a candidate, so in log order and without
 * memory) and then put in a random order (Fisher-Yates). Draws come from SplitMix64 seeded with the caller's seed,
 * bounded by rejection: the same log, numbers and seed give the same matrix on every machine.
 *
 * Memory: the matrix itself, 8 bytes a sequence, and one read buffer. The log is streamed once (twice without packing,
 * to count), never held, so its size does not matter. */

#include "base/cleanup.h"
#include "base/digest.h"
#include "base/err.h"
#include "base/fs.h"
#include "base/mem.h"
#include "base/random.h"
#include "models/calibration.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define BUFFER_WORDS (64 << 10)

/* Uniform in [0, bound): draws that would favour small numbers are thrown away. */
static uint64_t draw_below(uint64_t *state, uint64_t bound)
{
    uint64_t unfair = (0 - bound) % bound, value; /* 2^64 mod bound */
    do {
        value = random_next(state);
    } while (value < unfair);
    return value % bound;
}

/* The log as a stream of 32-bit words. */
struct reader {
    int fd;
    int64_t offset, bytes; /* next byte to read, end */
    uint32_t *words;       /* [BUFFER_WORDS] */
    size_t at, count;
    int64_t record, records; /* records begun, of how many */
    int64_t left;            /* tokens of the record still unread */
};

static void reader_deinit(struct reader *reader)
{
    if (reader->fd >= 0) {
        close(reader->fd);
    }
    free(reader->words);
}

CLEANUP_DEINIT(reader, struct reader, reader_deinit)

/* After a failure, too, reader_deinit is due. */
static int reader_init(struct reader *reader, const char *path, int64_t records, int64_t bytes)
{
    struct stat info;

    *reader = (struct reader){.fd = open(path, O_RDONLY | O_CLOEXEC), .bytes = bytes, .records = records};
    if (reader->fd < 0) {
        return err_raise_errno(errno, "cannot open the token log %s", path);
    }
    TRY(mem_buffer(&reader->words, BUFFER_WORDS));
    if (fstat(reader->fd, &info) != 0) {
        return err_raise_errno(errno, "cannot stat the token log %s", path);
    }
    if (info.st_size < bytes) {
        return err_raise(ERR_SOURCE_CORRUPT, "the token log has %lld of %lld bytes", (long long)info.st_size,
                         (long long)bytes);
    }
    return 0;
}

static int reader_word(struct reader *reader, uint32_t *out)
{
    if (reader->at == reader->count) {
        int64_t left = (reader->bytes - reader->offset) / 4;
        size_t count = left < BUFFER_WORDS ? (size_t)left : BUFFER_WORDS;
        if (count == 0) {
            return err_raise(ERR_SOURCE_CORRUPT, "the token log ends inside a record");
        }
        int rc = fs_pread_full(reader->fd, reader->words, count * 4, reader->offset);
        if (rc != 0) {
            return err_pass(rc, "read the token log");
        }
        reader->offset += (int64_t)count * 4;
        reader->at = 0;
        reader->count = count;
    }
    *out = le32toh(reader->words[reader->at++]);
    return 0;
}

/* Start the next record: 1, 0 after the last one, negative raised. The one before must have been read to its end. */
static int reader_record(struct reader *reader)
{
    uint32_t count = 0;

    if (reader->record == reader->records) {
        return reader->at == reader->count && reader->offset == reader->bytes
                   ? 0
                   : err_raise(ERR_SOURCE_CORRUPT, "the token log continues after its %lld records",
                               (long long)reader->records);
    }
    TRY(reader_word(reader, &count));
    if (count == 0 || count > CALIBRATION_RECORD_TOKENS_MAX) {
        return err_raise(ERR_SOURCE_CORRUPT, "record %lld of the token log has %u tokens", (long long)reader->record,
                         count);
    }
    reader->record++;
    reader->left = count;
    return 1;
}

/* Read `count` tokens of the record into out, or past them when out is NULL. */
static int reader_tokens(struct reader *reader, int64_t count, int32_t *out)
{
    for (int64_t i = 0; i < count;) {
        uint32_t word = 0;
        size_t buffered = reader->count - reader->at;
        if (out == NULL && buffered > 0) {
            size_t jump = (int64_t)buffered < count - i ? buffered : (size_t)(count - i);
            reader->at += jump;
            i += (int64_t)jump;
            continue;
        }
        if (out == NULL && (reader->bytes - reader->offset) / 4 >= count - i) {
            reader->offset += 4 * (count - i);
            break;
        }
        TRY(reader_word(reader, &word));
        if (word > INT32_MAX) {
            return err_raise(ERR_SOURCE_CORRUPT, "the token log holds the id %u", word);
        }
        if (out != NULL) {
            out[i] = (int32_t)word;
        }
        i++;
    }
    reader->left -= count;
    return 0;
}

/* Which candidates become rows, decided as they come by. */
struct chooser {
    int64_t candidates, rows;
    int64_t seen, chosen;
    bool shuffle;
    uint64_t state;
};

static bool chooser_take(struct chooser *chooser)
{
    uint64_t candidates_left = (uint64_t)(chooser->candidates - chooser->seen);
    uint64_t rows_left = (uint64_t)(chooser->rows - chooser->chosen);
    bool take = rows_left > 0 && (!chooser->shuffle || rows_left == candidates_left ||
                                  draw_below(&chooser->state, candidates_left) < rows_left);
    chooser->seen++;
    chooser->chosen += take ? 1 : 0;
    return take;
}

/* Rows from records laid end to end. A sequence may span records, a record sequences. */
static int fill_packed(struct reader *reader, struct chooser *chooser, struct calibration_set *set)
{
    int64_t row = 0, filled = 0;
    bool taken = chooser_take(chooser);

    while (row < chooser->rows) {
        int rc = reader->left == 0 ? reader_record(reader) : 1;
        if (rc <= 0) {
            return rc != 0 ? rc : err_raise(ERR_SOURCE_CORRUPT, "the token log is shorter than it was");
        }
        int64_t need = set->length - filled, count = reader->left < need ? reader->left : need;
        TRY(reader_tokens(reader, count, taken ? set->ids + row * set->length + filled : NULL));
        filled += count;
        if (filled == set->length) {
            row += taken ? 1 : 0;
            filled = 0;
            taken = row < chooser->rows && chooser_take(chooser);
        }
    }
    return 0;
}

/* Rows from the heads of records. */
static int fill_windows(struct reader *reader, struct chooser *chooser, struct calibration_set *set)
{
    int64_t row = 0;

    while (row < chooser->rows) {
        int rc = reader_record(reader);
        if (rc <= 0) {
            return rc != 0 ? rc : err_raise(ERR_SOURCE_CORRUPT, "the token log is shorter than it was");
        }
        if (reader->left >= set->length && chooser_take(chooser)) {
            TRY(reader_tokens(reader, set->length, set->ids + row * set->length));
            row++;
        }
        TRY(reader_tokens(reader, reader->left, NULL));
    }
    return 0;
}

/* Records with at least `length` tokens. */
static int count_windows(const char *path, int64_t records, int64_t bytes, int64_t length, int64_t *out)
{
    AUTO(reader) struct reader reader = {.fd = -1};
    int64_t count = 0;
    int rc;

    TRY(reader_init(&reader, path, records, bytes));
    while ((rc = reader_record(&reader)) > 0) {
        count += reader.left >= length ? 1 : 0;
        TRY(reader_tokens(&reader, reader.left, NULL));
    }
    TRY(rc);
    *out = count;
    return 0;
}

static void swap_rows(struct calibration_set *set, int64_t a, int64_t b)
{
    int32_t *left = set->ids + a * set->length, *right = set->ids + b * set->length;
    for (int64_t i = 0; a != b && i < set->length; i++) {
        int32_t saved = left[i];
        left[i] = right[i];
        right[i] = saved;
    }
}

static void set_digest(struct calibration_set *set)
{
    digest_bytes(set->ids, (size_t)(set->sequences * set->length) * sizeof(int32_t), set->digest);
}

static int set_fill(const char *path, int64_t records, int64_t bytes, const struct calibration_spec *spec,
                    struct chooser *chooser, struct calibration_set *set)
{
    AUTO(reader) struct reader reader = {.fd = -1};

    TRY(reader_init(&reader, path, records, bytes));
    TRY(spec->packing ? fill_packed(&reader, chooser, set) : fill_windows(&reader, chooser, set));
    for (int64_t i = set->sequences - 1; spec->shuffle && i > 0; i--) {
        swap_rows(set, i, (int64_t)draw_below(&chooser->state, (uint64_t)i + 1));
    }
    return 0;
}

int calibration_set_load(const char *path, int64_t records, int64_t bytes, const struct calibration_spec *spec,
                         struct calibration_set *out)
{
    int64_t length = spec->sequence_length, tokens = bytes / 4 - records;
    struct chooser chooser = {.shuffle = spec->shuffle, .state = spec->seed};

    if (records < 0 || bytes < 0 || bytes % 4 != 0 || tokens < 0) {
        return err_raise(ERR_SOURCE_CORRUPT, "a token log of %lld records cannot have %lld bytes", (long long)records,
                         (long long)bytes);
    }
    if (length <= 0 || spec->num_samples < 0) {
        return err_raise(ERR_INVALID_PARAMETER, "sequence_length must be positive and num_samples not negative");
    }
    chooser.candidates = tokens / length;
    if (!spec->packing && chooser.candidates > 0) {
        TRY(count_windows(path, records, bytes, length, &chooser.candidates));
    }
    if (chooser.candidates == 0) {
        return err_raise(ERR_INSUFFICIENT_CALIBRATION, "%lld tokens in %lld records give no sequence of %lld tokens%s",
                         (long long)tokens, (long long)records, (long long)length,
                         spec->packing ? "" : " without packing");
    }
    bool fewer = spec->num_samples > 0 && spec->num_samples < chooser.candidates;
    chooser.rows = fewer ? spec->num_samples : chooser.candidates;
    /* rows * length <= tokens, so the product cannot overflow. */
    AUTO_FREE int32_t *ids = NULL;
    TRY(mem_buffer(&ids, (size_t)(chooser.rows * length)));
    struct calibration_set set = {.ids = ids, .sequences = chooser.rows, .length = length};
    TRY(set_fill(path, records, bytes, spec, &chooser, &set));
    set_digest(&set);
    *out = set;
    ids = NULL;
    return 0;
}

int calibration_set_split(struct calibration_set *set, int64_t count, struct calibration_set *tail)
{
    if (count <= 0 || count >= set->sequences) {
        return err_raise(ERR_INSUFFICIENT_CALIBRATION, "%lld of %lld sequences cannot be held out", (long long)count,
                         (long long)set->sequences);
    }
    size_t bytes = (size_t)(count * set->length) * sizeof(int32_t);
    struct calibration_set moved = {.sequences = count, .length = set->length};
    TRY(mem_buffer(&moved.ids, bytes / sizeof(int32_t)));
    set->sequences -= count;
    memcpy(moved.ids, set->ids + set->sequences * set->length, bytes);
    set_digest(&moved);
    set_digest(set);
    *tail = moved;
    return 0;
}

int calibration_set_sample(const struct calibration_set *set, int64_t count, struct calibration_set *out)
{
    struct calibration_set made = {.sequences = count, .length = set->length};
    size_t row = (size_t)set->length;

    if (count < 1 || count > set->sequences) {
        return err_raise(ERR_INTERNAL, "a sample of %lld of %lld sequences", (long long)count,
                         (long long)set->sequences);
    }
    TRY(mem_buffer(&made.ids, (size_t)count * row));
    for (int64_t i = 0; i < count; i++) {
        memcpy(made.ids + (size_t)i * row, set->ids + (size_t)(i * set->sequences / count) * row,
               row * sizeof(*made.ids));
    }
    set_digest(&made);
    *out = made;
    return 0;
}

void calibration_set_deinit(struct calibration_set *set)
{
    free(set->ids);
    *set = (struct calibration_set){0};
}
