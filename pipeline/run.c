/* Where a run is, and what it spent its time on. */

#include "pipeline/run.h"

#include "base/err.h"

int run_tick(struct run *run, double share, const char *step)
{
    int64_t block = run->blocks_done ? run->config->num_layers : run->block_index;
    double done = ((double)block + run->part_begin + (1 - run->part_begin - run->part_left) * share) /
                  (double)run->config->num_layers;

    run->block_fraction = share;
    if (run->trials != NULL) {
        return message_send_progress(run->sender, run->pass_share * run->pass_done, run->block_index, "measuring",
                                     NULL);
    }
    TRY(checkpoint_commit(run->checkpoint, false));
    return message_send_progress(run->sender, 0.95 * done, block, step, &run->learning);
}

void run_end_phase(struct run *run, enum pipeline_phase phase, double flops)
{
    phase_clock_end(&run->clock, phase, &run->sender->times);
    run->sender->times.flops[phase] += flops;
}
