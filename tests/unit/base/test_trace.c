/* Headers of a trace, as clients send them. */

#include "tests/unit/unit.h"

#include "base/trace.h"

#include <stdio.h>
#include <string.h>

#define ID "4bf92f3577b34da6a3ce929d0e0e4736"
#define SPAN "00f067aa0ba902b7"

START_TEST(a_trace_is_read)
{
    struct trace trace;
    char id[TRACE_ID_SIZE];

    trace_read("00-" ID "-" SPAN "-01", "a=1,b@c=2", &trace);
    ck_assert_str_eq(trace.parent, "00-" ID "-" SPAN "-01");
    ck_assert_str_eq(trace.state, "a=1,b@c=2");
    trace_id(trace.parent, id);
    ck_assert_str_eq(id, ID);
    trace_read("cc-" ID "-" SPAN "-00-more-of-it", NULL, &trace);
    ck_assert_str_eq(trace.parent, "00-" ID "-" SPAN "-00");
    ck_assert_str_eq(trace.state, "");
    trace_id("", id);
    ck_assert_str_eq(id, "");
    trace_id(NULL, id);
    ck_assert_str_eq(id, "");
}
END_TEST

START_TEST(what_is_not_well_formed_is_none)
{
    static const char *const bad[] = {
        "",
        "0",
        "00",
        "00-",
        "00-" ID,
        "00-" ID "-" SPAN,
        "00-" ID "-" SPAN "-0",
        "00-" ID "-" SPAN "-011",
        "00-" ID "-" SPAN "-01-more",
        "cc-" ID "-" SPAN "-01.more",
        "ff-" ID "-" SPAN "-01",
        "00-00000000000000000000000000000000-" SPAN "-01",
        "00-" ID "-0000000000000000-01",
        "00-4BF92F3577B34DA6A3CE929D0E0E4736-" SPAN "-01",
        "00-4bf92f3577b34da6a3ce929d0e0e473-" SPAN "-01",
        "00-" ID "-" SPAN "x-01",
        " 00-" ID "-" SPAN "-01",
    };
    struct trace trace;

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        trace_read(bad[i], "a=1", &trace);
        ck_assert_msg(trace.parent[0] == '\0' && trace.state[0] == '\0', "%s", bad[i]);
    }
}
END_TEST

START_TEST(a_state_that_cannot_be_kept_leaves_the_parent)
{
    char wide[600] = "a=", many[200] = "a=1";
    struct trace trace;

    memset(wide + 2, 'x', sizeof(wide) - 3);
    for (int i = 0; i < 32; i++) {
        (void)strcat(many, ",b=2");
    }
    const char *const bad[] = {"", "nothing", "a=\x7f", "a=\n", "a=\xc3\xa4", wide, many};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        trace_read("00-" ID "-" SPAN "-01", bad[i], &trace);
        ck_assert_str_eq(trace.state, "");
        ck_assert_str_ne(trace.parent, "");
    }
}
END_TEST

UNIT_MAIN("trace", a_trace_is_read, what_is_not_well_formed_is_none, a_state_that_cannot_be_kept_leaves_the_parent)
