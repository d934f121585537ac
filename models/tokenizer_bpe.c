/* Byte pair encoding of one word: characters first, then the adjacent pair of lowest rank (leftmost of equals) is
 * merged until no pair has a rank.
 *
 * Symbols are a doubly linked list inside an array, candidates a binary heap by (rank, position): n log n for a word of
 * n characters, so a megabyte without a space is bounded. A merge leaves stale candidates in the heap; one is
 * recognised when the pair at its position no longer merges into the same token. Short words are kept with their ids in
 * a direct-mapped cache. */

#include "base/err.h"
#include "models/tokenizer_internal.h"

#include <string.h>

int tokenizer_push_id(struct tokenizer_scratch *scratch, int32_t id)
{
    int rc = tokenizer_grow((void **)&scratch->ids, &scratch->id_capacity, scratch->id_count + 1, sizeof(int32_t));
    if (rc == 0) {
        scratch->ids[scratch->id_count++] = id;
    }
    return rc;
}

static int add_symbol(struct tokenizer_scratch *scratch, int32_t id)
{
    size_t count = scratch->symbol_count;
    int rc =
        tokenizer_grow((void **)&scratch->symbols, &scratch->symbol_capacity, count + 1, sizeof(*scratch->symbols));
    if (rc == 0) {
        scratch->symbols[count] = (struct tokenizer_symbol){id, (int32_t)count - 1, (int32_t)count + 1};
        scratch->symbol_count++;
    }
    return rc;
}

static bool is_before(struct tokenizer_candidate a, struct tokenizer_candidate b)
{
    return a.rank != b.rank ? a.rank < b.rank : a.position < b.position;
}

static int heap_push(struct tokenizer_scratch *scratch, struct tokenizer_candidate candidate)
{
    TRY(tokenizer_grow((void **)&scratch->heap, &scratch->heap_capacity, scratch->heap_count + 1,
                       sizeof(*scratch->heap)));
    size_t at = scratch->heap_count++;
    while (at > 0 && is_before(candidate, scratch->heap[(at - 1) / 2])) {
        scratch->heap[at] = scratch->heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    scratch->heap[at] = candidate;
    return 0;
}

static struct tokenizer_candidate heap_pop(struct tokenizer_scratch *scratch)
{
    struct tokenizer_candidate *heap = scratch->heap;
    struct tokenizer_candidate top = heap[0], last = heap[--scratch->heap_count];
    size_t at = 0;

    for (size_t child; (child = 2 * at + 1) < scratch->heap_count; at = child) {
        child += child + 1 < scratch->heap_count && is_before(heap[child + 1], heap[child]) ? 1 : 0;
        if (!is_before(heap[child], last)) {
            break;
        }
        heap[at] = heap[child];
    }
    heap[at] = last;
    return top;
}

/* A candidate for the symbol at position and its right neighbour, if they merge. */
static int bpe_consider(const struct tokenizer *tokenizer, struct tokenizer_scratch *scratch, int32_t position)
{
    uint32_t rank;
    const struct tokenizer_symbol *symbol = &scratch->symbols[position];
    if ((size_t)symbol->next >= scratch->symbol_count ||
        !tokenizer_merges_find(&tokenizer->merges, symbol->id, scratch->symbols[symbol->next].id, &rank)) {
        return 0;
    }
    return heap_push(scratch, (struct tokenizer_candidate){rank, (uint32_t)position});
}

static int merge_all(const struct tokenizer *tokenizer, struct tokenizer_scratch *scratch)
{
    struct tokenizer_symbol *symbols = scratch->symbols;
    int32_t count = (int32_t)scratch->symbol_count;

    scratch->heap_count = 0;
    for (int32_t i = 0; i + 1 < count; i++) {
        TRY(bpe_consider(tokenizer, scratch, i));
    }
    while (scratch->heap_count > 0) {
        struct tokenizer_candidate top = heap_pop(scratch);
        struct tokenizer_symbol *left = &symbols[top.position];
        int32_t merged = tokenizer->merges.merged[top.rank];
        uint32_t rank;
        if (left->id < 0 || left->next >= count ||
            !tokenizer_merges_find(&tokenizer->merges, left->id, symbols[left->next].id, &rank) ||
            tokenizer->merges.merged[rank] != merged) {
            continue;
        }
        struct tokenizer_symbol *right = &symbols[left->next];
        left->id = merged;
        left->next = right->next;
        right->id = -1;
        if (left->next < count) {
            symbols[left->next].previous = (int32_t)top.position;
        }
        if (left->previous >= 0) {
            TRY(bpe_consider(tokenizer, scratch, left->previous));
        }
        TRY(bpe_consider(tokenizer, scratch, (int32_t)top.position));
    }
    return 0;
}

static int32_t character_id(const struct tokenizer *tokenizer, const char *text, size_t size, uint32_t codepoint)
{
    size_t direct = sizeof(tokenizer->char_ids) / sizeof(tokenizer->char_ids[0]);
    return codepoint < direct ? tokenizer->char_ids[codepoint] : tokenizer_vocab_find(&tokenizer->vocab, text, size);
}

/* The bytes of an unknown character as tokens: 1 done, 0 not all bytes have one, negative raised. */
static int add_bytes(const struct tokenizer *tokenizer, struct tokenizer_scratch *scratch, const char *text,
                     size_t size)
{
    for (size_t i = 0; i < size; i++) {
        if (tokenizer->byte_ids[(unsigned char)text[i]] < 0) {
            return 0;
        }
    }
    for (size_t i = 0; i < size; i++) {
        TRY(add_symbol(scratch, tokenizer->byte_ids[(unsigned char)text[i]]));
    }
    return 1;
}

/* One symbol a character. An unknown one waits, so that neighbours may fuse; as in the reference, bytes of a fallback
 * do not end the wait, and without an unknown token such characters vanish. */
static int add_characters(const struct tokenizer *tokenizer, struct tokenizer_scratch *scratch, const char *word,
                          size_t size)
{
    bool waiting = false;

    scratch->symbol_count = 0;
    for (size_t at = 0; at < size;) {
        uint32_t codepoint;
        const char *text = word + at;
        size_t bytes = tokenizer_utf8_decode(text, &codepoint);
        int32_t id = character_id(tokenizer, text, bytes, codepoint);
        at += bytes;
        if (id >= 0) {
            if (waiting) {
                TRY(add_symbol(scratch, tokenizer->unk_id));
            }
            TRY(add_symbol(scratch, id));
            waiting = false;
            continue;
        }
        int done = tokenizer->byte_fallback ? add_bytes(tokenizer, scratch, text, bytes) : 0;
        if (done < 0) {
            return done;
        }
        if (done == 0 && tokenizer->unk_token != NULL) {
            if (tokenizer->unk_id < 0) {
                return err_raise(ERR_INVALID_TOKENIZER, "U+%04X needs the unknown token \"%.64s\", which has no id",
                                 codepoint, tokenizer->unk_token);
            }
            if (waiting && !tokenizer->fuse_unk) {
                TRY(add_symbol(scratch, tokenizer->unk_id));
            }
            waiting = true;
        }
    }
    return waiting ? add_symbol(scratch, tokenizer->unk_id) : 0;
}

static int encode_word(const struct tokenizer *tokenizer, struct tokenizer_scratch *scratch, const char *word,
                       size_t size)
{
    TRY(add_characters(tokenizer, scratch, word, size));
    TRY(merge_all(tokenizer, scratch));
    for (size_t i = 0; i < scratch->symbol_count; i++) {
        if (scratch->symbols[i].id >= 0) {
            TRY(tokenizer_push_id(scratch, scratch->symbols[i].id));
        }
    }
    return 0;
}

int tokenizer_word(const struct tokenizer *tokenizer, struct tokenizer_scratch *scratch, const char *word, size_t size)
{
    int32_t id = tokenizer->ignore_merges ? tokenizer_vocab_find(&tokenizer->vocab, word, size) : -1;
    if (id >= 0) {
        return tokenizer_push_id(scratch, id);
    }
    struct tokenizer_cached *cached = NULL;
    uint64_t hash = 0;

    if (size <= sizeof(cached->text)) {
        hash = tokenizer_hash(tokenizer->vocab.seed, word, size);
        cached = &scratch->cache[hash % TOKENIZER_CACHE_SIZE];
        if (cached->hash == hash && cached->size == size && memcmp(cached->text, word, size) == 0) {
            for (size_t i = 0; i < cached->count; i++) {
                TRY(tokenizer_push_id(scratch, cached->ids[i]));
            }
            return 0;
        }
    }
    size_t first = scratch->id_count;
    TRY(tokenizer->is_unigram ? tokenizer_unigram(tokenizer, scratch, word, size)
                              : encode_word(tokenizer, scratch, word, size));
    size_t count = scratch->id_count - first;
    if (cached != NULL && size > 0 && count <= sizeof(cached->ids) / sizeof(cached->ids[0])) {
        cached->hash = hash;
        cached->size = (uint8_t)size;
        cached->count = (uint8_t)count;
        memcpy(cached->text, word, size);
        if (count > 0) {
            memcpy(cached->ids, scratch->ids + first, count * sizeof(int32_t));
        }
    }
    return 0;
}
