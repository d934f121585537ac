/* Prints the tables of docs/families.md from models/arch.c, models/bare.c, and the lists of methods and formats; a lint
 * test compares the two. */

#include "formats/format.h"
#include "jobs/jobs.h"
#include "quantizers/quantizer.h"

#include <stdio.h>
#include <string.h>

static const char *text(const json_t *object, const char *name)
{
    const char *value = json_string_value(json_object_get(object, name));
    return value != NULL ? value : "";
}

/* "`a`, `b`", or what `none` says. */
static void print_list(const json_t *list, const char *none)
{
    const json_t *item;
    size_t i;

    json_array_foreach(list, i, item)
    {
        printf("%s`%s`", i > 0 ? ", " : "", json_string_value(item));
    }
    if (json_array_size(list) == 0) {
        (void)fputs(none, stdout);
    }
}

/* The names of `all` that `list` lacks: rows differ by few. */
static void print_missing(const json_t *list, const json_t *all)
{
    AUTO_JSON json_t *missing = json_array();
    json_t *item, *other;
    size_t i, k;

    json_array_foreach((json_t *)all, i, item)
    {
        bool found = false;
        json_array_foreach((json_t *)list, k, other)
        {
            found = found || json_equal(item, other);
        }
        if (!found) {
            json_array_append(missing, item);
        }
    }
    if (json_array_size(missing) > 0) {
        (void)fputs("all but ", stdout);
    }
    print_list(missing, "all");
}

static json_t *names_of_formats(void)
{
    json_t *list = json_array();

    for (const struct format *const *f = format_list(); *f != NULL; f++) {
        json_array_append_new(list, json_string((*f)->name));
    }
    return list;
}

static json_t *names_of_methods(void)
{
    json_t *list = json_array();

    for (const struct quantizer *const *q = quantizer_list(); *q != NULL; q++) {
        json_array_append_new(list, json_string((*q)->name));
    }
    return list;
}

static void print_families(const json_t *rows)
{
    AUTO_JSON json_t *methods = names_of_methods();
    AUTO_JSON json_t *formats = names_of_formats();
    const json_t *row;
    size_t i;

    puts("| architecture | model_type | within | parts of its layers | methods | formats | GGUF |\n"
         "|---|---|---|---|---|---|---|");
    json_array_foreach(rows, i, row)
    {
        printf("| `%s` | `%s` | ", text(row, "name"), text(row, "model_type"));
        print_list(json_object_get(row, "composites"), "");
        (void)fputs(" | ", stdout);
        print_list(json_object_get(row, "parts"), "");
        (void)fputs(" | ", stdout);
        print_missing(json_object_get(row, "methods"), methods);
        (void)fputs(" | ", stdout);
        print_missing(json_object_get(row, "formats"), formats);
        printf(" | %s%s%s |\n", text(row, "gguf")[0] != '\0' ? "`" : "", text(row, "gguf"),
               text(row, "gguf")[0] != '\0' ? "`" : "");
    }
}

static void print_rules(const json_t *rules)
{
    const json_t *rule;
    size_t i;

    puts("| left in float | where | words |\n|---|---|---|");
    json_array_foreach(rules, i, rule)
    {
        const char *match = text(rule, "match");
        const char *where = strcmp(match, "part_has") == 0    ? "a part of the path has in it"
                            : strcmp(match, "part") == 0      ? "a part of the path is"
                            : strcmp(match, "last_part") == 0 ? "the last part of the path is"
                                                              : "no part of the path is a number";
        printf("| %s | %s | ", text(rule, "what"), where);
        print_list(json_object_get(rule, "words"), "");
        puts(" |");
    }
}

int main(void)
{
    AUTO_JSON json_t *all = service_architectures();
    const json_t *bare = json_object_get(all, "model_free");

    print_families(json_object_get(all, "data"));
    puts("\n## Model-free\n");
    (void)fputs("Any other architecture, from names and shapes alone. Methods: ", stdout);
    print_list(json_object_get(bare, "methods"), "none");
    (void)fputs(", with parameters that ask for no inputs. Formats: ", stdout);
    print_list(json_object_get(bare, "formats"), "none");
    puts(".\n");
    print_rules(json_object_get(bare, "left_in_float"));
    return 0;
}
