#pragma once
/* What the two halves of the calibration writer share: a line in, one record's ids out. */

#include "models/calibration.h"

struct calibration_reader {
    struct calibration_reading reading;
    struct tokenizer_scratch *scratch; /* NULL without tokenizer */
    int stopped;                       /* what `watch` said, or 0 */
    int gave_up;                       /* texts on which the tokenizer's patterns did */
    int32_t *tokens;                   /* input_ids of the line at hand */
    size_t token_count, token_capacity;
    uint8_t *mask; /* its attention_mask, a byte an entry */
    size_t mask_count, mask_capacity;
    struct calibration_notes notes;
};

/* What one line says. Ids point into the reader or its scratch, until the next line. */
struct calibration_record {
    const int32_t *ids;
    size_t count;
    int code; /* 0, or what is wrong with the line */
    char detail[160];
};

/* In place; what a failed init left is for deinit. */
int calibration_reader_init(struct calibration_reader *reader, const struct calibration_reading *reading);
void calibration_reader_deinit(struct calibration_reader *reader);
/* Free the memory that a large line took. */
void calibration_reader_trim(struct calibration_reader *reader);
/* Read one line. Negative only when memory ran out, or as `watch` said. */
int calibration_record_read(struct calibration_reader *reader, const char *line, size_t size,
                            struct calibration_record *out);
