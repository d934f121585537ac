/* Checkpoints that came over the network: a folder <data_dir>/models/<model> of links to the blobs of uploaded files.
 *
 * From there on such a checkpoint is one on disk. The model's object names the blobs, which keeps them, whatever
 * becomes of the files that brought them. A folder without an object is what a crash left; the next start removes it.
 */

#include "jobs/service_uploaded.h"

#include "base/err.h"
#include "base/fs.h"
#include "base/log.h"
#include "base/params.h"

#include <dirent.h>
#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <unistd.h>

#define UPLOADED_FILES_MAX 2000

static int folder_of(const struct service *service, const char *id, char out[SERVICE_PATH_MAX])
{
    return fs_path(out, SERVICE_PATH_MAX, "%s/models/%s", store_data_dir(service->store), id);
}

/* --- the request */

struct listing {
    struct service *service;
    const struct principal *who;
    struct validation_errors *errors;
};

__attribute__((format(printf, 4, 5))) static void uploaded_refuse(const struct listing *listing, size_t index,
                                                                  const char *member, const char *format, ...)
{
    char pointer[64], detail[1024];
    va_list arguments;

    va_start(arguments, format);
    (void)vsnprintf(detail, sizeof(detail), format, arguments);
    va_end(arguments);
    snprintf(pointer, sizeof(pointer), "/files/%zu%s%s", index, member[0] != '\0' ? "/" : "", member);
    validation_add(listing->errors, ERR_INVALID_PARAMETER, pointer, "%s", detail);
}

/* A plain name: no folder, and none that means one. */
static bool is_plain(const char *name)
{
    size_t length = strlen(name);
    bool control = false;

    for (const char *at = name; *at != '\0'; at++) {
        control = control || (unsigned char)*at < 0x20 || *at == 0x7f;
    }
    return length > 0 && length <= 255 && !control && strchr(name, '/') == NULL && strcmp(name, ".") != 0 &&
           strcmp(name, "..") != 0;
}

static bool uploaded_is_repeated(const json_t *files, size_t index, const char *path)
{
    for (size_t i = 0; i < index; i++) {
        const char *other = json_string_value(json_object_get(json_array_get(files, i), "path"));
        if (other != NULL && strcmp(other, path) == 0) {
            return true;
        }
    }
    return false;
}

static void check_path(const struct listing *listing, const json_t *files, size_t index)
{
    const json_t *path = json_object_get(json_array_get(files, index), "path");
    char text[PARAMS_VALUE_SIZE];

    if (!json_is_string(path) || json_string_length(path) != strlen(json_string_value(path)) ||
        !is_plain(json_string_value(path))) {
        uploaded_refuse(listing, index, "path",
                        "\"path\" is %s; it must be the name of a file of the checkpoint, 1 to 255 bytes without \"/\"",
                        params_value_text(path, text));
    } else if (uploaded_is_repeated(files, index, json_string_value(path))) {
        uploaded_refuse(listing, index, "path", "\"%s\" is listed more than once", json_string_value(path));
    }
}

/* What is stored of the file, or NULL with an error. New reference. */
static json_t *uploaded_find_file(const struct listing *listing, const json_t *files, size_t index)
{
    const json_t *item = json_array_get(files, index), *id = json_object_get(item, "file_id");
    char text[PARAMS_VALUE_SIZE];
    json_t *file = NULL;

    if (!json_is_string(id) || !id_valid(json_string_value(id), "file") ||
        store_object_get(listing->service->store, listing->who->project, "file", json_string_value(id), &file) != 0) {
        uploaded_refuse(listing, index, "file_id", "\"file_id\" is %s, which is not the id of a stored file",
                        params_value_text(id, text));
        return NULL;
    }
    const char *purpose = json_string_value(json_object_get(file, "purpose"));
    if (purpose == NULL || strcmp(purpose, "model") != 0) {
        uploaded_refuse(listing, index, "file_id",
                        "the file has the purpose \"%s\"; files of a checkpoint have the purpose \"model\"",
                        purpose != NULL ? purpose : "");
        json_decref(file);
        return NULL;
    }
    return file;
}

static json_t *uploaded_check_file(const struct listing *listing, const json_t *files, size_t index)
{
    const json_t *item = json_array_get(files, index);
    const char *name;
    json_t *value;

    if (!json_is_object(item)) {
        uploaded_refuse(listing, index, "", "a file is an object with \"path\" and \"file_id\"");
        return NULL;
    }
    json_object_foreach((json_t *)item, name, value)
    {
        if (strcmp(name, "path") != 0 && strcmp(name, "file_id") != 0) {
            uploaded_refuse(listing, index, "",
                            "\"%.80s\" is not a member of a file; they are \"path\" and \"file_id\"", name);
        }
    }
    check_path(listing, files, index);
    AUTO_JSON json_t *file = uploaded_find_file(listing, files, index);
    if (file == NULL) {
        return NULL;
    }
    return json_pack("{s:O, s:O, s:O, s:O}", "path", json_object_get(item, "path"), "file_id",
                     json_object_get(file, "id"), "bytes", json_object_get(file, "bytes"), "sha256",
                     json_object_get(file, "sha256"));
}

int uploaded_check(struct service *service, const struct principal *who, const json_t *files,
                   struct validation_errors *errors, json_t **out)
{
    const struct listing listing = {service, who, errors};
    AUTO_JSON json_t *checked = json_array();
    size_t before = errors->count;

    if (checked == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a list of files");
    }
    if (json_array_size(files) == 0 || json_array_size(files) > UPLOADED_FILES_MAX) {
        validation_add(errors, json_is_null(files) || files == NULL ? ERR_MISSING_PARAMETER : ERR_INVALID_PARAMETER,
                       "/files",
                       "with \"uri\": \"upload:\", \"files\" is an array of 1 to %d objects with \"path\" and "
                       "\"file_id\"",
                       UPLOADED_FILES_MAX);
        return validation_raise(errors);
    }
    for (size_t i = 0; i < json_array_size(files); i++) {
        json_t *file = uploaded_check_file(&listing, files, i);
        if (file != NULL && json_array_append_new(checked, file) != 0) {
            return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a list of files");
        }
    }
    if (errors->count > before) {
        return validation_raise(errors);
    }
    *out = MOVE(checked);
    return 0;
}

/* --- the folder */

static int fill_folder(const struct service *service, const char *id, const json_t *files)
{
    char path[SERVICE_PATH_MAX];
    size_t i;
    json_t *file;

    TRY(folder_of(service, id, path));
    TRY(fs_make_dirs(path));
    json_array_foreach((json_t *)files, i, file)
    {
        TRY(fs_path(path, sizeof(path), "models/%s/%s", id, json_string_value(json_object_get(file, "path"))));
        TRY(blob_link(service->store, json_string_value(json_object_get(file, "sha256")), path));
    }
    TRY(folder_of(service, id, path));
    return fs_sync_dir(path);
}

int uploaded_place(struct service *service, const char *id, const json_t *files)
{
    int rc = fill_folder(service, id, files);

    if (rc != 0) {
        struct err_record why;
        err_take(&why);
        uploaded_remove(service, id);
        err_restore(&why);
    }
    return rc;
}

bool uploaded_remove(const struct service *service, const char *id)
{
    char path[SERVICE_PATH_MAX];

    if (folder_of(service, id, path) != 0 || access(path, F_OK) != 0) {
        return false;
    }
    if (fs_remove_tree(path) != 0) {
        log_err(LOG_WARN, "folder of an uploaded checkpoint not removed", NULL);
    }
    return true;
}

int uploaded_open(const struct service *service, const char *id, enum model_reading reading, struct model **out)
{
    char relative[sizeof("models/") + ID_SIZE];

    snprintf(relative, sizeof(relative), "models/%s", id);
    return model_open_as(service->data_fd, relative, reading, out);
}

int uploaded_keep(struct service *service, const struct principal *who, const json_t *object)
{
    size_t i;
    json_t *file, *found;

    json_array_foreach(json_object_get(object, "files"), i, file)
    {
        const char *id = json_string_value(json_object_get(file, "file_id"));
        TRY(store_object_get(service->store, who->project, "file", id, &found));
        json_decref(found);
    }
    return store_object_put(service->store, who->project, "mdl", object);
}

/* --- the next start */

static bool is_wanted(const struct service *service, const char *kind, const char *id)
{
    json_t *object = NULL;

    int rc = store_object_get(service->store, NULL, kind, id, &object);
    const char *status = json_string_value(json_object_get(object, "status"));
    bool done = status != NULL && strcmp(status, "completed") == 0;
    json_decref(object);
    return rc != ERR_NOT_FOUND && !done; /* where the store fails, nothing is removed */
}

static void sweep(const struct service *service, const char *folder, const char *kind)
{
    char path[SERVICE_PATH_MAX];
    struct dirent *entry;

    if (fs_path(path, sizeof(path), "%s/%s", store_data_dir(service->store), folder) != 0) {
        return;
    }
    DIR *stream = opendir(path);
    while (stream != NULL && (entry = readdir(stream)) != NULL) {
        if (!id_valid(entry->d_name, kind) || is_wanted(service, kind, entry->d_name)) {
            continue;
        }
        if (fs_path(path, sizeof(path), "%s/%s/%s", store_data_dir(service->store), folder, entry->d_name) != 0 ||
            fs_remove_tree(path) != 0) {
            log_err(LOG_WARN, "what a crash left of an upload not removed", NULL);
        }
    }
    if (stream != NULL) {
        closedir(stream);
    }
}

void uploaded_sweep(const struct service *service)
{
    sweep(service, "models", "mdl");
    sweep(service, "uploads", "upl");
}
