#pragma once
/* Messages as bodies of frames. */

#include "pipeline/message.h"
#include "pipeline/wire.h"

void message_encode(const struct message *message, struct wire_out *out);
/* *out is set on success only; message_decoded_deinit. ERR_WORKER_LOST: it is not a message. */
int message_decode(struct wire_in *in, struct message *out);
void message_decoded_deinit(struct message *message);

/* Rows of finished blocks; also in orders. */
void saved_block_encode(const struct saved_block *block, struct wire_out *out);
void saved_block_decode(struct wire_in *in, struct saved_block *out);
/* How a block learned; NULL: not at all. Also in a file (end_list.h). */
void tune_curve_encode(const struct tune_curve *curve, struct wire_out *out);
void tune_curve_decode(struct wire_in *in, struct tune_curve *curve);
