/* Token sets in micro-batches.
 *
 * A micro-batch is as many whole sequences as fit in the tokens that the device wants at once, at least one: a function
 * of the device and the sequence length alone, so that every run over a set does the same arithmetic in the same
 * order.
 */

#include "pipeline/run.h"

#include "base/err.h"

#include <string.h>

static int64_t widest(const struct model_config *c)
{
    int64_t attention = c->num_heads * c->head_dim;
    return attention > c->intermediate_size ? attention : c->intermediate_size;
}

/* What a flow's micro-batches are computed in, its scratch aside. Not zeroed: where activations are in memory that the
 * device works on itself, most of it is never touched. */
static int flow_tensors(struct flow *flow, struct run *run)
{
    const struct gpu *gpu = run->p->gpu;
    const struct model_config *c = run->config;
    int64_t tokens = flow->batch * flow->set->length;
    const int64_t hidden[2] = {tokens, c->hidden_size};
    const int64_t wide[2] = {tokens, widest(c)};

    int rc = gpu_tensor_uninitialized(gpu, DTYPE_F32, 2, hidden, &flow->x);
    rc = rc != 0 ? rc : gpu_tensor_uninitialized(gpu, DTYPE_F32, 2, hidden, &flow->in);
    rc = rc != 0 ? rc : gpu_tensor_uninitialized(gpu, DTYPE_F32, 2, wide, &flow->wide);
    return rc != 0 ? err_pass(rc, "scratch for %lld tokens", (long long)tokens) : 0;
}

int flow_init(struct flow *flow, const struct calibration_set *set, struct run *run)
{
    const struct gpu *gpu = run->p->gpu;
    const struct model_config *c = run->config;

    memset(flow, 0, sizeof(*flow));
    flow->set = set;
    flow->batch = set->length >= run->batch_tokens ? 1 : run->batch_tokens / set->length;
    if (flow->batch > set->sequences) {
        flow->batch = set->sequences;
    }
    int64_t rest = set->sequences % flow->batch;
    int rc = block_scratch_new(c, flow->batch, set->length, gpu, run->stream, &flow->scratch);
    if (rc == 0 && rest > 0) {
        rc = block_scratch_new(c, rest, set->length, gpu, run->stream, &flow->rest_scratch);
    }
    return rc != 0 ? err_pass(rc, "scratch for %lld tokens", (long long)(flow->batch * set->length))
                   : flow_tensors(flow, run);
}

int flow_init_second(struct flow *flow, const struct flow *first, struct run *run)
{
    *flow = (struct flow){.set = first->set,
                          .batch = first->batch,
                          .shares = true,
                          .scratch = first->scratch,
                          .rest_scratch = first->rest_scratch};
    return flow_tensors(flow, run);
}

void flow_deinit(struct flow *flow, const struct gpu *gpu)
{
    if (!flow->shares) {
        block_scratch_free(flow->scratch);
        block_scratch_free(flow->rest_scratch);
    }
    gpu_tensor_free(gpu, &flow->x);
    gpu_tensor_free(gpu, &flow->in);
    gpu_tensor_free(gpu, &flow->wide);
    memset(flow, 0, sizeof(*flow));
}

int64_t flow_batches(const struct flow *flow)
{
    return (flow->set->sequences + flow->batch - 1) / flow->batch;
}

struct batch flow_batch(const struct flow *flow, int64_t i)
{
    int64_t first = i * flow->batch;
    int64_t left = flow->set->sequences - first;
    int64_t sequences = left < flow->batch ? left : flow->batch;
    int64_t rows = sequences * flow->set->length;

    return (struct batch){
        .first = first * flow->set->length,
        .rows = rows,
        .scratch = sequences == flow->batch ? flow->scratch : flow->rest_scratch,
        .x = tensor_rows(&flow->x, 0, rows),
        .in = tensor_rows(&flow->in, 0, rows),
    };
}

struct tensor flow_wide(const struct flow *flow, const struct batch *batch, int64_t width)
{
    return tensor_2d(flow->wide.data, DTYPE_F32, batch->rows, width);
}

int flow_embed(const struct flow *flow, struct chain *chain, struct run *run)
{
    const struct gpu *gpu = run->p->gpu;
    struct head head = {0};

    int rc = head_load_embedding(run->p->model, gpu, run->stream, &head);
    for (int64_t i = 0; rc == 0 && i < flow_batches(flow); i++) {
        struct batch b = flow_batch(flow, i);
        chain_place(chain, b.first, &b.x, gpu);
        rc = gpu->ops->embed(run->stream, &b.x, &head.embedding, flow->set->ids + b.first);
        rc = rc != 0 ? rc : chain_write(chain, b.first, &b.x, gpu, run->stream);
    }
    head_deinit(&head, gpu);
    rc = rc != 0 ? rc : chain_turn(chain);
    return rc != 0 ? err_pass(rc, "embed") : 0;
}

int flow_forward(const struct flow *flow, struct chain *chain, const struct block *block, struct run *run)
{
    const struct gpu *gpu = run->p->gpu;
    int rc = 0;

    for (int64_t i = 0; rc == 0 && i < flow_batches(flow); i++) {
        struct batch b = flow_batch(flow, i);
        rc = run_tick(run, run->block_fraction, "evaluating");
        rc = rc != 0 ? rc : chain_open(chain, CHAIN_IN, b.first, &b.x, gpu, run->stream);
        rc = rc != 0 ? rc : block_forward(block, b.scratch, &b.x);
        rc = rc != 0 ? rc : chain_write(chain, b.first, &b.x, gpu, run->stream);
    }
    return rc;
}
