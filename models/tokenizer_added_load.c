/* The added_tokens section. Tokens that the vocabulary knows keep its id; others are numbered after it, in the order
 * of the file, as the reference does (the "id" of the file is what it wrote down then, and only checked here to be a
 * number). A normalized token is searched for in its normalized form. */

#include "base/cleanup.h"
#include "base/err.h"
#include "base/json.h"
#include "base/json_stream.h"
#include "base/mem.h"
#include "models/tokenizer_internal.h"

#include <stdlib.h>
#include <string.h>

#define ENTRY_MAX 8192u /* bytes of one entry's JSON */
#define ENTRY_DEPTH 4
#define NORMALIZED_BYTES ((size_t)1 << 20)

/* All tokens of the file, before they are parted by `normalized`. */
struct list {
    struct tokenizer_added *tokens;
    size_t count, capacity;
    int64_t next_id;
    struct tokenizer_scratch scratch; /* for the normalizers */
};

static void list_deinit(struct list *list)
{
    for (size_t i = 0; i < list->count; i++) {
        free(list->tokens[i].pattern);
    }
    free(list->tokens);
    tokenizer_scratch_deinit(&list->scratch);
}

CLEANUP_DEINIT(list, struct list, list_deinit)

static int added_pattern(const struct tokenizer *tokenizer, struct list *list, const char *content, size_t size,
                         struct tokenizer_added *token)
{
    if (token->normalized) {
        TRY(tokenizer_normalize(tokenizer, &list->scratch, content, size, 0));
        content = list->scratch.normal.data;
        size = list->scratch.normal.size;
    }
    if (size > TOKENIZER_ADDED_BYTES_MAX) {
        return err_raise(ERR_INVALID_TOKENIZER, "an added token has %zu bytes, more than %d", size,
                         TOKENIZER_ADDED_BYTES_MAX);
    }
    TRY(mem_buffer(&token->pattern, size));
    if (size > 0) {
        memcpy(token->pattern, content, size);
    }
    token->size = size;
    return 0;
}

/* Of a token that is listed twice, the first place decides the id and the last one whether it is special. */
static int id_of(struct tokenizer *tokenizer, struct list *list, const char *content, size_t size, bool special,
                 int32_t *out)
{
    struct tokenizer_vocab_entry *entry = NULL;

    TRY(tokenizer_vocab_put(&tokenizer->added, content, size, &entry));
    entry->special = special;
    if (entry->id < 0) {
        int32_t id = tokenizer_vocab_find(&tokenizer->vocab, content, size);
        if (id < 0 && list->next_id >= INT32_MAX) {
            return err_raise(ERR_INVALID_TOKENIZER, "there are too many tokens");
        }
        entry->id = id >= 0 ? id : (int32_t)list->next_id++;
    }
    *out = entry->id;
    return 0;
}

static int add_entry(struct tokenizer *tokenizer, struct list *list, const json_t *entry)
{
    struct tokenizer_added token = {0};
    const char *content;
    size_t size;
    bool special = false;

    TRY(tokenizer_member_string(entry, "content", &content, &size));
    TRY(tokenizer_member_bool(entry, "single_word", false, &token.single_word));
    TRY(tokenizer_member_bool(entry, "lstrip", false, &token.lstrip));
    TRY(tokenizer_member_bool(entry, "rstrip", false, &token.rstrip));
    TRY(tokenizer_member_bool(entry, "normalized", true, &token.normalized));
    TRY(tokenizer_member_bool(entry, "special", false, &special));
    if (!json_is_integer(json_object_get(entry, "id"))) {
        return err_raise(ERR_INVALID_TOKENIZER, "added token \"%.64s\" has no id", content);
    }
    if (size == 0) {
        return 0;
    }
    TRY(tokenizer_grow((void **)&list->tokens, &list->capacity, list->count + 1, sizeof(token)));
    if (list->count == TOKENIZER_ADDED_MAX) {
        return err_raise(ERR_INVALID_TOKENIZER, "there are more than %u added tokens", TOKENIZER_ADDED_MAX);
    }
    TRY(id_of(tokenizer, list, content, size, special, &token.id));
    TRY(added_pattern(tokenizer, list, content, size, &token));
    list->tokens[list->count++] = token;
    return 0;
}

static int read_entries(struct tokenizer *tokenizer, const char *json, size_t size, struct list *list)
{
    AUTO(json_stream) struct json_stream stream = {0};

    json_stream_init(&stream, json, size);
    enum json_token token = json_stream_next(&stream);
    if (token != JSON_TOKEN_ARRAY_BEGIN && token != JSON_TOKEN_NULL) {
        return err_raise(ERR_INVALID_TOKENIZER, "added_tokens is not a list");
    }
    while (token != JSON_TOKEN_NULL && (token = json_stream_next(&stream)) != JSON_TOKEN_ARRAY_END) {
        size_t start = stream.at - 1;
        AUTO_JSON json_t *entry = NULL;
        if (token != JSON_TOKEN_OBJECT_BEGIN || !json_stream_skip(&stream, token) || stream.at - start > ENTRY_MAX) {
            return err_raise(ERR_INVALID_TOKENIZER, "added_tokens holds something else than small objects");
        }
        if (json_parse(json + start, stream.at - start, ENTRY_DEPTH, &entry) != 0) {
            return err_raise(ERR_INVALID_TOKENIZER, "added token %zu is not valid JSON", list->count);
        }
        TRY(add_entry(tokenizer, list, entry));
    }
    return 0;
}

/* By bytes; of equal patterns the later entry of the file first, so that it alone stays. */
static int added_compare(const void *a, const void *b)
{
    const struct tokenizer_added *left = a, *right = b;
    size_t shorter = left->size < right->size ? left->size : right->size;
    int order = memcmp(left->pattern, right->pattern, shorter);
    if (order != 0 || left->size != right->size) {
        return order != 0 ? order : left->size < right->size ? -1 : 1;
    }
    return left < right ? -1 : left > right;
}

/* Take the entries of one kind out of the list into a searchable set. */
static int build_set(struct list *list, bool normalized, struct tokenizer_added_set *out)
{
    struct tokenizer_added_set set = {0};

    TRY(mem_array(&set.tokens, list->count));
    for (size_t i = list->count; i-- > 0;) {
        struct tokenizer_added *token = &list->tokens[i];
        if (token->normalized == normalized && token->pattern != NULL && token->size > 0) {
            set.tokens[set.count++] = *token;
            token->pattern = NULL;
        }
    }
    qsort(set.tokens, set.count, sizeof(*set.tokens), added_compare);
    size_t count = 0;
    for (size_t i = 0; i < set.count; i++) {
        const struct tokenizer_added *last = count > 0 ? &set.tokens[count - 1] : NULL;
        if (last != NULL && last->size == set.tokens[i].size &&
            memcmp(last->pattern, set.tokens[i].pattern, last->size) == 0) {
            free(set.tokens[i].pattern);
        } else {
            set.tokens[count++] = set.tokens[i];
        }
    }
    set.count = count;
    size_t at = 0;
    for (unsigned byte = 0; byte <= 256; byte++) {
        while (at < count && (unsigned char)set.tokens[at].pattern[0] < byte) {
            at++;
        }
        set.first[byte] = (uint32_t)at;
    }
    *out = set;
    return 0;
}

int tokenizer_load_added(struct tokenizer *tokenizer, const char *json, size_t size)
{
    AUTO(list) struct list list = {.next_id = (int64_t)tokenizer->size};

    TRY(tokenizer_seed(&tokenizer->added.seed));
    TRY(tokenizer_scratch_init(&list.scratch));
    /* Of all entries together, however large the section is: what normalizes a token is a pattern of a character or
     * two. */
    tokenizer_budget_begin(&list.scratch, size < NORMALIZED_BYTES ? size : NORMALIZED_BYTES);
    TRY(read_entries(tokenizer, json, size, &list));
    TRY(build_set(&list, false, &tokenizer->raw));
    return build_set(&list, true, &tokenizer->normalized);
}
