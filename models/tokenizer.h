#pragma once
/* tokenizer.json (huggingface/tokenizers) to token ids: byte-level and byte-fallback BPE, Unigram (what SentencePiece
 * exports), added tokens, and the normalizers, pre-tokenizers and post-processors that decoder checkpoints use. */

#include "base/cleanup.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct tokenizer; /* immutable once open */

/* Parse the text of a tokenizer.json. ERR_INVALID_TOKENIZER names what is damaged or not supported. */
int tokenizer_new(const char *json, size_t size, struct tokenizer **out);
void tokenizer_free(struct tokenizer *tokenizer);
CLEANUP_FREE(tokenizer, struct tokenizer, tokenizer_free)
/* What the post-processor's template puts before and after a text. Borrowed. */
void tokenizer_template(const struct tokenizer *tokenizer, const int32_t **before, size_t *before_count,
                        const int32_t **after, size_t *after_count);

/* Scratch of one thread: match data, caches, output. Reused over many calls. */
struct tokenizer_scratch;
int tokenizer_scratch_new(const struct tokenizer *tokenizer, struct tokenizer_scratch **out);
void tokenizer_scratch_free(struct tokenizer_scratch *scratch);
CLEANUP_FREE(tokenizer_scratch, struct tokenizer_scratch, tokenizer_scratch_free)
/* Have encoding ask every few milliseconds whether it may continue: a negative answer ends it and is returned. */
void tokenizer_scratch_watch(struct tokenizer_scratch *scratch, int (*watch)(void *data), void *data);
/* Whether the last text failed because the file's patterns exceeded their limits on it. */
bool tokenizer_gave_up(const struct tokenizer_scratch *scratch);

/* Encode UTF-8 text. add_special: run the post-processor's template (BOS). *ids points into the scratch until the
 * next call. ERR_INVALID_PARAMETER on text that is not UTF-8, or on which the file's patterns run into their limits of
 * steps, depth and time; ERR_PAYLOAD_TOO_LARGE beyond 64 MiB, before or after normalization. Any thread, with its own
 * scratch.
 */
int tokenizer_encode(const struct tokenizer *tokenizer, struct tokenizer_scratch *scratch, const char *text,
                     size_t size, bool add_special, const int32_t **ids, size_t *count);
