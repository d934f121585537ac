/* Scores of a byte-fallback vocabulary, from its merges.
 *
 * The runtime joins the neighbours whose joint token has the highest score, whatever the halves; tokenizer.json joins
 * the pair that comes first in a list. They agree when the list is sorted by the joint token and has every pair of
 * tokens that makes one: then a token's score is minus its place. What was converted from sentencepiece is so; anything
 * else is refused.
 *
 * Looking for the pairs that make a token takes the square of its bytes, so all tokens together have a budget of these.
 */

#include "formats/gguf.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/mem.h"

#include <stdlib.h>
#include <string.h>

#define SPLIT_BYTES_MAX ((int64_t)1 << 30) /* looked at; a real vocabulary needs a hundredth of it */

static int gguf_scores_refuse(const char *what, const struct tokenizer_token *token)
{
    int rc = err_raise(ERR_INCOMPATIBLE_OPTIONS,
                       "gguf wants scores for this tokenizer, and its merges have none: %s \"%.*s\"", what,
                       (int)(token->size < 60 ? token->size : 60), token->text);
    return err_set_hint(rc, "another output.format, which copies tokenizer.json as it is");
}

/* Pairs of tokens that make this one: none for a token of one byte, or of none. */
static int64_t gguf_count_splits(const struct tokenizer *tokenizer, const struct tokenizer_token *token)
{
    int64_t count = 0;

    for (size_t i = 1; i < token->size; i++) {
        bool boundary = ((unsigned char)token->text[i] & 0xc0) != 0x80;
        count += boundary && tokenizer_vocabulary_id(tokenizer, token->text, i) >= 0 &&
                 tokenizer_vocabulary_id(tokenizer, token->text + i, token->size - i) >= 0;
    }
    return count;
}

static int gguf_check_splits(const struct tokenizer *tokenizer, const struct tokenizer_token *const *tokens,
                             int64_t count, const int32_t *made)
{
    int64_t left = SPLIT_BYTES_MAX;

    for (int64_t i = 0; i < count; i++) {
        const struct tokenizer_token *token = tokens[i];
        if (token == NULL || tokenizer_vocabulary_id(tokenizer, token->text, token->size) < 0) {
            continue;
        }
        if (token->size > 1 << 15 || (left -= (int64_t)(token->size * token->size)) < 0) {
            return gguf_scores_refuse("its tokens are too long to look for pairs, as is", token);
        }
        if (gguf_count_splits(tokenizer, token) != made[i]) {
            return gguf_scores_refuse("not every pair is there that makes", token);
        }
    }
    return 0;
}

int gguf_derive_scores(const struct tokenizer *tokenizer, const struct tokenizer_view *view,
                       const struct tokenizer_token *const *tokens, int64_t count, float *scores)
{
    AUTO_FREE int32_t *made = NULL;
    int64_t last = -1, place = 0;

    TRY(mem_array(&made, (size_t)count));
    for (size_t i = 0; i < view->merge_count; i++) {
        int32_t id = view->merged[i]; /* within count, as all ids of the vocabulary */
        if (id != last && made[id] > 0) {
            return gguf_scores_refuse("they are not in the order of the tokens that they make, as with", tokens[id]);
        }
        place += id != last;
        last = id;
        made[id]++;
        scores[id] = -(float)place;
    }
    for (int64_t id = 0; id < count; id++) {
        if (made[id] == 0 && tokens[id] != NULL && tokens[id]->size <= 4) {
            scores[id] = -(float)(place + 1); /* characters: never the result of a merge, so never compared */
        }
    }
    return gguf_check_splits(tokenizer, tokens, count, made);
}
