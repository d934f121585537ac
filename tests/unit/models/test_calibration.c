/* The token log: lines cut anywhere, every error with its line, limits, cutting back. */

#include "base/digest.h"
#include "models/calibration_internal.h"
#include "tests/unit/models/calibration_log.h"

#include <sys/stat.h>
#include <unistd.h>

START_TEST(test_lines_straddle_feeds)
{
    static const char *const text =
        "{\"input_ids\": [1, 2, 3]}\n\r\n{\"text\": \"h\\u00e9llo\", \"meta\": {\"a\": [1]}}\r\n"
        "{\"input_ids\":[2047]}";
    struct tokenizer *tokenizer = tiny_tokenizer();
    struct calibration_counts first = {0};
    char digest[65] = "";

    for (size_t cut = 1; cut <= strlen(text); cut++) {
        struct calibration_writer *writer = open_writer(&(struct calibration_counts){0}, tokenizer);
        for (size_t at = 0; at < strlen(text); at += cut) {
            size_t part = strlen(text) - at < cut ? strlen(text) - at : cut;
            ck_assert_rc_ok(calibration_writer_feed(writer, text + at, part));
        }
        struct calibration_counts counts = finish(writer);
        ck_assert_int_eq(counts.records, 3);
        ck_assert_int_eq(counts.rejected, 0);
        ck_assert_int_eq(counts.bytes, 4 * (counts.records + counts.tokens));
        char *data = NULL, hex[65];
        size_t size;
        ck_assert_rc_ok(fs_read_file(log_path(), 1 << 20, &data, &size));
        ck_assert_int_eq((int64_t)size, counts.bytes);
        digest_bytes(data, size, hex);
        free(data);
        if (cut == 1) {
            first = counts;
            strcpy(digest, hex);
        }
        ck_assert_int_eq(counts.tokens, first.tokens);
        ck_assert_str_eq(hex, digest);
    }
    tokenizer_free(tokenizer);
    clean();
}
END_TEST

/* Each line, and what it is refused with; 0 = taken. */
static const struct {
    const char *line;
    int code;
} lines[] = {
    {"{\"input_ids\": [5]}", 0},
    {"{\"input_ids\": [5]", ERR_INVALID_JSON},
    {"", 1}, /* blank: neither taken nor refused */
    {"{\"other\": 1}", ERR_MISSING_PARAMETER},
    {"{\"input_ids\": \"5\"}", ERR_INVALID_PARAMETER},
    {"{\"input_ids\": [2048]}", ERR_INVALID_PARAMETER},
    {"{\"input_ids\": [-1]}", ERR_INVALID_PARAMETER},
    {"{\"input_ids\": [1.5]}", ERR_INVALID_PARAMETER},
    {"{\"input_ids\": [99999999999999999999]}", ERR_INVALID_PARAMETER},
    {"{\"input_ids\": [1, [2], {\"a\": 3}]}", ERR_INVALID_PARAMETER},
    {"{\"input_ids\": []}", ERR_INVALID_PARAMETER},
    {"{\"text\": \"\"}", ERR_INVALID_PARAMETER},
    {"{\"text\": 7}", ERR_INVALID_PARAMETER},
    {"{\"text\": \"a\", \"input_ids\": [1]}", ERR_INVALID_PARAMETER},
    {"{\"text\": \"a\", \"text\": \"b\"}", ERR_INVALID_JSON},
    {"{\"text\": \"\xff\"}", ERR_INVALID_JSON},
    {"{\"text\": \"\\ud800\"}", ERR_INVALID_JSON},
    {"[1, 2]", ERR_INVALID_PARAMETER},
    {"{\"input_ids\": [1]} {}", ERR_INVALID_JSON},
    {"nonsense", ERR_INVALID_JSON},
    {"{\"text\": \"fine\"}", 0},
    {"{\"input_ids\": [1, 2], \"attention_mask\": [1]}", ERR_INVALID_PARAMETER},
    {"{\"input_ids\": [1, 2], \"attention_mask\": [1, 2]}", ERR_INVALID_PARAMETER},
    {"{\"input_ids\": [1, 2], \"attention_mask\": \"11\"}", ERR_INVALID_PARAMETER},
    {"{\"input_ids\": [1, 2], \"attention_mask\": [[1, 1]]}", ERR_INVALID_PARAMETER},
    {"{\"input_ids\": [1, 2, 3], \"attention_mask\": [1, 0, 1]}", ERR_INVALID_PARAMETER},
    {"{\"input_ids\": [1, 2, 3], \"attention_mask\": [0, 0, 0]}", ERR_INVALID_PARAMETER},
    {"{\"text\": \"a\", \"attention_mask\": [1]}", ERR_INVALID_PARAMETER},
    {"{\"attention_mask\": [1, 1]}", ERR_MISSING_PARAMETER},
    {"{\"input_ids\": [1], \"attention_mask\": [1], \"attention_mask\": [1]}", ERR_INVALID_JSON},
    {"{\"messages\": [{\"role\": \"user\"}]}", ERR_INVALID_PARAMETER}, /* without a template */
    {"{\"messages\": {}}", ERR_INVALID_PARAMETER},
    {"{\"messages\": 1}", ERR_INVALID_PARAMETER},
    {"{\"messages\": null}", ERR_INVALID_PARAMETER},
    {"{\"messages\": [], \"messages\": []}", ERR_INVALID_JSON},
    {"{\"messages\": [], \"text\": \"a\"}", ERR_INVALID_PARAMETER},
    {"{\"messages\": [], \"input_ids\": [1]}", ERR_INVALID_PARAMETER},
    {"{\"messages\": [], \"attention_mask\": [1]}", ERR_INVALID_PARAMETER},
    {"{\"messages\": [{\"a\": 1, \"a\": 2}]}", ERR_INVALID_JSON},
    {"{\"messages\": [{\"a\": 1]}", ERR_INVALID_JSON},
    {"{\"tools\": []}", ERR_MISSING_PARAMETER},
};

/* Messages become the text that the template makes of them, without the tokenizer's special tokens. */
START_TEST(test_messages_are_rendered)
{
    static const char template[] =
        "{% if messages|length == 0 %}{{ raise_exception('none') }}{% endif %}{% for m in messages %}"
        "{{ m.role }}: {{ m.content }}{% endfor %}{{ tools|length if tools }}{{ more }}"
        "{% if add_generation_prompt %}>{% endif %}";
    static const struct {
        const char *line, *text; /* or a part of the reason */
        int code;
    } rows[] = {
        {"{\"messages\": [{\"role\": \"user\", \"content\": \"a \\u00e9\"}]}", "user: a \xc3\xa9", 0},
        {"{\"tools\": [{}, {}], \"messages\": [{\"role\": \"u\", \"content\": \"c\"}], \"add_generation_prompt\": "
         "true}",
         "u: c2>", 0},
        {"{\"chat_template_kwargs\": {\"more\": \"!\"}, \"tools\": null, \"messages\": [{}]}", ": !", 0},
        {"{\"text\": \"t\", \"tools\": \"none\", \"chat_template_kwargs\": 7}", "t", 0},
        {"{\"messages\": []}", "it refuses the messages: none", ERR_INVALID_PARAMETER},
        {"{\"messages\": [7]}", "messages[0] is not an object", ERR_INVALID_PARAMETER},
        {"{\"messages\": [{}], \"tools\": {}}", "must be a list", ERR_INVALID_PARAMETER},
        {"{\"messages\": [{}], \"chat_template_kwargs\": 7}", "an object", ERR_INVALID_PARAMETER},
        {"{\"messages\": [{}], \"add_generation_prompt\": 7}", "must be a boolean", ERR_INVALID_PARAMETER},
    };
    struct tokenizer *tokenizer = tiny_tokenizer();
    struct tokenizer_scratch *scratch = NULL;
    struct calibration_reader reader;
    struct calibration_record record;
    struct chat *chat = NULL;

    ck_assert_rc_ok(chat_new(template, sizeof(template) - 1, NULL, &chat));
    ck_assert_rc_ok(tokenizer_scratch_new(tokenizer, &scratch));
    const struct calibration_reading reading = {
        .tokenizer = tokenizer, .chat = chat, .vocab_size = 2048, .text_field = "text", .add_special_tokens = true};
    ck_assert_rc_ok(calibration_reader_init(&reader, &reading));
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        const int32_t *ids;
        size_t count;
        ck_assert_rc_ok(calibration_record_read(&reader, rows[i].line, strlen(rows[i].line), &record));
        ck_assert_msg(record.code == rows[i].code, "%s: %d %s", rows[i].line, record.code, record.detail);
        if (rows[i].code != 0) {
            ck_assert_msg(strstr(record.detail, rows[i].text) != NULL, "%s: %s", rows[i].line, record.detail);
            continue;
        }
        ck_assert_rc_ok(tokenizer_encode(tokenizer, scratch, rows[i].text, strlen(rows[i].text),
                                         strstr(rows[i].line, "\"text\"") != NULL, &ids, &count));
        ck_assert_uint_eq(record.count, count);
        ck_assert_mem_eq(record.ids, ids, count * sizeof(*ids));
    }
    ck_assert_uint_eq(reader.notes.unknown_count, 2); /* of the record with text */
    calibration_reader_deinit(&reader);
    tokenizer_scratch_free(scratch);
    tokenizer_free(tokenizer);
    chat_free(chat);
}
END_TEST

START_TEST(test_errors_have_lines)
{
    struct tokenizer *tokenizer = tiny_tokenizer();
    struct calibration_writer *writer = open_writer(&(struct calibration_counts){0}, tokenizer);
    struct calibration_counts counts;
    size_t error = 0;

    for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
        feed(writer, lines[i].line);
        feed(writer, "\n");
        calibration_writer_counts(writer, &counts);
        if (lines[i].code >= 0) {
            ck_assert_uint_eq(counts.error_count, error);
            continue;
        }
        ck_assert_msg(counts.error_count == ++error, "line %zu was taken: %s", i + 1, lines[i].line);
        const struct calibration_error *entry = &calibration_writer_errors(writer)[error - 1];
        ck_assert_int_eq(entry->line, (int64_t)i + 1);
        ck_assert_msg(entry->code == lines[i].code, "%s: %s", lines[i].line, entry->detail);
        ck_assert_uint_gt(strlen(entry->detail), 0);
    }
    counts = finish(writer);
    ck_assert_int_eq(counts.accepted, 2);
    ck_assert_int_eq(counts.records, 2);
    tokenizer_free(tokenizer);
    clean();
}
END_TEST

/* What an attention_mask hides around a record is in no set; both orders of the members mean the same. */
START_TEST(test_masked_tokens_are_left_out)
{
    struct calibration_writer *writer = open_writer(&(struct calibration_counts){0}, NULL);
    int32_t words[11];
    char *data = NULL;
    size_t size;

    feed(writer, "{\"input_ids\": [9, 9, 5, 6, 9], \"attention_mask\": [0, 0, 1, 1, 0]}\n");
    feed(writer, "{\"attention_mask\": [false, true, true], \"input_ids\": [9, 7, 8]}\n");
    feed(writer, "{\"input_ids\": [3], \"attention_mask\": null}\n{\"input_ids\": [4], \"attention_mask\": [1]}\n");
    ck_assert_int_eq(calibration_writer_notes(writer)->masked_tokens, 4);
    ck_assert_int_eq(calibration_writer_notes(writer)->unknown_records, 0);
    struct calibration_counts counts = finish(writer);
    ck_assert_int_eq(counts.records, 4);
    ck_assert_int_eq(counts.tokens, 6);
    ck_assert_rc_ok(fs_read_file(log_path(), 1 << 20, &data, &size));
    ck_assert_uint_eq(size, 40);
    memcpy(words, data, size);
    free(data);
    static const int32_t wanted[10] = {2, 5, 6, 2, 7, 8, 1, 3, 1, 4};
    ck_assert_mem_eq(words, wanted, sizeof(wanted));
    clean();
}
END_TEST

/* Members that nothing reads are named, with a line that has nothing else and without one that has. */
START_TEST(test_unknown_members_are_named)
{
    struct calibration_writer *writer = open_writer(&(struct calibration_counts){0}, NULL);
    const struct calibration_notes *notes = calibration_writer_notes(writer);
    char line[256];

    feed(writer, "{\"input_ids\": [1], \"labels\": [1], \"meta\": {\"a\": 1}}\n{\"labels\": 0, \"input_ids\": [1]}\n");
    ck_assert_int_eq(notes->unknown_records, 2);
    ck_assert_uint_eq(notes->unknown_count, 2);
    ck_assert_str_eq(notes->unknown[0], "labels");
    ck_assert_str_eq(notes->unknown[1], "meta");
    feed(writer, "{\"conversations\": []}\n");
    ck_assert_ptr_nonnull(strstr(calibration_writer_errors(writer)[0].detail, "\"conversations\""));
    ck_assert_int_eq(notes->unknown_records, 2);
    for (int i = 0; i < 20; i++) { /* long ones, too, and no more than are kept */
        snprintf(line, sizeof(line), "{\"input_ids\": [1], \"%d%s\\n\\u0000\": 1}\n", i,
                 "\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3"
                 "\xa9\xc3\xa9\xc3"
                 "\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9"
                 "\xc3\xa9\xc3\xa9\xc3"
                 "\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9");
        feed(writer, line);
    }
    ck_assert_uint_eq(notes->unknown_count, CALIBRATION_UNKNOWN_MAX);
    ck_assert(notes->unknown_more);
    ck_assert_uint_le(strlen(notes->unknown[7]), CALIBRATION_UNKNOWN_BYTES - 1);
    (void)finish(writer);
    clean();
}
END_TEST

#define WITH_BOS                                                                                            \
    "{\"added_tokens\":[{\"id\":1,\"content\":\"<s>\",\"special\":true},{\"id\":2,\"content\":\"</"         \
    "s>\",\"special\":true}],"                                                                              \
    "\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"<s>\"}},{" \
    "\"Sequence\":"                                                                                         \
    "{\"id\":\"A\"}},{\"SpecialToken\":{\"id\":\"</s>\"}}],\"special_tokens\":{\"<s>\":{\"ids\":[1]},\"</"  \
    "s>\":{\"ids\":[2]}}},"                                                                                 \
    "\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"<s>\":1,\"</s>\":2},\"merges\":[]}}"

/* A text that has what the template adds is counted; without the template it stays as it is. */
START_TEST(test_double_bos)
{
    struct tokenizer *tokenizer = NULL;

    ck_assert_rc_ok(tokenizer_new(WITH_BOS, strlen(WITH_BOS), &tokenizer));
    struct calibration_reading reading = {
        .tokenizer = tokenizer, .vocab_size = 10, .text_field = "text", .add_special_tokens = true};
    for (int special = 0; special < 2; special++) {
        struct calibration_writer *writer = NULL;
        reading.add_special_tokens = special == 1;
        ck_assert_rc_ok(calibration_writer_open(log_path(), 0, 0, 0, &reading, &writer));
        feed(writer, "{\"text\": \"a\"}\n{\"text\": \"<s>a\"}\n{\"text\": \"a</s>\"}\n{\"input_ids\": [1, 1]}\n");
        ck_assert_int_eq(calibration_writer_notes(writer)->double_begin, special);
        ck_assert_int_eq(calibration_writer_notes(writer)->double_end, special);
        struct calibration_counts counts = finish(writer);
        ck_assert_int_eq(counts.tokens, special == 1 ? 13 : 7);
        clean();
    }
    tokenizer_free(tokenizer);
}
END_TEST

#define CATASTROPHE                                                                                                    \
    "{\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"a*a*a*b\"},\"behavior\":\"Isolated\",\"invert\":" \
    "false},"                                                                                                          \
    "\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[]}}"

static int cancel(void *data)
{
    return *(int *)data != 0 ? err_raise(ERR_CANCELLED, "cancelled") : 0;
}

/* Texts on which patterns give up are refused, no more than a few are tried, and the caller can end the rest. */
START_TEST(test_hostile_tokenizer)
{
    struct tokenizer *tokenizer = NULL;
    struct calibration_writer *writer = NULL;
    char line[1100];
    int cancelled = 0;

    ck_assert_rc_ok(tokenizer_new(CATASTROPHE, strlen(CATASTROPHE), &tokenizer));
    const struct calibration_reading reading = {
        .tokenizer = tokenizer, .vocab_size = 10, .text_field = "text", .watch = cancel, .watch_data = &cancelled};
    ck_assert_rc_ok(calibration_writer_open(log_path(), 0, 0, 0, &reading, &writer));
    size_t used = (size_t)sprintf(line, "{\"text\": \"");
    memset(line + used, 'a', 1000);
    strcpy(line + used + 1000, "\"}\n");
    for (int i = 0; i < 1000; i++) { /* in seconds, not in minutes */
        feed(writer, line);
    }
    feed(writer, "{\"input_ids\": [1]}\n");
    struct calibration_counts counts;
    calibration_writer_counts(writer, &counts);
    ck_assert_int_eq(counts.rejected, 1000);
    ck_assert_int_eq(counts.accepted, 1);
    ck_assert_ptr_nonnull(strstr(calibration_writer_errors(writer)[0].detail, "give up"));
    ck_assert_ptr_nonnull(strstr(calibration_writer_errors(writer)[99].detail, "not tried"));
    calibration_writer_free(writer);
    cancelled = 1;
    ck_assert_rc_ok(calibration_writer_open(log_path(), 0, 0, 0, &reading, &writer));
    int rc = 0;
    for (int i = 0; i < 20 && rc == 0; i++) {
        rc = calibration_writer_feed(writer, line, strlen(line));
    }
    ck_assert_int_eq(rc, ERR_CANCELLED);
    calibration_writer_free(writer);
    tokenizer_free(tokenizer);
    clean();
}
END_TEST

START_TEST(test_errors_are_counted_beyond_the_list)
{
    struct calibration_writer *writer = open_writer(&(struct calibration_counts){0}, NULL);
    for (int i = 0; i < 500; i++) {
        feed(writer, "{\"text\": \"no tokenizer\"}\n");
    }
    struct calibration_counts counts = finish(writer);
    ck_assert_int_eq(counts.rejected, 500);
    ck_assert_uint_eq(counts.error_count, CALIBRATION_ERRORS_MAX);
    clean();
}
END_TEST

START_TEST(test_long_lines)
{
    struct calibration_writer *writer = open_writer(&(struct calibration_counts){0}, NULL);
    size_t size = CALIBRATION_LINE_MAX;
    char *line = malloc(size + 2);
    ck_assert_ptr_nonnull(line);
    memset(line, ' ', size + 2);
    memcpy(line, "{\"input_ids\":[1]}", 17);
    line[size] = '\n';
    ck_assert_rc_ok(calibration_writer_feed(writer, line, size + 1)); /* exactly as long as it may be */
    line[size] = ' ';
    line[size + 1] = '\n';
    ck_assert_rc_ok(calibration_writer_feed(writer, line, size + 2));
    for (size_t at = 0; at < size + 2; at += 100000) {
        size_t part = size + 2 - at < 100000 ? size + 2 - at : 100000;
        ck_assert_rc_ok(calibration_writer_feed(writer, line + at, part));
    }
    feed(writer, "{\"input_ids\":[2]}\n");
    ck_assert_rc_ok(calibration_writer_feed(writer, line, size)); /* ends without newline */
    ck_assert_rc_ok(calibration_writer_feed(writer, line, 1));
    ck_assert_int_eq(calibration_writer_errors(writer)[1].code, ERR_PAYLOAD_TOO_LARGE);
    ck_assert_int_eq(calibration_writer_errors(writer)[1].line, 3);
    struct calibration_counts counts = finish(writer);
    ck_assert_int_eq(counts.records, 2);
    ck_assert_int_eq(counts.rejected, 3);
    free(line);
    clean();
}
END_TEST

START_TEST(test_record_token_limit)
{
    struct calibration_writer *writer = open_writer(&(struct calibration_counts){0}, NULL);
    size_t count = CALIBRATION_RECORD_TOKENS_MAX + 1;
    char *line = malloc(2 * count + 32);
    ck_assert_ptr_nonnull(line);
    size_t at = (size_t)sprintf(line, "{\"input_ids\":[1");
    for (size_t i = 1; i < count; i++) {
        line[at++] = ',';
        line[at++] = '1';
    }
    strcpy(line + at, "]}\n");
    feed(writer, line);
    strcpy(line + at - 2, "]}\n"); /* one token fewer */
    feed(writer, line);
    struct calibration_counts counts = finish(writer);
    ck_assert_int_eq(counts.rejected, 1);
    ck_assert_int_eq(counts.tokens, CALIBRATION_RECORD_TOKENS_MAX);
    free(line);
    clean();
}
END_TEST

START_TEST(test_log_is_cut_back)
{
    struct calibration_writer *writer = open_writer(&(struct calibration_counts){0}, NULL);
    struct calibration_writer *none = NULL;
    const struct calibration_reading reading = {.vocab_size = 10, .text_field = "text"};
    struct stat info;

    feed(writer, "{\"input_ids\":[1,2]}\n");
    struct calibration_counts committed = finish(writer);
    writer = open_writer(&committed, NULL);
    feed(writer, "{\"input_ids\":[3,4,5]}\n");
    (void)finish(writer); /* written, but its counts were not committed */
    writer = open_writer(&committed, NULL);
    ck_assert_int_eq(stat(log_path(), &info), 0);
    ck_assert_int_eq(info.st_size, committed.bytes);
    feed(writer, "{\"input_ids\":[6]}\n");
    struct calibration_counts counts = finish(writer);
    ck_assert_int_eq(counts.records, 2);
    ck_assert_int_eq(counts.tokens, 3);
    ck_assert_int_eq(counts.accepted, 1);
    /* Less on disk than was committed, and numbers that contradict each other. */
    ck_assert_int_eq(calibration_writer_open(log_path(), 9, 9, 72, &reading, &none), ERR_SOURCE_CORRUPT);
    ck_assert_int_eq(calibration_writer_open(log_path(), 1, 1, 7, &reading, &none), ERR_SOURCE_CORRUPT);
    ck_assert_int_eq(calibration_writer_open(log_path(), -1, 1, 0, &reading, &none), ERR_SOURCE_CORRUPT);
    clean();
}
END_TEST

UNIT_MAIN("calibration", test_messages_are_rendered, test_lines_straddle_feeds, test_errors_have_lines,
          test_masked_tokens_are_left_out, test_unknown_members_are_named, test_double_bos, test_hostile_tokenizer,
          test_errors_are_counted_beyond_the_list, test_long_lines, test_record_token_limit, test_log_is_cut_back)
