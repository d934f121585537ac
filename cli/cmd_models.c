/* quantctl models: checkpoints that the server knows. */

#include "base/err.h"
#include "cli/commands.h"
#include "cli/models.h"
#include "cli/objects.h"
#include "cli/print.h"
#include "cli/safe.h"
#include "cli/status.h"

#include <stdio.h>
#include <string.h>

#define MODEL_ID_SIZE 128

static int show_model(const json_t *model)
{
    char bytes[PRINT_SIZE], text[PRINT_SIZE];
    const json_t *reason;
    size_t i;

    safe_printf(stdout, "id            %s\n", print_text(model, "id"));
    safe_printf(stdout, "name          %s\n", print_text(model, "name"));
    safe_printf(stdout, "uri           %s\n", print_text(model, "uri"));
    safe_printf(stdout, "architecture  %s%s\n", print_text(model, "architecture"),
                json_is_false(json_object_get(model, "supported")) ? " (not supported)" : "");
    json_array_foreach(json_object_get(model, "reasons"), i, reason)
    {
        safe_printf(stdout, "reason        %s\n", print_value(reason, text));
    }
    safe_printf(stdout, "layers        %s\n", print_number(model, "num_layers", 9, text));
    safe_printf(stdout, "parameters    %s\n", print_value(json_object_get(model, "parameters"), text));
    safe_printf(stdout, "bytes         %s, %s\n", objects_bytes(model, "bytes", bytes), print_text(model, "dtype"));
    safe_printf(stdout, "digest        %s\n", print_text(model, "digest"));
    return 0;
}

static const struct objects_column models_columns[] = {
    {"ID", objects_text, "id"},
    {"NAME", objects_text, "name"},
    {"ARCHITECTURE", objects_text, "architecture"},
    {"DTYPE", objects_text, "dtype"},
    {">PARAMETERS", objects_value, "parameters"},
    {">BYTES", objects_bytes, "bytes"},
    {"CREATED", objects_time, "created_at"},
    {0},
};

const struct objects objects_models = {"/v1/models", "mdl", "a model", models_columns, show_model};

/* --- list */

struct list_options {
    int64_t limit;
};

static const struct option_row list_options[] = {
    {"limit", 'n', OPTION_INT, "N", offsetof(struct list_options, limit), .help = "At most N models (default: all)", 1,
     1000000},
    {0},
};

static int models_list_run(struct cli *cli, const void *given, int count, char **arguments)
{
    const struct list_options *options = given;

    return objects_list(cli, &objects_models, objects_models.path, options->limit != OPTION_UNSET ? options->limit : 0);
}

const struct command command_models_list = {
    .name = "models list",
    .summary = "List the registered models",
    .options = list_options,
    .size = sizeof(struct list_options),
    .run = models_list_run,
};

/* --- register */

struct register_options {
    const char *name, *sha256;
    bool model_free;
};

static const struct option_row register_options[] = {
    {"name", 0, OPTION_TEXT, "NAME", offsetof(struct register_options, name),
     .help = "A name for lists and for submit --model"},
    {"expected-sha256", 0, OPTION_TEXT, "HEX", offsetof(struct register_options, sha256),
     .help = "Refuse a checkpoint with another digest"},
    {"model-free", 0, OPTION_FLAG, NULL, offsetof(struct register_options, model_free),
     .help = "For jobs with --model-free alone: whatever its config.json says"},
    {0},
};

static int models_register_run(struct cli *cli, const void *given, int count, char **arguments)
{
    const struct register_options *options = given;
    AUTO_JSON json_t *body =
        json_pack("{s:s,s:s*,s:s*,s:s*}", "uri", arguments[0], "name", options->name, "expected_sha256",
                  options->sha256, "mode", options->model_free ? "model_free" : NULL);
    AUTO_JSON json_t *model = NULL;

    if (body == NULL) {
        return err_raise(ERR_CONFIG, "an argument is not UTF-8");
    }
    TRY(client_send(cli, "POST", objects_models.path, body, &model));
    return objects_print(cli, &objects_models, model);
}

const struct command command_models_register = {
    .name = "models register",
    .arguments = "URI",
    .summary = "Register a checkpoint below a model root: file:PATH",
    .details =
        "The server reads the checkpoint's headers only. PATH is relative to a model root, or absolute below one.",
    .min = 1,
    .max = 1,
    .options = register_options,
    .size = sizeof(struct register_options),
    .run = models_register_run,
};

/* --- by name, show, delete */

int models_find(struct cli *cli, const char *name, json_t **id)
{
    AUTO_JSON json_t *list = NULL;
    const json_t *model, *found = NULL;
    size_t i, matches = 0;

    TRY(client_list(cli, objects_models.path, 0, &list));
    json_array_foreach(json_object_get(list, "data"), i, model)
    {
        if (strcmp(print_text(model, "name"), name) == 0) {
            found = found == NULL ? model : found; /* the newest */
            matches++;
        }
    }
    if (matches == 0) {
        return err_set_hint(err_raise(ERR_CONFIG, "there is no model named \"%.200s\"", name),
                            "quantctl models lists them; file:PATH registers one");
    }
    if (matches > 1) {
        return err_set_hint(err_raise(ERR_CONFIG, "%zu models are named \"%.200s\"", matches, name),
                            "name one by its id; quantctl models lists them");
    }
    if (!json_is_string(json_object_get(found, "id"))) {
        return status_fail(STATUS_SERVER, "the server's model has no id");
    }
    *id = json_incref(json_object_get(found, "id"));
    return 0;
}

/* Do what is done with objects to the models that ids or names mean: nothing, if one of them means none. */
static int models_each(struct cli *cli, int count, char **names,
                       int (*act)(struct cli *cli, const struct objects *objects, int count, char **ids))
{
    char ids[OPTION_TEXTS_MAX][MODEL_ID_SIZE], *list[OPTION_TEXTS_MAX];

    if (count > OPTION_TEXTS_MAX) {
        return err_raise(ERR_CONFIG, "more than %d arguments", OPTION_TEXTS_MAX);
    }
    for (int i = 0; i < count; i++) {
        AUTO_JSON json_t *id = NULL;
        list[i] = names[i];
        if (strncmp(names[i], "mdl_", 4) != 0) {
            TRY(models_find(cli, names[i], &id));
            snprintf(ids[i], sizeof(ids[i]), "%s", json_string_value(id));
            list[i] = ids[i];
        }
    }
    return act(cli, &objects_models, count, list);
}

static int models_show_run(struct cli *cli, const void *given, int count, char **arguments)
{
    return models_each(cli, count, arguments, objects_show);
}

static int models_delete_run(struct cli *cli, const void *given, int count, char **arguments)
{
    return models_each(cli, count, arguments, objects_delete);
}

const struct command command_models_show = {
    .name = "models show",
    .arguments = "MODEL",
    .summary = "Show one model",
    .details = "MODEL is an id, or a name that one model has.",
    .min = 1,
    .max = 1,
    .run = models_show_run,
};

const struct command command_models_delete = {
    .name = "models delete",
    .arguments = "MODEL...",
    .summary = "Forget models; their files stay",
    .details = "MODEL is an id, or a name that one model has.",
    .min = 1,
    .max = -1,
    .run = models_delete_run,
};
