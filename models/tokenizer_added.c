/* Added tokens: found before anything else, leftmost first and of those the longest, without overlap.
 *
 * The tokens are sorted by bytes; at each position of the text the range of those that agree so far narrows byte by
 * byte (binary search), so a search needs no memory of its own and costs at most TOKENIZER_ADDED_BYTES_MAX steps a
 * position. The rules for what a match takes along (whitespace) or needs (word ends) are those of the reference, odd
 * corners included: a refused match still moves the search to its end, and stripped whitespace may be searched again.
 */

#include "base/err.h"
#include "models/tokenizer_internal.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

bool tokenizer_is_space(uint32_t codepoint)
{
    return (codepoint >= 9 && codepoint <= 13) || codepoint == ' ' || codepoint == 0x85 || codepoint == 0xa0 ||
           codepoint == 0x1680 || (codepoint >= 0x2000 && codepoint <= 0x200a) || codepoint == 0x2028 ||
           codepoint == 0x2029 || codepoint == 0x202f || codepoint == 0x205f || codepoint == 0x3000;
}

bool tokenizer_is_word(uint32_t codepoint)
{
    switch (utf8proc_category((utf8proc_int32_t)codepoint)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
        return true;
    default: /* joiners, and the symbols that are Alphabetic: letters in circles and squares */
        return codepoint == 0x200c || codepoint == 0x200d || (codepoint >= 0x24b6 && codepoint <= 0x24e9) ||
               (codepoint >= 0x1f130 && codepoint <= 0x1f149) || (codepoint >= 0x1f150 && codepoint <= 0x1f169) ||
               (codepoint >= 0x1f170 && codepoint <= 0x1f189);
    }
}

void tokenizer_added_deinit(struct tokenizer_added_set *set)
{
    for (size_t i = 0; i < set->count; i++) {
        free(set->tokens[i].pattern);
    }
    free(set->tokens);
    *set = (struct tokenizer_added_set){0};
}

/* The first token in [low, high) whose byte at `depth` is at least `byte`; all share the bytes before it, and a token
 * that ends at depth sorts first. */
static size_t lower_bound(const struct tokenizer_added_set *set, size_t low, size_t high, size_t depth, int byte)
{
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const struct tokenizer_added *token = &set->tokens[middle];
        int at = token->size > depth ? (unsigned char)token->pattern[depth] : -1;
        if (at < byte) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

/* The longest token that starts at text, or NULL. */
static const struct tokenizer_added *match_at(const struct tokenizer_added_set *set, const char *text, size_t size)
{
    const struct tokenizer_added *best = NULL;
    unsigned char first = (unsigned char)text[0];
    size_t low = set->first[first], high = set->first[first + 1];

    for (size_t depth = 1; low < high; depth++) {
        if (high - low == 1) {
            const struct tokenizer_added *only = &set->tokens[low];
            return only->size <= size && memcmp(only->pattern, text, only->size) == 0 ? only : best;
        }
        if (set->tokens[low].size == depth) {
            best = &set->tokens[low];
            low++;
        }
        if (depth == size) {
            break;
        }
        int byte = (unsigned char)text[depth];
        low = lower_bound(set, low, high, depth, byte);
        high = lower_bound(set, low, high, depth, byte + 1);
    }
    return best;
}

static size_t previous_character(const char *text, size_t at)
{
    do {
        at--;
    } while (((unsigned char)text[at] & 0xc0) == 0x80);
    return at;
}

static bool is_single_word(const char *text, size_t size, size_t start, size_t end)
{
    uint32_t before = 0, after = 0;
    if (start > 0) {
        (void)tokenizer_utf8_decode(text + previous_character(text, start), &before);
    }
    if (end < size) {
        (void)tokenizer_utf8_decode(text + end, &after);
    }
    return !(start > 0 && tokenizer_is_word(before)) && !(end < size && tokenizer_is_word(after));
}

/* start moved left over whitespace, not before limit. */
static size_t strip_left(const char *text, size_t start, size_t limit)
{
    while (start > limit) {
        uint32_t codepoint;
        size_t before = previous_character(text, start);
        (void)tokenizer_utf8_decode(text + before, &codepoint);
        if (!tokenizer_is_space(codepoint) || before < limit) {
            break;
        }
        start = before;
    }
    return start > limit ? start : limit;
}

static size_t strip_right(const char *text, size_t size, size_t end)
{
    while (end < size) {
        uint32_t codepoint;
        size_t bytes = tokenizer_utf8_decode(text + end, &codepoint);
        if (!tokenizer_is_space(codepoint)) {
            break;
        }
        end += bytes;
    }
    return end;
}

int tokenizer_added_split(const struct tokenizer_added_set *set, const char *text, size_t size, size_t lead,
                          struct tokenizer_segments *segments)
{
    size_t base = segments->text.size, done = 0;

    TRY(tokenizer_text_append(&segments->text, text, size));
    for (size_t at = 0; set->count > 0 && at < size;) {
        unsigned char byte = (unsigned char)text[at];
        const struct tokenizer_added *token =
            set->first[byte] < set->first[byte + 1] ? match_at(set, text + at, size - at) : NULL;
        if (token == NULL) {
            at++;
            continue;
        }
        size_t start = at, end = at + token->size;
        at = end;
        if (token->single_word && !is_single_word(text, size, start, end)) {
            continue;
        }
        start = token->lstrip ? strip_left(text, start, done) : start;
        end = token->rstrip ? strip_right(text, size, end) : end;
        if (done < start) {
            TRY(tokenizer_segments_add(segments, base + done, start - done, done < lead ? lead - done : 0, -1));
        }
        TRY(tokenizer_segments_add(segments, base + start, end - start, 0, token->id));
        done = end;
    }
    if (done < size) {
        TRY(tokenizer_segments_add(segments, base + done, size - done, done < lead ? lead - done : 0, -1));
    }
    return 0;
}
