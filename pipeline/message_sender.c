/* Adds times and peaks of memory to a message, and hands it to the receiver. */

#include "pipeline/message_sender.h"

#include "base/host.h"

#include <stdio.h>

static int send_message(const struct message_sender *sender, struct message *message)
{
    const struct gpu *gpu = sender->p->gpu;
    struct err_record record; /* the caller's, which this must not replace */

    message->times = sender->times;
    err_take(&record);
    if (gpu->ops->memory_peak(gpu->device, false, &message->device_peak_bytes) != 0) {
        message->device_peak_bytes = 0; /* a backend that does not count, or a device that was lost */
    }
    err_restore(&record);
    message->host_peak_bytes = host_peak();
    return sender->p->receive(sender->p->receiver, message);
}

int message_send_progress(const struct message_sender *sender, double fraction, int64_t block, const char *step,
                          const struct tune_progress *learning)
{
    struct message message = {.kind = MESSAGE_PROGRESS,
                              .progress = {.fraction = fraction, .block = block, .step = step}};

    if (learning != NULL) {
        message.progress.learning = *learning;
    }
    return send_message(sender, &message);
}

int message_send_warning(const struct message_sender *sender, const char *code, const char *text)
{
    struct message message = {.kind = MESSAGE_WARNING};

    snprintf(message.warning.code, sizeof(message.warning.code), "%s", code);
    snprintf(message.warning.text, sizeof(message.warning.text), "%s", text);
    return send_message(sender, &message);
}

int message_send_block_done(const struct message_sender *sender, const struct message_block *block)
{
    struct message message = {.kind = MESSAGE_BLOCK_DONE, .block = *block};

    return send_message(sender, &message);
}

int message_block_answer(const struct message_sender *sender, bool wait, bool *answered)
{
    const struct pipeline *p = sender->p;

    *answered = true;
    return p->answer != NULL ? p->answer(p->receiver, wait, answered) : 0;
}

int message_send_end(const struct message_sender *sender, int rc, const struct evaluation_result *result)
{
    struct message message = {.kind = MESSAGE_DONE, .done = *result};

    if (rc != 0) {
        message.kind = MESSAGE_FAILED;
        message.failure = *err_last();
        message.failure.code = rc;
    }
    (void)send_message(sender, &message);
    if (rc != 0) {
        err_restore(&message.failure);
    }
    return rc;
}
