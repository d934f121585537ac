/* Where a run is, and what it spent its time on. */

#include "pipeline/run.h"

#include "base/ids.h"

int run_tick(struct run *run, double share, const char *step)
{
    double done = ((double)run->block_index + share) / (double)run->config->num_layers;

    run->block_fraction = share;
    int rc = checkpoint_commit(run->checkpoint, false);
    return rc != 0 ? rc : message_send_progress(run->sender, 0.95 * done, run->block_index, step);
}

void run_add_time(struct run *run, enum pipeline_phase phase, double *mark, double flops)
{
    double now = clock_monotonic_seconds();

    if (run->p->gpu->info.host_memory) { /* what was queued has ended */
        run->sender->times.seconds[phase] += now - *mark;
    } else {
        phase_clock_end(&run->clock, phase, &run->sender->times);
    }
    run->sender->times.flops[phase] += flops;
    *mark = now;
}
