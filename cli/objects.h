#pragma once
/* The kinds of objects on a server. A row says where they are, how an id begins, and how one and many are shown; lists,
 * show and delete of every kind come from it. */

#include "cli/client.h"
#include "cli/print.h"

#define OBJECTS_CELL 128 /* of a column's text; no less than PRINT_SIZE */
#define OBJECTS_COLUMNS_MAX 8

struct objects_column {
    const char *title; /* as in table_new */
    /* The cell's text, in out or where it is. */
    const char *(*cell)(const json_t *object, const char *key, char *out);
    const char *key;
};

struct objects {
    const char *path, *prefix, *what;     /* "/v1/models", "mdl", "a model" */
    const struct objects_column *columns; /* of a list; to a title of NULL */
    int (*show)(const json_t *object);    /* one, for people; NULL where no command does */
};

/* Each in the file of its commands; jobs in job.c. */
extern const struct objects objects_artifacts, objects_files, objects_jobs, objects_models, objects_webhooks;

/* The path of one; ERR_CONFIG when id is not one of this kind. */
int objects_path(char *out, size_t size, const struct objects *objects, const char *id);
int objects_get(struct cli *cli, const struct objects *objects, const char *id, json_t **out);
/* One that the server answered with: its JSON, or as its kind is shown. */
int objects_print(const struct cli *cli, const struct objects *objects, const json_t *object);
/* Up to max of the list at path, which may have a query (max 0: all); what is left out is noted. */
int objects_list(struct cli *cli, const struct objects *objects, const char *path, int64_t max);

/* Of a struct command: the object that the only argument names, and the deletion of all that the arguments name. */
int objects_show(struct cli *cli, const struct objects *objects, int count, char **ids);
int objects_delete(struct cli *cli, const struct objects *objects, int count, char **ids);

/* Cells of columns: a member as text, a size, any value, a time, the beginning of a digest. */
const char *objects_text(const json_t *object, const char *key, char *out);
const char *objects_bytes(const json_t *object, const char *key, char *out);
const char *objects_value(const json_t *object, const char *key, char *out);
const char *objects_time(const json_t *object, const char *key, char *out);
const char *objects_digest(const json_t *object, const char *key, char *out);
