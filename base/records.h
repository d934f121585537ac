#pragma once
/* How much calibration or evaluation records hold, by the first of them, where nobody has read them all. Any thread. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define RECORDS_HEAD ((size_t)1 << 20) /* bytes that say enough */
/* Bytes of text for each token: of English as it is, and where no more than what is there may be counted on. */
#define RECORDS_TEXT_BYTES 4.5
#define RECORDS_TEXT_BYTES_LEAST 2.5

/* Sequences of `length` tokens that NDJSON of `total` bytes makes, its first `size` bytes being at head: exact where
 * these are all of it and the records are input_ids; of texts, one token for each text_bytes bytes is assumed. packing:
 * records are laid end to end; else each with enough tokens makes one. Lines that cannot be read make none. */
int64_t records_sequences(const char *head, size_t size, int64_t total, int64_t length, bool packing,
                          double text_bytes);
