#pragma once
/* Options as text, before they mean anything: what one place (command line, environment, file) said. */

#include <stdbool.h>
#include <stddef.h>

#define SOURCE_ROWS_MAX 24
#define SOURCE_VALUES_MAX 64

/* One option's text. A list option uses list and count, any other scalar; NULL and 0 = not named. */
struct source_item {
    char *scalar;
    char **list;
    unsigned count;
};

struct source {
    const char *name; /* as messages call it: "command line", a file's path */
    struct source_item items[SOURCE_ROWS_MAX];
};

/* What a source needs to know of an option. */
struct source_key {
    char name[40]; /* as it stands in this source */
    bool list;
    char separator; /* environment: between a list's parts */
};

void source_deinit(struct source *source);
/* Copies; a scalar replaces what was there, a list grows. ERR_CONFIG past SOURCE_VALUES_MAX. */
int source_set(struct source *source, size_t row, const char *text, bool list);
/* Variables named by keys[i].name. */
int source_read_environment(struct source *source, const struct source_key *keys, size_t count);
/* A YAML mapping; keys that are not in the table are errors with their line. */
int source_read_yaml(struct source *source, const char *path, const struct source_key *keys, size_t count);
