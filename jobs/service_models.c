/* Registered checkpoints: described by their headers, listed under an id, deleted where no job uses them. */

#include "jobs/service.h"

#include "jobs/service_access.h"
#include "jobs/service_uploaded.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/params.h"

#include <stdlib.h>
#include <string.h>

struct registration {
    char name[128];
    char uri[SERVICE_URI_SIZE];
    char expected_sha256[80];
    int mode; /* enum model_mode */
    json_t *files;
};

/* What of a checkpoint must be known. */
enum model_mode { MODE_AUTO, MODE_MODEL_FREE };
static const char *const mode_choices[] = {"auto", "model_free", NULL};
static const enum model_reading mode_readings[] = {[MODE_AUTO] = MODEL_AUTO, [MODE_MODEL_FREE] = MODEL_ANY};

#define ROW(member_, fallback_, pattern_, help_)                                                                \
    {                                                                                                           \
        .name = #member_, .type = PARAMS_STRING, .offset = offsetof(struct registration, member_),              \
        .size = sizeof(((struct registration *)NULL)->member_), .fallback = (fallback_), .pattern = (pattern_), \
        .help = (help_)                                                                                         \
    }

static const struct params_row registration_rows[] = {
    ROW(name, "\"\"", NULL, "A name for people; need not be unique."),
    ROW(uri, NULL, "^([Ff][Ii][Ll][Ee]:.|upload:$)",
        "file:RELATIVE or file:/ABSOLUTE, a checkpoint folder below a model root; upload: one made of \"files\"."),
    ROW(expected_sha256, "\"\"", "^([0-9A-Fa-f]{64})?$", "Refuse the checkpoint unless its digest is this one."),
    {.name = "mode",
     .type = PARAMS_ENUM,
     .offset = offsetof(struct registration, mode),
     .size = sizeof(int),
     .fallback = "\"auto\"",
     .choices = mode_choices,
     .help = "model_free: also a known architecture with values in config.json that are not supported, for jobs of "
             "that mode alone."},
    {.name = "files",
     .type = PARAMS_JSON,
     .offset = offsetof(struct registration, files),
     .size = sizeof(json_t *),
     .fallback = "null",
     .help = "Of uri upload: the checkpoint's files, stored with purpose model: path is the file's name in it."},
    {.name = NULL},
};
static const struct params_row *const registration_tables[] = {registration_rows, NULL};

json_t *service_model_schema(void)
{
    json_t *schema = params_schema(registration_tables);
    json_t *files = json_object_get(json_object_get(schema, "properties"), "files");

    json_object_set_new(files, "type", json_pack("[s,s]", "array", "null"));
    json_object_set_new(files, "items",
                        json_pack("{s:s, s:{s:{s:s, s:s, s:i, s:i}, s:{s:s, s:s}}, s:[s,s], s:b}", "type", "object",
                                  "properties", "path", "type", "string", "pattern", "^[^/\\x00-\\x1f\\x7f]+$",
                                  "minLength", 1, "maxLength", 255, "file_id", "type", "string", "pattern",
                                  "^file_" ID_PATTERN "$", "required", "path", "file_id", "additionalProperties", 0));
    return schema;
}

/* The modules of the first block; none where blocks are unknown. */
static json_t *describe_layers(const struct model *model)
{
    const struct plan *plan = plans_layer(model_plans(model), 0);
    json_t *layers = json_array();

    for (int i = 0; i < plan->module_count && !plan_is_listed(plan); i++) {
        const struct plan_module *module = &plan->modules[i];
        json_array_append_new(layers, json_pack("{s:s, s:I, s:I, s:b}", "module", module->path, "rows",
                                                (json_int_t)module->rows, "cols", (json_int_t)module->cols, "bias",
                                                (int)module->bias));
    }
    return layers;
}

/* Which checkpoint is registered, and under which id and uri. */
struct source {
    char id[ID_SIZE];
    char uri[SERVICE_URI_SIZE];
    json_t *files;       /* of an uploaded one; NULL: a folder below a root */
    const char *at;      /* pointer of the registration */
    const char *pointer; /* of the member that names it */
};

static json_t *describe_reasons(const struct model *model)
{
    return model_is_bare(model) ? json_pack("[s]", model_bare_reason(model)) : json_array();
}

/* A number of config.json; null where its members are not known. */
static json_t *known(const struct model *model, int64_t number)
{
    return model_is_bare(model) ? json_null() : json_integer(number);
}

static json_t *describe(const struct model *model, bool tied, const struct registration *request,
                        const struct source *source)
{
    const struct model_config *config = model_config(model);

    return json_pack(
        "{s:s, s:s, s:s, s:s, s:s, s:I, s:I, s:I, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:s, s:o, s:s, s:b, s:o, "
        "s:O?, s:I}",
        "id", source->id, "object", "model", "name", request->name, "uri", source->uri, "architecture",
        config->arch->name, "parameters", (json_int_t)model_parameters(model), "bytes", (json_int_t)model_bytes(model),
        "tensors", (json_int_t)model_tensor_count(model), "num_layers", known(model, config->num_layers), "layers",
        describe_layers(model), "hidden_size", known(model, config->hidden_size), "intermediate_size",
        known(model, config->intermediate_size), "num_heads", known(model, config->num_heads), "num_kv_heads",
        known(model, config->num_kv_heads), "vocab_size", known(model, config->vocab_size), "max_position",
        known(model, config->max_position), "dtype", dtype_rows[model_dtype(model)].name, "tied",
        model_is_bare(model) ? json_null() : json_boolean(tied), "digest", model_digest(model), "supported",
        (int)!model_is_bare(model), "reasons", describe_reasons(model), "files", source->files, "created_at",
        (json_int_t)clock_unix_seconds());
}

/* What the client did wrong, where the opener can only say what it met. */
static int request_code(int rc)
{
    switch (rc) {
    case ERR_NOT_FOUND:
    case ERR_STORAGE:
        return ERR_INVALID_PARAMETER;
    case ERR_SOURCE_CORRUPT:
    case ERR_INVALID_JSON:
        return ERR_INVALID_MODEL;
    default:
        return rc;
    }
}

static int refuse_source(const struct source *source, int rc, struct validation_errors *errors)
{
    const struct err_record why = *err_last();

    validation_add(errors, request_code(rc), source->pointer, "%s", why.message);
    validation_hint(errors, "%s", why.hint);
    return validation_raise(errors);
}

/* The object of an open checkpoint, not stored yet. */
static int describe_source(const struct registration *request, const struct source *source, const struct model *model,
                           struct validation_errors *errors, json_t **object)
{
    bool tied = true;

    if (request->expected_sha256[0] != '\0' && strcasecmp(request->expected_sha256, model_digest(model)) != 0) {
        char pointer[64];
        snprintf(pointer, sizeof(pointer), "%s/expected_sha256", source->at);
        validation_add(errors, ERR_DIGEST_MISMATCH, pointer,
                       "\"expected_sha256\" is another digest than the checkpoint's, %s", model_digest(model));
        return validation_raise(errors);
    }
    int rc = model_tied(model, &tied);
    if (rc != 0) {
        return refuse_source(source, rc, errors);
    }
    *object = describe(model, tied, request, source);
    return *object != NULL ? 0 : err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a model object");
}

/* The object of a registration of a folder, whose members' errors are below `at`. */
static int read_folder(const struct service *service, const struct registration *request, const char *at,
                       struct validation_errors *errors, json_t **out)
{
    AUTO(model) struct model *model = NULL;
    struct source source = {0};
    char uri[64];

    snprintf(uri, sizeof(uri), "%s/uri", at);
    snprintf(source.uri, sizeof(source.uri), "%s", request->uri);
    source.at = at;
    source.pointer = uri;
    id_new("mdl", source.id);
    if (request->files != NULL) {
        char files[64];
        snprintf(files, sizeof(files), "%s/files", at);
        validation_add(errors, ERR_INVALID_PARAMETER, files,
                       "\"files\" is given only with \"uri\": \"" UPLOADED_URI "\"");
        return validation_raise(errors);
    }
    int rc = service_model_open(service, request->uri, mode_readings[request->mode], &model);
    if (rc != 0) {
        return refuse_source(&source, rc, errors);
    }
    return describe_source(request, &source, model, errors, out);
}

/* The same from the JSON of the registration. model_free: of whatever mode it is. */
static int read_registration(const struct service *service, const json_t *body, const char *at, bool model_free,
                             struct validation_errors *errors, json_t **out)
{
    struct registration request = {0};

    if (params_parse(registration_tables, body, at, &request, errors) != 0) {
        return validation_raise(errors);
    }
    request.mode = model_free ? MODE_MODEL_FREE : request.mode;
    int rc = read_folder(service, &request, at, errors, out);
    params_release(registration_tables, &request);
    return rc;
}

static int register_placed(struct service *service, const struct principal *who, const struct registration *request,
                           const struct source *source, struct validation_errors *errors, json_t **out)
{
    AUTO(model) struct model *model = NULL;
    AUTO_JSON json_t *object = NULL;

    int rc = uploaded_open(service, source->id, mode_readings[request->mode], &model);
    if (rc != 0) {
        return refuse_source(source, rc, errors);
    }
    TRY(describe_source(request, source, model, errors, &object));
    pthread_mutex_lock(&service->admission);
    rc = uploaded_keep(service, who, object);
    pthread_mutex_unlock(&service->admission);
    if (rc == ERR_NOT_FOUND) {
        return refuse_source(source, rc, errors);
    }
    TRY(rc);
    *out = MOVE(object);
    return 0;
}

static int register_uploaded(struct service *service, const struct principal *who, const struct registration *request,
                             struct validation_errors *errors, json_t **out)
{
    struct source source = {.at = "", .pointer = "/files"};
    AUTO_JSON json_t *files = NULL;

    TRY(uploaded_check(service, who, request->files, errors, &files));
    id_new("mdl", source.id);
    snprintf(source.uri, sizeof(source.uri), UPLOADED_URI "%s", source.id);
    source.files = files;
    TRY(uploaded_place(service, source.id, files));
    int rc = register_placed(service, who, request, &source, errors, out);
    if (rc != 0) {
        struct err_record why;
        err_take(&why);
        (void)uploaded_remove(service, source.id);
        err_restore(&why);
    }
    return rc;
}

static int parse_uploaded(struct service *service, const struct principal *who, const json_t *body,
                          struct validation_errors *errors, json_t **out)
{
    struct registration request = {0};

    if (params_parse(registration_tables, body, "", &request, errors) != 0) {
        return validation_raise(errors);
    }
    int rc = register_uploaded(service, who, &request, errors, out);
    params_release(registration_tables, &request);
    return rc;
}

int service_model_register(struct service *service, const struct principal *who, const json_t *body,
                           struct validation_errors *errors, json_t **model)
{
    AUTO_JSON json_t *object = NULL;

    if (!json_is_object(body)) {
        char text[PARAMS_VALUE_SIZE];
        validation_add(errors, ERR_INVALID_PARAMETER, "", "the body is %s; it must be an object",
                       params_value_text(body, text));
        return validation_raise(errors);
    }
    const char *uri = json_string_value(json_object_get(body, "uri"));
    if (uri != NULL && strcmp(uri, UPLOADED_URI) == 0) {
        return parse_uploaded(service, who, body, errors, model);
    }
    TRY(read_registration(service, body, "", false, errors, &object));
    TRY(store_object_put(service->store, who->project, "mdl", object));
    *model = MOVE(object);
    return 0;
}

/* A digest covers headers, which all checkpoints of one architecture may have in common: it does not say that two
 * folders hold the same weights. */
static bool same_source(const struct service *service, const json_t *model, const char *digest, const char *place)
{
    char other[SERVICE_PLACE_SIZE];
    const char *uri = json_string_value(json_object_get(model, "uri"));
    const char *found = json_string_value(json_object_get(model, "digest"));

    if (uri == NULL || found == NULL || strcmp(found, digest) != 0) {
        return false;
    }
    /* Fails for what was uploaded, and for a folder that is gone. */
    return service_model_place(service, uri, other) == 0 && strcmp(other, place) == 0;
}

/* The id of the project's model of that folder and digest; "" when there is none. */
static int find_source(struct service *service, const struct principal *who, const char *digest, const char *place,
                       char id[ID_SIZE])
{
    char after[ID_SIZE] = "";
    bool more = true;

    id[0] = '\0';
    while (more && id[0] == '\0') {
        const struct page page = {
            .limit = 100, .project = who->project, .ascending = true, .after = after[0] != '\0' ? after : NULL};
        AUTO_JSON json_t *list = NULL;
        size_t i;
        json_t *model;
        TRY(store_object_list(service->store, "mdl", &page, &list));
        json_array_foreach(json_object_get(list, "data"), i, model)
        {
            snprintf(after, sizeof(after), "%s", json_string_value(json_object_get(model, "id")));
            if (id[0] == '\0' && same_source(service, model, digest, place)) {
                snprintf(id, ID_SIZE, "%s", after);
            }
        }
        more = json_is_true(json_object_get(list, "has_more"));
    }
    return 0;
}

int service_model_describe(const struct service *service, const json_t *registration, bool model_free,
                           struct validation_errors *errors, json_t **object)
{
    return read_registration(service, registration, "/model", model_free, errors, object);
}

int service_model_take(struct service *service, const struct principal *who, const json_t *object, char id[ID_SIZE],
                       bool *made)
{
    char place[SERVICE_PLACE_SIZE];

    TRY(service_model_place(service, json_string_value(json_object_get(object, "uri")), place));
    TRY(find_source(service, who, json_string_value(json_object_get(object, "digest")), place, id));
    *made = id[0] == '\0';
    if (!*made) {
        return 0;
    }
    snprintf(id, ID_SIZE, "%s", json_string_value(json_object_get(object, "id")));
    return store_object_put(service->store, who->project, "mdl", object);
}

/* Under admission. */
static int delete_unused_model(struct service *service, const struct principal *who, const char *id)
{
    TRY(access_object(service->store, who, "mdl", id));
    TRY(service_model_unused(service, who, id));
    return store_object_delete(service->store, who->project, "mdl", id);
}

int service_model_delete(struct service *service, const struct principal *who, const char *id)
{
    pthread_mutex_lock(&service->admission);
    int rc = delete_unused_model(service, who, id);
    pthread_mutex_unlock(&service->admission);
    if (rc == 0 && uploaded_remove(service, id)) {
        service_collect_garbage(service);
    }
    return rc;
}
