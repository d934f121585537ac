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

int members_set(json_t *body, const char *item)
{
    char name[256];
    const char *value = NULL;
    json_t *parsed = NULL;

    TRY(members_split("set", "NAME=VALUE", item, name, sizeof(name), &value));
    char *dot = strchr(name, '.');
    json_t *object = dot != NULL ? (*dot = '\0', members_object(body, name)) : members_object(body, "quantization");
    if ((value[0] != '[' && value[0] != '{' && value[0] != '"') || json_parse(value, strlen(value), 32, &parsed) != 0) {
        parsed = jobfile_scalar(value, strlen(value));
    }
    if (parsed == NULL || json_object_set_new(object, dot != NULL ? dot + 1 : name, parsed) != 0) {
        return err_raise(ERR_CONFIG, "--set: \"%.80s\" is not UTF-8", item);
    }
    return 0;
}

int members_metadata(json_t *body, const char *item)
{
    char name[256];
    const char *value = NULL;

    TRY(members_split("metadata", "KEY=VALUE", item, name, sizeof(name), &value));
    return members_text(members_object(body, "metadata"), name, value);
}
