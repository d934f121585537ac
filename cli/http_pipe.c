/* Two transfers at once, one of which sends what the other receives. A side that is ahead is paused: the download when
 * the buffer is full, the upload when it is empty. So only the side that the other waits for can be idle. */

#include "cli/http_internal.h"

#include "base/err.h"
#include "base/mem.h"
#include "cli/status.h"

#include <string.h>

#define PIPE_SIZE ((size_t)1 << 20)
#define PIPE_POLL_MS 1000
_Static_assert(PIPE_SIZE >= CURL_MAX_WRITE_SIZE, "one piece of a download fits");

enum { DOWN, UP, SIDES };

struct pipe {
    const struct http_call *get, *put;
    CURLM *multi;
    CURL *easy[SIDES];
    struct transfer transfer[SIDES];
    bool open[SIDES]; /* its transfer owns memory */
    bool ended;       /* everything was received */
    char *buffer;     /* a ring */
    size_t first, used;
};

static int pipe_take(void *context, const char *data, size_t size)
{
    struct pipe *pipe = context;

    if (PIPE_SIZE - pipe->used < size) {
        return HTTP_PAUSE;
    }
    if (pipe->get->take != NULL) {
        TRY(pipe->get->take(pipe->get->context, data, size));
    }
    size_t at = (pipe->first + pipe->used) % PIPE_SIZE, part = PIPE_SIZE - at < size ? PIPE_SIZE - at : size;
    memcpy(pipe->buffer + at, data, part);
    memcpy(pipe->buffer, data + part, size - part);
    pipe->used += size;
    return 0;
}

static int pipe_give(void *context, char *buffer, size_t space, size_t *given)
{
    struct pipe *pipe = context;

    if (pipe->used == 0) {
        return !pipe->ended
                   ? HTTP_PAUSE
                   : status_fail(STATUS_UNREACHABLE, "%s: the answer ended early", pipe->transfer[DOWN].http->url);
    }
    size_t part = PIPE_SIZE - pipe->first < pipe->used ? PIPE_SIZE - pipe->first : pipe->used;
    part = part < space ? part : space;
    memcpy(buffer, pipe->buffer + pipe->first, part);
    pipe->first = (pipe->first + part) % PIPE_SIZE;
    pipe->used -= part;
    *given = part;
    return 0;
}

static void pipe_header(void *context, const char *name, const char *value)
{
    const struct pipe *pipe = context;

    if (pipe->put->header != NULL) {
        pipe->put->header(pipe->put->context, name, value);
    }
}

static int start_side(struct pipe *pipe, int side, struct http *http, const struct http_call *call)
{
    pipe->easy[side] = curl_easy_init();
    if (pipe->easy[side] == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a connection");
    }
    pipe->open[side] = true;
    TRY(http_prepare(http, call, pipe->easy[side], &pipe->transfer[side]));
    curl_easy_setopt(pipe->easy[side], CURLOPT_HTTP_VERSION,
                     CURL_HTTP_VERSION_1_1); /* a paused side holds up no other */
    return curl_multi_add_handle(pipe->multi, pipe->easy[side]) == CURLM_OK
               ? 0
               : err_raise(ERR_INTERNAL, "libcurl does not take a transfer");
}

static int end_side(struct pipe *pipe, int side, CURLcode code, struct http_answer *answer)
{
    (void)curl_multi_remove_handle(pipe->multi, pipe->easy[side]);
    pipe->open[side] = false;
    return http_finish(&pipe->transfer[side], code, answer);
}

static void continue_sides(struct pipe *pipe)
{
    const bool can[SIDES] = {PIPE_SIZE - pipe->used >= CURL_MAX_WRITE_SIZE, pipe->used > 0 || pipe->ended};

    for (int side = 0; side < SIDES; side++) {
        if (pipe->open[side] && pipe->transfer[side].paused && can[side]) {
            pipe->transfer[side].paused = false; /* before the call, in which it may be paused again */
            (void)curl_easy_pause(pipe->easy[side], CURLPAUSE_CONT);
        }
    }
}

/* Finish what has ended. *over: nothing remains to be done. */
static int finish_sides(struct pipe *pipe, struct http_answer *const answers[SIDES], bool *over)
{
    int left = 0;

    for (CURLMsg *message = curl_multi_info_read(pipe->multi, &left); message != NULL && !*over;
         message = curl_multi_info_read(pipe->multi, &left)) {
        int side = message->easy_handle == pipe->easy[UP] ? UP : DOWN;
        if (message->msg != CURLMSG_DONE) {
            continue;
        }
        TRY(end_side(pipe, side, message->data.result, answers[side]));
        pipe->ended = pipe->ended || side == DOWN;
        *over = side == UP || answers[DOWN]->status < 200 || answers[DOWN]->status > 299;
    }
    return 0;
}

static int run_pipe(struct pipe *pipe, struct http_answer *const answers[SIDES])
{
    bool over = false;

    while (!over) {
        int running = 0;
        if (curl_multi_perform(pipe->multi, &running) != CURLM_OK) {
            return err_raise(ERR_INTERNAL, "libcurl's transfers failed");
        }
        TRY(finish_sides(pipe, answers, &over));
        continue_sides(pipe);
        if (!over && curl_multi_poll(pipe->multi, NULL, 0, PIPE_POLL_MS, NULL) != CURLM_OK) {
            return err_raise(ERR_INTERNAL, "libcurl's transfers failed");
        }
    }
    return 0;
}

static void close_pipe(struct pipe *pipe)
{
    for (int side = 0; side < SIDES; side++) {
        if (pipe->open[side]) { /* the other side ended everything, and says why */
            struct http_answer answer = {0};
            struct err_record record;
            err_take(&record);
            (void)end_side(pipe, side, CURLE_ABORTED_BY_CALLBACK, &answer);
            http_answer_deinit(&answer);
            err_restore(&record);
        }
        if (pipe->easy[side] != NULL) {
            curl_easy_cleanup(pipe->easy[side]);
        }
    }
    curl_multi_cleanup(pipe->multi);
    free(pipe->buffer);
}

int http_pipe(struct http *from, const struct http_call *get, struct http_answer *got, struct http *to,
              const struct http_call *put, struct http_answer *answer)
{
    AUTO_FREE struct pipe *pipe = NULL;
    struct http_call receive = *get, send = *put;
    struct http_answer *const answers[SIDES] = {got, answer};

    TRY(mem_new(&pipe));
    pipe->get = get;
    pipe->put = put;
    pipe->multi = curl_multi_init();
    receive.take = pipe_take;
    send.give = pipe_give;
    send.header = pipe_header;
    receive.context = send.context = pipe;
    receive.tick = send.tick = NULL;
    receive.sent = send.sent = NULL;
    receive.header = NULL;
    http_answer_deinit(got);
    http_answer_deinit(answer);
    int rc = pipe->multi != NULL ? mem_buffer(&pipe->buffer, PIPE_SIZE)
                                 : err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for connections");
    rc = rc != 0 ? rc : start_side(pipe, DOWN, from, &receive);
    rc = rc != 0 ? rc : start_side(pipe, UP, to, &send);
    rc = rc != 0 ? rc : run_pipe(pipe, answers);
    close_pipe(pipe);
    return rc;
}
