/* Two hash tables: strings to ids, and pairs of ids to merge ranks. Linear probing at half load; removal is not needed.
 * Keys come from a file that may be hostile, so the hash takes a random seed: ids never depend on it. */

#include "base/err.h"
#include "base/mem.h"
#include "models/tokenizer_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#define FIRST_SLOTS 1024u
#define KEY_FREE UINT64_MAX

static uint64_t vocab_mix(uint64_t value)
{
    value ^= value >> 32;
    value *= 0xd6e8feb86659fd93u;
    value ^= value >> 32;
    value *= 0xd6e8feb86659fd93u;
    return value ^ value >> 32;
}

int tokenizer_seed(uint64_t *seed)
{
    uint64_t value;
    ssize_t got;
    do {
        got = getrandom(&value, sizeof(value), 0);
    } while (got < 0 && errno == EINTR);
    if (got != (ssize_t)sizeof(value)) {
        return err_raise(ERR_INTERNAL, "the kernel gives no random bytes");
    }
    *seed = value;
    return 0;
}

uint64_t tokenizer_hash(uint64_t seed, const char *text, size_t size)
{
    uint64_t hash = seed ^ size;
    while (size >= 8) {
        uint64_t word;
        memcpy(&word, text, 8);
        hash = vocab_mix(hash ^ word) + seed;
        text += 8;
        size -= 8;
    }
    uint64_t tail = 0;
    memcpy(&tail, text, size);
    return vocab_mix(hash ^ tail);
}

int tokenizer_grow(void **array, size_t *capacity, size_t count, size_t size)
{
    if (count <= *capacity) {
        return 0;
    }
    size_t larger = *capacity < 16 ? 16 : *capacity;
    while (larger < count && larger <= SIZE_MAX / 2) {
        larger *= 2;
    }
    larger = larger < count ? count : larger;
    TRY(mem_resized(array, larger, size));
    *capacity = larger;
    return 0;
}

int tokenizer_text_reserve(struct tokenizer_text *text, size_t more)
{
    if (more > TOKENIZER_JSON_MAX || text->size > (size_t)TOKENIZER_JSON_MAX - more) {
        return err_raise(ERR_PAYLOAD_TOO_LARGE, "a text is larger than %u bytes", TOKENIZER_JSON_MAX);
    }
    return tokenizer_grow((void **)&text->data, &text->capacity, text->size + more, 1);
}

int tokenizer_text_append(struct tokenizer_text *text, const char *data, size_t size)
{
    TRY(tokenizer_text_reserve(text, size));
    if (size > 0) {
        memcpy(text->data + text->size, data, size);
        text->size += size;
    }
    return 0;
}

/* The slot that holds the string, or the free one where it belongs. */
static size_t vocab_slot(const struct tokenizer_vocab *vocab, const char *text, size_t size)
{
    size_t mask = vocab->slot_count - 1;
    size_t slot = tokenizer_hash(vocab->seed, text, size) & mask;
    while (vocab->slots[slot] != 0) {
        const struct tokenizer_vocab_entry *entry = &vocab->entries[vocab->slots[slot] - 1];
        if (entry->size == size && memcmp(vocab->bytes.data + entry->offset, text, size) == 0) {
            break;
        }
        slot = (slot + 1) & mask;
    }
    return slot;
}

bool tokenizer_vocab_index(const struct tokenizer_vocab *vocab, const char *text, size_t size, size_t *index)
{
    uint32_t found = vocab->count > 0 ? vocab->slots[vocab_slot(vocab, text, size)] : 0;
    *index = found - 1;
    return found != 0;
}

int32_t tokenizer_vocab_find(const struct tokenizer_vocab *vocab, const char *text, size_t size)
{
    size_t index;
    return tokenizer_vocab_index(vocab, text, size, &index) ? vocab->entries[index].id : -1;
}

static int vocab_rehash(struct tokenizer_vocab *vocab)
{
    size_t slot_count = vocab->slot_count == 0 ? FIRST_SLOTS : vocab->slot_count * 2;
    uint32_t *slots = calloc(slot_count, sizeof(*slots));
    if (slots == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a vocabulary of %zu tokens", vocab->count);
    }
    free(vocab->slots);
    vocab->slots = slots;
    vocab->slot_count = slot_count;
    for (size_t i = 0; i < vocab->count; i++) {
        const struct tokenizer_vocab_entry *entry = &vocab->entries[i];
        slots[vocab_slot(vocab, vocab->bytes.data + entry->offset, entry->size)] = (uint32_t)i + 1;
    }
    return 0;
}

int tokenizer_vocab_put(struct tokenizer_vocab *vocab, const char *text, size_t size,
                        struct tokenizer_vocab_entry **out)
{
    if (vocab->count * 2 >= vocab->slot_count) {
        TRY(vocab_rehash(vocab));
    }
    size_t slot = vocab_slot(vocab, text, size);
    if (vocab->slots[slot] == 0) {
        if (vocab->count == TOKENIZER_TOKENS_MAX) {
            return err_raise(ERR_INVALID_TOKENIZER, "the vocabulary has more than %u tokens", TOKENIZER_TOKENS_MAX);
        }
        TRY(tokenizer_grow((void **)&vocab->entries, &vocab->capacity, vocab->count + 1, sizeof(*vocab->entries)));
        size_t offset = vocab->bytes.size;
        /* One byte is always there, so that an empty first string has an address. */
        TRY(tokenizer_text_reserve(&vocab->bytes, size + 1));
        TRY(tokenizer_text_append(&vocab->bytes, text, size));
        vocab->entries[vocab->count] = (struct tokenizer_vocab_entry){(uint32_t)offset, (uint32_t)size, -1, false};
        vocab->slots[slot] = (uint32_t)++vocab->count;
    }
    *out = &vocab->entries[vocab->slots[slot] - 1];
    return 0;
}

void tokenizer_vocab_deinit(struct tokenizer_vocab *vocab)
{
    free(vocab->bytes.data);
    free(vocab->entries);
    free(vocab->slots);
    *vocab = (struct tokenizer_vocab){0};
}

static uint64_t pair_key(int32_t left, int32_t right)
{
    return (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
}

static size_t merges_slot(const struct tokenizer_merges *merges, uint64_t key)
{
    size_t mask = merges->slot_count - 1;
    size_t slot = vocab_mix(key ^ merges->seed) & mask;
    while (merges->keys[slot] != KEY_FREE && merges->keys[slot] != key) {
        slot = (slot + 1) & mask;
    }
    return slot;
}

static int merges_rehash(struct tokenizer_merges *merges)
{
    struct tokenizer_merges grown = *merges;
    grown.slot_count = merges->slot_count == 0 ? FIRST_SLOTS : merges->slot_count * 2;
    grown.keys = malloc(grown.slot_count * sizeof(*grown.keys));
    grown.ranks = malloc(grown.slot_count * sizeof(*grown.ranks));
    if (grown.keys == NULL || grown.ranks == NULL) {
        free(grown.keys);
        free(grown.ranks);
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for %zu merges", merges->count);
    }
    memset(grown.keys, 0xff, grown.slot_count * sizeof(*grown.keys));
    for (size_t i = 0; i < merges->slot_count; i++) {
        if (merges->keys[i] != KEY_FREE) {
            size_t slot = merges_slot(&grown, merges->keys[i]);
            grown.keys[slot] = merges->keys[i];
            grown.ranks[slot] = merges->ranks[i];
        }
    }
    free(merges->keys);
    free(merges->ranks);
    *merges = grown;
    return 0;
}

int tokenizer_merges_add(struct tokenizer_merges *merges, int32_t left, int32_t right, int32_t merged)
{
    if (merges->count == TOKENIZER_TOKENS_MAX) {
        return err_raise(ERR_INVALID_TOKENIZER, "there are more than %u merges", TOKENIZER_TOKENS_MAX);
    }
    TRY(tokenizer_grow((void **)&merges->merged, &merges->capacity, merges->count + 1, sizeof(*merges->merged)));
    if (merges->count * 2 >= merges->slot_count) {
        TRY(merges_rehash(merges));
    }
    uint64_t key = pair_key(left, right);
    size_t slot = merges_slot(merges, key);
    merges->keys[slot] = key;
    merges->ranks[slot] = (uint32_t)merges->count; /* a repeated pair takes its last rank, as in the reference */
    merges->merged[merges->count++] = merged;
    return 0;
}

bool tokenizer_merges_find(const struct tokenizer_merges *merges, int32_t left, int32_t right, uint32_t *rank)
{
    if (merges->count == 0) {
        return false;
    }
    size_t slot = merges_slot(merges, pair_key(left, right));
    if (merges->keys[slot] == KEY_FREE) {
        return false;
    }
    *rank = merges->ranks[slot];
    return true;
}

void tokenizer_merges_deinit(struct tokenizer_merges *merges)
{
    free(merges->keys);
    free(merges->ranks);
    free(merges->merged);
    *merges = (struct tokenizer_merges){0};
}
