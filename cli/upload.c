/* Uploads. A small file is one POST with Content-Digest, so that the server refuses what was damaged on the way, and
 * with an idempotency key, so that a repetition makes no second file. */

#include "cli/upload_internal.h"

#include "base/err.h"
#include "base/ids.h"
#include "base/mem.h"
#include "cli/objects.h"
#include "cli/status.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define UPLOAD_ATTEMPTS 5

int upload_open(const char *path, int *out, int64_t *bytes)
{
    struct stat info;

    AUTO_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 || fstat(fd, &info) != 0) {
        return status_fail(STATUS_LOCAL, "%.300s: %s", path, strerror(errno));
    }
    if (!S_ISREG(info.st_mode)) {
        return status_fail(STATUS_LOCAL, "%.300s: not a regular file", path);
    }
    *bytes = info.st_size;
    *out = cleanup_move_fd(&fd);
    return 0;
}

/* A file named .ndjson or .jsonl has records; the server is told. */
static const char *media_type(const char *path)
{
    const char *dot = strrchr(path, '.');
    bool records = dot != NULL && (strcmp(dot, ".ndjson") == 0 || strcmp(dot, ".jsonl") == 0);

    return records ? "application/x-ndjson" : "application/octet-stream";
}

static int upload_small(struct cli *cli, struct upload_item *item, int fd, int64_t bytes, const char *purpose)
{
    char target[CLIENT_PATH_MAX] = "/v1/files", hex[DIGEST_HEX_SIZE], base64[DIGEST_BASE64_SIZE], made[ID_SIZE];
    char content_digest[128], key[64];

    TRY(digest_file(fd, hex, NULL));
    digest_base64(hex, base64);
    id_new("qctl", made);
    snprintf(content_digest, sizeof(content_digest), "Content-Digest: sha-256=:%s:", base64);
    snprintf(key, sizeof(key), "Idempotency-Key: %s", made);
    TRY(client_query(target, sizeof(target), "purpose", purpose));
    TRY(client_query(target, sizeof(target), "name", item->name));
    const char *const headers[] = {content_digest, key, NULL};
    const struct http_call call = {.method = "POST",
                                   .path = target,
                                   .headers = headers,
                                   .repeatable = true,
                                   .type = media_type(item->path),
                                   .size = (size_t)bytes,
                                   .file = fd};
    int rc = client_call(cli, &call, &item->file);
    for (int attempt = 1; rc == STATUS_UNREACHABLE && attempt < UPLOAD_ATTEMPTS; attempt++) {
        const struct timespec pause = {.tv_sec = attempt};
        (void)nanosleep(&pause, NULL);
        rc = client_call(cli, &call, &item->file);
    }
    return rc;
}

int upload_files(struct cli *cli, struct upload_item *items, size_t count, const char *purpose, int parallel)
{
    AUTO_FREE struct upload_item **large = NULL;
    size_t large_count = 0;

    TRY(mem_array(&large, count));
    for (size_t i = 0; i < count; i++) { /* none is sent if one cannot be read */
        AUTO_CLOSE int fd = -1;
        int64_t bytes = 0;
        TRY(upload_open(items[i].path, &fd, &bytes));
        if (items[i].file == NULL && bytes > UPLOAD_PIECE) {
            large[large_count++] = &items[i];
        }
    }
    TRY(client_open(cli));
    TRY(upload_pieces(cli, large, large_count, purpose, parallel));
    for (size_t i = 0; i < count; i++) {
        AUTO_CLOSE int fd = -1;
        int64_t bytes = 0;
        if (items[i].file == NULL) {
            TRY(upload_open(items[i].path, &fd, &bytes));
            TRY(upload_small(cli, &items[i], fd, bytes, purpose));
        }
    }
    return 0;
}

void upload_forget(struct cli *cli, struct upload_item *items, size_t count, const char *purpose)
{
    for (size_t i = 0; i < count; i++) {
        AUTO(http_answer) struct http_answer answer = {0};
        AUTO_CLOSE int fd = -1;
        struct upload_state state;
        char path[CLIENT_PATH_MAX];
        int64_t bytes = 0;
        if (items[i].upload[0] == '\0') {
            continue;
        }
        snprintf(path, sizeof(path), "/v1/uploads/%s", items[i].upload);
        (void)client_raw(cli, &(struct http_call){.method = "DELETE", .path = path}, &answer);
        if (upload_open(items[i].path, &fd, &bytes) == 0 &&
            upload_state_open(http_url(cli->http), purpose, items[i].name, fd, &state) == 0) {
            upload_state_remove(&state);
        }
    }
}

void upload_items_deinit(struct upload_item *items, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        json_decref(items[i].file);
        items[i].file = NULL;
    }
}
