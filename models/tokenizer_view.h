#pragma once
/* The tables of a tokenizer as lists, for formats that carry the vocabulary in their own way: every token by id, the
 * merges in their order, and what the other steps do to a text as far as such formats have words for it. */

#include "base/cleanup.h"
#include "models/tokenizer.h"

struct tokenizer_token {
    const char *text; /* not NUL-terminated */
    size_t size;
    int32_t id;
    bool added, special; /* listed in added_tokens, and said to be special there */
    bool byte, unknown;  /* stands for one byte; is the unk_token */
};

/* Borrows from the tokenizer, which must outlive it. */
struct tokenizer_view {
    struct tokenizer_token *tokens; /* by id; each text once, but two texts may claim one id */
    size_t token_count;
    int32_t (*merges)[2]; /* ids of the halves; a pair that the file repeats is there at its last place only */
    int32_t *merged;      /* ids of what they make */
    size_t merge_count;
    bool unigram; /* there are no merges, but scores */
    bool byte_fallback;
    bool nfc_only;      /* text is normalized by NFC or not at all */
    bool marks_spaces;  /* nothing happens to text but that U+2581 stands for spaces, and maybe before the text */
    bool prepends_mark; /* it does */
    /* The expression that cuts words before a byte-level alphabet; "" = no cutting; NULL = not byte-level, or more is
     * done */
    const char *pattern;
};

int tokenizer_view_init(const struct tokenizer *tokenizer, struct tokenizer_view *out);
void tokenizer_view_deinit(struct tokenizer_view *view);
CLEANUP_DEINIT(tokenizer_view, struct tokenizer_view, tokenizer_view_deinit)
/* The id of a text in the vocabulary, without added tokens, or -1. */
int32_t tokenizer_vocabulary_id(const struct tokenizer *tokenizer, const char *text, size_t size);
/* The id of a text that is a token of either kind, or -1. */
int32_t tokenizer_token_id(const struct tokenizer *tokenizer, const char *text, size_t size);
