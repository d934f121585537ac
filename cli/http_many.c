/* Several transfers at once, in one thread: slots that are filled as calls are there and finished as they end. */

#include "cli/http_internal.h"

#include "base/err.h"
#include "base/mem.h"

#define MANY_POLL_MS 1000

struct slots {
    struct http *http;
    const struct http_many *many;
    CURLM *multi;
    int open;
    CURL *easy[HTTP_SLOTS_MAX];
    struct transfer *transfers; /* one a slot */
    bool busy[HTTP_SLOTS_MAX];
};

static int start_slot(struct slots *slots, int slot, const struct http_call *call)
{
    if (slots->easy[slot] == NULL) {
        slots->easy[slot] = curl_easy_init();
    }
    if (slots->easy[slot] == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a connection");
    }
    slots->busy[slot] = true; /* its transfer owns memory from now on */
    TRY(http_prepare(slots->http, call, slots->easy[slot], &slots->transfers[slot]));
    if (curl_multi_add_handle(slots->multi, slots->easy[slot]) != CURLM_OK) {
        return err_raise(ERR_INTERNAL, "libcurl does not take a transfer");
    }
    slots->open++;
    return 0;
}

static int fill_slots(struct slots *slots)
{
    for (int slot = 0; slot < slots->many->slots; slot++) {
        struct http_call call = {0};
        bool has = false;
        if (slots->busy[slot]) {
            continue;
        }
        TRY(slots->many->next(slots->many->context, slot, &call, &has));
        if (!has) {
            break;
        }
        TRY(start_slot(slots, slot, &call));
    }
    return 0;
}

static int end_slot(struct slots *slots, const CURLMsg *message)
{
    struct transfer *transfer = NULL;
    AUTO(http_answer) struct http_answer answer = {0};
    CURLcode code = message->data.result;

    curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, &transfer);
    int slot = (int)(transfer - slots->transfers);
    curl_multi_remove_handle(slots->multi, message->easy_handle);
    int rc = http_finish(transfer, code, &answer);
    slots->busy[slot] = false;
    slots->open--;
    return slots->many->done(slots->many->context, slot, rc, &answer);
}

static int run_slots(struct slots *slots)
{
    for (;;) {
        int running = 0, left = 0;

        TRY(fill_slots(slots));
        if (slots->open == 0) {
            return 0;
        }
        if (curl_multi_perform(slots->multi, &running) != CURLM_OK) {
            return err_raise(ERR_INTERNAL, "libcurl's transfers failed");
        }
        bool ended = false;
        for (CURLMsg *message = curl_multi_info_read(slots->multi, &left); message != NULL;
             message = curl_multi_info_read(slots->multi, &left)) {
            if (message->msg == CURLMSG_DONE) {
                TRY(end_slot(slots, message));
                ended = true;
            }
        }
        if (!ended && curl_multi_poll(slots->multi, NULL, 0, MANY_POLL_MS, NULL) != CURLM_OK) {
            return err_raise(ERR_INTERNAL, "libcurl's transfers failed");
        }
    }
}

int http_many(struct http *http, const struct http_many *many)
{
    struct slots slots = {.http = http, .many = many, .multi = curl_multi_init()};

    if (slots.multi == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for connections");
    }
    int rc = mem_array(&slots.transfers, HTTP_SLOTS_MAX);
    rc = rc != 0 ? rc : run_slots(&slots);
    for (int slot = 0; slot < HTTP_SLOTS_MAX; slot++) {
        if (slots.easy[slot] != NULL && slots.busy[slot]) { /* something else ended everything */
            struct http_answer answer = {0};
            curl_multi_remove_handle(slots.multi, slots.easy[slot]);
            struct err_record record;
            err_take(&record);
            (void)http_finish(&slots.transfers[slot], CURLE_ABORTED_BY_CALLBACK, &answer);
            http_answer_deinit(&answer);
            err_restore(&record);
        }
        if (slots.easy[slot] != NULL) {
            curl_easy_cleanup(slots.easy[slot]);
        }
    }
    curl_multi_cleanup(slots.multi);
    free(slots.transfers);
    return rc;
}
