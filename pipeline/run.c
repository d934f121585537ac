/* Where a run is, and what it spent its time on. */

#include "pipeline/run.h"

#include "base/ids.h"

int run_tick(struct run *run, double share, const char *step)
{
    double done = ((double)run->block_index + share) / (double)run->config->num_layers;

    run->block_fraction = share;
    int rc = checkpoint_commit(run->checkpoint, false);
    return rc != 0 ? rc : news_progress(run->news, 0.95 * done, run->block_index, step);
}

void run_add_time(struct run *run, enum pipeline_phase phase, double *mark, double flops)
{
    struct err_record record; /* of a phase that failed: what comes after it says less */

    /* A device works on its own: what it was told in a phase belongs to that phase. An error shows at the next call. */
    err_take(&record);
    (void)run->p->gpu->ops->stream_sync(run->stream);
    err_restore(&record);
    double now = clock_monotonic_seconds();
    run->news->times.seconds[phase] += now - *mark;
    run->news->times.flops[phase] += flops;
    *mark = now;
}
