/* Frames of events: what stands on the wire for one. */

#include "../unit.h"
#include "api/stream.h"

#include <string.h>

START_TEST(test_stream_sse)
{
    json_t *event = json_pack("{s:s, s:i, s:s, s:{s:s}}", "object", "event", "seq", 12, "type", "log", "data", "text",
                              "two\nlines\r\n\xc3\xa4");
    size_t size = 0;
    char *text = stream_frame_event(event, STREAM_SSE, &size);
    ck_assert_ptr_nonnull(text);
    ck_assert_uint_eq(size, strlen(text));
    static const char start[] = "id: 12\nevent: log\ndata: {";
    ck_assert_int_eq(strncmp(text, start, sizeof(start) - 1), 0);
    ck_assert_str_eq(text + size - 2, "\n\n");
    ck_assert_ptr_eq(strchr(text + sizeof(start), '\n'), text + size - 2); /* data is one line */
    ck_assert_ptr_null(strchr(text, '\r'));
    free(text);
    text = stream_frame_event(event, STREAM_NDJSON, &size);
    ck_assert_ptr_nonnull(text);
    ck_assert_ptr_eq(strchr(text, '\n'), text + size - 1);
    json_error_t error;
    json_t *again = json_loads(text, 0, &error);
    ck_assert(json_equal(again, event));
    json_decref(again);
    free(text);
    json_decref(event);
}
END_TEST

UNIT_MAIN("stream", test_stream_sse)
