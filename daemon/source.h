#pragma once
/* Options as text, before they are parsed: what one source (command line, environment, file) sets. */

#include "base/cleanup.h"

#include <stdbool.h>
#include <stddef.h>

#define SOURCE_ROWS_MAX 40
#define SOURCE_VALUES_MAX 64

/* One option's text. A list option uses list and count, any other option scalar; NULL and 0 = not set. */
struct source_item {
    char *scalar;
    char **list;
    unsigned count;
};

struct source {
    const char *name; /* in messages: "command line", or a file's path */
    struct source_item items[SOURCE_ROWS_MAX];
};

/* How a source names an option. */
struct source_key {
    char name[40]; /* in this source */
    bool list;
    char separator; /* environment: between the items of a list */
};

void source_deinit(struct source *source);
CLEANUP_DEINIT(source, struct source, source_deinit)
/* Copies text; a scalar replaces the previous one, a list gets one more item. ERR_CONFIG past SOURCE_VALUES_MAX. */
int source_set(struct source *source, size_t row, const char *text, bool list);
/* Variables named by keys[i].name. */
int source_read_environment(struct source *source, const struct source_key *keys, size_t count);
/* A YAML mapping; an unknown key is an error that names its line. */
int source_read_yaml(struct source *source, const char *path, const struct source_key *keys, size_t count);
