/* Downloads. All chunks of all files are one queue; as many transfers as asked for take from it. When one fails, no new
 * one begins, the others end, and after a pause all begin again; it is over when nothing arrived for two minutes. */

#include "cli/pull.h"

#include "base/err.h"
#include "base/fs.h"
#include "base/ids.h"
#include "base/mem.h"
#include "cli/objects.h"
#include "cli/part.h"
#include "cli/progress.h"
#include "cli/status.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define PULL_LOST_MS (120LL * 1000)
#define PULL_PAUSE_SECONDS 1
#define PULL_HEADER 160

/* One transfer: a chunk of a part. */
struct piece {
    struct pull *pull;
    size_t file; /* index in the manifest */
    int64_t chunk, received;
    char path[CLIENT_PATH_MAX], range[PULL_HEADER], match[PULL_HEADER];
    const char *headers[3];
};

struct pull {
    struct cli *cli;
    const struct manifest *manifest;
    const struct pull_options *options;
    const char *artifact;
    bool *fetched;
    int root;
    struct part *parts; /* of each file; open while it is on its way */
    bool *open, *done;
    size_t first;  /* no file before it needs anything */
    bool failing;  /* a transfer failed: begin no new one */
    int64_t pause; /* seconds until all begin again */
    int64_t moved_at;
    struct progress progress; /* of the bytes that were missing in the beginning */
    struct piece pieces[HTTP_SLOTS_MAX];
};

/* --- one transfer */

static int take_bytes(void *context, const char *data, size_t size)
{
    struct piece *piece = context;
    struct part *part = &piece->pull->parts[piece->file];

    if ((int64_t)size > part_chunk_bytes(part, piece->chunk) - piece->received) {
        return status_fail(STATUS_SERVER, "%.300s: the server sends more than was asked for", part->file->path);
    }
    if (fs_pwrite_full(part->data, data, size, piece->chunk * PART_CHUNK + piece->received) != 0) {
        char why[256];
        snprintf(why, sizeof(why), "%s", err_last()->message);
        return status_fail(STATUS_LOCAL, "%.300s: %s", part->file->path, why);
    }
    piece->received += (int64_t)size;
    piece->pull->progress.bytes += (int64_t)size;
    piece->pull->moved_at = clock_monotonic_ms();
    progress_show(&piece->pull->progress, false);
    return 0;
}

static int make_piece(struct pull *pull, struct piece *piece, struct http_call *call)
{
    const struct part *part = &pull->parts[piece->file];
    int64_t first = piece->chunk * PART_CHUNK, bytes = part_chunk_bytes(part, piece->chunk);

    TRY(objects_path(piece->path, sizeof(piece->path), &objects_artifacts, pull->artifact));
    TRY(http_escape(piece->path, sizeof(piece->path), "/files/", "/"));
    TRY(http_escape(piece->path, sizeof(piece->path), part->file->path, "/"));
    snprintf(piece->range, sizeof(piece->range), "Range: bytes=%" PRId64 "-%" PRId64, first, first + bytes - 1);
    snprintf(piece->match, sizeof(piece->match), "If-Match: \"%s\"", part->file->sha256);
    piece->pull = pull;
    piece->received = 0;
    piece->headers[0] = piece->match;
    piece->headers[1] = piece->range;
    piece->headers[2] = NULL;
    *call = (struct http_call){
        .method = "GET", .path = piece->path, .headers = piece->headers, .take = take_bytes, .context = piece};
    return 0;
}

/* Everything of a file is there: check it. */
static int finish_file(struct pull *pull, size_t file)
{
    struct part *part = &pull->parts[file];
    bool again = false;

    TRY(part_finish(part, pull->options->replace, &again));
    if (again) {
        pull->progress.total += part->file->bytes;
        return 0;
    }
    part_close(part);
    pull->open[file] = false;
    pull->done[file] = pull->fetched[file] = true;
    return 0;
}

static int open_file(struct pull *pull, size_t file)
{
    int rc = part_open(pull->root, &pull->manifest->files[file], &pull->parts[file]);

    if (rc != 0) {
        part_close(&pull->parts[file]);
        return rc;
    }
    pull->open[file] = true;
    return pull->parts[file].missing == 0 ? finish_file(pull, file) : 0;
}

static int next_piece(void *context, int slot, struct http_call *call, bool *has)
{
    struct pull *pull = context;
    struct piece *piece = &pull->pieces[slot];

    for (size_t file = pull->first; file < pull->manifest->count && !pull->failing; file++) {
        if (!pull->done[file] && !pull->open[file]) {
            TRY(open_file(pull, file));
        }
        if (pull->done[file]) {
            pull->first += file == pull->first;
            continue;
        }
        piece->chunk = part_take(&pull->parts[file]);
        if (piece->chunk >= 0) {
            piece->file = file;
            *has = true;
            return make_piece(pull, piece, call);
        }
    }
    return 0;
}

static int check_answer(const struct piece *piece, const struct http_answer *answer)
{
    struct part *part = &piece->pull->parts[piece->file];
    int64_t first = piece->chunk * PART_CHUNK, bytes = part_chunk_bytes(part, piece->chunk);
    bool all = answer->status == 200 && first == 0 && bytes == part->file->bytes;
    bool range = answer->status == 206 && answer->range_first == first && answer->range_last == first + bytes - 1 &&
                 answer->range_total == part->file->bytes;

    if (answer->status == 412) {
        return status_fail(STATUS_MISMATCH, "%.300s: the server has other content than its manifest says",
                           part->file->path);
    }
    if (answer->status == 503 || client_busy(answer)) {
        return STATUS_UNREACHABLE;
    }
    if (answer->status < 200 || answer->status > 299) {
        return client_refused(piece->pull->cli, answer);
    }
    if (!all && !range) {
        return status_fail(STATUS_SERVER, "%.300s: the server did not answer with the range that was asked for",
                           part->file->path);
    }
    return piece->received == bytes
               ? 0
               : status_fail(STATUS_UNREACHABLE, "%.300s: the answer ended early", part->file->path);
}

static int piece_done(void *context, int slot, int rc, const struct http_answer *answer)
{
    struct pull *pull = context;
    struct piece *piece = &pull->pieces[slot];
    struct part *part = &pull->parts[piece->file];

    rc = rc != 0 ? rc : check_answer(piece, answer);
    if (rc == 0) {
        TRY(part_complete(part, piece->chunk));
        return part->missing == 0 ? finish_file(pull, piece->file) : 0;
    }
    pull->progress.bytes -= piece->received;
    part_release(part, piece->chunk);
    if (rc == STATUS_UNREACHABLE) {
        pull->failing = true;
        if (client_busy(answer) && answer->retry_after > pull->pause) {
            pull->pause = answer->retry_after;
        }
        return 0;
    }
    return rc;
}

/* --- all of them */

static int pull_all(struct pull *pull)
{
    const struct http_many many = {
        .slots = pull->options->parallel, .next = next_piece, .done = piece_done, .context = pull};

    while (pull->first < pull->manifest->count) {
        if (pull->done[pull->first]) {
            pull->first++;
            continue;
        }
        pull->failing = false;
        pull->pause = PULL_PAUSE_SECONDS;
        TRY(http_many(pull->cli->http, &many));
        if (pull->failing) {
            if (clock_monotonic_ms() - pull->moved_at > PULL_LOST_MS) {
                return status_fail(STATUS_UNREACHABLE,
                                   "nothing arrived for %lld seconds; the same command continues the download",
                                   PULL_LOST_MS / 1000);
            }
            const struct timespec pause = {.tv_sec = pull->pause};
            (void)nanosleep(&pause, NULL);
        }
    }
    return 0;
}

/* What is there already. */
static int find_files(struct pull *pull)
{
    for (size_t i = 0; i < pull->manifest->count; i++) {
        const struct manifest_file *file = &pull->manifest->files[i];
        bool there = false;
        TRY(part_find(pull->root, file, &there, &pull->done[i]));
        if (there && !pull->done[i] && !pull->options->replace) {
            return err_set_hint(
                status_fail(STATUS_MISMATCH, "%.300s: the file is there and is not the artifact's", file->path),
                "--force replaces it");
        }
        pull->progress.total += pull->done[i] ? 0 : file->bytes;
    }
    return 0;
}

static int open_directory(const char *path, int *out)
{
    char copy[CLIENT_PATH_MAX];

    TRY(fs_path(copy, sizeof(copy), "%s", path));
    for (char *at = copy + 1; *at != '\0'; at++) {
        if (*at == '/') {
            *at = '\0';
            (void)mkdir(copy, 0777);
            *at = '/';
        }
    }
    (void)mkdir(copy, 0777);
    *out = open(copy, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return *out >= 0 ? 0 : status_fail(STATUS_LOCAL, "%.300s: %s", path, strerror(errno));
}

int pull_files(struct cli *cli, const char *artifact, const struct manifest *manifest, const char *directory,
               const struct pull_options *options, bool *fetched)
{
    AUTO_FREE struct pull *pull = NULL;
    AUTO_FREE struct part *parts = NULL;
    AUTO_FREE bool *open = NULL;
    AUTO_FREE bool *done = NULL;
    AUTO_CLOSE int root = -1;

    TRY(open_directory(directory, &root));
    TRY(mem_new(&pull));
    TRY(mem_array(&parts, manifest->count));
    TRY(mem_array(&open, manifest->count));
    TRY(mem_array(&done, manifest->count));
    *pull = (struct pull){.cli = cli,
                          .manifest = manifest,
                          .options = options,
                          .artifact = artifact,
                          .fetched = fetched,
                          .root = root,
                          .parts = parts,
                          .open = open,
                          .done = done};
    TRY(client_open(cli));
    progress_init(&pull->progress, cli->quiet);
    TRY(find_files(pull));
    pull->moved_at = pull->progress.started_at = clock_monotonic_ms();
    int rc = pull_all(pull);
    for (size_t i = 0; i < manifest->count; i++) {
        if (open[i]) {
            part_close(&parts[i]);
        }
    }
    if (rc == 0 && pull->progress.total > 0) {
        progress_show(&pull->progress, true);
    }
    return rc;
}
