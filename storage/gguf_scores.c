/* Scores of a byte-fallback vocabulary, from its merges.
 *
 * The runtime joins the neighbours whose joint token has the highest score, whatever the halves; tokenizer.json joins
 * the pair that comes first in a list. They agree when the list is sorted by the joint token and has every pair of
 * tokens that makes one: then a token's score is minus its place. What was converted from sentencepiece is so; anything
 * else is refused. */

#include "storage/gguf.h"

#include "base/err.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int refuse(const char *what, const char *token)
{
    int rc = err_raise(ERR_INCOMPATIBLE_OPTIONS,
                       "gguf wants scores for this tokenizer, and its merges have none: %s \"%.60s\"", what, token);
    return err_set_hint(rc, "another output.format, which copies tokenizer.json as it is");
}

/* Pairs of tokens that make this one: none for a token of one byte, or of none. */
static int64_t count_splits(const json_t *vocab, const char *text, char *left)
{
    int64_t count = 0;

    for (size_t i = 1, size = strlen(text); i < size; i++) {
        left[i - 1] = text[i - 1];
        left[i] = '\0';
        bool boundary = ((unsigned char)text[i] & 0xc0) != 0x80;
        count += boundary && json_object_get(vocab, left) != NULL && json_object_get(vocab, text + i) != NULL;
    }
    return count;
}

static int check_splits(const json_t *vocab, const char *const *texts, int64_t count, const int32_t *made)
{
    size_t longest = 0;

    for (int64_t i = 0; i < count; i++) {
        size_t length = texts[i] != NULL ? strlen(texts[i]) : 0;
        longest = length > longest ? length : longest;
    }
    char *left = malloc(longest + 1);
    if (left == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a token");
    }
    int rc = 0;
    for (int64_t i = 0; rc == 0 && i < count; i++) {
        if (texts[i] != NULL && json_object_get(vocab, texts[i]) != NULL &&
            count_splits(vocab, texts[i], left) != made[i]) {
            rc = refuse("not every pair is there that makes", texts[i]);
        }
    }
    free(left);
    return rc;
}

/* Score the token that a merge makes; *last is the one before it. */
static int score_merge(const json_t *vocab, const json_t *merge, int64_t count, int64_t *last, int64_t *place,
                       int32_t *made, float *scores)
{
    char scratch[1024], joint[2048];
    const char *left, *right;

    if (!gguf_merge_halves(merge, scratch, sizeof(scratch), &left, &right) ||
        strlen(left) + strlen(right) >= sizeof(joint)) {
        return refuse("one is not a pair", "");
    }
    memcpy(joint, left, strlen(left));
    memcpy(joint + strlen(left), right, strlen(right) + 1);
    const json_t *value = json_object_get(vocab, joint);
    int64_t id = json_is_integer(value) ? json_integer_value(value) : -1;
    if (id < 0 || id >= count) {
        return refuse("one makes no token of the vocabulary:", joint);
    }
    if (id != *last && made[id] > 0) {
        return refuse("they are not in the order of the tokens that they make, as with", joint);
    }
    *place += id != *last;
    *last = id;
    made[id]++;
    scores[id] = -(float)*place;
    return 0;
}

int gguf_derive_scores(const json_t *vocab, const json_t *merges, const char *const *texts, int64_t count,
                       float *scores)
{
    int32_t *made = calloc((size_t)count, sizeof(*made));
    int64_t last = -1, place = 0;
    int rc = made == NULL ? err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for %lld scores", (long long)count) : 0;
    size_t i;
    json_t *merge;

    json_array_foreach((json_t *)merges, i, merge)
    {
        rc = rc != 0 ? rc : score_merge(vocab, merge, count, &last, &place, made, scores);
    }
    for (int64_t id = 0; rc == 0 && id < count; id++) {
        if (made[id] == 0 && texts[id] != NULL && strlen(texts[id]) <= 4) {
            scores[id] = -(float)(place + 1); /* characters: never the result of a merge, so never compared */
        }
    }
    rc = rc != 0 ? rc : check_splits(vocab, texts, count, made);
    free(made);
    return rc;
}
