/* Prints the table of routes in docs/api.md from api/route_rows.def; a lint test compares the two. */

#include "api/routes.h"

#include <stdio.h>
#include <string.h>

static const char *const scopes[] = {[ROUTE_SCOPE_NONE] = "none",
                                     [ROUTE_SCOPE_READ] = "read",
                                     [ROUTE_SCOPE_WRITE] = "write",
                                     [ROUTE_SCOPE_ADMIN] = "admin"};

/* "{path*}" is written "{path}", as in the OpenAPI document. */
static void print_path(const char *path)
{
    for (; *path != '\0'; path++) {
        if (*path != '*') {
            (void)putchar(*path);
        }
    }
}

int main(void)
{
    puts("| route | scope | operation | what |\n|---|---|---|---|");
    for (const struct route *row = routes_table; row->method != NULL; row++) {
        printf("| `%s ", row->method);
        print_path(row->path);
        printf("` | %s | `%s` | %s |\n", scopes[row->scope], row->operation, row->summary);
    }
    return 0;
}
