#pragma once
/* What the files of the pass for output moments share. */

#include "models/block_grad.h"
#include "pipeline/run.h"

/* The head, with labels drawn from the model. */
struct moments_labels {
    struct run *run;
    struct head head;
    struct head_tape *tape;
    struct tensor hidden, logits; /* F32 [chunk, h], [chunk, V] */
    float *host;                  /* [chunk, V] */
    int64_t chunk;
};
/* tokens: that moments_labels_backward gets at once, at most. Deinit also after a failure. */
int moments_labels_init(struct run *run, int64_t tokens, struct moments_labels *labels);
void moments_labels_deinit(struct moments_labels *labels);
/* The hidden states x [T, h] of tokens `first` and on become the gradient of the labels' loss. */
int moments_labels_backward(struct moments_labels *labels, int64_t first, const struct tensor *x);
