/* One weight, or the cache, against the table: conditions are looked at one after the other, and the first that no row
 * is left after is the reason why a runtime does not load it. */

#include "formats/runtimes.h"

#include <stdio.h>
#include <string.h>

enum runtime_form runtime_form_of(const struct format *format, const struct qscheme *scheme)
{
    bool inputs = scheme->input.element != DTYPE_F32;

    if (format->plain) {
        return RUNTIME_FLOAT;
    }
    switch (scheme->kind) {
    case QTENSOR_INT:
        return strcmp(format->name, "bitsandbytes") == 0 ? RUNTIME_INT8_OUTLIERS
               : inputs                                  ? RUNTIME_INT8_INPUTS
                                                         : RUNTIME_INT;
    case QTENSOR_FLOAT8:
        return scheme->per_channel ? (inputs ? RUNTIME_FP8_INPUTS : RUNTIME_FP8)
                                   : (inputs ? RUNTIME_FP8_BLOCKS_INPUTS : RUNTIME_FP8_BLOCKS);
    case QTENSOR_NF4:
        return RUNTIME_NF4;
    case QTENSOR_TABLE:
    case QTENSOR_CODEBOOKS:
        return RUNTIME_CODEBOOKS;
    case QTENSOR_BLOCKS:
        return RUNTIME_GGML;
    default:
        return RUNTIME_FLOAT;
    }
}

/* --- conditions */

static bool match_format(const struct runtime_row *row, const struct runtime_subject *s)
{
    return strcmp(row->runtime, s->target->runtime->name) == 0 && strcmp(row->format, s->format->name) == 0;
}

static bool match_form(const struct runtime_row *row, const struct runtime_subject *s)
{
    return row->form == s->form;
}

static bool match_bits(const struct runtime_row *row, const struct runtime_subject *s)
{
    return row->bits == 0 || (row->bits & RUNTIME_BITS(s->scheme->bits)) != 0;
}

static bool match_symmetry(const struct runtime_row *row, const struct runtime_subject *s)
{
    return row->symmetry == 0 || (row->symmetry & (s->scheme->sym ? RUNTIME_SYM : RUNTIME_ASYM)) != 0;
}

static int64_t match_group_size(const struct qscheme *scheme)
{
    return scheme->per_channel ? RUNTIME_CHANNEL : scheme->group_size;
}

static bool match_group(const struct runtime_row *row, const struct runtime_subject *s)
{
    int i = 0;

    while (row->groups != NULL && row->groups[i] != 0 && row->groups[i] != match_group_size(s->scheme)) {
        i++;
    }
    return row->groups == NULL || row->groups[i] != 0;
}

static bool match_heads(const struct runtime_row *row, const struct runtime_subject *s)
{
    return !row->per_tensor || !s->cache->per_head;
}

static bool match_architecture(const struct runtime_row *row, const struct runtime_subject *s)
{
    return row->architecture == NULL || s->architecture == NULL || strcmp(row->architecture, s->architecture) == 0;
}

static bool match_expert(const struct runtime_row *row, const struct runtime_subject *s)
{
    return !row->no_experts || !s->expert;
}

static bool match_devices(const struct runtime_row *row, const struct runtime_subject *s)
{
    return !row->one_device || s->devices <= 1;
}

static bool match_version(const struct runtime_row *row, const struct runtime_subject *s)
{
    return runtime_row_holds(row, s->target);
}

static bool match_outputs(const struct runtime_row *row, const struct runtime_subject *s)
{
    return row->outputs == 0 || s->outputs % row->outputs == 0;
}

static bool match_inputs(const struct runtime_row *row, const struct runtime_subject *s)
{
    return row->inputs == 0 || s->inputs % row->inputs == 0;
}

/* --- reasons */

typedef void match_reason(const struct runtime_subject *s, const struct runtime_row *const *left, int count,
                          struct runtime_refusal *out);

#define MATCH_SAY(member, ...) snprintf(out->member, sizeof(out->member), __VA_ARGS__)
#define MATCH_NAME(s) ((s)->target->runtime->name)

static void match_add(char *list, size_t size, const char *item)
{
    size_t used = strlen(list);

    snprintf(list + used, size - used, "%s%s", used > 0 ? ", " : "", item);
}

/* "4-bit symmetric " of integers, "" of others. */
static void match_words(const struct runtime_subject *s, bool symmetry, char out[48])
{
    out[0] = '\0';
    if (s->form == RUNTIME_INT) {
        snprintf(out, 48, "%d-bit %s", s->scheme->bits, !symmetry ? "" : s->scheme->sym ? "symmetric " : "asymmetric ");
    }
}

static void reason_format(const struct runtime_subject *s, const struct runtime_row *const *left, int count,
                          struct runtime_refusal *out)
{
    char formats[160] = "";
    const char *last = "";

    (void)left, (void)count;
    MATCH_SAY(text, "%s does not load %s", MATCH_NAME(s), s->format->name);
    for (const struct runtime_row *row = runtime_rows; row->runtime != NULL; row++) {
        if (strcmp(row->runtime, MATCH_NAME(s)) == 0 && strcmp(row->format, last) != 0) {
            last = row->format;
            match_add(formats, sizeof(formats), last);
        }
    }
    if (s->form == RUNTIME_INT && strcmp(formats, last) == 0 && runtime_only_group(NULL, last) != 0) {
        MATCH_SAY(hint, "it loads %s, which has groups of %d", formats, runtime_only_group(NULL, last));
        return;
    }
    MATCH_SAY(hint, "it loads %s", formats);
}

static void reason_form(const struct runtime_subject *s, const struct runtime_row *const *left, int count,
                        struct runtime_refusal *out)
{
    char forms[200] = "";

    MATCH_SAY(text, "%s has no kernel for %s in %s", MATCH_NAME(s), runtime_form_titles[s->form], s->format->name);
    for (int i = 0; i < count; i++) {
        if (left[i]->form < RUNTIME_CACHE_FP8 && (i == 0 || left[i]->form != left[i - 1]->form)) {
            match_add(forms, sizeof(forms), runtime_form_titles[left[i]->form]);
        }
    }
    if (s->cache == NULL) {
        MATCH_SAY(hint, "it has some for %s", forms);
    } else {
        MATCH_SAY(hint, "without kv_cache");
    }
}

static void reason_bits(const struct runtime_subject *s, const struct runtime_row *const *left, int count,
                        struct runtime_refusal *out)
{
    unsigned bits = 0;
    char widths[40] = "", width[8];

    MATCH_SAY(text, "%s has no kernel for %d-bit %s", MATCH_NAME(s), s->scheme->bits, s->format->name);
    for (int i = 0; i < count; i++) {
        bits |= left[i]->bits;
    }
    for (int b = 1; b <= 16; b++) {
        snprintf(width, sizeof(width), "%d", b);
        if ((bits & RUNTIME_BITS(b)) != 0) {
            match_add(widths, sizeof(widths), width);
        }
    }
    MATCH_SAY(hint, "bits: one of %s", widths);
}

static void reason_symmetry(const struct runtime_subject *s, const struct runtime_row *const *left, int count,
                            struct runtime_refusal *out)
{
    char words[48];

    (void)left, (void)count;
    match_words(s, true, words);
    MATCH_SAY(text, "%s has no kernel for %s%s", MATCH_NAME(s), words, s->format->name);
    MATCH_SAY(hint, "sym %s", s->scheme->sym ? "false" : "true");
}

static void reason_group(const struct runtime_subject *s, const struct runtime_row *const *left, int count,
                         struct runtime_refusal *out)
{
    char groups[80] = "", words[48], size[16];
    int64_t group = match_group_size(s->scheme);

    match_words(s, false, words);
    if (group == RUNTIME_CHANNEL) {
        MATCH_SAY(text, "%s has no kernel for %s%s with one scale for each output (group_size -1)", MATCH_NAME(s),
                  words, s->format->name);
    } else {
        MATCH_SAY(text, "%s has no kernel for %s%s in %s of %lld", MATCH_NAME(s), words, s->format->name,
                  s->scheme->kind == QTENSOR_INT ? "groups" : "blocks", (long long)group);
    }
    for (const int *g = left[0]->groups; count > 0 && g != NULL && *g != 0; g++) {
        snprintf(size, sizeof(size), "%d", *g);
        match_add(groups, sizeof(groups), size);
    }
    MATCH_SAY(hint, "%s: one of %s", s->scheme->kind == QTENSOR_INT ? "group_size" : "weight_block_size", groups);
}

static void reason_heads(const struct runtime_subject *s, const struct runtime_row *const *left, int count,
                         struct runtime_refusal *out)
{
    (void)left, (void)count;
    MATCH_SAY(text, "%s does not read scales of each head of a cache", MATCH_NAME(s));
    MATCH_SAY(hint, "kv_cache.granularity per_tensor");
}

static void reason_architecture(const struct runtime_subject *s, const struct runtime_row *const *left, int count,
                                struct runtime_refusal *out)
{
    (void)count;
    MATCH_SAY(text, "%s loads %s of %s alone, and the model is a %.80s", MATCH_NAME(s), s->format->name,
              left[0]->architecture, s->architecture);
}

static void reason_expert(const struct runtime_subject *s, const struct runtime_row *const *left, int count,
                          struct runtime_refusal *out)
{
    char words[48];

    (void)left, (void)count;
    match_words(s, false, words);
    MATCH_SAY(text, "%s does not load experts of %s%s", MATCH_NAME(s), words, s->format->name);
}

static void reason_devices(const struct runtime_subject *s, const struct runtime_row *const *left, int count,
                           struct runtime_refusal *out)
{
    (void)left, (void)count;
    MATCH_SAY(text, "%s does not divide %s over %lld devices", MATCH_NAME(s), s->format->name, (long long)s->devices);
    MATCH_SAY(hint, "tensor_parallel_size 1");
}

static void reason_version(const struct runtime_subject *s, const struct runtime_row *const *left, int count,
                           struct runtime_refusal *out)
{
    char words[48] = "";
    const char *what = s->cache != NULL ? "" : s->format->name;

    (void)count;
    if (s->cache == NULL) {
        match_words(s, true, words);
    }
    const char *title = s->form == RUNTIME_INT ? "" : runtime_form_titles[s->form];
    if (left[0]->until != NULL) {
        MATCH_SAY(text, "%s loads %s%s%s%s up to %s, and the target is %s%s", MATCH_NAME(s), words, title,
                  title[0] != '\0' && what[0] != '\0' ? " in " : "", what, left[0]->until, s->target->from,
                  s->target->exact ? "" : " and newer");
        MATCH_SAY(hint, "the target %s==%s", MATCH_NAME(s), left[0]->until);
    } else {
        MATCH_SAY(text, "%s loads %s%s%s%s from %s on, and the target begins with %s", MATCH_NAME(s), words, title,
                  title[0] != '\0' && what[0] != '\0' ? " in " : "", what, left[0]->since, s->target->from);
        MATCH_SAY(hint, "the target %s>=%s", MATCH_NAME(s), left[0]->since);
    }
}

static void match_say_shape(const struct runtime_subject *s, const char *side, int64_t found, int multiple,
                            struct runtime_refusal *out)
{
    MATCH_SAY(text, "%s has kernels for %s with a multiple of %d %s, and this one has %lld%s", MATCH_NAME(s),
              s->format->name, multiple, side, (long long)found, s->devices > 1 ? " on each device" : "");
    MATCH_SAY(hint, "%sleave the module in float (overrides)",
              s->devices > 1 ? "a smaller tensor_parallel_size, or " : "");
}

static void reason_outputs(const struct runtime_subject *s, const struct runtime_row *const *left, int count,
                           struct runtime_refusal *out)
{
    (void)count;
    match_say_shape(s, "outputs", s->outputs, left[0]->outputs, out);
}

static void reason_inputs(const struct runtime_subject *s, const struct runtime_row *const *left, int count,
                          struct runtime_refusal *out)
{
    (void)count;
    match_say_shape(s, "inputs", s->inputs, left[0]->inputs, out);
}

static const struct match_step {
    enum runtime_part part;
    bool weights, cache; /* what it is asked of */
    bool (*keeps)(const struct runtime_row *row, const struct runtime_subject *subject);
    match_reason *reason;
} match_steps[] = {
    {PART_FORMAT, true, true, match_format, reason_format},
    {PART_FORM, true, true, match_form, reason_form},
    {PART_BITS, true, false, match_bits, reason_bits},
    {PART_SYMMETRY, true, false, match_symmetry, reason_symmetry},
    {PART_GROUP, true, false, match_group, reason_group},
    {PART_CACHE, false, true, match_heads, reason_heads},
    {PART_TARGET, true, true, match_architecture, reason_architecture},
    {PART_TARGET, true, false, match_expert, reason_expert},
    {PART_PARALLEL, true, false, match_devices, reason_devices},
    {PART_TARGET, true, true, match_version, reason_version},
    {PART_FORM, true, false, match_outputs, reason_outputs},
    {PART_FORM, true, false, match_inputs, reason_inputs},
};

int runtime_find_rows(const struct runtime_subject *subject, const struct runtime_row *rows[RUNTIME_ROWS_MAX],
                      struct runtime_refusal *refusal)
{
    const struct runtime_row *next[RUNTIME_ROWS_MAX];
    int count = 0;

    for (const struct runtime_row *row = runtime_rows; row->runtime != NULL && count < RUNTIME_ROWS_MAX; row++) {
        rows[count++] = row;
    }
    for (size_t i = 0; i < sizeof(match_steps) / sizeof(match_steps[0]); i++) {
        const struct match_step *step = &match_steps[i];
        int left = 0;
        for (int k = 0; k < count; k++) {
            bool asked = subject->cache != NULL ? step->cache : step->weights;
            if (!asked || step->keeps(rows[k], subject)) {
                next[left++] = rows[k];
            }
        }
        if (left == 0) {
            *refusal = (struct runtime_refusal){.part = subject->cache != NULL && step->part == PART_FORM ? PART_CACHE
                                                                                                          : step->part};
            step->reason(subject, rows, count, refusal);
            return 0;
        }
        memcpy(rows, next, (size_t)left * sizeof(next[0]));
        count = left;
    }
    return count;
}
