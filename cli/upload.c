/* Uploads: one POST with Content-Digest, so that the server refuses what was damaged on the way, and with an
 * idempotency key, so that a repetition makes no second file. */

#include "cli/upload.h"

#include "base/digest.h"
#include "base/err.h"
#include "base/ids.h"
#include "cli/print.h"
#include "cli/status.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define UPLOAD_ATTEMPTS 5
#define UPLOAD_SHOW_MS 200

struct upload {
    const char *path;
    int64_t bytes, shown_at;
};

static void upload_sent(void *context, int64_t bytes)
{
    struct upload *upload = context;
    char sent[PRINT_SIZE], total[PRINT_SIZE];
    int64_t now = clock_monotonic_ms();

    if (now - upload->shown_at >= UPLOAD_SHOW_MS) {
        upload->shown_at = now;
        fprintf(stderr, "\r%s of %s\x1b[K", print_bytes((double)bytes, sent),
                print_bytes((double)upload->bytes, total));
    }
}

static int open_source(const char *path, int *out, int64_t *bytes)
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

int upload_file(struct cli *cli, const char *path, const char *purpose, const char *name, json_t **out)
{
    char target[CLIENT_PATH_MAX] = "/v1/files", hex[DIGEST_HEX_SIZE], base64[DIGEST_BASE64_SIZE], made[ID_SIZE];
    char content_digest[128], key[64];
    struct upload upload = {.path = path};
    AUTO_CLOSE int fd = -1;

    TRY(open_source(path, &fd, &upload.bytes));
    TRY(digest_file(fd, hex, NULL));
    digest_base64(hex, base64);
    id_new("qctl", made);
    snprintf(content_digest, sizeof(content_digest), "Content-Digest: sha-256=:%s:", base64);
    snprintf(key, sizeof(key), "Idempotency-Key: %s", made);
    TRY(client_query(target, sizeof(target), "purpose", purpose));
    TRY(client_query(target, sizeof(target), "name", name));
    const char *const headers[] = {content_digest, key, NULL};
    bool terminal = !cli->quiet && isatty(STDERR_FILENO) != 0;
    const struct http_call call = {.method = "POST",
                                   .path = target,
                                   .headers = headers,
                                   .repeatable = true,
                                   .type = media_type(path),
                                   .size = (size_t)upload.bytes,
                                   .file = fd,
                                   .sent = terminal ? upload_sent : NULL,
                                   .context = &upload};
    int rc = client_call(cli, &call, out);
    for (int attempt = 1; rc == STATUS_UNREACHABLE && attempt < UPLOAD_ATTEMPTS; attempt++) {
        const struct timespec pause = {.tv_sec = attempt};
        (void)nanosleep(&pause, NULL);
        rc = client_call(cli, &call, out);
    }
    if (terminal && upload.shown_at != 0) {
        fputc('\n', stderr);
    }
    return rc;
}
