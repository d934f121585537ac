/* The tokenizer within a GGUF file: ids, merges and scores, what the runtime is to add, chat templates, and what is
 * refused before any work. */

#include "formats/gguf.h"
#include "tests/unit/formats/checkpoint.h"
#include "tests/unit/formats/decode_gguf.h"
#include "tests/unit/json.h"

struct rig {
    char dir[256];
    struct model *model;
    struct format_module *modules;
    int count;
};

static void rig_deinit(struct rig *rig)
{
    free(rig->modules);
    model_close(rig->model);
    scratch_remove(rig->dir);
}

static struct format_config config_of(const struct rig *rig)
{
    return (struct format_config){.modules = rig->modules, .count = rig->count, .model = rig->model, .method = "ggml"};
}

static struct rig tokenized(const char *tokenizer, const char *config)
{
    char path[300];
    struct rig rig = {0};

    scratch_make(rig.dir);
    snprintf(path, sizeof(path), "%s/source", rig.dir);
    checkpoint_make(path);
    checkpoint_file(path, "tokenizer.json", tokenizer);
    checkpoint_file(path, "tokenizer_config.json", config);
    rig.model = checkpoint_open(rig.dir, "source");
    rig.count = checkpoint_modules(rig.model, 4, 32, true, DTYPE_F16, &rig.modules);
    return rig;
}

/* What a tokenizer gives; NULL when it is refused. */
static struct gguf_file *tokenizer_keys(const char *tokenizer, const char *config)
{
    struct gguf_file *file = calloc(1, sizeof(*file));
    struct gguf_buffer keys = {0}, head = {0};
    struct rig rig = tokenized(tokenizer, config);

    const struct format_config format_config = config_of(&rig);
    int rc = gguf_put_tokenizer(&keys, rig.model);
    ck_assert_int_eq(rc, format_gguf.accepts_all(&format_config));
    if (rc == 0) {
        gguf_put(&head, "GGUF\3\0\0\0\0\0\0\0\0\0\0\0", 16);
        gguf_put_u64(&head, keys.pairs);
        gguf_put(&head, keys.data, keys.size);
        ck_assert(!head.failed && !keys.failed);
        gguf_read(head.data, head.size, file);
    } else {
        ck_assert_int_eq(rc, ERR_INCOMPATIBLE_OPTIONS);
        ck_assert_uint_gt(strlen(err_last()->hint), 0);
        free(file);
        file = NULL;
    }
    gguf_buffer_deinit(&keys);
    rig_deinit(&rig);
    return file;
}

static void keys_free(struct gguf_file *file)
{
    free(file->data);
    free(file);
}

#define BYTE_LEVEL(pre, added)                                                                                \
    "{\"added_tokens\": [" added "], \"pre_tokenizer\": " pre                                                 \
    ", \"model\": {\"type\": \"BPE\", \"byte_fallback\": false, \"vocab\": {\"a\": 0, \"b\": 1, \"ab\": 2}, " \
    "\"merges\": [[\"a\", \"b\"]]}}"
#define SPLIT(regex)                                                                                               \
    "{\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Split\", \"pattern\": {\"Regex\": \"" regex "\"}, " \
    "\"behavior\": \"Isolated\", \"invert\": false}, {\"type\": \"ByteLevel\", \"add_prefix_space\": false, "      \
    "\"use_regex\": false}]}"
#define LLAMA3                                                                                                        \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}{1,3}| ?[^\\\\s\\\\p{L}\\\\p{N}]+[" \
    "\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+"
#define QWEN2                                                                                                         \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}| ?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r" \
    "\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+"

#define PLAIN "{\"type\": \"ByteLevel\", \"add_prefix_space\": false}"
#define VOCABULARY(added, vocab, merges)                                                                              \
    "{\"added_tokens\": [" added "], \"pre_tokenizer\": " PLAIN ", \"model\": {\"type\": \"BPE\", \"vocab\": {" vocab \
    "}, \"merges\": [" merges "]}}"

START_TEST(byte_level_tokenizers)
{
    static const struct {
        const char *json, *pre;
    } rows[] = {{BYTE_LEVEL(PLAIN, ""), "gpt-2"},
                {BYTE_LEVEL(SPLIT(LLAMA3), ""), "llama-bpe"},
                {BYTE_LEVEL(SPLIT(QWEN2), ""), "qwen2"}};
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct gguf_file *file = tokenizer_keys(rows[i].json, "{}");
        ck_assert_ptr_nonnull(file);
        ck_assert_gguf_text(file, "tokenizer.ggml.model", "gpt2");
        ck_assert_gguf_text(file, "tokenizer.ggml.pre", rows[i].pre);
        ck_assert_mem_eq(file->keys[gguf_find_key(file, "tokenizer.ggml.merges")].value, "\3\0\0\0\0\0\0\0a b", 11);
        keys_free(file);
    }
    /* Added tokens are numbered on from the vocabulary, whatever id the file has. */
    struct gguf_file *file = tokenizer_keys(
        BYTE_LEVEL(PLAIN, "{\"id\": 3, \"content\": \"<s>\", \"special\": true}, "
                          "{\"id\": 39, \"content\": \"<u>\", \"special\": false}, "
                          "{\"id\": 7, \"content\": \"ab\", \"special\": false}, "
                          "{\"id\": 8, \"content\": \"<s>\", \"special\": true}"),
        "{\"bos_token\": {\"content\": \"<s>\"}, \"eos_token\": \"<u>\", \"chat_template\": \"{{ x }}\"}");
    ck_assert_ptr_nonnull(file);
    ck_assert_gguf_number(file, "tokenizer.ggml.bos_token_id", 3);
    ck_assert_gguf_number(file, "tokenizer.ggml.eos_token_id", 4);
    ck_assert_gguf_text(file, "tokenizer.chat_template", "{{ x }}");
    ck_assert_gguf_text(file, "tokenizer.chat_template.rag", "{{ documents }}"); /* of the folder next to it */
    const int32_t *kinds = (const void *)file->keys[gguf_find_key(file, "tokenizer.ggml.token_type")].value;
    int32_t kind[40];
    memcpy(kind, kinds, sizeof(kind));
    ck_assert(kind[0] == 1 && kind[2] == 4 && kind[3] == 3 && kind[4] == 4 && kind[5] == 5 && kind[39] == 5);
    ck_assert_mem_eq(file->keys[gguf_find_key(file, "tokenizer.ggml.tokens")].value,
                     "\1\0\0\0\0\0\0\0"
                     "a"
                     "\1\0\0\0\0\0\0\0"
                     "b"
                     "\2\0\0\0\0\0\0\0"
                     "ab"
                     "\3\0\0\0\0\0\0\0<s>"
                     "\3\0\0\0\0\0\0\0<u>\6\0\0\0\0\0\0\0[PAD5]",
                     64);
    keys_free(file);

    ck_assert_ptr_null(tokenizer_keys(BYTE_LEVEL(SPLIT("\\\\w+"), ""), "{}")); /* a pattern without a name */
    ck_assert_ptr_null(tokenizer_keys(BYTE_LEVEL("{\"type\": \"Whitespace\"}", ""), "{}"));
    /* More tokens than the embedding has rows; two texts at one id, by the vocabulary and by counting on from its size;
     * a merge that cannot be written; half a config. */
    ck_assert_ptr_null(tokenizer_keys(VOCABULARY("", "\"a\": 0, \"b\": 40", ""), "{}"));
    ck_assert_ptr_null(tokenizer_keys(VOCABULARY("", "\"a\": 0, \"b\": 0", ""), "{}"));
    ck_assert_ptr_null(tokenizer_keys(
        VOCABULARY("{\"id\": 1, \"content\": \"<s>\", \"special\": true}", "\"a\": 0, \"b\": 2", ""), "{}"));
    ck_assert_ptr_null(tokenizer_keys(VOCABULARY("", "\"a\": 0, \" b\": 1, \"a b\": 2", "[\"a\", \" b\"]"), "{}"));
    ck_assert_ptr_null(tokenizer_keys(BYTE_LEVEL(PLAIN, ""), "{\"chat_template\": \"{{ x }}\""));
    /* What stands for an unused id must not be some token's text. */
    file = tokenizer_keys(VOCABULARY("", "\"a\": 0, \"[PAD3]\": 1, \"[PAD3_0]\": 2", ""), "{}");
    ck_assert_ptr_nonnull(file);
    ck_assert_mem_eq(file->keys[gguf_find_key(file, "tokenizer.ggml.tokens")].value + 9 + 14 + 16,
                     "\x8\0\0\0\0\0\0\0[PAD3_1]", 16);
    keys_free(file);
    ck_assert_ptr_null(tokenizer_keys(BYTE_LEVEL("{\"type\": \"ByteLevel\", \"add_prefix_space\": true}", ""), "{}"));
    ck_assert_ptr_null(tokenizer_keys(
        BYTE_LEVEL("{\"type\": \"ByteLevel\", \"add_prefix_space\": false}, \"normalizer\": {\"type\": \"Lowercase\"}",
                   ""),
        "{}"));
    ck_assert_ptr_null(tokenizer_keys("{\"model\": {\"type\": \"WordPiece\", \"vocab\": {}}}", "{}"));
}
END_TEST

#define MARKS                                                                                                        \
    "\"normalizer\": {\"type\": \"Sequence\", \"normalizers\": [{\"type\": \"Prepend\", \"prepend\": \"\\u2581\"}, " \
    "{\"type\": \"Replace\", \"pattern\": {\"String\": \" \"}, \"content\": \"\\u2581\"}]}, "
#define FALLBACK(merges)                                                                                          \
    "{\"added_tokens\": [{\"id\": 1, \"content\": \"<s>\", \"special\": true}], " MARKS "\"post_processor\": "    \
    "{\"type\": \"TemplateProcessing\", \"single\": [{\"SpecialToken\": {\"id\": \"<s>\"}}, {\"Sequence\": "      \
    "{\"id\": \"A\"}}], \"special_tokens\": {\"<s>\": {\"ids\": [1]}}}, "                                         \
    "\"model\": {\"type\": \"BPE\", \"byte_fallback\": true, \"unk_token\": \"<unk>\", "                          \
    "\"vocab\": {\"<unk>\": 0, \"<s>\": 1, \"<0x41>\": 2, \"abc\": 3, \"ab\": 4, \"bc\": 5, \"a\": 6, \"b\": 7, " \
    "\"c\": 8}, \"merges\": [" merges "]}}"
#define ORDERED "\"b c\", \"a b\", \"a bc\", \"ab c\""

START_TEST(byte_fallback_tokenizers)
{
    struct gguf_file *file =
        tokenizer_keys(FALLBACK("\"b c\", \"a b\", \"a bc\", \"ab c\""), "{\"bos_token\": \"<s>\"}");
    ck_assert_ptr_nonnull(file);
    ck_assert_gguf_text(file, "tokenizer.ggml.model", "llama");
    ck_assert_gguf_number(file, "tokenizer.ggml.add_space_prefix", 1);
    ck_assert_gguf_number(file, "tokenizer.ggml.add_bos_token", 1);
    ck_assert_gguf_number(file, "tokenizer.ggml.add_eos_token", 0);
    float scores[9];
    int32_t kinds[9];
    memcpy(scores, file->keys[gguf_find_key(file, "tokenizer.ggml.scores")].value, sizeof(scores));
    memcpy(kinds, file->keys[gguf_find_key(file, "tokenizer.ggml.token_type")].value, sizeof(kinds));
    ck_assert(scores[5] > scores[4] && scores[4] > scores[3] && scores[3] > scores[6]);
    ck_assert(kinds[0] == 2 && kinds[1] == 3 && kinds[2] == 6 && kinds[3] == 1);
    keys_free(file);

    ck_assert_ptr_null(tokenizer_keys(FALLBACK("\"b c\", \"a b\", \"ab c\""), "{}")); /* "a bc" joins only by score */
    ck_assert_ptr_null(tokenizer_keys(FALLBACK("\"a bc\", \"b c\", \"a b\", \"ab c\""), "{}")); /* no order of tokens */
    ck_assert_ptr_null(tokenizer_keys(FALLBACK("\"b c\", \"a b\", \"a bc\", \"ab c\", \"b b\""), "{}"));
    ck_assert_ptr_null(tokenizer_keys(FALLBACK("7"), "{}"));
}
END_TEST

/* Its scores are not those that merges have. */
START_TEST(unigram_tokenizer)
{
    ck_assert_ptr_null(tokenizer_keys(
        "{" MARKS "\"model\": {\"type\": \"Unigram\", \"unk_id\": 0, \"vocab\": [[\"<unk>\", 0]]}}", "{}"));
    ck_assert_ptr_nonnull(strstr(err_last()->message, "Unigram"));
}
END_TEST

/* A vocabulary may hold a token without text, whose splits are none. */
START_TEST(empty_token)
{
    struct gguf_file *file =
        tokenizer_keys("{" MARKS "\"model\": {\"type\": \"BPE\", \"byte_fallback\": true, \"vocab\": {\"\": 0, "
                       "\"a\": 1, \"b\": 2, \"ab\": 3}, \"merges\": [[\"a\", \"b\"]]}}",
                       "{}");
    ck_assert_ptr_nonnull(file);
    ck_assert_mem_eq(file->keys[gguf_find_key(file, "tokenizer.ggml.tokens")].value, "\0\0\0\0\0\0\0\0", 8);
    keys_free(file);
}
END_TEST

/* add_bos_token and add_eos_token stand above the template; neither helps a token that is not there. */
START_TEST(explicit_additions)
{
    static const struct {
        const char *json, *config;
        int bos, eos;
    } rows[] = {
        {FALLBACK(ORDERED), "{\"bos_token\": \"<s>\"}", 1, 0},
        {FALLBACK(ORDERED), "{\"bos_token\": \"<s>\", \"add_bos_token\": false}", 0, 0},
        {FALLBACK(ORDERED), "{\"bos_token\": \"<s>\", \"eos_token\": \"<s>\", \"add_eos_token\": true}", 1, 1},
        {FALLBACK(ORDERED), "{\"bos_token\": \"<s>\", \"add_bos_token\": null}", 1, 0},
        {BYTE_LEVEL(PLAIN, ""), "{\"bos_token\": \"ab\", \"add_bos_token\": true}", 1, 0},
        {BYTE_LEVEL(PLAIN, ""), "{\"bos_token\": \"none\", \"add_bos_token\": true}", 0, 0},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct gguf_file *file = tokenizer_keys(rows[i].json, rows[i].config);
        ck_assert_ptr_nonnull(file);
        ck_assert_gguf_number(file, "tokenizer.ggml.add_bos_token", rows[i].bos);
        ck_assert_gguf_number(file, "tokenizer.ggml.add_eos_token", rows[i].eos);
        keys_free(file);
    }
}
END_TEST

static struct gguf_file *put_files(const struct gguf_tokenizer_files *files)
{
    struct gguf_file *file = calloc(1, sizeof(*file));
    struct gguf_buffer keys = {0}, head = {0};

    ck_assert_rc_ok(gguf_put_tokenizer_files(&keys, files, 40, NULL));
    gguf_put(&head, "GGUF\3\0\0\0\0\0\0\0\0\0\0\0", 16);
    gguf_put_u64(&head, keys.pairs);
    gguf_put(&head, keys.data, keys.size);
    gguf_read(head.data, head.size, file);
    gguf_buffer_deinit(&keys);
    return file;
}

static struct gguf_text text_of(const char *text)
{
    return (struct gguf_text){(char *)(uintptr_t)text, strlen(text)};
}

/* Each place where a checkpoint may keep them, and which one counts. */
START_TEST(chat_templates)
{
    struct gguf_named_text named[] = {{"rag", text_of("RAG")}, {"tool use", text_of("TOOLS")}};
    struct gguf_tokenizer_files files = {.tokenizer = text_of(BYTE_LEVEL(PLAIN, "")),
                                         .json = text_of("{\"chat_template\": \"from json\", \"other\": [1]}")};

    struct gguf_file *file = put_files(&files);
    ck_assert_gguf_text(file, "tokenizer.chat_template", "from json");
    ck_assert_int_lt(gguf_find_key(file, "tokenizer.chat_templates"), 0);
    keys_free(file);

    files.config = text_of("{\"chat_template\": [{\"name\": \"rag\", \"template\": \"R\"}, {\"name\": \"default\", "
                           "\"template\": \"D\"}, {\"name\": \"rag\", \"template\": \"again\"}]}");
    file = put_files(&files);
    ck_assert_gguf_text(file, "tokenizer.chat_template", "D");
    ck_assert_gguf_text(file, "tokenizer.chat_template.rag", "R");
    ck_assert_mem_eq(file->keys[gguf_find_key(file, "tokenizer.chat_templates")].value, "\3\0\0\0\0\0\0\0rag", 11);
    keys_free(file);

    files.jinja = text_of("from jinja");
    files.templates = named;
    files.template_count = 2;
    file = put_files(&files);
    ck_assert_gguf_text(file, "tokenizer.chat_template", "from jinja");
    ck_assert_gguf_text(file, "tokenizer.chat_template.rag", "RAG");
    ck_assert_gguf_text(file, "tokenizer.chat_template.tool_use", "TOOLS");
    keys_free(file);
}
END_TEST

/* A tokenizer in another form is no reason for a file without one; no tokenizer at all is. */
START_TEST(other_forms_of_tokenizers)
{
    static const char *const names[] = {"", "tokenizer.model", "vocab.json", "qwen.tiktoken"};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        char path[300];
        struct rig rig = tokenized("{}", "{}");
        struct gguf_buffer keys = {0};
        model_close(rig.model);
        snprintf(path, sizeof(path), "%s/source", rig.dir);
        if (names[i][0] != '\0') {
            checkpoint_file(path, names[i], "x");
        }
        snprintf(path, sizeof(path), "%s/source/tokenizer.json", rig.dir);
        ck_assert_int_eq(unlink(path), 0);
        rig.model = checkpoint_open(rig.dir, "source");
        int rc = gguf_put_tokenizer(&keys, rig.model);
        ck_assert_int_eq(rc, names[i][0] == '\0' ? 0 : ERR_INCOMPATIBLE_OPTIONS);
        ck_assert(rc == 0 || strstr(err_last()->message, names[i]) != NULL);
        gguf_buffer_deinit(&keys);
        rig_deinit(&rig);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("gguf_tokenizer");
    TCase *tcase = tcase_create("all");

    tcase_set_timeout(tcase, 120);
    tcase_add_test(tcase, byte_level_tokenizers);
    tcase_add_test(tcase, byte_fallback_tokenizers);
    tcase_add_test(tcase, unigram_tokenizer);
    tcase_add_test(tcase, empty_token);
    tcase_add_test(tcase, explicit_additions);
    tcase_add_test(tcase, chat_templates);
    tcase_add_test(tcase, other_forms_of_tokenizers);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
