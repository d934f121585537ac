/* The route table: it is well-formed, every row is found by its own path, and captures come decoded. */

#include "../unit.h"
#include "api/routes.h"

#include <string.h>

#define ARTIFACT "art_0123456789ABCDEFGHJKMNPQRS"

static void drop(char *captures[REQUEST_CAPTURES])
{
    for (int i = 0; i < REQUEST_CAPTURES; i++) {
        free(captures[i]);
        captures[i] = NULL;
    }
}

START_TEST(test_routes_table)
{
    for (const struct route *row = routes_table; row->method != NULL; row++) {
        ck_assert_msg(row->summary != NULL && row->summary[0] != '\0', "%s", row->path);
        ck_assert_msg((row->body == ROUTE_BODY_SINK) == (row->sink != NULL), "%s", row->path);
        ck_assert_msg(row->handle != NULL || row->sink != NULL, "%s", row->path);
        ck_assert_msg((row->body == ROUTE_BODY_NONE) == (row->accepts == NULL), "%s", row->path);
        ck_assert_msg((row->body == ROUTE_BODY_NONE) == (row->body_max == 0), "%s", row->path);
        ck_assert_msg(strcmp(row->method, "POST") == 0 || strcmp(row->method, "PATCH") == 0 ||
                          strcmp(row->method, "PUT") == 0 || row->body == ROUTE_BODY_NONE,
                      "%s", row->path);
        char path[128] = "", *captures[REQUEST_CAPTURES] = {0}, *allow = NULL;
        size_t used = 0;
        ck_assert_msg(row->operation != NULL && row->scope >= ROUTE_SCOPE_NONE, "%s", row->path);
        ck_assert_msg((row->reply == ROUTE_REPLY_DELETED) == (row->produces == NULL), "%s", row->path);
        ck_assert_msg((row->answer == NULL) == (row->reply == ROUTE_REPLY_DELETED || row->reply == ROUTE_REPLY_BYTES),
                      "%s", row->path);
        for (const char *at = row->path; *at != '\0'; at++) { /* {id} -> x, or an id */
            if (*at != '{') {
                path[used++] = *at;
                continue;
            }
            const struct route_argument *argument = routes_argument(at + 1, strcspn(at + 1, "*}"));
            ck_assert_msg(argument != NULL, "%s", row->path);
            used += (size_t)snprintf(path + used, sizeof(path) - used, "%s%s",
                                     argument->kind != NULL ? argument->kind : "x",
                                     argument->kind != NULL ? "_0123456789ABCDEFGHJKMNPQRS" : "");
            at = strchr(at, '}');
        }
        const struct route *found = NULL;
        ck_assert_rc_ok(routes_match(row->method, path, &found, captures, &allow));
        ck_assert_ptr_eq(found, row);
        drop(captures);
    }
}
END_TEST

START_TEST(test_routes_captures)
{
    char *captures[REQUEST_CAPTURES] = {0}, *allow = NULL;
    const struct route *route = NULL;
    ck_assert_rc_ok(routes_match("HEAD", "/v1/artifacts/" ARTIFACT "/files/a/b%20c.json", &route, captures, &allow));
    ck_assert_str_eq(route->method, "GET");
    ck_assert_str_eq(captures[0], ARTIFACT);
    ck_assert_str_eq(captures[1], "a/b c.json");
    drop(captures);
    ck_assert_int_eq(routes_match("GET", "/v1/artifacts/" ARTIFACT "/files/", &route, captures, &allow), ERR_NOT_FOUND);
    ck_assert_int_eq(routes_match("GET", "/v1/artifacts/art_1/files/x", &route, captures, &allow), ERR_NOT_FOUND);
    ck_assert_int_eq(routes_match("GET", "/v1/models/" ARTIFACT, &route, captures, &allow), ERR_NOT_FOUND);
    ck_assert_int_eq(routes_match("GET", "/v1/artifacts//files/x", &route, captures, &allow), ERR_NOT_FOUND);
    ck_assert_int_eq(routes_match("GET", "/v1", &route, captures, &allow), ERR_NOT_FOUND);
    ck_assert_int_eq(routes_match("GET", "", &route, captures, &allow), ERR_NOT_FOUND);
    ck_assert_ptr_null(captures[0]);
    ck_assert_ptr_null(allow);
    ck_assert_int_eq(routes_match("PUT", "/v1/models/x", &route, captures, &allow), ERR_METHOD_NOT_ALLOWED);
    ck_assert_str_eq(allow, "GET, HEAD, DELETE");
    free(allow);
    ck_assert_ptr_null(captures[0]);
}
END_TEST

/* Who may look may not change, and only what says nothing of anybody's data is open to all. */
START_TEST(test_routes_scopes)
{
    static const char *const open[] = {"/livez", "/readyz", "/openapi.json", "/", "/dashboard/{asset*}"};
    for (const struct route *row = routes_table; row->method != NULL; row++) {
        /* An agent's tools have the scopes of their routes. */
        bool reads = strcmp(row->method, "GET") == 0 || strcmp(row->path, "/mcp") == 0, listed = false;
        for (size_t i = 0; i < sizeof(open) / sizeof(open[0]); i++) {
            listed = listed || strcmp(row->path, open[i]) == 0;
        }
        ck_assert_msg((row->scope == ROUTE_SCOPE_NONE) == listed, "%s %s", row->method, row->path);
        ck_assert_msg(reads || row->scope >= ROUTE_SCOPE_WRITE, "%s %s", row->method, row->path);
        for (const struct route *other = routes_table; other < row; other++) {
            ck_assert_str_ne(other->operation, row->operation);
        }
    }
}
END_TEST

UNIT_MAIN("routes", test_routes_scopes, test_routes_table, test_routes_captures)
