/* What every message has in addition to its own, and handing it over. */

#include "pipeline/news.h"

#include <malloc.h>
#include <stdio.h>
#include <sys/resource.h>

static int send_message(const struct news *news, struct message *message)
{
    const struct gpu *gpu = news->p->gpu;
    struct err_record record; /* what the caller has to say is not lost to this */
    struct rusage usage = {0};

    message->times = news->times;
    err_take(&record);
    if (gpu->ops->memory_peak(gpu->device, false, &message->device_peak_bytes) != 0) {
        message->device_peak_bytes = 0; /* a backend that does not count, or a device that was lost */
    }
    err_restore(&record);
    (void)getrusage(RUSAGE_SELF, &usage);
    message->host_peak_bytes = (int64_t)usage.ru_maxrss * 1024;
    return news->p->receive(news->p->receiver, message);
}

int news_progress(const struct news *news, double fraction, int64_t block, const char *step)
{
    struct message message = {.kind = MESSAGE_PROGRESS,
                              .progress = {.fraction = fraction, .block = block, .step = step}};

    return send_message(news, &message);
}

int news_warn(const struct news *news, const char *code, const char *text)
{
    struct message message = {.kind = MESSAGE_WARNING};

    snprintf(message.warning.code, sizeof(message.warning.code), "%s", code);
    snprintf(message.warning.text, sizeof(message.warning.text), "%s", text);
    return send_message(news, &message);
}

int news_block_done(const struct news *news, const struct message_block *block)
{
    struct message message = {.kind = MESSAGE_BLOCK_DONE, .block = *block};

    int rc = send_message(news, &message);
    (void)malloc_trim(0); /* a block's worth of freed memory goes back, so that peaks do not add up */
    return rc;
}

int news_end(const struct news *news, int rc, const struct evaluation_result *result)
{
    struct message message = {.kind = MESSAGE_DONE, .done = *result};

    if (rc != 0) {
        message.kind = MESSAGE_FAILED;
        message.failure = *err_last();
        message.failure.code = rc;
    }
    (void)send_message(news, &message);
    if (rc != 0) {
        err_restore(&message.failure);
    }
    return rc;
}
