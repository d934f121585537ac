#pragma once
/* The inside of one pipeline run, shared by pipeline.c (the order of things), block_pass.c (one block) and evaluate.c.
 */

#include "models/block.h"
#include "pipeline/activations.h"
#include "pipeline/pipeline.h"

/* A token set on its way through the blocks, in fixed micro-batches. */
struct flow {
    const struct calibration_set *set;
    int64_t batch;                      /* sequences of a micro-batch: a function of device and length */
    bool shares;                        /* the scratch is another flow's */
    struct block_scratch *scratch;      /* for full micro-batches */
    struct block_scratch *rest_scratch; /* for the last, shorter one; NULL when there is none */
    struct tensor x, in, wide;          /* device scratch: [batch*length, hidden], [.., hidden], [.., widest] */
};

/* What is committed once a block's file is there. */
struct pending {
    bool open;
    bool activations_saved;
    int64_t first_row;
    struct saved_block saved; /* its digest comes with the file */
    struct report_rows rows;
    struct cache_scales cache;
    struct analysis_rows analysis;
};

struct run {
    const struct pipeline *p;
    const struct model_config *config;
    struct gpu_stream *stream;
    struct block_reader *reader; /* of the next block; NULL: the system reads ahead */
    struct results *results;     /* of the block before */
    struct pending pending;
    int64_t batch_tokens; /* of a micro-batch */
    bool keep_on_device;  /* activations, where they fit */
    struct chain_budget budget;
    struct flow calibration, evaluation; /* set == NULL when there is none */
    struct chain *hidden;                /* calibration activations, quantized path */
    struct chain *attention, *mlp;       /* work: SITE_OUTPUT and SITE_DOWN inputs of the open block */
    struct flow reference;               /* the calibration set in float, where targets come from it; else no set */
    struct chain *reference_hidden;      /* its residual stream */
    struct tensor float_linears[LINEAR_COUNT]; /* of the open block: solved, and still in use there */
    struct chain *eval_float, *eval_quant;     /* evaluation activations on both paths */
    struct saved_block *blocks;                /* committed ones, by index; room for all of the model's */
    int64_t committed;                         /* their number */
    int64_t first_block;                       /* first one to run: behind the last whose chains are on disk */
    double chains_saved_at;                    /* monotonic seconds */
    int64_t block_index;                       /* the open one */
    double block_fraction;                     /* of the open block */
    int64_t next_row, first_row;               /* number of the next report row; and at the open block's begin */
    struct cache_scales cache;                 /* of the open block's keys and values; count 0: none */
    struct analysis_rows analysis;             /* of the open block */
    struct pipeline_times times;
};

/* One micro-batch: rows [first, first+rows) and tensors cut to it. */
struct batch {
    int64_t first, rows;
    struct block_scratch *scratch;
    struct tensor x, in;
};
/* Number of micro-batches; batch i cut from a flow. */
int64_t flow_batches(const struct flow *flow);
struct batch flow_batch(const struct flow *flow, int64_t i);
/* flow->wide as [batch rows, width]. */
struct tensor flow_wide(const struct flow *flow, const struct batch *batch, int64_t width);

int flow_init(struct flow *flow, const struct calibration_set *set, struct run *run);
/* A second flow over the set of `first`, by the scratch of its stages; tensors are its own. */
int flow_init_second(struct flow *flow, const struct flow *first, struct run *run);
void flow_deinit(struct flow *flow, const struct gpu *gpu);
/* Embed the set into chain and make it the first block's input. */
int flow_embed(const struct flow *flow, struct chain *chain, struct run *run);
/* Whole-block forward of a flow: chain IN -> OUT. */
int flow_forward(const struct flow *flow, struct chain *chain, const struct block *block, struct run *run);

/* Say where the run is; nonzero stops it. share: how much of the open block is done, 0..1. */
int run_tick(struct run *run, double share, const char *step);
/* Say something to whoever submitted the job; nonzero stops the run. */
int run_warn(struct run *run, const char *code, const char *text);
/* A block is on disk; nonzero as message_receiver has it. */
int run_block_done(struct run *run, const struct message_block *block);
/* Charge the time since *mark to a phase and move the mark. */
void run_charge(struct run *run, enum pipeline_phase phase, double *mark, double flops);

/* What a block's checkpoint holds: its quantized linears, then float tensors that a rewrite changed, and the scales of
 * keys and values. */
#define BLOCK_ITEMS_MAX (2 * LINEAR_COUNT + LINEAR_COUNT + NORM_COUNT + 2)
struct block_items {
    struct qtensor list[BLOCK_ITEMS_MAX];
    struct tensor codes[BLOCK_ITEMS_MAX]; /* on the device: what list[i].codes waits for; data NULL: it does not */
    int count;
};
void block_items_deinit(struct block_items *items, const struct gpu *gpu);

/* --- checkpoint.c */
/* Bring the chains to where the committed blocks left them, or nearest before; sets first_block. */
int checkpoint_resume(struct run *run);
/* The open block is done: its chains go to disk when it is time, and its items, which are taken over, on a thread of
 * their own. The block before is committed first. A block that was committed by an earlier attempt and only ran again
 * for its chains is not committed again. */
int checkpoint_block(struct run *run, int64_t index, struct block_items *items, struct report_rows *rows);
/* Commit the block that is on its way to disk if its file is there; wait: as soon as it is. */
int checkpoint_commit(struct run *run, bool wait);
/* Let go of a block that is on its way: it was never done. */
void checkpoint_drop(struct run *run);

/* --- results.c: one finished block at a time on its way to its file, beside the run */
struct results;
int results_new(const struct gpu *gpu, struct results **out);
void results_free(struct results *results); /* waits and says nothing of how it went; NULL is fine */
/* Takes the items over; codes on the device are read after all that is queued on `maker` by now. None may be on its
 * way. */
int results_start(struct results *results, const char *path, struct gpu_stream *maker, struct block_items *items);
bool results_ready(const struct results *results); /* results_wait will not wait */
int results_wait(struct results *results, char sha256[DIGEST_HEX_SIZE]);

/* --- sites.c: the calibration set through the open block */
/* Quantize every linear of the open block in true-sequential order; results go to items, report rows to rows. The
 * block's weights are the dequantized ones afterwards, and its inputs are quantized where the scheme says so. */
int sites_solve(struct run *run, struct block *block, struct block_items *items, struct report_rows *rows);
/* What a site needs of its statistics (STATS_*) to be solved; 0 when nothing of it is. */
unsigned site_wants(struct run *run, enum site site);

/* --- reference.c: the calibration set through the open block in float, next to the quantized path */
/* The flow of the path, where some linear takes its target from the float model: then the one of fewest inputs does. */
int reference_open(struct run *run);
/* Room in stats for a site's targets. */
int reference_init(struct run *run, enum site site, struct layer_stats *stats);
/* The block as the reference path sees it: linears that were solved, as they were. */
struct block reference_block(const struct run *run, const struct block *block);
/* One micro-batch of the reference path through the site's half of the block. Where stats ask for targets (NULL: they
 * do not), what the float model has beyond the quantized path's inputs `in` goes to them. quantized: the batch that
 * gave `in`, its x the residual stream before the site adds to it; its own `in` is overwritten where the site adds. */
int reference_pass(struct run *run, const struct block *block, enum site site, int64_t i, struct batch *quantized,
                   const struct tensor *in, struct layer_stats *stats);
/* Let go of the float linears of a site. */
void reference_release(struct run *run, enum site site);

/* --- site_solve.c */
/* Solve the site's linears from its statistics (NULL = no calibration), put the results in place and measure them. */
int site_solve(struct run *run, struct block *block, enum site site, const struct layer_stats *stats,
               struct block_items *items, struct report_rows *rows);
/* The stage that solves a linear of the open block and the scheme it gets; NULL: it stays in float. */
const struct recipe_stage *site_solver(struct run *run, enum linear_role role, struct qscheme *scheme);

/* --- site_scales.c */
/* Name in job->fallback, and in a notice, scales of the result that their stored type does not hold. weight: F32 [N,K]
 * on the device, what the result stands for. */
int site_scales(struct run *run, const struct tensor *weight, struct linear_job *job);
/* The stored scale of static inputs whose range ends at `most`; named likewise where it does not fit. */
float site_input_scale(float most, enum gpu_number number, enum dtype dtype, struct linear_job *job);

/* --- site_inputs.c */
struct report_input;
bool site_input_is_static(const struct qscheme *scheme);
/* Scales of static inputs into the results of a site's linears, all solved and their weights still in float, and what
 * there is to say of them into out[count]. */
int site_inputs(struct run *run, enum site site, const struct layer_stats *stats, const struct qscheme *schemes,
                struct linear_job *jobs, int count, struct report_input *out);

/* --- site_rewrite.c */
/* Let every stage that rewrites change the open block, site by site, before anything is solved. */
int sites_rewrite(struct run *run, struct block *block);
/* The float tensors that were changed and are stored as such. */
int sites_keep_changes(struct run *run, const struct block *block, struct block_items *items);

/* --- site_cache.c */
/* Behind the solved SITE_ATTENTION: measure the scales of a cache that is to be quantized, keep them among the items,
 * and let the block read keys and values through it. */
int site_cache(struct run *run, struct block *block, struct block_items *items);
/* What an analysing recipe has to say of the open block goes to run->analysis. */
int sites_analyse(struct run *run, struct block *block);

/* Head and losses over both evaluation chains. */
int evaluate_finish(struct run *run, struct evaluation_result *out);
