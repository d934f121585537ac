/* Normalizers: each reads scratch->spare and writes scratch->normal.
 *
 * Unicode normalization is utf8proc's, except for canonical ordering: its insertion sort is quadratic in a run of
 * combining marks, and a text may be nothing else. Here runs are sorted by (class, position) in n log n, after which
 * the library finds nothing left to do. Code points newer than either side's Unicode tables are left as they are by
 * that side.
 *
 * In addition to the text each step carries `lead`, the number of leading bytes that stem from the start of the raw
 * text: the Metaspace pre-tokenizer asks for it. An inserted or replaced character counts with the last byte that it
 * replaces. */

#include "base/err.h"
#include "models/tokenizer_internal.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

void tokenizer_normalizer_deinit(struct tokenizer_normalizer *normalizer)
{
    tokenizer_pattern_deinit(&normalizer->pattern);
    free(normalizer->content);
    *normalizer = (struct tokenizer_normalizer){0};
}

static int append_codepoint(struct tokenizer_text *out, uint32_t codepoint)
{
    char bytes[4];
    return tokenizer_text_append(out, bytes, tokenizer_utf8_encode(codepoint, bytes));
}

/* True when no character of the text can change: below U+0300 for composition, ASCII for the rest. */
static bool is_inert(enum tokenizer_normalizer_kind kind, const char *text, size_t size)
{
    unsigned char limit = kind == NORMALIZER_NFC ? 0xcc : 0x80; /* U+0300 is CC 80 */
    for (size_t i = 0; i < size; i++) {
        if ((unsigned char)text[i] >= limit) {
            return false;
        }
        i += limit == 0xcc && (unsigned char)text[i] >= 0x80 ? 1 : 0;
    }
    return true;
}

static int compare_marks(const void *a, const void *b)
{
    uint64_t left = *(const uint64_t *)a, right = *(const uint64_t *)b;
    return left < right ? -1 : left > right;
}

/* Sort each run of combining marks by class; equal classes keep their order. */
static int order_marks(struct tokenizer_scratch *scratch, size_t count)
{
    int32_t *codepoints = scratch->codepoints;

    for (size_t at = 0; at < count; at++) {
        size_t run = 0;
        while (at + run < count && utf8proc_get_property(codepoints[at + run])->combining_class != 0) {
            run++;
        }
        if (run > 1) {
            /* class 8 bits | position 32 bits | code point 21 bits */
            TRY(tokenizer_grow((void **)&scratch->marks, &scratch->mark_capacity, run, sizeof(uint64_t)));
            for (size_t i = 0; i < run; i++) {
                uint64_t class = (uint64_t)utf8proc_get_property(codepoints[at + i])->combining_class;
                scratch->marks[i] = class << 53 | (uint64_t)i << 21 | (uint32_t)codepoints[at + i];
            }
            qsort(scratch->marks, run, sizeof(uint64_t), compare_marks);
            for (size_t i = 0; i < run; i++) {
                codepoints[at + i] = (int32_t)(scratch->marks[i] & 0x1fffff);
            }
        }
        at += run;
    }
    return 0;
}

static int decompose(struct tokenizer_scratch *scratch, int options, size_t *count)
{
    const struct tokenizer_text *in = &scratch->spare;
    size_t used = 0;

    for (size_t at = 0; at < in->size;) {
        uint32_t codepoint;
        int last_boundclass = 0;
        at += tokenizer_utf8_decode(in->data + at, &codepoint);
        TRY(tokenizer_grow((void **)&scratch->codepoints, &scratch->codepoint_capacity, used + 32, sizeof(int32_t)));
        utf8proc_ssize_t made =
            utf8proc_decompose_char((utf8proc_int32_t)codepoint, scratch->codepoints + used, 32,
                                    (utf8proc_option_t)(options | UTF8PROC_DECOMPOSE), &last_boundclass);
        if (made < 0 || made > 32) {
            return err_raise(ERR_INVALID_PARAMETER, "U+%04X cannot be normalized", codepoint);
        }
        used += (size_t)made;
        if (used > TOKENIZER_TEXT_MAX) {
            return err_raise(ERR_PAYLOAD_TOO_LARGE, "the normalized text is too large");
        }
    }
    *count = used;
    return 0;
}

static int normalize_unicode(enum tokenizer_normalizer_kind kind, struct tokenizer_scratch *scratch)
{
    bool compose = kind == NORMALIZER_NFC || kind == NORMALIZER_NFKC;
    bool compatible = kind == NORMALIZER_NFKC || kind == NORMALIZER_NFKD;
    int options = UTF8PROC_STABLE | (compatible ? UTF8PROC_COMPAT : 0);
    size_t count = 0;

    if (is_inert(kind, scratch->spare.data, scratch->spare.size)) {
        return tokenizer_text_append(&scratch->normal, scratch->spare.data, scratch->spare.size);
    }
    TRY(decompose(scratch, options, &count));
    TRY(order_marks(scratch, count));
    if (compose) {
        utf8proc_ssize_t left = utf8proc_normalize_utf32(scratch->codepoints, (utf8proc_ssize_t)count,
                                                         (utf8proc_option_t)(options | UTF8PROC_COMPOSE));
        if (left < 0) {
            return err_raise(ERR_INTERNAL, "composition failed: %s", utf8proc_errmsg(left));
        }
        count = (size_t)left;
    }
    for (size_t i = 0; i < count; i++) {
        TRY(append_codepoint(&scratch->normal, (uint32_t)scratch->codepoints[i]));
    }
    return 0;
}

static int lowercase(struct tokenizer_scratch *scratch)
{
    const struct tokenizer_text *in = &scratch->spare;

    for (size_t at = 0; at < in->size;) {
        uint32_t codepoint;
        at += tokenizer_utf8_decode(in->data + at, &codepoint);
        if (codepoint == 0x130) { /* the one letter whose lower case is two characters */
            TRY(tokenizer_text_append(&scratch->normal, "i\xcc\x87", 3));
        } else {
            TRY(append_codepoint(&scratch->normal, (uint32_t)utf8proc_tolower((utf8proc_int32_t)codepoint)));
        }
    }
    return 0;
}

static int strip(const struct tokenizer_normalizer *normalizer, struct tokenizer_scratch *scratch)
{
    const struct tokenizer_text *in = &scratch->spare;
    size_t first = 0, kept_end = 0;
    bool leading = true;

    for (size_t at = 0; at < in->size;) {
        uint32_t codepoint;
        size_t size = tokenizer_utf8_decode(in->data + at, &codepoint);
        bool space = tokenizer_is_space(codepoint);
        leading = leading && space;
        at += size;
        first = leading ? at : first;
        kept_end = space ? kept_end : at;
    }
    size_t start = normalizer->left ? first : 0;
    size_t end = normalizer->right ? kept_end : in->size;
    scratch->normal_lead = start > 0 ? 0 : scratch->normal_lead;
    return end > start ? tokenizer_text_append(&scratch->normal, in->data + start, end - start) : 0;
}

static int replace(const struct tokenizer_normalizer *normalizer, struct tokenizer_scratch *scratch)
{
    const struct tokenizer_text *in = &scratch->spare;
    struct tokenizer_text *out = &scratch->normal;
    struct tokenizer_cursor cursor = {0};
    size_t done = 0, start, end, old_lead = scratch->normal_lead, lead = 0;
    bool in_lead = true; /* everything written so far belongs to the lead */
    int rc;

    while ((rc = tokenizer_pattern_next(&normalizer->pattern, scratch, in->data, in->size, &cursor, &start, &end)) >
           0) {
        TRY(tokenizer_text_append(out, in->data + done, start - done));
        if (in_lead) {
            lead = start <= old_lead ? out->size : out->size - (start - old_lead);
            in_lead = start <= old_lead && end <= old_lead;
        }
        TRY(tokenizer_text_append(out, normalizer->content, normalizer->content_size));
        lead = in_lead ? out->size : lead;
        if (out->size > TOKENIZER_TEXT_MAX) {
            return err_raise(ERR_PAYLOAD_TOO_LARGE, "the normalized text is larger than %u bytes", TOKENIZER_TEXT_MAX);
        }
        done = end;
    }
    TRY(rc);
    rc = tokenizer_text_append(out, in->data + done, in->size - done);
    if (in_lead && old_lead > done) {
        lead = out->size - (in->size - old_lead);
    }
    scratch->normal_lead = (uint32_t)lead;
    return rc;
}

static int prepend(const struct tokenizer_normalizer *normalizer, struct tokenizer_scratch *scratch)
{
    if (scratch->spare.size > 0) {
        TRY(tokenizer_text_append(&scratch->normal, normalizer->content, normalizer->content_size));
        scratch->normal_lead += scratch->normal_lead > 0 ? (uint32_t)normalizer->content_size : 0;
    }
    return tokenizer_text_append(&scratch->normal, scratch->spare.data, scratch->spare.size);
}

static int normalizer_apply(const struct tokenizer_normalizer *normalizer, struct tokenizer_scratch *scratch)
{
    switch (normalizer->kind) {
    case NORMALIZER_REPLACE:
        return replace(normalizer, scratch);
    case NORMALIZER_PREPEND:
        return prepend(normalizer, scratch);
    case NORMALIZER_STRIP:
        return strip(normalizer, scratch);
    case NORMALIZER_LOWERCASE:
        TRY(lowercase(scratch));
        break;
    case NORMALIZER_BYTE_LEVEL:
        TRY(tokenizer_byte_level(scratch->spare.data, scratch->spare.size, &scratch->normal));
        break;
    case NORMALIZER_NFC:
    case NORMALIZER_NFD:
    case NORMALIZER_NFKC:
    case NORMALIZER_NFKD:
        TRY(normalize_unicode(normalizer->kind, scratch));
        break;
    }
    if (scratch->normal_lead > 0 && scratch->normal.size > 0) {
        scratch->normal_lead = (uint32_t)tokenizer_utf8_size(scratch->normal.data[0]);
    }
    return 0;
}

int tokenizer_normalize(const struct tokenizer *tokenizer, struct tokenizer_scratch *scratch, const char *text,
                        size_t size, size_t lead)
{
    scratch->normal.size = 0;
    scratch->normal_lead = (uint32_t)lead;
    TRY(tokenizer_text_append(&scratch->normal, text, size));
    for (int i = 0; i < tokenizer->normalizer_count; i++) {
        struct tokenizer_text swap = scratch->spare;
        scratch->spare = scratch->normal;
        scratch->normal = swap;
        scratch->normal.size = 0;
        TRY(normalizer_apply(&tokenizer->normalizers[i], scratch));
        if (scratch->normal.size > TOKENIZER_TEXT_MAX) {
            return err_raise(ERR_PAYLOAD_TOO_LARGE, "the normalized text is larger than %u bytes", TOKENIZER_TEXT_MAX);
        }
    }
    return 0;
}
