/* Unigram language model (Kudo 2018, "Subword Regularization"): the tokens of a word are those whose logarithmic
 * probabilities have the largest sum, found by Viterbi's algorithm over its bytes.
 *
 * Tokens are sorted by bytes; at each character the range of those that agree so far narrows byte by byte, as with
 * added tokens, so a word of n bytes takes at most n * TOKENIZER_ADDED_BYTES_MAX steps. A character without a token of
 * its own can also be the unknown one, ten below the least score. As in the reference a tie goes to the token that
 * starts first, neighbours that are unknown become one piece, and that piece is looked up again: it is a token, or its
 * bytes are, or it is unknown. */

#include "base/err.h"
#include "base/json_stream.h"
#include "base/mem.h"
#include "models/tokenizer_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define UNKNOWN_PENALTY 10.0

static int unigram_raise(const struct json_stream *stream, const char *what)
{
    return err_raise(ERR_INVALID_TOKENIZER, "model.vocab: %s at byte %zu", stream->error != NULL ? stream->error : what,
                     stream->at);
}

/* The literal that the stream just returned. */
static int read_score(const struct json_stream *stream, double *score)
{
    char literal[64];

    if (stream->length >= sizeof(literal)) {
        return unigram_raise(stream, "a score is too long");
    }
    memcpy(literal, stream->text, stream->length);
    literal[stream->length] = '\0';
    *score = strtod(literal, NULL);
    return isfinite(*score) ? 0 : unigram_raise(stream, "a score is not finite");
}

/* One [text, score], its bracket already read. */
static int read_scored(struct tokenizer *tokenizer, struct json_stream *stream, double *score)
{
    struct tokenizer_vocab_entry *entry = NULL;

    if (json_stream_next(stream) != JSON_TOKEN_STRING) {
        return unigram_raise(stream, "an entry is not a text and a score");
    }
    if (stream->length > TOKENIZER_ADDED_BYTES_MAX) {
        return err_raise(ERR_INVALID_TOKENIZER, "token %zu has %zu bytes, more than %d", tokenizer->size,
                         stream->length, TOKENIZER_ADDED_BYTES_MAX);
    }
    TRY(tokenizer_vocab_put(&tokenizer->vocab, stream->text, stream->length, &entry));
    if (json_stream_next(stream) != JSON_TOKEN_NUMBER) {
        return unigram_raise(stream, "an entry is not a text and a score");
    }
    TRY(read_score(stream, score));
    if (json_stream_next(stream) != JSON_TOKEN_ARRAY_END) {
        return unigram_raise(stream, "an entry is not a text and a score");
    }
    if (tokenizer->size == TOKENIZER_TOKENS_MAX) { /* a text may come many times */
        return err_raise(ERR_INVALID_TOKENIZER, "the vocabulary has more than %u tokens", TOKENIZER_TOKENS_MAX);
    }
    entry->id = (int32_t)tokenizer->size++; /* of a text that comes twice the last place counts */
    return 0;
}

static int unigram_compare(const void *a, const void *b)
{
    const struct tokenizer_unigram_piece *left = a, *right = b;
    size_t shorter = left->size < right->size ? left->size : right->size;
    int order = memcmp(left->text, right->text, shorter);
    return order != 0 ? order : (left->size > right->size) - (left->size < right->size);
}

/* The searchable list, of the scores by id. */
static int unigram_build(struct tokenizer *tokenizer, const double *scores)
{
    const struct tokenizer_vocab *vocab = &tokenizer->vocab;
    struct tokenizer_unigram *unigram = &tokenizer->unigram;
    size_t at = 0;

    TRY(mem_array(&unigram->pieces, vocab->count));
    for (size_t i = 0; i < vocab->count; i++) {
        const struct tokenizer_vocab_entry *entry = &vocab->entries[i];
        if (entry->size > 0) { /* the empty text starts nowhere */
            unigram->pieces[unigram->count++] = (struct tokenizer_unigram_piece){
                vocab->bytes.data + entry->offset, entry->size, entry->id, scores[entry->id]};
        }
    }
    qsort(unigram->pieces, unigram->count, sizeof(*unigram->pieces), unigram_compare);
    for (unsigned byte = 0; byte <= 256; byte++) {
        while (at < unigram->count && (unsigned char)unigram->pieces[at].text[0] < byte) {
            at++;
        }
        unigram->first[byte] = (uint32_t)at;
    }
    return 0;
}

int tokenizer_load_unigram(struct tokenizer *tokenizer, const char *json, size_t size)
{
    AUTO(json_stream) struct json_stream stream = {0};
    AUTO_FREE double *scores = NULL;
    size_t capacity = 0;
    enum json_token token;
    double least = INFINITY;

    json_stream_init(&stream, json, size);
    if (json_stream_next(&stream) != JSON_TOKEN_ARRAY_BEGIN) {
        return unigram_raise(&stream, "it is not a list");
    }
    while ((token = json_stream_next(&stream)) != JSON_TOKEN_ARRAY_END) {
        double score = 0;
        if (token != JSON_TOKEN_ARRAY_BEGIN) {
            return unigram_raise(&stream, "an entry is not a text and a score");
        }
        TRY(read_scored(tokenizer, &stream, &score));
        TRY(tokenizer_grow((void **)&scores, &capacity, tokenizer->size, sizeof(*scores)));
        scores[tokenizer->size - 1] = score;
        least = score < least ? score : least;
    }
    tokenizer->unigram.unk_score = least - UNKNOWN_PENALTY;
    return unigram_build(tokenizer, scores);
}

/* The first piece in [low, high) whose byte at `depth` is at least `byte`; all share the bytes before it. */
static size_t unigram_bound(const struct tokenizer_unigram *unigram, size_t low, size_t high, size_t depth, int byte)
{
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const struct tokenizer_unigram_piece *piece = &unigram->pieces[middle];
        int at = piece->size > depth ? (unsigned char)piece->text[depth] : -1;
        if (at < byte) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

static void unigram_offer(struct tokenizer_node *node, double score, size_t start, int32_t id)
{
    if (node->start < 0 || score > node->score) {
        *node = (struct tokenizer_node){score, (int32_t)start, id};
    }
}

/* Every token that starts at `start` offers itself to the node of its end. Whether one is the first character alone. */
static bool unigram_extend(const struct tokenizer_unigram *unigram, struct tokenizer_node *nodes, const char *word,
                           size_t size, size_t start)
{
    const char *text = word + start;
    size_t left = size - start, character = tokenizer_utf8_size(text[0]);
    size_t low = unigram->first[(unsigned char)text[0]], high = unigram->first[(unsigned char)text[0] + 1];
    double score = nodes[start].score;
    bool single = false;

    for (size_t depth = 1; low < high; depth++) {
        const struct tokenizer_unigram_piece *piece = &unigram->pieces[low];
        if (high - low == 1) {
            if (piece->size <= left && memcmp(piece->text, text, piece->size) == 0) {
                unigram_offer(&nodes[start + piece->size], piece->score + score, start, piece->id);
                single = single || piece->size == character;
            }
            return single;
        }
        if (piece->size == depth) {
            unigram_offer(&nodes[start + depth], piece->score + score, start, piece->id);
            single = single || depth == character;
            low++;
        }
        if (depth == left) {
            break;
        }
        int byte = (unsigned char)text[depth];
        low = unigram_bound(unigram, low, high, depth, byte);
        high = unigram_bound(unigram, low, high, depth, byte + 1);
    }
    return single;
}

/* Turn the links from each node to the one before it on the best path into links to the next one. */
static void unigram_reverse(struct tokenizer_node *nodes, size_t size)
{
    int32_t next = (int32_t)size;

    for (int32_t at = (int32_t)size; at > 0;) {
        int32_t before = nodes[at].start;
        nodes[at].start = next;
        next = at;
        at = before;
    }
    nodes[0].start = next;
}

/* What no single token stands for. */
static int push_unknown(const struct tokenizer *tokenizer, struct tokenizer_scratch *scratch, const char *text,
                        size_t size)
{
    int32_t id = tokenizer_vocab_find(&tokenizer->vocab, text, size);
    bool bytes = id < 0 && tokenizer->byte_fallback;

    for (size_t i = 0; bytes && i < size; i++) {
        bytes = tokenizer->byte_ids[(unsigned char)text[i]] >= 0;
    }
    for (size_t i = 0; bytes && i < size; i++) {
        TRY(tokenizer_push_id(scratch, tokenizer->byte_ids[(unsigned char)text[i]]));
    }
    return bytes ? 0 : tokenizer_push_id(scratch, id >= 0 ? id : tokenizer->unk_id);
}

int tokenizer_unigram(const struct tokenizer *tokenizer, struct tokenizer_scratch *scratch, const char *word,
                      size_t size)
{
    const struct tokenizer_unigram *unigram = &tokenizer->unigram;

    TRY(tokenizer_grow((void **)&scratch->nodes, &scratch->node_capacity, size + 1, sizeof(*scratch->nodes)));
    struct tokenizer_node *nodes = scratch->nodes;
    nodes[0] = (struct tokenizer_node){0, 0, -1};
    for (size_t i = 1; i <= size; i++) {
        nodes[i].start = -1;
    }
    for (size_t at = 0; at < size; at += tokenizer_utf8_size(word[at])) {
        if (!unigram_extend(unigram, nodes, word, size, at)) {
            if (tokenizer->unk_id < 0) {
                return err_raise(ERR_INVALID_TOKENIZER, "a text holds a character without a token, and there is no "
                                                        "unk_id");
            }
            unigram_offer(&nodes[at + tokenizer_utf8_size(word[at])], unigram->unk_score + nodes[at].score, at,
                          tokenizer->unk_id);
        }
    }
    unigram_reverse(nodes, size);
    for (size_t at = 0; at < size;) {
        size_t end = (size_t)nodes[at].start;
        int32_t id = nodes[end].id;
        while (id == tokenizer->unk_id && end < size && nodes[nodes[end].start].id == id) {
            end = (size_t)nodes[end].start;
        }
        TRY(id == tokenizer->unk_id ? push_unknown(tokenizer, scratch, word + at, end - at)
                                    : tokenizer_push_id(scratch, id));
        at = end;
    }
    return 0;
}
