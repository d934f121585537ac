/* Opening a registered checkpoint, and its tokenizer.
 *
 * A model's object holds nothing but what it shows; a uri is resolved again at each use, always beneath a root's
 * descriptor, and the digest says whether it still names the same checkpoint. */

#include "jobs/service.h"

#include "jobs/service_uploaded.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/fs.h"
#include "base/text.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A component ".." is refused here with a plain word; the kernel would refuse it too. */
static bool has_parent_step(const char *path)
{
    for (const char *at = path; at != NULL; at = strchr(at, '/')) {
        at += *at == '/';
        if (strncmp(at, "..", 2) == 0 && (at[2] == '/' || at[2] == '\0')) {
            return true;
        }
    }
    return false;
}

/* What is left of an absolute path below a root; NULL when it does not lie there. */
static const char *below_root(const char *path, const char *root)
{
    size_t length = strcmp(root, "/") == 0 ? 0 : strlen(root);

    if (strncmp(path, root, length) != 0 || (path[length] != '/' && path[length] != '\0')) {
        return NULL;
    }
    path += length;
    path += strspn(path, "/");
    return *path != '\0' ? path : ".";
}

/* Undo percent-encoding (RFC 3986, 2.1) in place. A byte that cannot be part of a file's name is refused, so that an
 * escape never becomes a separator or an end. */
static int decode_percent(char *text)
{
    char *out = text;

    for (const char *in = text; *in != '\0'; in++) {
        if (*in != '%') {
            *out++ = *in;
            continue;
        }
        int high = text_hex_value(in[1]), low = high >= 0 ? text_hex_value(in[2]) : -1;
        if (low < 0) {
            return err_raise(
                ERR_INVALID_PARAMETER,
                "\"uri\" has a \"%%\" without two hexadecimal digits; write a percent sign of the path as %%25");
        }
        char byte = (char)(high * 16 + low);
        if (byte == '\0' || byte == '/') {
            return err_raise(ERR_INVALID_PARAMETER, "\"uri\" holds %%%.2s, which no folder's name can hold", in + 1);
        }
        *out++ = byte;
        in += 2;
    }
    *out = '\0';
    return 0;
}

/* The path of a file URI (RFC 8089): file:PATH, file:///PATH or file://localhost/PATH. */
static int parse_uri(const char *uri, char *path, size_t size)
{
    if (strncasecmp(uri, "file:", 5) != 0) {
        return err_raise(ERR_INVALID_PARAMETER,
                         "\"uri\" must be file:PATH, a folder below a model root, or \"upload:\" with \"files\"");
    }
    const char *text = uri + 5;
    if (strncmp(text, "//", 2) == 0) {
        text += 2;
        text += strncasecmp(text, "localhost/", 10) == 0 ? 9 : 0;
        if (text[0] != '/') {
            return err_raise(ERR_INVALID_PARAMETER,
                             "\"uri\" names the host \"%.*s\"; only files of this host are read, as "
                             "file:///PATH or file:PATH",
                             (int)(strcspn(text, "/") < 100 ? strcspn(text, "/") : 100), text);
        }
    }
    size_t length = strlen(text);
    if (length >= size) {
        return err_raise(ERR_INVALID_PARAMETER, "\"uri\" has a path of %zu bytes; the most is %zu", length, size - 1);
    }
    memcpy(path, text, length + 1);
    int rc = decode_percent(path);
    if (rc != 0) {
        return rc;
    }
    if (has_parent_step(path)) {
        return err_raise(ERR_INVALID_PARAMETER, "\"uri\" must not contain \"..\"");
    }
    return path[0] == '\0' ? err_raise(ERR_INVALID_PARAMETER, "\"uri\" names no folder") : 0;
}

/* Nothing is there: outside of all roots, or below them but absent. The roots are said, since only the daemon's own
 * options know them. */
static int refuse_path(const struct service *service, const char *path)
{
    char roots[320] = "";
    bool below = path[0] != '/';

    for (size_t i = 0; i < service->root_count; i++) {
        size_t used = strlen(roots);
        snprintf(roots + used, sizeof(roots) - used, "%s%s", i > 0 ? ", " : "", service->roots[i]);
        below = below || below_root(path, service->roots[i]) != NULL;
    }
    int rc = below ? err_raise(ERR_NOT_FOUND, "there is no folder \"%.200s\" below a model root", path)
                   : err_raise(ERR_NOT_FOUND, "\"%.200s\" does not lie below a model root", path);
    return service->root_count == 0
               ? err_set_hint(rc, "the daemon has no model root: start it with --model-root DIRECTORY")
               : err_set_hint(rc, "the model roots are %s", roots);
}

int service_model_open(const struct service *service, const char *uri, enum model_reading reading, struct model **out)
{
    char path[SERVICE_URI_SIZE];

    int rc = parse_uri(uri, path, sizeof(path));
    if (rc != 0) {
        return rc;
    }
    for (size_t i = 0; i < service->root_count; i++) {
        const char *relative = path[0] == '/' ? below_root(path, service->roots[i]) : path;
        if (relative == NULL) {
            continue;
        }
        rc = model_open_as(service->root_fds[i], relative, reading, out);
        if (rc != ERR_NOT_FOUND) {
            return rc;
        }
    }
    return refuse_path(service, path);
}

/* Add the components of a path to a place, without those that name nothing. */
static int place_add(char *place, const char *path)
{
    size_t used = strlen(place);

    while (*(path += strspn(path, "/")) != '\0') {
        size_t length = strcspn(path, "/");
        if (length != 1 || path[0] != '.') {
            if (used + 1 + length >= SERVICE_PLACE_SIZE) {
                return err_raise(ERR_INVALID_PARAMETER, "the path of a checkpoint is longer than %d bytes",
                                 SERVICE_PLACE_SIZE - 1);
            }
            place[used++] = '/';
            memcpy(place + used, path, length);
            place[used += length] = '\0';
        }
        path += length;
    }
    return 0;
}

/* Links are left alone: what they point to may be another checkpoint when the job runs. */
int service_model_place(const struct service *service, const char *uri, char place[SERVICE_PLACE_SIZE])
{
    char path[SERVICE_URI_SIZE], config[SERVICE_URI_SIZE + 16];

    place[0] = '\0';
    TRY(parse_uri(uri, path, sizeof(path)));
    for (size_t i = 0; i < service->root_count; i++) {
        AUTO_CLOSE int fd = -1;
        const char *relative = path[0] == '/' ? below_root(path, service->roots[i]) : path;
        if (relative == NULL) {
            continue;
        }
        snprintf(config, sizeof(config), "%s/config.json", relative);
        int rc = fs_open_beneath(service->root_fds[i], config, O_PATH, &fd);
        if (rc == ERR_NOT_FOUND) {
            continue;
        }
        TRY(rc);
        TRY(place_add(place, service->roots[i]));
        return place_add(place, relative);
    }
    return refuse_path(service, path);
}

int service_model_open_described(const struct service *service, const json_t *object, enum model_reading reading,
                                 struct model **out)
{
    AUTO(model) struct model *model = NULL;
    const char *id = json_string_value(json_object_get(object, "id"));
    const char *uri = json_string_value(json_object_get(object, "uri"));
    const char *digest = json_string_value(json_object_get(object, "digest"));

    if (id == NULL || uri == NULL || digest == NULL) {
        return err_raise(ERR_INTERNAL, "model %s has no uri or digest", id != NULL ? id : "");
    }
    int rc = strncmp(uri, UPLOADED_URI, strlen(UPLOADED_URI)) == 0 ? uploaded_open(service, id, reading, &model)
                                                                   : service_model_open(service, uri, reading, &model);
    if (rc == ERR_NOT_FOUND) {
        return err_raise(ERR_SOURCE_CHANGED, "the checkpoint of %s is no longer at its path", id);
    }
    if (rc == ERR_INVALID_MODEL || rc == ERR_SOURCE_CORRUPT) { /* it was sound when it was registered */
        return err_raise(ERR_SOURCE_CHANGED, "the checkpoint of %s has changed: %s", id, err_last()->message);
    }
    TRY(rc);
    if (strcmp(model_digest(model), digest) != 0) {
        return err_raise(ERR_SOURCE_CHANGED, "the checkpoint of %s is not the one that was registered", id);
    }
    *out = MOVE(model);
    return 0;
}

int service_model_open_object(const struct service *service, const char *project, const char *id,
                              enum model_reading reading, struct model **out)
{
    AUTO_JSON json_t *object = NULL;

    TRY(store_object_get(service->store, project, "mdl", id, &object));
    return service_model_open_described(service, object, reading, out);
}

int service_tokenizer_open(const struct model *model, struct tokenizer **out, char reason[SERVICE_REASON_SIZE])
{
    char *text;
    size_t size;

    *out = NULL;
    reason[0] = '\0';
    int rc = model_read_tokenizer(model, &text, &size);
    if (rc == ERR_NOT_FOUND) {
        return 0;
    }
    if (rc == 0) {
        rc = tokenizer_new(text, size, out);
        free(text);
    }
    if (rc == ERR_INVALID_TOKENIZER) {
        (void)snprintf(reason, SERVICE_REASON_SIZE, "%s", err_last()->message);
        return 0;
    }
    return rc != 0 ? err_pass(rc, "open the tokenizer") : 0;
}
