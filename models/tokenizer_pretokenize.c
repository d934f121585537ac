/* Pre-tokenizers: each reads the pieces of scratch->segments and writes those of scratch->next, then the two change
 * places. The named classes (Digits, Punctuation, Whitespace) are splits by a pattern and have no code of their own. */

#include "base/err.h"
#include "models/tokenizer_internal.h"

#include <string.h>

int tokenizer_segments_add(struct tokenizer_segments *segments, size_t start, size_t size, size_t lead, int32_t id)
{
    if (size == 0 && id < 0) {
        return 0;
    }
    int rc =
        tokenizer_grow((void **)&segments->pieces, &segments->capacity, segments->count + 1, sizeof(*segments->pieces));
    if (rc == 0) {
        lead = lead < size ? lead : size;
        segments->pieces[segments->count++] =
            (struct tokenizer_piece){(uint32_t)start, (uint32_t)size, (uint32_t)lead, id};
    }
    return rc;
}

/* Bytes that print stand for themselves, the others for U+0100 upwards in order. */
static uint32_t byte_codepoint(unsigned char byte)
{
    if ((byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte != 0xad)) {
        return byte;
    }
    if (byte <= 0x20) {
        return 0x100u + byte;
    }
    return byte == 0xad ? 0x143u : 0x100u + 0x21u + (byte - 0x7fu);
}

int tokenizer_byte_level(const char *text, size_t size, struct tokenizer_text *out)
{
    TRY(tokenizer_text_reserve(out, 2 * size));
    char *to = out->data + out->size;
    for (size_t i = 0; i < size; i++) {
        to += tokenizer_utf8_encode(byte_codepoint((unsigned char)text[i]), to);
    }
    out->size = (size_t)(to - out->data);
    return 0;
}

/* The pieces of one text as its matches and the gaps between them come in order. */
struct splitter {
    struct tokenizer_segments *segments;
    size_t base; /* where the text starts in the segments */
    size_t lead; /* of the text */
    enum tokenizer_behavior behavior;
    bool pending, matched; /* a piece waits for what follows; the last item was a match */
    size_t start, end;
};

static int splitter_emit(struct splitter *s, size_t start, size_t end)
{
    return tokenizer_segments_add(s->segments, s->base + start, end - start, start < s->lead ? s->lead - start : 0, -1);
}

/* Take the next item; neighbours join as the behaviour says. */
static int splitter_take(struct splitter *s, size_t start, size_t end, bool match)
{
    bool join = false;

    switch (s->behavior) {
    case BEHAVIOR_ISOLATED:
        return splitter_emit(s, start, end);
    case BEHAVIOR_REMOVED:
        return match ? 0 : splitter_emit(s, start, end);
    case BEHAVIOR_CONTIGUOUS:
        join = s->pending && match == s->matched;
        break;
    case BEHAVIOR_MERGED_WITH_PREVIOUS:
        join = s->pending && match && !s->matched;
        break;
    case BEHAVIOR_MERGED_WITH_NEXT:
        join = s->pending && s->matched && !match;
        break;
    }
    if (!join && s->pending) {
        TRY(splitter_emit(s, s->start, s->end));
    }
    s->start = join ? s->start : start;
    s->end = end;
    s->pending = true;
    s->matched = match;
    return 0;
}

/* Cut the text at [base, base + size) of segments by the step's pattern. */
static int pretokenize_split(const struct tokenizer_step *step, struct tokenizer_scratch *scratch,
                             struct tokenizer_segments *segments, size_t base, size_t size, size_t lead)
{
    struct splitter s = {.segments = segments, .base = base, .lead = lead, .behavior = step->behavior};
    struct tokenizer_cursor cursor = {0};
    const char *text = segments->text.data + base;
    size_t done = 0, start, end;
    int rc;

    while ((rc = tokenizer_pattern_next(&step->pattern, scratch, text, size, &cursor, &start, &end)) > 0) {
        if (done != start) {
            TRY(splitter_take(&s, done, start, step->invert));
        }
        TRY(splitter_take(&s, start, end, !step->invert));
        done = end;
    }
    TRY(rc);
    if (done != size) {
        TRY(splitter_take(&s, done, size, step->invert));
    }
    return s.pending ? splitter_emit(&s, s.start, s.end) : 0;
}

static int step_split(const struct tokenizer_step *step, struct tokenizer_scratch *scratch, const char *text,
                      const struct tokenizer_piece *piece)
{
    size_t base = scratch->next.text.size;
    TRY(tokenizer_text_append(&scratch->next.text, text, piece->size));
    return pretokenize_split(step, scratch, &scratch->next, base, piece->size, piece->lead);
}

/* Split the plain text, then map every piece: the pieces are cut on their own first. */
static int step_byte_level(const struct tokenizer_step *step, struct tokenizer_scratch *scratch, const char *text,
                           const struct tokenizer_piece *piece)
{
    struct tokenizer_segments *next = &scratch->next;
    struct tokenizer_text *plain = &scratch->spare;
    bool prefix = step->prepend == PREPEND_ALWAYS && text[0] != ' ';
    size_t lead = piece->lead + (prefix && piece->lead > 0 ? 1 : 0);

    plain->size = 0;
    if (prefix) {
        TRY(tokenizer_text_append(plain, " ", 1));
    }
    TRY(tokenizer_text_append(plain, text, piece->size));
    size_t first = next->count;
    /* The splitter writes offsets relative to segments whose text is `plain`. */
    struct tokenizer_text mapped = next->text;
    next->text = *plain;
    int rc = step->split ? pretokenize_split(step, scratch, next, 0, plain->size, lead)
                         : tokenizer_segments_add(next, 0, plain->size, lead, -1);
    next->text = mapped;
    TRY(rc);
    for (size_t i = first; i < next->count; i++) {
        struct tokenizer_piece *word = &next->pieces[i];
        size_t start = next->text.size;
        TRY(tokenizer_byte_level(plain->data + word->start, word->lead, &next->text));
        size_t mapped_lead = next->text.size - start;
        TRY(tokenizer_byte_level(plain->data + word->start + word->lead, word->size - word->lead, &next->text));
        *word =
            (struct tokenizer_piece){(uint32_t)start, (uint32_t)(next->text.size - start), (uint32_t)mapped_lead, -1};
    }
    return 0;
}

static int step_metaspace(const struct tokenizer_step *step, struct tokenizer_scratch *scratch, const char *text,
                          const struct tokenizer_piece *piece)
{
    struct tokenizer_text *out = &scratch->next.text;
    const char *mark = step->pattern.literal;
    size_t mark_size = step->pattern.literal_size, base = out->size, lead = 0;
    bool marked = text[0] == ' ' || (piece->size >= mark_size && memcmp(text, mark, mark_size) == 0);

    if (!marked && (step->prepend == PREPEND_ALWAYS || (step->prepend == PREPEND_FIRST && piece->lead > 0))) {
        TRY(tokenizer_text_append(out, mark, mark_size));
    }
    for (size_t at = 0; at < piece->size;) {
        const char *space = memchr(text + at, ' ', piece->size - at);
        size_t plain = space != NULL ? (size_t)(space - (text + at)) : piece->size - at;
        size_t size = space != NULL ? mark_size : 0;
        TRY(tokenizer_text_append(out, text + at, plain));
        TRY(tokenizer_text_append(out, mark, size));
        at += plain + (space != NULL ? 1 : 0);
        if (lead == 0 && piece->lead > 0) {
            lead = tokenizer_utf8_size(out->data[base]);
        }
    }
    return step->split ? pretokenize_split(step, scratch, &scratch->next, base, out->size - base, lead)
                       : tokenizer_segments_add(&scratch->next, base, out->size - base, lead, -1);
}

static int pretokenize_step(const struct tokenizer_step *step, struct tokenizer_scratch *scratch)
{
    static int (*const handlers[])(const struct tokenizer_step *, struct tokenizer_scratch *, const char *,
                                   const struct tokenizer_piece *) = {
        [STEP_SPLIT] = step_split, [STEP_BYTE_LEVEL] = step_byte_level, [STEP_METASPACE] = step_metaspace};

    scratch->next.text.size = 0;
    scratch->next.count = 0;
    for (size_t i = 0; i < scratch->segments.count; i++) {
        const struct tokenizer_piece *piece = &scratch->segments.pieces[i];
        TRY(piece->id >= 0 ? tokenizer_segments_add(&scratch->next, 0, 0, 0, piece->id)
                           : handlers[step->kind](step, scratch, scratch->segments.text.data + piece->start, piece));
        if (scratch->next.text.size > TOKENIZER_TEXT_MAX) {
            return err_raise(ERR_PAYLOAD_TOO_LARGE, "the split text is larger than %u bytes", TOKENIZER_TEXT_MAX);
        }
    }
    struct tokenizer_segments swap = scratch->segments;
    scratch->segments = scratch->next;
    scratch->next = swap;
    return 0;
}

int tokenizer_pre_tokenize(const struct tokenizer *tokenizer, struct tokenizer_scratch *scratch)
{
    for (int i = 0; i < tokenizer->step_count; i++) {
        TRY(pretokenize_step(&tokenizer->steps[i], scratch));
    }
    return 0;
}
