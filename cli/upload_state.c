/* One line: the key and the id. It is written before the upload is created, with its key alone, so that a process that
 * is killed between the server's commit and its answer leaves no upload that nobody continues. Without a place to
 * remember (no HOME, a full disk) uploads work, and begin again after an interruption. */

#include "cli/upload_state.h"

#include "base/digest.h"
#include "base/err.h"
#include "base/fs.h"
#include "cli/status.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define STATE_TEXT 256

/* The folder, which is made; false: there is none. */
static bool state_folder(char out[UPLOAD_STATE_PATH])
{
    const char *base = getenv("XDG_STATE_HOME"), *home = getenv("HOME");
    int rc = -1;

    if (base != NULL && base[0] == '/') {
        rc = fs_path(out, UPLOAD_STATE_PATH, "%s/quantctl/uploads", base);
    } else if (home != NULL && home[0] == '/') {
        rc = fs_path(out, UPLOAD_STATE_PATH, "%s/.local/state/quantctl/uploads", home);
    }
    return rc == 0 && fs_make_dirs(out) == 0;
}

/* What tells one upload from another. */
static int state_name(const char *url, const char *purpose, const char *name, int file, char out[DIGEST_HEX_SIZE])
{
    struct stat info;
    char text[8192];

    if (fstat(file, &info) != 0) {
        return status_fail(STATUS_LOCAL, "%.300s: %s", name, strerror(errno));
    }
    int size =
        snprintf(text, sizeof(text), "%s\n%s\n%s\n%ju %ju %jd %jd.%09ld", url, purpose, name, (uintmax_t)info.st_dev,
                 (uintmax_t)info.st_ino, (intmax_t)info.st_size, (intmax_t)info.st_mtim.tv_sec, info.st_mtim.tv_nsec);
    digest_bytes(text, size < (int)sizeof(text) ? (size_t)size : sizeof(text) - 1, out);
    return 0;
}

static void state_read(struct upload_state *state)
{
    char text[STATE_TEXT];
    ssize_t size = pread(state->fd, text, sizeof(text) - 1, 0);

    text[size > 0 ? size : 0] = '\0';
    if (sscanf(text, "%39s %39s", state->key, state->id) < 1 || !id_valid(state->key, "qctl") ||
        (state->id[0] != '\0' && !id_valid(state->id, "upl"))) {
        state->key[0] = state->id[0] = '\0';
    }
}

static int state_write(struct upload_state *state)
{
    char text[STATE_TEXT];

    if (state->fd < 0) {
        return 0;
    }
    int size = snprintf(text, sizeof(text), "%s %s\n", state->key, state->id);
    if (ftruncate(state->fd, 0) != 0 || pwrite(state->fd, text, (size_t)size, 0) != size || fsync(state->fd) != 0) {
        (void)ftruncate(state->fd, 0); /* it begins again after an interruption */
    }
    return 0;
}

int upload_state_set(struct upload_state *state, const char *id)
{
    if (id[0] == '\0') {
        id_new("qctl", state->key);
    }
    (void)snprintf(state->id, sizeof(state->id), "%s", id);
    return state_write(state);
}

int upload_state_open(const char *url, const char *purpose, const char *name, int file, struct upload_state *out)
{
    char folder[UPLOAD_STATE_PATH], digest[DIGEST_HEX_SIZE];

    *out = (struct upload_state){.fd = -1};
    TRY(state_name(url, purpose, name, file, digest));
    if (state_folder(folder) && fs_path(out->path, sizeof(out->path), "%s/%s", folder, digest) == 0) {
        out->fd = open(out->path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    }
    if (out->fd >= 0 && flock(out->fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
        upload_state_close(out);
        return status_fail(STATUS_LOCAL, "%.300s: another process uploads it", name);
    }
    if (out->fd >= 0) {
        state_read(out);
    }
    return out->key[0] != '\0' ? 0 : upload_state_set(out, "");
}

void upload_state_remove(struct upload_state *state)
{
    if (state->fd >= 0) {
        (void)unlink(state->path);
    }
    upload_state_close(state);
}

void upload_state_close(struct upload_state *state)
{
    if (state->fd >= 0) {
        (void)close(state->fd);
        state->fd = -1;
    }
}
