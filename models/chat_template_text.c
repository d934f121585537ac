/* Strings of a chat template, character by character as Python sees them. Case follows Unicode's simple mappings; the
 * letters whose full mapping differs from it are refused. */

#include "base/err.h"
#include "models/chat_template_internal.h"

#include <string.h>
#include <utf8proc.h>

bool chat_is_space(uint32_t codepoint)
{
    return tokenizer_is_space(codepoint) || (codepoint >= 0x1c && codepoint <= 0x1f);
}

size_t chat_length(struct chat_string text)
{
    size_t count = 0;

    for (size_t i = 0; i < text.size; i++) {
        count += ((unsigned char)text.data[i] & 0xc0) != 0x80;
    }
    return count;
}

/* Whether strip takes this character: white space, or one of those given. */
static bool is_stripped(const char *at, size_t size, const struct chat_string *characters)
{
    uint32_t codepoint;

    if (characters == NULL) {
        (void)tokenizer_utf8_decode(at, &codepoint);
        return chat_is_space(codepoint);
    }
    return memmem(characters->data, characters->size, at, size) != NULL;
}

struct chat_string chat_strip(struct chat_string text, const struct chat_string *characters, bool left, bool right)
{
    size_t begin = 0, end = text.size;

    while (left && begin < end) {
        size_t size = tokenizer_utf8_size(text.data[begin]);
        if (!is_stripped(text.data + begin, size, characters)) {
            break;
        }
        begin += size;
    }
    while (right && end > begin) {
        size_t last = end - 1;
        while (((unsigned char)text.data[last] & 0xc0) == 0x80) {
            last--;
        }
        if (!is_stripped(text.data + last, end - last, characters)) {
            break;
        }
        end = last;
    }
    return (struct chat_string){text.data + begin, end - begin};
}

/* Letters that become several in upper case, or depend on their neighbours in lower case. */
static bool is_special(uint32_t c, bool upper)
{
    return upper ? c == 0xdf || c == 0x149 || c == 0x1f0 || c == 0x390 || c == 0x3b0 || c == 0x587 ||
                       (c >= 0x1c4 && c <= 0x1cc) || (c >= 0x1f1 && c <= 0x1f3) || (c >= 0x1e96 && c <= 0x1e9a) ||
                       (c >= 0x1f50 && c <= 0x1fff) || (c >= 0xfb00 && c <= 0xfb17)
                 : c == 0x130 || c == 0x3a3;
}

static bool is_cased(uint32_t codepoint)
{
    utf8proc_category_t category = utf8proc_category((utf8proc_int32_t)codepoint);
    return category == UTF8PROC_CATEGORY_LU || category == UTF8PROC_CATEGORY_LL || category == UTF8PROC_CATEGORY_LT;
}

int chat_change_case(struct chat_render *r, struct chat_string text, enum chat_case kind, struct chat_value *out)
{
    size_t start = r->out.size;
    bool inside = false; /* of a word */

    TRY(tokenizer_text_reserve(&r->out, text.size + 1));
    for (size_t at = 0; at < text.size;) {
        uint32_t c;
        char bytes[4];
        bool first = at == 0;
        at += tokenizer_utf8_decode(text.data + at, &c);
        bool words = kind == CASE_TITLE || kind == CASE_WORDS;
        bool upper = kind == CASE_UPPER || (words && !inside) || (kind == CASE_CAPITALIZE && first);
        if (is_special(c, upper)) {
            return chat_raise(r, "%s case of U+%04X is not supported", upper ? "upper" : "lower", c);
        }
        inside = kind == CASE_WORDS ? !chat_is_space(c) && (c >= 0x80 || strchr("-({[<", (int)c) == NULL || c == 0)
                                    : is_cased(c);
        c = (uint32_t)(upper ? utf8proc_toupper((utf8proc_int32_t)c) : utf8proc_tolower((utf8proc_int32_t)c));
        TRY(tokenizer_text_append(&r->out, bytes, tokenizer_utf8_encode(c, bytes)));
    }
    return chat_take(r, start, out);
}

int64_t chat_find(struct chat_string text, struct chat_string needle, size_t from)
{
    if (from > text.size) {
        return -1;
    }
    if (needle.size == 0) {
        return (int64_t)from;
    }
    const char *found = memmem(text.data + from, text.size - from, needle.data, needle.size);
    return found != NULL ? found - text.data : -1;
}

int chat_replace(struct chat_render *r, struct chat_string text, struct chat_string from, struct chat_string to,
                 int64_t limit, struct chat_value *out)
{
    size_t start = r->out.size, at = 0;

    TRY(tokenizer_text_reserve(&r->out, text.size + 1));
    while (limit != 0 && at <= text.size) {
        int64_t found = chat_find(text, from, at);
        if (found < 0) {
            break;
        }
        TRY(chat_step(r, 1));
        TRY(tokenizer_text_append(&r->out, text.data + at, (size_t)found - at));
        TRY(tokenizer_text_append(&r->out, to.data, to.size));
        at = (size_t)found + from.size;
        if (r->out.size - start > CHAT_OUTPUT_MAX) {
            return chat_exceeds(r, "it makes more text");
        }
        if (from.size == 0) { /* between all characters */
            if (at == text.size) {
                at++;
                break;
            }
            size_t size = tokenizer_utf8_size(text.data[at]);
            TRY(tokenizer_text_append(&r->out, text.data + at, size));
            at += size;
        }
        limit -= limit > 0 ? 1 : 0;
    }
    TRY(at < text.size ? tokenizer_text_append(&r->out, text.data + at, text.size - at) : 0);
    return chat_take(r, start, out);
}
