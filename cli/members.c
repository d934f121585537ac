/* Members of a request's body from options. */

#include "cli/members.h"

#include "base/err.h"
#include "base/json.h"
#include "cli/command.h"
#include "cli/jobfile.h"

#include <string.h>

json_t *members_object(json_t *body, const char *name)
{
    json_t *object = json_object_get(body, name);

    if (!json_is_object(object)) {
        object = json_object();
        (void)json_object_set_new(body, name, object);
    }
    return object;
}

int members_text(json_t *object, const char *name, const char *text)
{
    if (text != NULL && json_object_set_new(object, name, json_string(text)) != 0) {
        return err_raise(ERR_CONFIG, "the value of %s is not UTF-8", name);
    }
    return 0;
}

void members_int(json_t *object, const char *name, int64_t value)
{
    if (value != OPTION_UNSET) {
        (void)json_object_set_new(object, name, json_integer(value));
    }
}

static int members_split(const char *option, const char *form, const char *item, char *name, size_t size,
                         const char **value)
{
    const char *equals = strchr(item, '=');

    if (equals == NULL || equals == item || (size_t)(equals - item) >= size) {
        return err_raise(ERR_CONFIG, "--%s: \"%.80s\" is not %s", option, item, form);
    }
    memcpy(name, item, (size_t)(equals - item));
    name[equals - item] = '\0';
    *value = equals + 1;
    return 0;
}

/* JSON, or text where it is not. NULL: not UTF-8. */
static json_t *members_value(const char *value)
{
    json_t *parsed = NULL;

    if ((value[0] != '[' && value[0] != '{' && value[0] != '"') || json_parse(value, strlen(value), 32, &parsed) != 0) {
        parsed = jobfile_scalar(value, strlen(value));
    }
    return parsed;
}

int members_set(json_t *body, const char *item)
{
    char name[256];
    const char *value = NULL;

    TRY(members_split("set", "NAME=VALUE", item, name, sizeof(name), &value));
    char *member = name;
    json_t *object = strchr(name, '.') != NULL ? body : members_object(body, "quantization");
    for (char *dot; (dot = strchr(member, '.')) != NULL; member = dot + 1) {
        *dot = '\0';
        object = members_object(object, member);
    }
    json_t *parsed = members_value(value);
    if (parsed == NULL || json_object_set_new(object, member, parsed) != 0) {
        return err_raise(ERR_CONFIG, "--set: \"%.80s\" is not UTF-8", item);
    }
    return 0;
}

static json_t *gate_object(json_t *body)
{
    return members_object(members_object(body, "evaluation"), "gate");
}

int members_gate(json_t *body, const char *item)
{
    char name[256];
    const char *value = NULL;

    TRY(members_split("gate", "NAME=VALUE", item, name, sizeof(name), &value));
    return json_object_set_new(gate_object(body), name, members_value(value)) == 0
               ? 0
               : err_raise(ERR_CONFIG, "--gate: \"%.80s\" is not UTF-8", item);
}

static int rung_member(json_t *rung, const char *item)
{
    char name[256];
    const char *value = NULL;

    TRY(members_split("rung", "NAME=VALUE[,NAME=VALUE...]", item, name, sizeof(name), &value));
    json_t *object = strcmp(name, "method") == 0 ? rung : members_object(rung, "quantization");
    return json_object_set_new(object, name, members_value(value)) == 0
               ? 0
               : err_raise(ERR_CONFIG, "--rung: \"%.80s\" is not UTF-8", item);
}

int members_rung(json_t *body, const char *item)
{
    AUTO_JSON json_t *rung = json_object();
    char text[1024], *rest = NULL;
    json_t *ladder = json_object_get(gate_object(body), "ladder");

    if (strlen(item) >= sizeof(text)) {
        return err_raise(ERR_CONFIG, "--rung: \"%.80s...\" is too long", item);
    }
    memcpy(text, item, strlen(item) + 1);
    for (char *part = strtok_r(text, ",", &rest); part != NULL; part = strtok_r(NULL, ",", &rest)) {
        TRY(rung_member(rung, part));
    }
    if (!json_is_array(ladder)) {
        ladder = json_array();
        (void)json_object_set_new(gate_object(body), "ladder", ladder);
    }
    (void)json_array_append(ladder, rung);
    return 0;
}

int members_metadata(json_t *body, const char *item)
{
    char name[256];
    const char *value = NULL;

    TRY(members_split("metadata", "KEY=VALUE", item, name, sizeof(name), &value));
    return members_text(members_object(body, "metadata"), name, value);
}
