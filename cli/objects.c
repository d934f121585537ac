/* Objects by their kind's row. */

#include "cli/objects.h"

#include "base/err.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

int objects_path(char *out, size_t size, const struct objects *objects, const char *id)
{
    size_t length = strlen(objects->prefix);
    bool valid = strncmp(id, objects->prefix, length) == 0 && id[length] == '_' && id[length + 1] != '\0';

    for (const char *at = id; valid && *at != '\0'; at++) {
        valid = isalnum((unsigned char)*at) || *at == '_';
    }
    if (!valid || snprintf(out, size, "%s/%s", objects->path, id) >= (int)size) {
        return err_raise(ERR_CONFIG, "\"%.80s\" is not the id of %s (%s_...)", id, objects->what, objects->prefix);
    }
    return 0;
}

int objects_get(struct cli *cli, const struct objects *objects, const char *id, json_t **out)
{
    char path[CLIENT_PATH_MAX];

    TRY(objects_path(path, sizeof(path), objects, id));
    return client_get(cli, path, out);
}

int objects_print(const struct cli *cli, const struct objects *objects, const json_t *object)
{
    if (cli->json) {
        print_json(object);
        return 0;
    }
    return objects->show(object);
}

int objects_list(struct cli *cli, const struct objects *objects, const char *path, int64_t max)
{
    const char *titles[OBJECTS_COLUMNS_MAX + 1] = {NULL};
    AUTO_JSON json_t *list = NULL;
    const json_t *object;
    size_t i;

    TRY(client_list(cli, path, max, &list));
    if (cli->json) {
        print_json(list);
        return 0;
    }
    for (size_t k = 0; k < OBJECTS_COLUMNS_MAX && objects->columns[k].title != NULL; k++) {
        titles[k] = objects->columns[k].title;
    }
    AUTO(table) struct table *table = table_new(titles);
    json_array_foreach(json_object_get(list, "data"), i, object)
    {
        char texts[OBJECTS_COLUMNS_MAX][OBJECTS_CELL];
        const char *cells[OBJECTS_COLUMNS_MAX];
        for (size_t k = 0; titles[k] != NULL; k++) {
            cells[k] = objects->columns[k].cell(object, objects->columns[k].key, texts[k]);
        }
        table_row(table, cells);
    }
    TRY(table_print(table, stdout));
    if (json_is_true(json_object_get(list, "has_more")) && !cli->quiet) {
        fputs("there are more; --limit N shows them\n", stderr);
    }
    return 0;
}

int objects_show(struct cli *cli, const struct objects *objects, int count, char **ids)
{
    AUTO_JSON json_t *object = NULL;

    TRY(objects_get(cli, objects, ids[0], &object));
    return objects_print(cli, objects, object);
}

int objects_delete(struct cli *cli, const struct objects *objects, int count, char **ids)
{
    char path[CLIENT_PATH_MAX];

    for (int i = 0; i < count; i++) { /* none, if one is not an id */
        TRY(objects_path(path, sizeof(path), objects, ids[i]));
    }
    for (int i = 0; i < count; i++) {
        TRY(objects_path(path, sizeof(path), objects, ids[i]));
        TRY(client_send(cli, "DELETE", path, NULL, NULL));
        if (!cli->quiet && !cli->json) { /* the server answers nothing */
            printf("%s deleted\n", ids[i]);
        }
    }
    return 0;
}

/* --- cells */

const char *objects_text(const json_t *object, const char *key, char *out)
{
    return print_text(object, key);
}

const char *objects_bytes(const json_t *object, const char *key, char *out)
{
    return print_bytes(json_number_value(json_object_get(object, key)), out);
}

const char *objects_value(const json_t *object, const char *key, char *out)
{
    return print_value(json_object_get(object, key), out);
}

const char *objects_time(const json_t *object, const char *key, char *out)
{
    return print_time(object, key, out);
}

const char *objects_digest(const json_t *object, const char *key, char *out)
{
    snprintf(out, OBJECTS_CELL, "%.12s", print_text(object, key));
    return out;
}
