/* A download is verified before its first byte: the signature must be over the digests of the manifest, and a file gets
 * its name only once it has the manifest's digest. A directory is verified by hashing all of it. */

#include "cli/verify.h"

#include "base/err.h"
#include "base/fs.h"
#include "cli/objects.h"
#include "cli/status.h"
#include "cli/tree.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* The record of a failure that base raised, as one of this command. */
static int fail_as(enum status status, const char *what)
{
    const struct err_record why = *err_last();

    int rc = status_fail(status, "%s%.900s", what, why.message);
    return why.hint[0] != '\0' ? err_set_hint(rc, "%s", why.hint) : rc;
}

int verify_read_key(const char *path, struct signing_key **out)
{
    int rc = signing_key_read(path, SIGNING_KEY_PUBLIC, out);

    return rc == 0 || rc == ERR_CONFIG || rc == ERR_HOST_OUT_OF_MEMORY ? rc : fail_as(STATUS_LOCAL, "");
}

/* Read a bundle and check that the key has signed it. out: zeroed. */
static int verify_bundle(const char *bundle, size_t size, const struct signing_key *key, struct model_signature *out)
{
    int rc = model_signature_read(bundle, size, out);

    rc = rc == 0 ? model_signature_verify(out, key) : rc;
    return rc == ERR_DIGEST_MISMATCH ? fail_as(STATUS_MISMATCH, "") : rc;
}

static int verify_files(const struct model_signature *signature, const json_t *found)
{
    int rc = model_signature_compare(signature, found);

    return rc == ERR_DIGEST_MISMATCH ? fail_as(STATUS_MISMATCH, "the files are not those that were signed: ") : rc;
}

/* --- an artifact on the server */

static const struct manifest_file *manifest_entry(const struct manifest *manifest, const char *path)
{
    for (size_t i = 0; i < manifest->count; i++) {
        if (strcmp(manifest->files[i].path, path) == 0) {
            return &manifest->files[i];
        }
    }
    return NULL;
}

static int refuse_unsigned_artifact(const char *artifact)
{
    return err_set_hint(status_fail(STATUS_MISMATCH, "%.100s is not signed", artifact),
                        "quantctl artifacts sign signs it, if the server has a key");
}

static int fetch_signature(struct cli *cli, const char *artifact, struct http_answer *answer)
{
    char path[CLIENT_PATH_MAX];

    TRY(objects_path(path, sizeof(path), &objects_artifacts, artifact));
    TRY(http_escape(path, sizeof(path), "/signature", "/"));
    TRY(client_patient(cli, &(struct http_call){.method = "GET", .path = path}, answer));
    if (answer->status == 404) {
        return refuse_unsigned_artifact(artifact);
    }
    return answer->status == 200 ? 0 : client_refused(cli, answer);
}

int verify_artifact(struct cli *cli, const char *artifact, const struct manifest *manifest,
                    const struct signing_key *key, struct model_signature *signature)
{
    AUTO(http_answer) struct http_answer answer = {0};
    AUTO_JSON json_t *found = json_object();
    const struct manifest_file *entry = manifest_entry(manifest, MODEL_SIGNATURE_FILE);
    char sha256[DIGEST_HEX_SIZE];

    if (entry == NULL) {
        return refuse_unsigned_artifact(artifact);
    }
    TRY(fetch_signature(cli, artifact, &answer));
    digest_bytes(answer.body, answer.size, sha256);
    if (strcmp(sha256, entry->sha256) != 0) {
        return status_fail(STATUS_MISMATCH, "the server has two signatures of %.100s", artifact);
    }
    TRY(verify_bundle(answer.body, answer.size, key, signature));
    for (size_t i = 0; i < manifest->count; i++) {
        if (&manifest->files[i] != entry &&
            json_object_set_new(found, manifest->files[i].path, json_string(manifest->files[i].sha256)) != 0) {
            return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a list of files");
        }
    }
    return verify_files(signature, found);
}

/* --- what else is in the directory of a download */

struct expected {
    const struct manifest *manifest;
    const struct model_signature *signature;
};

static bool skip_unsigned(void *context, const char *path)
{
    const struct expected *expected = context;

    return manifest_entry(expected->manifest, path) == NULL && model_signature_ignores(expected->signature, path);
}

static int expect_file(void *context, const char *path, int parent, const char *name)
{
    static const char *const suffixes[] = {"", MANIFEST_PART, MANIFEST_MAP};
    const struct expected *expected = context;
    size_t size = strlen(path);

    for (size_t i = 0; i < sizeof(suffixes) / sizeof(suffixes[0]); i++) {
        char known[MANIFEST_PATH_MAX + 1];
        size_t tail = strlen(suffixes[i]);
        if (size > tail && strcmp(path + size - tail, suffixes[i]) == 0) {
            snprintf(known, sizeof(known), "%.*s", (int)(size - tail), path);
            if (manifest_entry(expected->manifest, known) != NULL) {
                return 0;
            }
        }
    }
    return err_set_hint(status_fail(STATUS_MISMATCH, "%.300s is in the directory and not in the artifact", path),
                        "remove it, or give --output an empty directory: what is signed has no other files");
}

int verify_no_others(const char *directory, const struct manifest *manifest, const struct model_signature *signature)
{
    struct expected expected = {.manifest = manifest, .signature = signature};
    const struct tree_walk walk = {.skip = skip_unsigned, .file = expect_file, .context = &expected};

    if (access(directory, F_OK) != 0 && errno == ENOENT) {
        return 0; /* it will be made */
    }
    return tree_walk(directory, &walk);
}

/* --- a directory */

struct hashing {
    const struct model_signature *signature;
    const struct stat *bundle;
    json_t *found;
    int64_t files, bytes;
};

static bool skip_ignored(void *context, const char *path)
{
    const struct hashing *hashing = context;

    return json_object_get(hashing->signature->files, path) == NULL &&
           model_signature_ignores(hashing->signature, path);
}

static int hash_signed(void *context, const char *path, int parent, const char *name)
{
    struct hashing *hashing = context;
    char sha256[DIGEST_HEX_SIZE] = "";
    struct stat info;
    int64_t size = 0;

    if (strstr(name, MANIFEST_PART) != NULL || strstr(name, MANIFEST_MAP) != NULL) {
        return err_set_hint(status_fail(STATUS_MISMATCH, "%.300s is the file of an unfinished download", path),
                            "quantctl pull continues it");
    }
    const char *fault = manifest_path_fault(path, strlen(path));
    if (fault != NULL) {
        return status_fail(STATUS_MISMATCH, "%.300s was not signed: %s", path, fault);
    }
    AUTO_CLOSE int fd = openat(parent, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 || fstat(fd, &info) != 0) {
        return status_fail(STATUS_LOCAL, "%.300s: %s", path, strerror(errno));
    }
    if (info.st_dev == hashing->bundle->st_dev && info.st_ino == hashing->bundle->st_ino) {
        return 0; /* the signature itself, under whatever name */
    }
    if (json_object_get(hashing->signature->files, path) != NULL) {
        if (digest_file(fd, sha256, &size) != 0) {
            return fail_as(STATUS_LOCAL, "");
        }
        hashing->files++;
        hashing->bytes += size;
    }
    return json_object_set_new(hashing->found, path, json_string(sha256)) == 0
               ? 0
               : err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a list of files");
}

static int read_signature_file(const char *directory, const char *given, struct stat *info, char **text, size_t *size)
{
    char path[CLIENT_PATH_MAX];

    TRY(given != NULL ? fs_path(path, sizeof(path), "%s", given)
                      : fs_path(path, sizeof(path), "%s/" MODEL_SIGNATURE_FILE, directory));
    AUTO_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 && errno == ENOENT && given == NULL && access(directory, F_OK) == 0) {
        return err_set_hint(
            status_fail(STATUS_MISMATCH, "%.300s is not signed: it has no " MODEL_SIGNATURE_FILE, directory),
            "--signature names a signature that is elsewhere");
    }
    if (fd < 0 || fstat(fd, info) != 0) {
        return status_fail(STATUS_LOCAL, "%.300s: %s", path, strerror(errno));
    }
    return fs_read_fd(fd, MODEL_SIGNATURE_MAX, text, size) == 0 ? 0 : fail_as(STATUS_LOCAL, "the signature: ");
}

int verify_directory(const char *directory, const char *signature, const struct signing_key *key, int64_t *files,
                     int64_t *bytes)
{
    AUTO(model_signature) struct model_signature read = {.hint = ""};
    AUTO_JSON json_t *found = json_object();
    AUTO_FREE char *text = NULL;
    struct stat bundle = {0};
    size_t size = 0;

    TRY(read_signature_file(directory, signature, &bundle, &text, &size));
    TRY(verify_bundle(text, size, key, &read));
    struct hashing hashing = {.signature = &read, .bundle = &bundle, .found = found};
    const struct tree_walk walk = {.skip = skip_ignored, .file = hash_signed, .context = &hashing};
    TRY(tree_walk(directory, &walk));
    TRY(verify_files(&read, found));
    *files = hashing.files;
    *bytes = hashing.bytes;
    return 0;
}
