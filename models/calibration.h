#pragma once
/* Calibration and evaluation sets: NDJSON records in, a durable token log, fixed batches out.
 *
 * Records: {"text": "..."}, {"messages": [..]}, which the checkpoint's chat template renders (with tools,
 * add_generation_prompt and chat_template_kwargs where the record has them), or {"input_ids": [..]}, with an
 * attention_mask where padding is left out. The
 * token log is an append-only file of records (u32 count, then count x i32, little-endian); what was committed is
 * (records, bytes), stored by the caller: on open the file is cut back to it. A set is a fixed [sequences, length]
 * matrix of ids drawn from a log. */

#include "base/cleanup.h"
#include "models/chat.h"
#include "models/tokenizer.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CALIBRATION_LINE_MAX (4u << 20) /* bytes of one NDJSON line */
#define CALIBRATION_RECORD_TOKENS_MAX (1u << 20)
#define CALIBRATION_ERRORS_MAX 100

struct calibration_error {
    int64_t line;
    int code;
    char detail[160];
};

#define CALIBRATION_UNKNOWN_MAX 8    /* names that are kept */
#define CALIBRATION_UNKNOWN_BYTES 64 /* of such a name, with its NUL */

/* How lines become ids. tokenizer may be NULL: then only input_ids are accepted and {"text"} is an error, which refuses
 * the line, or, where tokenizer_error says why the file that is there cannot be used, ends the reading with
 * ERR_INVALID_TOKENIZER. vocab_size bounds ids. chat may be NULL: then messages are an error. text_field: usually
 * "text". add_special_tokens: run the tokenizer's template over texts (BOS). watch, unless NULL, is asked every few
 * milliseconds of long work: what is negative ends it. Borrowed while the writer lives.
 */
struct calibration_reading {
    const struct tokenizer *tokenizer;
    const char *tokenizer_error; /* NULL: there is a tokenizer, or the model has no file of one */
    const struct chat *chat;
    int64_t vocab_size;
    const char *text_field;
    bool add_special_tokens;
    int (*watch)(void *data);
    void *watch_data;
};

/* Properties of accepted records that the user should know of. */
struct calibration_notes {
    char unknown[CALIBRATION_UNKNOWN_MAX][CALIBRATION_UNKNOWN_BYTES]; /* members that nothing reads */
    size_t unknown_count;                                             /* names kept */
    bool unknown_more;                                                /* there were others */
    int64_t unknown_records;                                          /* records that had such members */
    int64_t masked_tokens;                                            /* left out as the attention_mask says */
    int64_t double_begin, double_end; /* texts that had the template's first (last) token already */
};

/* Turns a byte stream into records of one log. One thread at a time. */
struct calibration_writer;

struct calibration_counts {
    int64_t records, tokens, bytes; /* of the complete log, so far */
    int64_t accepted, rejected;     /* since begin */
    size_t error_count;             /* kept in calibration_writer_errors */
};

/* Open or create the log at path, cut it back to (records, tokens, bytes). */
int calibration_writer_open(const char *path, int64_t records, int64_t tokens, int64_t bytes,
                            const struct calibration_reading *reading, struct calibration_writer **out);
/* Feed bytes; lines may straddle calls. Broken lines become errors and are skipped. Negative only when the log
 * itself cannot be written, or as `watch` said. first line fed is line 1. */
int calibration_writer_feed(struct calibration_writer *writer, const char *data, size_t size);
/* The stream ended: take a last line without newline, flush and fsync. After 0 the counts are durable. */
int calibration_writer_sync(struct calibration_writer *writer, bool end_of_stream);
void calibration_writer_counts(const struct calibration_writer *writer, struct calibration_counts *out);
const struct calibration_error *calibration_writer_errors(const struct calibration_writer *writer);
const struct calibration_notes *calibration_writer_notes(const struct calibration_writer *writer);
void calibration_writer_free(struct calibration_writer *writer); /* unsynced records are lost, by contract */
CLEANUP_FREE(calibration_writer, struct calibration_writer, calibration_writer_free)

struct calibration_spec {
    int64_t num_samples; /* requested sequences; 0 = as many as there are */
    int64_t sequence_length;
    bool packing; /* true: records laid end to end and cut; false: one window a record, shorter ones dropped */
    bool shuffle;
    uint64_t seed;
};

struct calibration_set {
    int32_t *ids; /* [sequences, length] */
    int64_t sequences, length;
    char digest[65]; /* sha256 of ids, hex */
};

/* Draw a set. ERR_INSUFFICIENT_CALIBRATION when not even one sequence can be made (message says how many tokens exist).
 */
int calibration_set_load(const char *path, int64_t records, int64_t bytes, const struct calibration_spec *spec,
                         struct calibration_set *out);
/* Move the last `count` sequences of set into tail (an evaluation set held out of the calibration set). */
int calibration_set_split(struct calibration_set *set, int64_t count, struct calibration_set *tail);
/* Copy `count` sequences, 1 to all of them, evenly spread over the set. */
int calibration_set_sample(const struct calibration_set *set, int64_t count, struct calibration_set *out);
void calibration_set_deinit(struct calibration_set *set);
