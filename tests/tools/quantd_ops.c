/* Prints the table of operations in docs/gpu.md from gpu/ops.def; a lint test compares the two. */

#include <stdio.h>

int main(void)
{
    static const struct {
        const char *group, *name, *does;
    } rows[] = {
#define GPU_OP(group, name, does, ...) {#group, #name, does},
#include "gpu/ops.def"
    };

    puts("| group | operation | what |\n|---|---|---|");
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        printf("| %s | `%s` | ", rows[i].group, rows[i].name);
        for (const char *at = rows[i].does; *at != '\0'; at++) {
            printf(*at == '|' || *at == '*' || *at == '_' || *at == '[' ? "\\%c" : "%c", *at);
        }
        puts(" |");
    }
    return 0;
}
