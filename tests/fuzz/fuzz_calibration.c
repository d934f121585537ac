/* NDJSON into the writer, cut where the first byte says; then the log it wrote is drawn from. The log must hold exactly
 * what the counts say, and a log of at least one token must give a set. */

#include "models/calibration.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define VOCAB "{\"model\":{\"byte_fallback\":false,\"vocab\":{\"a\":0,\"b\":1,\"ab\":2,\" \":3},\"merges\":[\"a b\"]}}"
#define VOCAB_SIZE 1000

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char path[64];
static struct tokenizer *tokenizer;

static void remove_log(void)
{
    (void)unlink(path);
    tokenizer_free(tokenizer);
}

static void prepare(void)
{
    if (tokenizer != NULL) {
        return;
    }
    strcpy(path, access("/dev/shm", W_OK) == 0 ? "/dev/shm/quantd-fuzz-XXXXXX" : P_tmpdir "/quantd-fuzz-XXXXXX");
    int fd = mkstemp(path);
    if (fd < 0 || tokenizer_new(VOCAB, strlen(VOCAB), &tokenizer) != 0) {
        abort();
    }
    close(fd);
    atexit(remove_log);
}

static void draw(const struct calibration_counts *counts, bool packing)
{
    struct calibration_spec spec = {.num_samples = 3, .sequence_length = 2, .packing = packing, .shuffle = true};
    struct calibration_set set = {0};
    int rc = calibration_set_load(path, counts->records, counts->bytes, &spec, &set);

    if (packing && (rc == 0) != (counts->tokens >= 2)) {
        abort();
    }
    if (rc == 0) {
        for (int64_t i = 0; i < set.sequences * set.length; i++) {
            if (set.ids[i] < 0 || set.ids[i] >= VOCAB_SIZE) {
                abort();
            }
        }
        calibration_set_deinit(&set);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct calibration_writer *writer = NULL;
    struct calibration_counts counts;

    prepare();
    if (size == 0) {
        return 0;
    }
    const struct calibration_reading reading = {.tokenizer = data[0] % 2 == 0 ? tokenizer : NULL,
                                                .vocab_size = VOCAB_SIZE,
                                                .text_field = "text",
                                                .add_special_tokens = data[0] % 4 == 0};
    if (calibration_writer_open(path, 0, 0, 0, &reading, &writer) != 0) {
        return 0;
    }
    size_t step = data[0] < 16 ? size : 1 + data[0] / 16u;
    for (size_t at = 1; at < size; at += step) {
        size_t part = size - at < step ? size - at : step;
        if (calibration_writer_feed(writer, (const char *)data + at, part) != 0) {
            abort();
        }
    }
    if (calibration_writer_sync(writer, true) != 0) {
        abort();
    }
    calibration_writer_counts(writer, &counts);
    calibration_writer_free(writer);
    if (counts.bytes != 4 * (counts.records + counts.tokens) || counts.records != counts.accepted) {
        abort();
    }
    draw(&counts, true);
    draw(&counts, false);
    return 0;
}
