/* The lists of a tokenizer's tables, which are made for looking up. */

#include "models/tokenizer_view.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/mem.h"
#include "models/tokenizer_internal.h"

#include <stdlib.h>
#include <string.h>

#define MARK "\xe2\x96\x81" /* U+2581 */

int32_t tokenizer_vocabulary_id(const struct tokenizer *tokenizer, const char *text, size_t size)
{
    return tokenizer_vocab_find(&tokenizer->vocab, text, size);
}

int32_t tokenizer_token_id(const struct tokenizer *tokenizer, const char *text, size_t size)
{
    int32_t id = tokenizer_vocab_find(&tokenizer->added, text, size);
    return id >= 0 ? id : tokenizer_vocab_find(&tokenizer->vocab, text, size);
}

/* The added token of this text, or NULL. */
static const struct tokenizer_vocab_entry *find_added(const struct tokenizer *tokenizer, const char *text, size_t size)
{
    const struct tokenizer_vocab *added = &tokenizer->added;
    size_t index;

    return tokenizer_vocab_index(added, text, size, &index) ? &added->entries[index] : NULL;
}

static bool is_byte(const struct tokenizer *tokenizer, const char *text, size_t size, int32_t id)
{
    bool found = false;

    for (int i = 0; size == 6 && memcmp(text, "<0x", 3) == 0 && i < 256 && !found; i++) {
        found = tokenizer->byte_ids[i] == id;
    }
    return found;
}

static int compare_tokens(const void *a, const void *b)
{
    const struct tokenizer_token *left = a, *right = b;
    size_t shorter = left->size < right->size ? left->size : right->size;

    if (left->id != right->id) {
        return left->id < right->id ? -1 : 1;
    }
    int order = memcmp(left->text, right->text, shorter);
    return order != 0 ? order : (left->size > right->size) - (left->size < right->size);
}

static int list_tokens(const struct tokenizer *tokenizer, struct tokenizer_view *view)
{
    const struct tokenizer_vocab *vocab = &tokenizer->vocab, *added = &tokenizer->added;

    TRY(mem_array(&view->tokens, vocab->count + added->count));
    for (size_t i = 0; i < vocab->count + added->count; i++) {
        bool own = i < vocab->count;
        const struct tokenizer_vocab *from = own ? vocab : added;
        const struct tokenizer_vocab_entry *entry = &from->entries[own ? i : i - vocab->count];
        const char *text = from->bytes.data + entry->offset;
        if (!own && tokenizer_vocab_find(vocab, text, entry->size) >= 0) {
            continue; /* listed already */
        }
        const struct tokenizer_vocab_entry *also = own ? find_added(tokenizer, text, entry->size) : entry;
        view->tokens[view->token_count++] = (struct tokenizer_token){
            .text = text,
            .size = entry->size,
            .id = entry->id,
            .added = also != NULL,
            .special = also != NULL && also->special,
            .byte = own && tokenizer->byte_fallback && is_byte(tokenizer, text, entry->size, entry->id),
            .unknown = tokenizer->unk_token != NULL && strlen(tokenizer->unk_token) == entry->size &&
                       memcmp(tokenizer->unk_token, text, entry->size) == 0,
        };
    }
    qsort(view->tokens, view->token_count, sizeof(*view->tokens), compare_tokens);
    return 0;
}

static int list_merges(const struct tokenizer *tokenizer, struct tokenizer_view *view)
{
    const struct tokenizer_merges *merges = &tokenizer->merges;

    TRY(mem_buffer(&view->merges, merges->count));
    TRY(mem_buffer(&view->merged, merges->count));
    memset(view->merges, 0xff, merges->count * sizeof(*view->merges));
    for (size_t slot = 0; slot < merges->slot_count; slot++) {
        if (merges->keys[slot] != UINT64_MAX) {
            view->merges[merges->ranks[slot]][0] = (int32_t)(merges->keys[slot] >> 32);
            view->merges[merges->ranks[slot]][1] = (int32_t)(uint32_t)merges->keys[slot];
        }
    }
    for (size_t rank = 0; rank < merges->count; rank++) {
        if (view->merges[rank][0] >= 0) { /* else the pair comes again */
            memmove(view->merges[view->merge_count], view->merges[rank], sizeof(*view->merges));
            view->merged[view->merge_count++] = merges->merged[rank];
        }
    }
    return 0;
}

static bool is_literal(const struct tokenizer_pattern *pattern, const char *text)
{
    return pattern->literal != NULL && pattern->literal_size == strlen(text) &&
           memcmp(pattern->literal, text, pattern->literal_size) == 0;
}

static void look_at_normalizers(const struct tokenizer *tokenizer, struct tokenizer_view *view, bool *replaced)
{
    view->nfc_only = view->marks_spaces = true;
    for (int i = 0; i < tokenizer->normalizer_count; i++) {
        const struct tokenizer_normalizer *n = &tokenizer->normalizers[i];
        bool marks = n->content != NULL && strcmp(n->content, MARK) == 0;
        bool prepend = n->kind == NORMALIZER_PREPEND && marks;
        bool replace = n->kind == NORMALIZER_REPLACE && marks && is_literal(&n->pattern, " ");
        view->nfc_only = view->nfc_only && n->kind == NORMALIZER_NFC;
        view->marks_spaces = view->marks_spaces && (prepend || replace);
        view->prepends_mark = view->prepends_mark || prepend;
        *replaced = *replaced || replace;
    }
}

static void look_at_steps(const struct tokenizer *tokenizer, struct tokenizer_view *view)
{
    const struct tokenizer_step *first = &tokenizer->steps[0];
    const struct tokenizer_step *last =
        tokenizer->step_count > 1 ? &tokenizer->steps[tokenizer->step_count - 1] : first;
    bool replaced = false;

    look_at_normalizers(tokenizer, view, &replaced);
    if (tokenizer->step_count == 0) {
        view->marks_spaces = view->marks_spaces && replaced;
        return;
    }
    bool metaspace = tokenizer->step_count == 1 && first->kind == STEP_METASPACE && is_literal(&first->pattern, MARK);
    view->marks_spaces = view->marks_spaces && metaspace;
    view->prepends_mark = view->prepends_mark || (metaspace && first->prepend != PREPEND_NEVER);
    if (last->kind != STEP_BYTE_LEVEL || last->prepend != PREPEND_NEVER) {
        return;
    }
    if (tokenizer->step_count == 1) {
        view->pattern = last->split ? last->pattern.source : "";
    } else if (tokenizer->step_count == 2 && first->kind == STEP_SPLIT && first->behavior == BEHAVIOR_ISOLATED &&
               !first->invert && !last->split) {
        view->pattern = first->pattern.source; /* NULL for a literal */
    }
}

int tokenizer_view_init(const struct tokenizer *tokenizer, struct tokenizer_view *out)
{
    AUTO(tokenizer_view)
    struct tokenizer_view view = {.unigram = tokenizer->is_unigram, .byte_fallback = tokenizer->byte_fallback};

    TRY(list_tokens(tokenizer, &view));
    TRY(list_merges(tokenizer, &view));
    look_at_steps(tokenizer, &view);
    *out = view;
    view = (struct tokenizer_view){0};
    return 0;
}

void tokenizer_view_deinit(struct tokenizer_view *view)
{
    free(view->tokens);
    free(view->merges);
    free(view->merged);
    *view = (struct tokenizer_view){0};
}
