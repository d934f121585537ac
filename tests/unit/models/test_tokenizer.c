/* The tokenizer's own promises: small files with known ids, what is refused and by which name, and that neither a
 * hostile file nor a hostile text costs more than it may. Equality with the reference over many texts is
 * tests/interop's matter. */

#include "base/fs.h"
#include "models/tokenizer.h"
#include "models/tokenizer_internal.h"
#include "tests/unit/unit.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#define VOCAB                                                                      \
    "\"vocab\":{\"a\":0,\"b\":1,\"c\":2,\"ab\":3,\"bc\":4,\"abc\":5,\"<u>\":6,\" " \
    "\":7,\"\xc3\xa9\":8,\"\xe2\x96\x81\":9}"
#define MODEL "\"model\":{\"type\":\"BPE\"," VOCAB ",\"merges\":[\"a b\",\"b c\",\"ab c\"]}"

static struct tokenizer *open_json(const char *json)
{
    struct tokenizer *tokenizer = NULL;
    ck_assert_rc_ok(tokenizer_new(json, strlen(json), &tokenizer));
    return tokenizer;
}

/* The ids of a text as "1 2 3". */
static const char *encode(const char *json, const char *text, bool special)
{
    static char out[4096];
    struct tokenizer *tokenizer = open_json(json);
    struct tokenizer_scratch *scratch = NULL;
    const int32_t *ids;
    size_t count, used = 0;

    ck_assert_rc_ok(tokenizer_scratch_new(tokenizer, &scratch));
    ck_assert_rc_ok(tokenizer_encode(tokenizer, scratch, text, strlen(text), special, &ids, &count));
    out[0] = '\0';
    for (size_t i = 0; i < count; i++) {
        used += (size_t)snprintf(out + used, sizeof(out) - used, i == 0 ? "%d" : " %d", ids[i]);
    }
    tokenizer_scratch_free(scratch);
    tokenizer_free(tokenizer);
    return out;
}

#define ck_assert_ids(json, text, expected) ck_assert_str_eq(encode(json, text, false), expected)

START_TEST(test_merges)
{
    ck_assert_ids("{" MODEL "}", "abc", "5");
    ck_assert_ids("{" MODEL "}", "aabcb", "0 5 1");
    ck_assert_ids("{" MODEL "}", "", "");
    /* Without unknown token other characters vanish. */
    ck_assert_ids("{" MODEL "}", "a?bz", "3");
    /* Pairs as arrays, members in another order, lower rank first wherever it lies. */
    ck_assert_ids("{\"model\":{\"merges\":[[\"b\",\"c\"],[\"a\",\"b\"]]," VOCAB "},\"version\":\"1.0\"}", "abc", "0 4");
    ck_assert_ids("{\"model\":{\"merges\":[\"#version: 0.2\",\"b c\"]," VOCAB "}}", "abc", "0 4");
}
END_TEST

START_TEST(test_unknown_and_ignore_merges)
{
#define WITH(members) "{\"model\":{" members "," VOCAB ",\"merges\":[\"b c\"]}}"
    ck_assert_ids(WITH("\"unk_token\":\"<u>\""), "a??b", "0 6 6 1");
    ck_assert_ids(WITH("\"unk_token\":\"<u>\",\"fuse_unk\":true"), "a??b?", "0 6 1 6");
    ck_assert_ids(WITH("\"ignore_merges\":true"), "ab", "3");
    ck_assert_ids(WITH("\"ignore_merges\":true"), "abab", "0 1 0 1");
    ck_assert_ids("{\"model\":{\"byte_fallback\":true,\"vocab\":{\"a\":0,\"<0xC3>\":1,\"<0xA9>\":2},\"merges\":[]}}",
                  "a\xc3\xa9\xc3\xaa", "0 1 2");
}
END_TEST

#define UNIGRAM(members, vocab) "{\"model\":{\"type\":\"Unigram\"," members "\"vocab\":" vocab "}}"
#define FRAME "{\"type\":\"RobertaProcessing\",\"sep\":[\"b\",1],\"cls\":[\"a\",0]}"

START_TEST(test_unigram)
{
#define PIECES(more) "[[\"?\",0],[\"a\",-1],[\"b\",-1],[\"ab\",-2],[\"bc\",-3],[\"c\",-2]" more "]"
#define KNOWN(more) UNIGRAM("\"unk_id\":0,", PIECES(more))
    ck_assert_ids(KNOWN(""), "", "");
    ck_assert_ids(KNOWN(""), "ab", "3"); /* -2 either way: what starts first is kept */
    ck_assert_ids(KNOWN(""), "abc", "1 4");
    ck_assert_ids(KNOWN(",[\"abc\",-3.5]"), "abcab", "6 3");
    ck_assert_ids(KNOWN(",[\"ab\",-9]"), "ab", "1 2");      /* the last place of a text counts */
    ck_assert_ids(KNOWN(""), "xya?zb", "0 1 0 2");          /* neighbours without a token are one piece */
    ck_assert_ids(KNOWN(",[\"xy\",-90]"), "axyb", "1 6 2"); /* whose text may be a token that no path takes */
    ck_assert_ids(KNOWN(",[\"<0xC3>\",0],[\"<0xA9>\",0]"), "a\xc3\xa9", "1 0");
    ck_assert_ids(UNIGRAM("\"unk_id\":0,\"byte_fallback\":true,", PIECES(",[\"<0xC3>\",0],[\"<0xA9>\",0]")),
                  "a\xc3\xa9\xc3\xaa\xc3\xa9", "1 0");
    ck_assert_ids(UNIGRAM("\"unk_id\":0,\"byte_fallback\":true,", PIECES(",[\"<0xC3>\",0],[\"<0xA9>\",0]")),
                  "\xc3\xa9\xc3\xa9", "6 7 6 7");
    /* Added tokens are numbered after the places of the list. */
    ck_assert_ids("{\"added_tokens\":[{\"id\":8,\"content\":\"!\",\"normalized\":false}],"
                  "\"model\":{\"type\":\"Unigram\",\"vocab\":" PIECES(",[\"ab\",-9]") "}}",
                  "a!", "1 7");
}
END_TEST

START_TEST(test_unigram_without_unknown)
{
    struct tokenizer *tokenizer = open_json(UNIGRAM("", PIECES("")));
    struct tokenizer_scratch *scratch = NULL;
    const int32_t *ids;
    size_t count;

    ck_assert_rc_ok(tokenizer_scratch_new(tokenizer, &scratch));
    ck_assert_rc_ok(tokenizer_encode(tokenizer, scratch, "abc", 3, false, &ids, &count));
    ck_assert_int_eq(tokenizer_encode(tokenizer, scratch, "abx", 3, false, &ids, &count), ERR_INVALID_TOKENIZER);
    ck_assert_ptr_nonnull(strstr(err_last()->message, "no unk_id"));
    tokenizer_scratch_free(scratch);
    tokenizer_free(tokenizer);
}
END_TEST

START_TEST(test_template)
{
    ck_assert_str_eq(encode("{\"post_processor\":" FRAME "," MODEL "}", "c", true), "0 2 1");
    static const char *const json =
        "{\"post_processor\":{\"type\":\"Sequence\",\"processors\":[{\"type\":\"ByteLevel\",\"trim_offsets\":true},"
        "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"x\",\"type_id\":0}},"
        "{\"Sequence\":{\"id\":\"A\",\"type_id\":0}},{\"SpecialToken\":{\"id\":\"y\",\"type_id\":0}}],"
        "\"pair\":[],\"special_tokens\":{\"x\":{\"id\":\"x\",\"ids\":[6,0],\"tokens\":[\"\",\"\"]},"
        "\"y\":{\"id\":\"y\",\"ids\":[1],\"tokens\":[\"\"]}}}]}," MODEL "}";
    ck_assert_str_eq(encode(json, "c", true), "6 0 2 1");
    ck_assert_str_eq(encode(json, "c", false), "2");
    ck_assert_str_eq(encode(json, "", true), "6 0 1");
}
END_TEST

START_TEST(test_added_tokens)
{
#define ADDED(list) "{\"added_tokens\":[" list "]," MODEL "}"
#define TOKEN(id, content, more) "{\"id\":" #id ",\"content\":\"" content "\",\"normalized\":false" more "}"
    ck_assert_ids(ADDED(TOKEN(10, "b", "") "," TOKEN(11, "bc", "")), "abcb", "0 4 1"); /* both are in the vocabulary */
    ck_assert_ids(ADDED(TOKEN(10, "!", "") "," TOKEN(11, "!!", "")), "a!!!b", "0 11 10 1");
    ck_assert_ids(ADDED(TOKEN(10, "!", ",\"lstrip\":true,\"rstrip\":true")), "a  ! b!", "0 10 1 10");
    ck_assert_ids(ADDED(TOKEN(10, "ab", ",\"single_word\":true")), "ab abc cab a-ab", "3 7 5 7 2 3 7 0 3");
}
END_TEST

START_TEST(test_normalizers_and_steps)
{
    ck_assert_ids("{\"normalizer\":{\"type\":\"NFC\"}," MODEL "}", "e\xcc\x81", "8");
    ck_assert_ids("{\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\",\"prepend\":\"c\"},"
                  "{\"type\":\"Replace\",\"pattern\":{\"Regex\":\" +\"},\"content\":\"b\"}]}," MODEL "}",
                  "a  a", "2 3 0");
    ck_assert_ids("{\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"String\":\"b\"},\"behavior\":\"Removed\","
                  "\"invert\":false}," MODEL "}",
                  "abc", "0 2");
    ck_assert_ids("{\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"\xe2\x96\x81\",\"prepend_scheme\":"
                  "\"always\",\"split\":true}," MODEL "}",
                  "ab c", "9 3 9 2");
    ck_assert_ids("{\"pre_tokenizer\":{\"type\":\"CharDelimiterSplit\",\"delimiter\":\" \"}," MODEL "}", "ab c", "3 2");
}
END_TEST

/* Files that are refused, and a word of the reason. */
static const struct {
    const char *json, *reason;
} refused[] = {
    {"", "not a JSON object"},
    {"[]", "not a JSON object"},
    {"{\"model\":{}} x", "not a JSON object"},
    {"{\"version\":\"2.0\"," MODEL "}", "version"},
    {"{}", "no model"},
    {"{\"model\":{\"type\":\"WordLevel\",\"vocab\":{}}}", "\"WordLevel\" is not supported (BPE and Unigram are)"},
    {"{\"model\":{\"type\":\"WordPiece\",\"vocab\":{}}}", "\"WordPiece\" is not supported"},
    {"{\"model\":{\"type\":3}}", "\"\" is not supported"},
    {UNIGRAM("", "{\"a\":1}"), "not a list"},
    {UNIGRAM("", "[\"a\"]"), "not a text and a score"},
    {UNIGRAM("", "[[\"a\"]]"), "not a text and a score"},
    {UNIGRAM("", "[[\"a\",0,1]]"), "not a text and a score"},
    {UNIGRAM("", "[[0,0]]"), "not a text and a score"},
    {UNIGRAM("", "[[\"a\",1e999]]"), "not finite"},
    {UNIGRAM("\"unk_id\":1,", "[[\"a\",0]]"), "unk_id is 1, of 1 tokens"},
    {UNIGRAM("\"unk_id\":\"a\",", "[[\"a\",0]]"), "unk_id is not an id"},
    {UNIGRAM("\"unk_id\":-1,", "[[\"a\",0]]"), "unk_id is not an id"},
    {"{\"model\":{\"type\":\"BPE\",\"merges\":[]}}", "no vocab"},
    {"{\"model\":{" VOCAB "}}", "no merges"},
    {"{\"model\":{\"vocab\":{\"a\":-1},\"merges\":[]}}", "id"},
    {"{\"model\":{\"vocab\":{\"a\":2147483647},\"merges\":[]}}", "id"},
    {"{\"model\":{\"vocab\":{\"a\":1.5},\"merges\":[]}}", "id"},
    {"{\"model\":{" VOCAB ",\"merges\":[\"a\"]}}", "two tokens"},
    {"{\"model\":{" VOCAB ",\"merges\":[\"a b c\"]}}", "two tokens"},
    {"{\"model\":{" VOCAB ",\"merges\":[\"a z\"]}}", "has no token"},
    {"{\"model\":{" VOCAB ",\"merges\":[[\"a\",\"c\"]]}}", "has no token"},
    {"{\"model\":{" VOCAB ",\"merges\":[[\"a\"]]}}", "model.merges"},
    {"{\"model\":{" VOCAB ",\"merges\":[],\"dropout\":0.1}}", "dropout"},
    {"{\"model\":{" VOCAB ",\"merges\":[],\"end_of_word_suffix\":\"</w>\"}}", "end_of_word_suffix"},
    {"{\"model\":{" VOCAB ",\"merges\":[],\"fuse_unk\":1}}", "fuse_unk"},
    {"{\"normalizer\":{\"type\":\"Precompiled\"}," MODEL "}", "\"Precompiled\" is not supported"},
    {"{\"normalizer\":{}," MODEL "}", "no type"},
    {"{\"normalizer\":{\"type\":\"Replace\",\"pattern\":{\"String\":\"\"},\"content\":\"\"}," MODEL "}", "empty"},
    {"{\"pre_tokenizer\":{\"type\":\"UnicodeScripts\"}," MODEL "}", "\"UnicodeScripts\" is not supported"},
    {"{\"pre_tokenizer\":{\"type\":\"Sequence\"}," MODEL "}", "no list"},
    {"{\"post_processor\":{\"type\":\"BertProcessing\"}," MODEL "}", "\"cls\" is not a token and its id"},
    {"{\"post_processor\":{\"type\":\"Sequence\",\"processors\":[" FRAME "," FRAME "]}," MODEL "}",
     "\"RobertaProcessing\" is not supported"},
    {"{\"pre_tokenizer\":{\"type\":\"CharDelimiterSplit\"}," MODEL "}", "delimiter"},
    {"{\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[]}," MODEL "}", "lacks the sequence"},
    {"{\"added_tokens\":{}," MODEL "}", "not a list"},
    {"{\"added_tokens\":[{\"content\":\"x\"}]," MODEL "}", "no id"},
    {"{\"normalizer\":[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]," MODEL "}", "nested"},
};

START_TEST(test_refused_files)
{
    for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++) {
        struct tokenizer *tokenizer = NULL;
        int rc = tokenizer_new(refused[i].json, strlen(refused[i].json), &tokenizer);
        ck_assert_msg(rc == ERR_INVALID_TOKENIZER, "%s: %d", refused[i].json, rc);
        ck_assert_msg(strstr(err_last()->message, refused[i].reason) != NULL, "%s: %s", refused[i].json,
                      err_last()->message);
        ck_assert_ptr_null(tokenizer);
    }
}
END_TEST

START_TEST(test_dialects_that_differ_are_refused)
{
    static const char *const patterns[] = {"\\h",       "[a[b]]",  "[a&&b]",  "a{1,2}+",     "a{2}?",    "(?m:.)",
                                           "(*ACCEPT)", "\\R",     "\\K",     "[[:alpha:]]", "\\pL",     "\\xff",
                                           "(a",        "[a",      "\\",      "\\G",         "(?P<n>a)", "[^\\W]",
                                           "[^a&&[b]]", "[&&[b]]", "[a&&[]]", "[a&&[b]",     "[a&&[b]c]"};
    for (size_t i = 0; i < sizeof(patterns) / sizeof(patterns[0]); i++) {
        struct tokenizer_pattern pattern = {0};
        int rc = tokenizer_pattern_regex(patterns[i], strlen(patterns[i]), &pattern);
        ck_assert_msg(rc == ERR_INVALID_TOKENIZER, "%s: %d", patterns[i], rc);
    }
    static const char *const fine[] = {
        "(?i:'s|'t)", "\\p{^Lu}", "a{,3}",     "a{x}",       "[\\[\\]]", "(?<=a)b",      "\\u00e9",    "(?<name>a)",
        "(?>a+)b",    "a++b",     "[^\\s\\w]", "\\x{1F600}", "(?-i)a",   "[\\w&&[^a]]+", "[a&b&&[b]]", "[a&&[\\]]]"};
    for (size_t i = 0; i < sizeof(fine) / sizeof(fine[0]); i++) {
        struct tokenizer_pattern pattern = {0};
        ck_assert_rc_ok(tokenizer_pattern_regex(fine[i], strlen(fine[i]), &pattern));
        tokenizer_pattern_deinit(&pattern);
    }
}
END_TEST

START_TEST(test_text_must_be_utf8)
{
    static const char *const broken[] = {"\x80", "\xc3", "\xc0\xaf", "\xe0\x80\xaf", "\xed\xa0\x80", "\xf4\x90\x80\x80",
                                         "\xff"};
    struct tokenizer *tokenizer = open_json("{" MODEL "}");
    struct tokenizer_scratch *scratch = NULL;
    const int32_t *ids;
    size_t count;

    ck_assert_rc_ok(tokenizer_scratch_new(tokenizer, &scratch));
    for (size_t i = 0; i < sizeof(broken) / sizeof(broken[0]); i++) {
        ck_assert_int_eq(tokenizer_encode(tokenizer, scratch, broken[i], strlen(broken[i]), false, &ids, &count),
                         ERR_INVALID_PARAMETER);
    }
    ck_assert_rc_ok(tokenizer_encode(tokenizer, scratch, "a\0b", 3, false, &ids, &count));
    ck_assert_uint_eq(count, 1); /* NUL has no token and vanishes */
    tokenizer_scratch_free(scratch);
    tokenizer_free(tokenizer);
}
END_TEST

static double encode_seconds(const char *json, const char *text, size_t size, int *rc, size_t *count)
{
    struct tokenizer *tokenizer = open_json(json);
    struct tokenizer_scratch *scratch = NULL;
    const int32_t *ids;
    struct timespec start, end;

    ck_assert_rc_ok(tokenizer_scratch_new(tokenizer, &scratch));
    clock_gettime(CLOCK_MONOTONIC, &start);
    *rc = tokenizer_encode(tokenizer, scratch, text, size, false, &ids, count);
    clock_gettime(CLOCK_MONOTONIC, &end);
    tokenizer_scratch_free(scratch);
    tokenizer_free(tokenizer);
    return (double)(end.tv_sec - start.tv_sec) + 1e-9 * (double)(end.tv_nsec - start.tv_nsec);
}

/* A megabyte of one kind must take about as long as a megabyte of text, not its square. */
START_TEST(test_long_runs_are_linear)
{
    static const struct {
        const char *json, *unit;
    } cases[] = {
        {"{" MODEL "}", "abc"}, /* one word */
        {UNIGRAM("\"unk_id\":0,", "[[\"?\",0],[\"a\",-1],[\"aaaaaaaaaaaaaaaaaaaaaaaaaab\",-1],[\"aaaaaaaa\",-2]]"),
         "a"},
        {"{\"normalizer\":{\"type\":\"NFC\"}," MODEL "}", "\xcc\x81\xcc\xa3"}, /* marks out of order */
        {"{\"pre_tokenizer\":{\"type\":\"ByteLevel\"}," MODEL "}", " "},
        {"{\"pre_tokenizer\":{\"type\":\"ByteLevel\"}," MODEL "}", "\n \xc2\xa0"},
        {ADDED(TOKEN(10, "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab", "")), "a"},
    };
    size_t size = 1 << 20, count = 0;
    char *text = malloc(size + 8);
    ck_assert_ptr_nonnull(text);

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        size_t unit = strlen(cases[i].unit), used = 0;
        int rc;
        while (used + unit <= size) {
            memcpy(text + used, cases[i].unit, unit);
            used += unit;
        }
        double seconds = encode_seconds(cases[i].json, text, used, &rc, &count);
        ck_assert_rc_ok(rc);
        ck_assert_msg(seconds < 20, "case %zu took %.1f s", i, seconds);
    }
    free(text);
}
END_TEST

#define SPLIT_BY(regex)                                                      \
    "{\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"" regex \
    "\"},\"behavior\":\"Isolated\",\"invert\":"                              \
    "false}," MODEL "}"

/* Patterns that backtrack without end are given up soon, however short the text is. */
START_TEST(test_hostile_pattern_ends)
{
    static const char *const regexes[] = {SPLIT_BY("^(a+)+$(?<!a)"), SPLIT_BY("a*a*a*b"), SPLIT_BY("(a|a)*b"),
                                          SPLIT_BY("(?:(?:a?){40}){40}b"), SPLIT_BY("(?=(a*)*b)a")};
    char text[1024];
    size_t count;
    int rc;
    memset(text, 'a', sizeof(text));
    for (size_t i = 0; i < sizeof(regexes) / sizeof(regexes[0]); i++) {
        double seconds = encode_seconds(regexes[i], text, sizeof(text), &rc, &count);
        ck_assert_msg(rc == ERR_INVALID_PARAMETER, "case %zu: %d", i, rc);
        ck_assert_msg(strstr(err_last()->message, "give up") != NULL, "case %zu: %s", i, err_last()->message);
        ck_assert_msg(seconds < 5, "case %zu took %.1f s", i, seconds);
    }
}
END_TEST

/* What takes many steps at few places is not hostile. */
START_TEST(test_long_words_match)
{
    static const char *const regexes[] = {SPLIT_BY("\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+"),
                                          SPLIT_BY("[ x]+y|[ x]+"), SPLIT_BY("(?>(?: |x)+)")};
    size_t size = 100000, count;
    char *text = malloc(size);
    int rc;

    ck_assert_ptr_nonnull(text);
    memset(text, ' ', size);
    text[size / 2] = 'x';
    for (size_t i = 0; i < sizeof(regexes) / sizeof(regexes[0]); i++) {
        (void)encode_seconds(regexes[i], text, size, &rc, &count);
        ck_assert_msg(rc == 0, "case %zu: %s", i, err_last()->message);
    }
    free(text);
}
END_TEST

static int refuse_to_go_on(void *data)
{
    ++*(int *)data;
    return err_raise(ERR_CANCELLED, "enough");
}

/* The caller is asked while patterns work, and its word ends them. */
START_TEST(test_watch_ends_a_text)
{
    struct tokenizer *tokenizer = open_json(SPLIT_BY("a*a*a*b"));
    struct tokenizer_scratch *scratch = NULL;
    size_t size = 1 << 20, count;
    char *text = malloc(size);
    const int32_t *ids;
    int asked = 0;

    ck_assert_ptr_nonnull(text);
    memset(text, 'a', size);
    ck_assert_rc_ok(tokenizer_scratch_new(tokenizer, &scratch));
    tokenizer_scratch_watch(scratch, refuse_to_go_on, &asked);
    ck_assert_int_eq(tokenizer_encode(tokenizer, scratch, text, size, false, &ids, &count), ERR_CANCELLED);
    ck_assert_int_eq(asked, 1);
    ck_assert(!tokenizer_gave_up(scratch));
    tokenizer_scratch_watch(scratch, NULL, NULL);
    ck_assert_int_eq(tokenizer_encode(tokenizer, scratch, text, 1000, false, &ids, &count), ERR_INVALID_PARAMETER);
    ck_assert(tokenizer_gave_up(scratch));
    tokenizer_scratch_free(scratch);
    tokenizer_free(tokenizer);
    free(text);
}
END_TEST

START_TEST(test_replacement_cannot_explode)
{
    char *json = malloc(1 << 20), *text = malloc(1 << 20);
    size_t count, used;
    int rc;

    ck_assert_ptr_nonnull(json);
    ck_assert_ptr_nonnull(text);
    used = (size_t)sprintf(json, "{\"normalizer\":{\"type\":\"Replace\",\"pattern\":{\"String\":\"a\"},\"content\":\"");
    memset(json + used, 'x', 10000);
    strcpy(json + used + 10000, "\"}," MODEL "}");
    memset(text, 'a', 1 << 20);
    (void)encode_seconds(json, text, 1 << 20, &rc, &count);
    ck_assert_int_eq(rc, ERR_PAYLOAD_TOO_LARGE);
    free(json);
    free(text);
}
END_TEST

START_TEST(test_bundled_file)
{
    struct tokenizer *tokenizer = NULL;
    struct tokenizer_scratch *scratch = NULL;
    const int32_t *ids;
    char *json = NULL;
    size_t size, count;

    ck_assert_rc_ok(fs_read_file(TEST_DATA "/tiny-llama/tokenizer.json", 1 << 20, &json, &size));
    ck_assert_rc_ok(tokenizer_new(json, size, &tokenizer));
    ck_assert_rc_ok(tokenizer_scratch_new(tokenizer, &scratch));
    for (int round = 0; round < 2; round++) { /* the second time from the cache */
        ck_assert_rc_ok(tokenizer_encode(tokenizer, scratch, "hi<|pad|>hi", 11, true, &ids, &count));
        ck_assert_uint_ge(count, 3);
        ck_assert_int_eq(ids[count / 2], 1);
        ck_assert_int_eq(ids[0], ids[count / 2 + 1]);
    }
    tokenizer_scratch_free(scratch);
    tokenizer_free(tokenizer);
    free(json);
}
END_TEST

/* Text of a few hundred megabytes would be gigabytes of tables. Full ones, without what fills them. */
START_TEST(test_tables_are_bounded)
{
    struct tokenizer_vocab vocab = {.count = TOKENIZER_TOKENS_MAX, .slot_count = (size_t)4 * TOKENIZER_TOKENS_MAX};
    struct tokenizer_merges merges = {.count = TOKENIZER_TOKENS_MAX};
    struct tokenizer_vocab_entry *entry;

    vocab.slots = calloc(vocab.slot_count, sizeof(*vocab.slots));
    ck_assert_int_eq(tokenizer_vocab_put(&vocab, "one more", 8, &entry), ERR_INVALID_TOKENIZER);
    ck_assert_ptr_nonnull(strstr(err_last()->message, "vocabulary has more than"));
    ck_assert_int_eq(tokenizer_merges_add(&merges, 0, 1, 2), ERR_INVALID_TOKENIZER);
    tokenizer_vocab_deinit(&vocab);
}
END_TEST

UNIT_MAIN("tokenizer", test_merges, test_unknown_and_ignore_merges, test_unigram, test_unigram_without_unknown,
          test_template, test_added_tokens, test_normalizers_and_steps, test_refused_files,
          test_dialects_that_differ_are_refused, test_text_must_be_utf8, test_long_runs_are_linear,
          test_hostile_pattern_ends, test_long_words_match, test_watch_ends_a_text, test_replacement_cannot_explode,
          test_bundled_file, test_tables_are_bounded)
