/* Query strings against rows: values, limits, and every error named. */

#include "../unit.h"
#include "api/query.h"

#include <string.h>

static const char *const colours[] = {"red", "blue", NULL};
#define AN_ID "mdl_0123456789ABCDEFGHJKMNPQRS"

static const struct query_row rows[] = {
    QUERY_PAGE_ROWS("mdl"),
    QUERY_ROW("metadata", METADATA, ""),
    QUERY_ROW("colour", ENUM, "", .choices = colours),
    QUERY_ROW("name", STRING, ""),
    QUERY_ROW("flag", FLAG, ""),
    QUERY_ROW("from", INT, "", .min = -5, .max = 5),
    QUERY_ROW("parent", ID, "", .kind = "mdl"),
    QUERY_END,
};
static const struct query_row needed_rows[] = {
    QUERY_PAGE_ROWS("mdl"),
    QUERY_ROW("needed", STRING, "", .required = true),
    QUERY_END,
};

START_TEST(test_query_values)
{
    struct query query;
    struct validation_errors errors = {0};
    ck_assert_rc_ok(query_parse(rows,
                                "limit=7&order=asc&after=" AN_ID "&metadata%5Bteam%5D=se+ar%26ch&colour=blue&flag=true"
                                "&from=-5&&name=%C3%A4",
                                &query, &errors));
    struct page page;
    query_page(&query, &page);
    ck_assert_int_eq(page.limit, 7);
    ck_assert(page.ascending);
    ck_assert_str_eq(page.after, AN_ID);
    ck_assert_ptr_null(page.before);
    ck_assert_str_eq(page.metadata_key, "team");
    ck_assert_str_eq(page.metadata_value, "se ar&ch");
    ck_assert_int_eq(query_int(&query, "flag", 0), 1);
    ck_assert_int_eq(query_int(&query, "from", 0), -5);
    ck_assert_str_eq(query_text(&query, "name"), "\xc3\xa4");
    ck_assert_rc_ok(query_parse(rows, NULL, &query, &errors));
    query_page(&query, &page);
    ck_assert_int_eq(page.limit, 20);
    ck_assert(!page.ascending);
    ck_assert_rc_ok(query_parse(NULL, "", &query, &errors));
}
END_TEST

START_TEST(test_query_errors)
{
    static const struct {
        const char *text, *param;
        int code;
    } bad[] = {
        {"limit=0", "?limit", ERR_INVALID_PARAMETER},
        {"limit=101", "?limit", ERR_INVALID_PARAMETER},
        {"limit=1e2", "?limit", ERR_INVALID_PARAMETER},
        {"limit=", "?limit", ERR_INVALID_PARAMETER},
        {"limit", "?limit", ERR_INVALID_PARAMETER},
        {"Limit=1", "?Limit", ERR_UNKNOWN_PARAMETER},
        {"after=a/b", "?after", ERR_INVALID_CURSOR},
        {"order=up", "?order", ERR_INVALID_PARAMETER},
        {"flag=yes", "?flag", ERR_INVALID_PARAMETER},
        {"name=", "?name", ERR_INVALID_PARAMETER},
        {"name=%ff", "?name", ERR_INVALID_PARAMETER},
        {"name=%00", "?name", ERR_INVALID_PARAMETER},
        {"metadata=x", "?metadata", ERR_UNKNOWN_PARAMETER},
        {"metadata[]=x", "?metadata[]", ERR_UNKNOWN_PARAMETER},
        {"limit=1&limit=1", "?limit", ERR_INVALID_PARAMETER},
        {"from=6", "?from", ERR_INVALID_PARAMETER},
        {"after=" AN_ID, "?needed", ERR_MISSING_PARAMETER},
        {"after=job_0123456789ABCDEFGHJKMNPQRS", "?after", ERR_INVALID_CURSOR},
        {"parent=x", "?parent", ERR_INVALID_PARAMETER},
        {"needed=", "?needed", ERR_INVALID_PARAMETER},
        {"after=" AN_ID "&before=" AN_ID, "?before", ERR_INVALID_PARAMETER},
        {"%ff=1", "?", ERR_UNKNOWN_PARAMETER},
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct query query;
        struct validation_errors errors = {0};
        const struct query_row *table = strcmp(bad[i].param, "?needed") == 0 ? needed_rows : rows;
        ck_assert_msg(query_parse(table, bad[i].text, &query, &errors) == bad[i].code, "%s", bad[i].text);
        ck_assert_uint_eq(errors.count, 1);
        ck_assert_str_eq(errors.items[0].param, bad[i].param);
    }
    struct query query;
    struct validation_errors errors = {0};
    ck_assert_int_eq(query_parse(rows, "limit=x&colour=green&nope=1", &query, &errors), ERR_INVALID_PARAMETER);
    ck_assert_uint_eq(errors.count, 3);
    char text[2048];
    memset(text, 'a', sizeof(text));
    memcpy(text, "name=", 5);
    text[sizeof(text) - 1] = '\0';
    errors.count = 0;
    ck_assert_int_eq(query_parse(rows, text, &query, &errors), ERR_INVALID_PARAMETER);
}
END_TEST

START_TEST(test_query_headers)
{
    static const struct query_row key = QUERY_ROW("Idempotency-Key", VISIBLE, "");
    static const struct query_row event = QUERY_ROW("Last-Event-ID", EVENT, "");
    static const struct query_row free_text = QUERY_ROW("Prefer", STRING, "");
    struct validation_errors errors = {0};
    char text[400];
    memset(text, 'k', sizeof(text));
    text[255] = '\0';
    query_check_header(&key, text, &errors);
    query_check_header(&key, "!~", &errors);
    query_check_header(&event, "", &errors);
    query_check_header(&event, "17", &errors);
    query_check_header(&free_text, "", &errors);
    ck_assert_uint_eq(errors.count, 0);
    text[255] = 'k';
    text[256] = '\0';
    query_check_header(&key, text, &errors);
    query_check_header(&key, "", &errors);
    query_check_header(&key, "a b", &errors);
    query_check_header(&event, "-1", &errors);
    ck_assert_uint_eq(errors.count, 4);
    ck_assert_str_eq(errors.items[0].param, "Idempotency-Key");
    ck_assert_int_eq(errors.items[2].code, ERR_INVALID_PARAMETER);
    ck_assert_int_eq(errors.items[3].code, ERR_INVALID_CURSOR);
}
END_TEST

UNIT_MAIN("query", test_query_values, test_query_errors, test_query_headers)
