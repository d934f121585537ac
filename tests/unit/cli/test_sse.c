/* The parser of event streams: the examples of the HTML standard, any division into pieces, and bounds. */

#include "cli/sse.h"
#include "cli/status.h"
#include "tests/unit/unit.h"

#include <stdio.h>
#include <string.h>

static char seen[4096];

static int remember(void *context, const char *name, const char *data, size_t size)
{
    size_t at = strlen(seen);

    ck_assert_uint_eq(strlen(data), size);
    snprintf(seen + at, sizeof(seen) - at, "[%s|%s]", name, data);
    return 0;
}

static void feed(struct sse *sse, const char *text, size_t piece)
{
    for (size_t at = 0, size = strlen(text); at < size; at += piece) {
        ck_assert_rc_ok(sse_feed(sse, text + at, size - at < piece ? size - at : piece));
    }
}

static const struct {
    const char *stream, *events, *id;
} cases[] = {
    {"data: YHOO\ndata: +2\ndata: 10\n\n", "[message|YHOO\n+2\n10]", ""},
    {": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n",
     "[message|first event][message|second event][message| third event]", ""},
    {"data\n\ndata\ndata\n\ndata:", "[message|][message|\n]", ""},
    {"data:test\n\ndata: test\n\n", "[message|test][message|test]", ""},
    {"retry: 3000\n\nid: 4\nevent: layer\ndata: {}\n\n", "[layer|{}]", "4"},
    {"id: 4\r\nevent: layer\r\ndata: {}\r\n\r\n", "[layer|{}]", "4"},
    {"id: 4\revent: layer\rdata: {}\r\r", "[layer|{}]", "4"},
    {"event: nothing\n\ndata: x\n\n", "[message|x]", ""},
    {"unknown: 1\ndata: x\n\n", "[message|x]", ""},
    {"id: a\x01 b\ndata: x\n\n", "[message|x]", ""}, /* it could not go into a header */
    {"data: unfinished\n", "", ""},
};

START_TEST(test_streams)
{
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        for (size_t piece = 1; piece < 40; piece++) {
            struct sse sse;
            seen[0] = '\0';
            sse_init(&sse, remember, NULL);
            feed(&sse, cases[i].stream, piece);
            ck_assert_str_eq(seen, cases[i].events);
            ck_assert_str_eq(sse.id, cases[i].id);
            sse_deinit(&sse);
        }
    }
}
END_TEST

START_TEST(test_retry)
{
    struct sse sse;

    sse_init(&sse, remember, NULL);
    feed(&sse, "retry: 250\n\n", 3);
    ck_assert_int_eq(sse.retry_ms, 250);
    feed(&sse, "retry: 99999999999999999999\nretry: -1\nretry: x\nretry:\n\n", 7);
    ck_assert_int_eq(sse.retry_ms, 250);
    sse_deinit(&sse);
}
END_TEST

START_TEST(test_a_break_drops_half_an_event)
{
    struct sse sse;

    seen[0] = '\0';
    sse_init(&sse, remember, NULL);
    feed(&sse, "id: 7\ndata: a\n\nid: 8\nevent: layer\ndata: b", 100);
    sse_break(&sse);
    feed(&sse, "data: c\n\n", 100);
    ck_assert_str_eq(seen, "[message|a][message|c]");
    sse_deinit(&sse);
}
END_TEST

START_TEST(test_a_break_keeps_the_last_complete_id)
{
    struct sse sse;

    sse_init(&sse, remember, NULL);
    feed(&sse, "id: 7\ndata: a\n\nid: 8\nevent: layer\nda", 100);
    sse_break(&sse);
    ck_assert_str_eq(sse.id, "7");
    sse_deinit(&sse);
}
END_TEST

START_TEST(test_large)
{
    static char block[1 << 20];
    struct sse sse;
    int rc = 0;

    memset(block, 'x', sizeof(block));
    sse_init(&sse, remember, NULL);
    ck_assert_rc_ok(sse_feed(&sse, "data: ", 6));
    for (int i = 0; i < 20 && rc == 0; i++) {
        rc = sse_feed(&sse, block, sizeof(block));
    }
    ck_assert_int_eq(rc, STATUS_SERVER);
    sse_deinit(&sse);
}
END_TEST

START_TEST(test_many_lines_of_one_event_are_bounded)
{
    static char block[1 << 16];
    struct sse sse;
    int rc = 0;

    memset(block, 'x', sizeof(block));
    memcpy(block, "data: ", 6);
    block[sizeof(block) - 1] = '\n';
    sse_init(&sse, remember, NULL);
    for (int i = 0; i < 300 && rc == 0; i++) {
        rc = sse_feed(&sse, block, sizeof(block));
    }
    ck_assert_int_eq(rc, STATUS_SERVER);
    sse_deinit(&sse);
}
END_TEST

UNIT_MAIN("cli_sse", test_streams, test_retry, test_a_break_drops_half_an_event,
          test_a_break_keeps_the_last_complete_id, test_large, test_many_lines_of_one_event_are_bounded)
