/* Resumable uploads. Each file is at one step: look where its upload is, or create it; then piece after piece, each
 * with its digest, so that it counts completely or not at all; the last one answers with the file. Several files are on
 * their way at once, a slot each (http_many.c). When a transfer fails, no new one begins, the others end, and after a
 * pause all begin again by looking; it is over when nothing was accepted for two minutes.
 *
 * The digest of the complete file is computed along the way, also of pieces that an earlier process has sent, and
 * compared with that of the server's file: a file that changed meanwhile is found out. */

#include "cli/upload_internal.h"

#include "base/err.h"
#include "base/fs.h"
#include "base/json.h"
#include "base/mem.h"
#include "cli/bar.h"
#include "cli/print.h"
#include "cli/status.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define PIECES_LOST_MS (120LL * 1000)
#define PIECES_BUSY_MS (3600LL * 1000) /* the server hashes what it has got */
#define PIECES_SHOW_MS 200
#define PIECES_PAUSE_SECONDS 1
#define PIECES_BAR 30
#define PIECES_READ ((size_t)1 << 20)
#define PIECES_HEADER 128
#define PIECES_CREATIONS 3

enum step { STEP_LOOK, STEP_CREATE, STEP_PIECE, STEP_DONE };

/* One file on its way. */
struct sending {
    struct pieces *all;
    struct upload_item *item;
    struct upload_state state;
    int fd;
    enum step step;
    bool on_slot, looked;
    int created;           /* how often */
    int64_t bytes, offset; /* of the file; that the server has */
    int64_t size, sent;    /* of the open piece */
    char *buffer;          /* the piece */
    struct digest *digest; /* of the file as far as hashed */
    int64_t hashed;
    int64_t busy_since; /* the server works on it by itself; 0 */
    char path[CLIENT_PATH_MAX];
    char texts[3][PIECES_HEADER];
    const char *headers[4];
};

struct pieces {
    struct cli *cli;
    const char *purpose;
    struct sending *files;
    size_t count;
    struct sending *slots[HTTP_SLOTS_MAX];
    bool failing;  /* a transfer failed: begin no new one */
    int64_t pause; /* seconds until all begin again */
    int64_t moved_at, shown_at, started_at;
    int64_t total, before; /* bytes of all files; that the server had in the beginning */
};

/* --- progress */

static void pieces_show(struct pieces *all, bool last)
{
    char bar[BAR_SIZE], bytes[PRINT_SIZE], total[PRINT_SIZE], speed[PRINT_SIZE];
    int64_t now = clock_monotonic_ms(), there = 0;
    size_t done = 0;

    if (all->cli->quiet || isatty(STDERR_FILENO) == 0 || (!last && now - all->shown_at < PIECES_SHOW_MS)) {
        return;
    }
    all->shown_at = now;
    for (size_t i = 0; i < all->count; i++) {
        const struct sending *file = &all->files[i];
        there += file->step == STEP_DONE ? file->bytes : file->offset + (file->on_slot ? file->sent : 0);
        done += file->step == STEP_DONE;
    }
    double seconds = (double)(now - all->started_at) / 1000;
    double moved = there > all->before ? (double)(there - all->before) : 0;
    fprintf(stderr, "\r[%s] %s of %s, %s/s, %zu of %zu files\x1b[K%s",
            bar_fill(all->total > 0 ? (double)there / (double)all->total : 1, PIECES_BAR, bar),
            print_bytes((double)there, bytes), print_bytes((double)all->total, total),
            print_bytes(seconds > 0 ? moved / seconds : 0, speed), done, all->count, last ? "\n" : "");
}

static void piece_sent(void *context, int64_t bytes)
{
    struct sending *file = context;

    file->sent = bytes;
    pieces_show(file->all, false);
}

/* --- the local file */

static int fail_changed(const struct sending *file)
{
    return status_fail(STATUS_MISMATCH, "%.300s: the file changed while it was uploaded", file->item->path);
}

/* Hash what lies between what was hashed and the offset: another process has sent it. */
static int hash_until(struct sending *file, int64_t offset)
{
    while (file->hashed < offset) {
        int64_t left = offset - file->hashed;
        size_t part = left < (int64_t)PIECES_READ ? (size_t)left : PIECES_READ;
        if (fs_pread_full(file->fd, file->buffer, part, file->hashed) != 0) {
            return fail_changed(file);
        }
        digest_update(file->digest, file->buffer, part);
        file->hashed += (int64_t)part;
    }
    return 0;
}

static int piece_read(struct sending *file, char base64[DIGEST_BASE64_SIZE])
{
    int64_t left = file->bytes - file->offset;
    char hex[DIGEST_HEX_SIZE];

    TRY(hash_until(file, file->offset));
    file->size = left < UPLOAD_PIECE ? left : UPLOAD_PIECE;
    file->sent = 0;
    if (fs_pread_full(file->fd, file->buffer, (size_t)file->size, file->offset) != 0) {
        return fail_changed(file);
    }
    int64_t end = file->offset + file->size;
    if (file->hashed < end) { /* a piece that is sent again was hashed before */
        digest_update(file->digest, file->buffer + (file->hashed - file->offset), (size_t)(end - file->hashed));
        file->hashed = end;
    }
    digest_bytes(file->buffer, (size_t)file->size, hex);
    digest_base64(hex, base64);
    return 0;
}

/* --- requests */

static int make_create(struct sending *file, struct http_call *call)
{
    snprintf(file->path, sizeof(file->path), "/v1/uploads");
    TRY(client_query(file->path, sizeof(file->path), "purpose", file->all->purpose));
    TRY(client_query(file->path, sizeof(file->path), "name", file->item->name));
    snprintf(file->texts[0], PIECES_HEADER, "Upload-Length: %" PRId64, file->bytes);
    snprintf(file->texts[1], PIECES_HEADER, "Idempotency-Key: %s", file->state.key);
    file->headers[0] = file->texts[0];
    file->headers[1] = file->texts[1];
    file->headers[2] = NULL;
    *call = (struct http_call){.method = "POST", .path = file->path, .headers = file->headers};
    return 0;
}

static int make_piece_call(struct sending *file, struct http_call *call)
{
    char base64[DIGEST_BASE64_SIZE];

    TRY(piece_read(file, base64));
    bool last = file->offset + file->size == file->bytes;
    snprintf(file->path, sizeof(file->path), "/v1/uploads/%s", file->state.id);
    snprintf(file->texts[0], PIECES_HEADER, "Upload-Offset: %" PRId64, file->offset);
    snprintf(file->texts[1], PIECES_HEADER, "Upload-Complete: ?%d", last ? 1 : 0);
    snprintf(file->texts[2], PIECES_HEADER, "Content-Digest: sha-256=:%s:", base64);
    for (int i = 0; i < 3; i++) {
        file->headers[i] = file->texts[i];
    }
    file->headers[3] = NULL;
    *call = (struct http_call){.method = "PATCH",
                               .path = file->path,
                               .headers = file->headers,
                               .type = "application/partial-upload",
                               .body = file->buffer,
                               .size = (size_t)file->size,
                               .sent = piece_sent,
                               .context = file};
    return 0;
}

static int make_call(struct sending *file, struct http_call *call)
{
    switch (file->step) {
    case STEP_LOOK:
        snprintf(file->path, sizeof(file->path), "/v1/uploads/%s", file->state.id);
        *call = (struct http_call){.method = "GET", .path = file->path};
        return 0;
    case STEP_CREATE:
        return make_create(file, call);
    default:
        return make_piece_call(file, call);
    }
}

static int next_call(void *context, int slot, struct http_call *call, bool *has)
{
    struct pieces *all = context;

    for (size_t i = 0; i < all->count && !all->failing; i++) {
        struct sending *file = &all->files[i];
        if (file->step == STEP_DONE || file->on_slot) {
            continue;
        }
        if (file->buffer == NULL) {
            TRY(mem_buffer(&file->buffer, (size_t)UPLOAD_PIECE));
        }
        TRY(make_call(file, call));
        file->on_slot = *has = true;
        all->slots[slot] = file;
        return 0;
    }
    return 0;
}

/* --- answers */

/* Something was accepted. */
static void note_move(struct sending *file)
{
    file->all->moved_at = clock_monotonic_ms();
    file->busy_since = 0;
}

/* All begin again after a pause. */
static int begin_again(struct sending *file, const struct http_answer *answer, bool busy)
{
    struct pieces *all = file->all;
    int64_t now = clock_monotonic_ms();

    all->failing = true;
    file->step = file->state.id[0] != '\0' ? STEP_LOOK : STEP_CREATE;
    file->busy_since = !busy ? 0 : file->busy_since != 0 ? file->busy_since : now;
    if (busy && now - file->busy_since < PIECES_BUSY_MS) {
        all->moved_at = now;
    }
    if (client_busy(answer) && answer->retry_after > all->pause) {
        all->pause = answer->retry_after;
    }
    return 0;
}

/* The server does not know the upload, or knows another under its id: begin a new one. */
static int create_new(struct sending *file)
{
    if (file->created++ == PIECES_CREATIONS) {
        return status_fail(STATUS_SERVER, "%.300s: the server forgets each upload", file->item->path);
    }
    file->step = STEP_CREATE;
    file->offset = 0;
    return upload_state_set(&file->state, "");
}

static int take_upload(struct sending *file, const struct http_answer *answer)
{
    AUTO_JSON json_t *upload = NULL;

    TRY(client_parse(file->all->cli, answer, &upload));
    const char *id = json_get_string(upload, "id");
    int64_t bytes = json_integer_value(json_object_get(upload, "bytes"));
    int64_t offset = json_integer_value(json_object_get(upload, "offset"));
    if (id == NULL || !id_valid(id, "upl") || offset < 0 || offset > bytes) {
        return status_fail(STATUS_SERVER, "the server answered with an upload that cannot be one");
    }
    if (bytes != file->bytes) {
        return create_new(file);
    }
    if (file->step == STEP_CREATE) {
        TRY(upload_state_set(&file->state, id));
    }
    note_move(file);
    file->all->before += file->looked ? 0 : offset;
    file->looked = true;
    file->offset = offset;
    file->step = STEP_PIECE;
    return 0;
}

static int take_file(struct sending *file, const struct http_answer *answer)
{
    AUTO_JSON json_t *object = NULL;
    char hex[DIGEST_HEX_SIZE], path[CLIENT_PATH_MAX];

    TRY(client_parse(file->all->cli, answer, &object));
    TRY(hash_until(file, file->bytes));
    digest_finish(file->digest, hex);
    file->digest = NULL;
    const char *sha256 = json_get_string(object, "sha256"), *id = json_get_string(object, "id");
    if (sha256 == NULL || strcmp(sha256, hex) != 0) {
        AUTO(http_answer) struct http_answer ignored = {0};
        snprintf(path, sizeof(path), "/v1/files/%.64s", id != NULL ? id : "");
        (void)client_raw(file->all->cli, &(struct http_call){.method = "DELETE", .path = path}, &ignored);
        upload_state_remove(&file->state);
        return fail_changed(file);
    }
    note_move(file);
    file->step = STEP_DONE;
    file->offset = file->bytes;
    file->item->file = MOVE(object);
    snprintf(file->item->upload, sizeof(file->item->upload), "%s", file->state.id);
    upload_state_close(&file->state);
    free(file->buffer);
    file->buffer = NULL;
    return 0;
}

static int take_answer(struct sending *file, const struct http_answer *answer)
{
    char code[64];

    client_problem_code(answer, code, sizeof(code));
    if (file->step == STEP_PIECE && answer->status == 201) {
        return take_file(file, answer);
    }
    if (file->step == STEP_PIECE && answer->status == 204) {
        note_move(file);
        file->offset += file->size;
        return 0;
    }
    if (file->step != STEP_PIECE && (answer->status == 200 || answer->status == 201)) {
        return take_upload(file, answer);
    }
    if (answer->status == 404 && file->step != STEP_CREATE) {
        return create_new(file);
    }
    if (strcmp(code, "upload_busy") == 0 || strcmp(code, "idempotency_in_progress") == 0) {
        return begin_again(file, answer, true);
    }
    if (strcmp(code, "offset_mismatch") == 0 || strcmp(code, "digest_mismatch") == 0 || answer->status == 503 ||
        answer->status == 408 || client_busy(answer)) {
        return begin_again(file, answer, false);
    }
    return client_refused(file->all->cli, answer);
}

static int call_done(void *context, int slot, int rc, const struct http_answer *answer)
{
    struct pieces *all = context;
    struct sending *file = all->slots[slot];

    file->on_slot = false;
    file->sent = 0;
    if (rc == STATUS_UNREACHABLE) {
        return begin_again(file, answer, false);
    }
    TRY(rc);
    rc = take_answer(file, answer);
    pieces_show(all, false);
    return rc;
}

/* --- all of them */

static int open_sending(struct pieces *all, struct sending *file, struct upload_item *item)
{
    file->all = all;
    file->item = item;
    TRY(upload_open(item->path, &file->fd, &file->bytes));
    TRY(upload_state_open(http_url(all->cli->http), all->purpose, item->name, file->fd, &file->state));
    file->step = file->state.id[0] != '\0' ? STEP_LOOK : STEP_CREATE;
    file->digest = digest_new();
    all->total += file->bytes;
    return file->digest != NULL ? 0 : err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a digest");
}

static void close_sending(struct sending *file)
{
    if (file->fd >= 0) {
        (void)close(file->fd);
    }
    upload_state_close(&file->state);
    digest_free(file->digest);
    free(file->buffer);
}

static bool all_done(const struct pieces *all)
{
    for (size_t i = 0; i < all->count; i++) {
        if (all->files[i].step != STEP_DONE) {
            return false;
        }
    }
    return true;
}

static int pieces_send(struct pieces *all, int parallel)
{
    const struct http_many many = {.slots = parallel, .next = next_call, .done = call_done, .context = all};

    all->moved_at = all->started_at = clock_monotonic_ms();
    while (!all_done(all)) {
        all->failing = false;
        all->pause = PIECES_PAUSE_SECONDS;
        TRY(http_many(all->cli->http, &many));
        if (!all->failing) {
            continue;
        }
        if (clock_monotonic_ms() - all->moved_at > PIECES_LOST_MS) {
            return status_fail(STATUS_UNREACHABLE,
                               "nothing was accepted for %lld seconds; the same command continues the upload",
                               PIECES_LOST_MS / 1000);
        }
        const struct timespec pause = {.tv_sec = all->pause};
        (void)nanosleep(&pause, NULL);
    }
    pieces_show(all, true);
    return 0;
}

int upload_pieces(struct cli *cli, struct upload_item *const *items, size_t count, const char *purpose, int parallel)
{
    struct pieces all = {.cli = cli, .purpose = purpose};
    AUTO_FREE struct sending *files = NULL;
    int rc = 0;

    if (count == 0) {
        return 0;
    }
    TRY(mem_array(&files, count));
    all.files = files;
    for (size_t i = 0; i < count; i++) {
        files[i].fd = files[i].state.fd = -1;
    }
    for (size_t i = 0; rc == 0 && i < count; i++) {
        all.count = i + 1;
        rc = open_sending(&all, &files[i], items[i]);
    }
    rc = rc == 0 ? pieces_send(&all, parallel) : rc;
    for (size_t i = 0; i < all.count; i++) {
        close_sending(&files[i]);
    }
    return rc;
}
