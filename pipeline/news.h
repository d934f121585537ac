#pragma once
/* The messages of one run on their way to its receiver. */

#include "pipeline/pipeline.h"

struct news {
    const struct pipeline *p;
    struct pipeline_times times; /* of the run so far */
};

/* Each: nonzero stops the run, as message_receiver has it. */
int news_progress(const struct news *news, double fraction, int64_t block, const char *step);
int news_warn(const struct news *news, const char *code, const char *text);
int news_block_done(const struct news *news, const struct message_block *block);
/* The last one: rc with this thread's error record, which stays, or 0 and the result. Returns rc. */
int news_end(const struct news *news, int rc, const struct evaluation_result *result);
