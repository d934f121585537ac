#pragma once
/* What the tokenizer's files share. Text passes through them as one buffer and a list of pieces of it:
 *
 *   raw text --added tokens--> pieces --normalizers--> --added tokens--> pieces --pre-tokenizers--> words --BPE--> ids
 *
 * A piece that already has its id passes every later step untouched. All strings are valid UTF-8 from the entrance on,
 * sizes fit in 32 bits (TOKENIZER_TEXT_MAX), and every buffer here belongs to one scratch, hence to one thread. */

#define PCRE2_CODE_UNIT_WIDTH 8

#include "base/json_stream.h"
#include "models/tokenizer.h"

#include <jansson.h>
#include <pcre2.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#define TOKENIZER_JSON_MAX (256u << 20)  /* bytes of a tokenizer.json */
#define TOKENIZER_SECTION_MAX (1u << 20) /* bytes of one of its small sections */
#define TOKENIZER_TOKENS_MAX                                                                                         \
    (1u << 22)                         /* of the vocabulary, and merges; the largest of today have a quarter million \
                                        */
#define TOKENIZER_TEXT_MAX (64u << 20) /* bytes of a text, also after every normalizer */
#define TOKENIZER_STEPS_MAX 32         /* normalizers, pre-tokenizers */
#define TOKENIZER_ADDED_MAX (1u << 18) /* added tokens */
#define TOKENIZER_ADDED_BYTES_MAX 512  /* of one added token: bounds the search at each byte of text */
#define TOKENIZER_TEMPLATE_MAX 64      /* special ids before or after the text */

/* A growing buffer of bytes. */
struct tokenizer_text {
    char *data;
    size_t size, capacity;
};
int tokenizer_text_reserve(struct tokenizer_text *text, size_t more);
int tokenizer_text_append(struct tokenizer_text *text, const char *data, size_t size);

/* A part of a text. lead = leading bytes that stem from the very start of the raw text: 0 for all but the first. */
struct tokenizer_piece {
    uint32_t start, size, lead;
    int32_t id; /* of an added token, or -1 */
};
struct tokenizer_segments {
    struct tokenizer_text text;
    struct tokenizer_piece *pieces;
    size_t count, capacity;
};
/* Append a piece; empty ones without id are dropped. */
int tokenizer_segments_add(struct tokenizer_segments *segments, size_t start, size_t size, size_t lead, int32_t id);

/* String -> id, open addressing over one byte store. The hash is keyed at random, so no file can aim at it. */
struct tokenizer_vocab {
    struct tokenizer_text bytes;
    struct tokenizer_vocab_entry {
        uint32_t offset, size;
        int32_t id;
        bool special; /* an added token's flag */
    } * entries;
    uint32_t *slots; /* entry + 1, 0 = free */
    size_t count, capacity, slot_count;
    uint64_t seed;
};
int32_t tokenizer_vocab_find(const struct tokenizer_vocab *vocab, const char *text, size_t size); /* -1 = absent */
/* Where its entry is; false = absent. */
bool tokenizer_vocab_index(const struct tokenizer_vocab *vocab, const char *text, size_t size, size_t *index);
/* Find or insert; the entry stays where it is until the next put. */
int tokenizer_vocab_put(struct tokenizer_vocab *vocab, const char *text, size_t size,
                        struct tokenizer_vocab_entry **out);
void tokenizer_vocab_deinit(struct tokenizer_vocab *vocab);
uint64_t tokenizer_hash(uint64_t seed, const char *text, size_t size);
int tokenizer_seed(uint64_t *seed);

/* (left id, right id) -> rank, and rank -> the id of the two together. */
struct tokenizer_merges {
    uint64_t *keys; /* left << 32 | right; UINT64_MAX = free */
    uint32_t *ranks;
    size_t slot_count;
    int32_t *merged;
    size_t count, capacity;
    uint64_t seed;
};
int tokenizer_merges_add(struct tokenizer_merges *merges, int32_t left, int32_t right, int32_t merged);
bool tokenizer_merges_find(const struct tokenizer_merges *merges, int32_t left, int32_t right, uint32_t *rank);
void tokenizer_merges_deinit(struct tokenizer_merges *merges);

/* A literal or a regular expression to search for. */
struct tokenizer_pattern {
    char *literal; /* NULL: regex */
    size_t literal_size;
    pcre2_code *regex;
    char *source; /* of the regex, as the file has it */
};
int tokenizer_pattern_literal(const char *text, size_t size, struct tokenizer_pattern *out);
/* An Oniguruma pattern, translated; ERR_INVALID_TOKENIZER where the dialects differ beyond translation. */
int tokenizer_pattern_regex(const char *pattern, size_t size, struct tokenizer_pattern *out);
/* The translation, appended to out. */
int tokenizer_translate(const char *pattern, size_t size, struct tokenizer_text *out);
void tokenizer_pattern_deinit(struct tokenizer_pattern *pattern);
struct tokenizer_cursor {
    size_t at, last_end;
    bool matched;
};
/* The next match from cursor (zeroed to start): 1 found, 0 no more, negative raised. */
int tokenizer_pattern_next(const struct tokenizer_pattern *pattern, struct tokenizer_scratch *scratch, const char *text,
                           size_t size, struct tokenizer_cursor *cursor, size_t *start, size_t *end);

enum tokenizer_normalizer_kind {
    NORMALIZER_NFC,
    NORMALIZER_NFD,
    NORMALIZER_NFKC,
    NORMALIZER_NFKD,
    NORMALIZER_LOWERCASE,
    NORMALIZER_STRIP,
    NORMALIZER_PREPEND,
    NORMALIZER_REPLACE,
    NORMALIZER_BYTE_LEVEL,
};
struct tokenizer_normalizer {
    enum tokenizer_normalizer_kind kind;
    struct tokenizer_pattern pattern; /* REPLACE */
    char *content;                    /* PREPEND, REPLACE */
    size_t content_size;
    bool left, right; /* STRIP */
};

enum tokenizer_behavior {
    BEHAVIOR_ISOLATED,
    BEHAVIOR_REMOVED,
    BEHAVIOR_MERGED_WITH_PREVIOUS,
    BEHAVIOR_MERGED_WITH_NEXT,
    BEHAVIOR_CONTIGUOUS,
};
enum tokenizer_prepend { PREPEND_NEVER, PREPEND_FIRST, PREPEND_ALWAYS };
enum tokenizer_step_kind { STEP_SPLIT, STEP_BYTE_LEVEL, STEP_METASPACE };
struct tokenizer_step {
    enum tokenizer_step_kind kind;
    struct tokenizer_pattern pattern; /* SPLIT; BYTE_LEVEL with use_regex; METASPACE: the replacement */
    enum tokenizer_behavior behavior;
    bool invert;
    bool split;                     /* BYTE_LEVEL: use_regex; METASPACE: split */
    enum tokenizer_prepend prepend; /* METASPACE; BYTE_LEVEL: ALWAYS for add_prefix_space */
};

struct tokenizer_added {
    char *pattern; /* what is searched for: the content, normalized where asked */
    size_t size;
    int32_t id;
    bool single_word, lstrip, rstrip, normalized;
};
/* Tokens sorted by pattern, so that those with a common prefix are neighbours. */
struct tokenizer_added_set {
    struct tokenizer_added *tokens;
    size_t count;
    uint32_t first[257]; /* tokens that start with byte b: [first[b], first[b + 1]) */
};

/* A Unigram model's tokens sorted by bytes, so that those with a common prefix are neighbours. */
struct tokenizer_unigram {
    struct tokenizer_unigram_piece {
        const char *text; /* in the vocabulary's byte store */
        uint32_t size;
        int32_t id;
        double score; /* a logarithm of its probability */
    } * pieces;
    size_t count;
    uint32_t first[257]; /* pieces that start with byte b: [first[b], first[b + 1]) */
    double unk_score;
};

struct tokenizer {
    struct tokenizer_vocab vocab;
    size_t size; /* of the model's vocabulary, a token that it lists twice counted twice */
    bool is_unigram;
    struct tokenizer_unigram unigram; /* if it is one; merges otherwise */
    struct tokenizer_merges merges;
    int32_t char_ids[1024]; /* ids of one-character tokens below U+0400, -1 = none */
    int32_t byte_ids[256];  /* of "<0xNN>", -1 = none */
    char *unk_token;        /* of BPE; NULL = none */
    int32_t unk_id;         /* -1: none, or not in the vocabulary */
    bool fuse_unk, byte_fallback, ignore_merges;
    struct tokenizer_normalizer normalizers[TOKENIZER_STEPS_MAX];
    int normalizer_count;
    struct tokenizer_step steps[TOKENIZER_STEPS_MAX];
    int step_count;
    struct tokenizer_added_set raw, normalized; /* searched before and after normalization */
    struct tokenizer_vocab added;               /* all added tokens by content */
    int32_t prefix[TOKENIZER_TEMPLATE_MAX], suffix[TOKENIZER_TEMPLATE_MAX];
    int prefix_count, suffix_count;
};

struct tokenizer_symbol {
    int32_t id, previous, next; /* id -1: merged away */
};
struct tokenizer_candidate {
    uint32_t rank, position;
};
/* The best way to cut a word up to a byte: its score, where its last token starts, and that token. */
struct tokenizer_node {
    double score;
    int32_t start, id; /* start -1: not reached */
};
/* A short word and its ids: exactly one cache line. */
struct tokenizer_cached {
    uint64_t hash;
    uint8_t size, count; /* size 0 = free */
    char text[30];
    int32_t ids[6];
};
#define TOKENIZER_CACHE_SIZE 16384u

struct tokenizer_scratch {
    struct tokenizer_segments segments, next;
    struct tokenizer_text normal, spare; /* a normalizer's output and input */
    uint32_t normal_lead;
    int32_t *codepoints;
    size_t codepoint_capacity;
    uint64_t *marks;
    size_t mark_capacity;
    struct tokenizer_symbol *symbols;
    size_t symbol_count, symbol_capacity;
    struct tokenizer_candidate *heap;
    size_t heap_count, heap_capacity;
    struct tokenizer_node *nodes;
    size_t node_capacity;
    int32_t *ids;
    size_t id_count, id_capacity;
    struct tokenizer_cached *cache; /* [TOKENIZER_CACHE_SIZE] */
    pcre2_match_data *match_data;
    pcre2_match_context *match_context;
    pcre2_jit_stack *jit_stack;
    struct tokenizer_budget {
        int64_t steps;  /* left for what backtracks beyond the ordinary */
        int64_t end;    /* of this thread's CPU time, in ns */
        int64_t looked; /* at that time; coarse monotonic ns */
        bool used_up;   /* by the patterns of the last text */
    } budget;
    int (*watch)(void *data);
    void *watch_data;
};

/* Grow *array so that `count` elements of `size` bytes fit. */
int tokenizer_grow(void **array, size_t *capacity, size_t count, size_t size);
/* What patterns may cost from here on: for a text of this size, or for a file while it is read. */
void tokenizer_budget_begin(struct tokenizer_scratch *scratch, size_t size);
/* In place, without the word cache; what a failed init left is for deinit. */
int tokenizer_scratch_init(struct tokenizer_scratch *scratch);
void tokenizer_scratch_deinit(struct tokenizer_scratch *scratch);

/* Where the value of the key that the stream just returned begins. */
size_t tokenizer_value_start(const struct json_stream *stream);
/* The sections of the file; the small ones as trees. */
int tokenizer_load_model(struct tokenizer *tokenizer, const char *json, size_t size);
/* The vocabulary of a Unigram model, a list of [text, score]. */
int tokenizer_load_unigram(struct tokenizer *tokenizer, const char *json, size_t size);
int tokenizer_load_normalizer(struct tokenizer *tokenizer, const json_t *section);
int tokenizer_load_pre_tokenizer(struct tokenizer *tokenizer, const json_t *section);
int tokenizer_load_post_processor(struct tokenizer *tokenizer, const json_t *section);
/* After model and normalizer. */
int tokenizer_load_added(struct tokenizer *tokenizer, const char *json, size_t size);

/* Members of those trees. ERR_INVALID_TOKENIZER when one is absent (unless it has a fallback) or of another type. */
int tokenizer_member_type(const json_t *object, const char **out);
int tokenizer_member_string(const json_t *object, const char *key, const char **out, size_t *size);
int tokenizer_member_bool(const json_t *object, const char *key, bool fallback, bool *out);
int tokenizer_member_pattern(const json_t *object, struct tokenizer_pattern *out); /* {"String"|"Regex": ..} */
/* Call visit for the section itself, or for each member of the array `list` when it is a Sequence, however nested. */
int tokenizer_each(struct tokenizer *tokenizer, const json_t *section, const char *list,
                   int (*visit)(struct tokenizer *tokenizer, const json_t *section, const char *type));

void tokenizer_normalizer_deinit(struct tokenizer_normalizer *normalizer);
void tokenizer_added_deinit(struct tokenizer_added_set *set);

/* The steps. Text is normalized into scratch->normal and scratch->normal_lead. */
int tokenizer_normalize(const struct tokenizer *tokenizer, struct tokenizer_scratch *scratch, const char *text,
                        size_t size, size_t lead);
/* Cut text into pieces of segments, which get text's bytes appended. */
int tokenizer_added_split(const struct tokenizer_added_set *set, const char *text, size_t size, size_t lead,
                          struct tokenizer_segments *segments);
/* scratch->segments through every pre-tokenizer. */
int tokenizer_pre_tokenize(const struct tokenizer *tokenizer, struct tokenizer_scratch *scratch);
/* One word to ids, appended to scratch->ids; short ones from the cache. */
int tokenizer_word(const struct tokenizer *tokenizer, struct tokenizer_scratch *scratch, const char *word, size_t size);
/* The same by the Unigram model, without the cache. */
int tokenizer_unigram(const struct tokenizer *tokenizer, struct tokenizer_scratch *scratch, const char *word,
                      size_t size);
int tokenizer_push_id(struct tokenizer_scratch *scratch, int32_t id);
/* Bytes to the printable characters that stand for them in byte-level vocabularies. */
int tokenizer_byte_level(const char *text, size_t size, struct tokenizer_text *out);

bool tokenizer_utf8_valid(const char *text, size_t size);
bool tokenizer_is_space(uint32_t codepoint); /* White_Space */
bool tokenizer_is_word(uint32_t codepoint);  /* Alphabetic, M, Nd, Pc, Join_Control */
size_t tokenizer_utf8_encode(uint32_t codepoint, char out[4]);

/* Decode the character at text, which is valid; returns its bytes. */
static inline size_t tokenizer_utf8_decode(const char *text, uint32_t *codepoint)
{
    const unsigned char *p = (const unsigned char *)text;
    if (p[0] < 0x80) {
        *codepoint = p[0];
        return 1;
    }
    if (p[0] < 0xe0) {
        *codepoint = (uint32_t)(p[0] & 0x1f) << 6 | (p[1] & 0x3f);
        return 2;
    }
    if (p[0] < 0xf0) {
        *codepoint = (uint32_t)(p[0] & 0x0f) << 12 | (uint32_t)(p[1] & 0x3f) << 6 | (p[2] & 0x3f);
        return 3;
    }
    *codepoint =
        (uint32_t)(p[0] & 0x07) << 18 | (uint32_t)(p[1] & 0x3f) << 12 | (uint32_t)(p[2] & 0x3f) << 6 | (p[3] & 0x3f);
    return 4;
}
/* Bytes of the character that starts with this byte of valid text. */
static inline size_t tokenizer_utf8_size(char first)
{
    unsigned char byte = (unsigned char)first;
    return byte < 0x80 ? 1 : byte < 0xe0 ? 2 : byte < 0xf0 ? 3 : 4;
}
