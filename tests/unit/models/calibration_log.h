#pragma once
/* A token log in a scratch directory of the test's own, and a writer of it. */

#include "base/fs.h"
#include "models/calibration.h"
#include "tests/unit/scratch.h"
#include "tests/unit/unit.h"

#include <stdio.h>
#include <string.h>

static char folder[256];

static inline const char *log_path(void)
{
    static char path[300];
    if (folder[0] == '\0') {
        scratch_make(folder);
    }
    snprintf(path, sizeof(path), "%s/log", folder);
    return path;
}

static inline void clean(void)
{
    scratch_remove(folder);
    folder[0] = '\0';
}

static inline struct tokenizer *tiny_tokenizer(void)
{
    struct tokenizer *tokenizer = NULL;
    char *json = NULL;
    size_t size;
    ck_assert_rc_ok(fs_read_file(TEST_DATA "/tiny-llama/tokenizer.json", 1 << 20, &json, &size));
    ck_assert_rc_ok(tokenizer_new(json, size, &tokenizer));
    free(json);
    return tokenizer;
}

static inline struct calibration_writer *open_writer(const struct calibration_counts *from,
                                                     const struct tokenizer *tokenizer)
{
    struct calibration_writer *writer = NULL;
    const struct calibration_reading reading = {
        .tokenizer = tokenizer, .vocab_size = 2048, .text_field = "text", .add_special_tokens = true};
    ck_assert_rc_ok(calibration_writer_open(log_path(), from->records, from->tokens, from->bytes, &reading, &writer));
    return writer;
}

static inline void feed(struct calibration_writer *writer, const char *text)
{
    ck_assert_rc_ok(calibration_writer_feed(writer, text, strlen(text)));
}

static inline struct calibration_counts finish(struct calibration_writer *writer)
{
    struct calibration_counts counts;
    ck_assert_rc_ok(calibration_writer_sync(writer, true));
    calibration_writer_counts(writer, &counts);
    calibration_writer_free(writer);
    return counts;
}
