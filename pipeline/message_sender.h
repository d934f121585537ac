#pragma once
/* Sends the messages of one run to its receiver, with its times. */

#include "pipeline/pipeline.h"

struct message_sender {
    const struct pipeline *p;
    struct pipeline_times times; /* of the run so far */
};

/* Each returns what the receiver did: nonzero stops the run (message_receiver). */
int message_send_progress(const struct message_sender *sender, double fraction, int64_t block, const char *step,
                          const struct tune_progress *learning);
int message_send_warning(const struct message_sender *sender, const char *code, const char *text);
/* 0: the receiver has it. What `block` points to stays until message_block_answer has said what became of it. */
int message_send_block_done(const struct message_sender *sender, const struct message_block *block);
/* What the receiver did with the block that was sent last; to be asked until *answered. wait: until it is. */
int message_block_answer(const struct message_sender *sender, bool wait, bool *answered);
/* The last one: rc with this thread's error record, which stays, or 0 and the result. Returns rc. */
int message_send_end(const struct message_sender *sender, int rc, const struct evaluation_result *result);
