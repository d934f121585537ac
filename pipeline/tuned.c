/* Solved modules of the open block, until it has learned. */

#include "pipeline/tuned.h"

#include "base/err.h"
#include "base/mem.h"

#include <stdlib.h>

int tuned_add(struct run *run, int module, struct tensor *weight, const struct report_facts *facts)
{
    struct tuning *t = run->tuning;

    TRY(mem_resize(&t->list, (size_t)t->count + 1));
    struct tuned *tuned = &t->list[t->count++];
    *tuned = (struct tuned){
        .module = module, .stats = -1, .weight = tensor_move(weight), .facts = *facts, .job = *facts->job};
    model_module_name(run->p->model, run->block_index, module, tuned->name);
    tuned->job.result = (struct qtensor){.rows = 0};
    tuned->job.codes = tuned->job.scale = tuned->job.zero = tuned->job.dequantized = (struct tensor){.data = NULL};
    return 0;
}

int tuned_add_stats(struct run *run, struct layer_stats *stats)
{
    struct tuning *t = run->tuning;

    if (t == NULL) {
        return 0;
    }
    if ((stats->flags & STATS_HESSIAN) != 0 && stats->tokens > 0) {
        TRY(mem_resize(&t->stats, (size_t)t->stats_count + 1));
        for (int i = t->with_stats; i < t->count; i++) {
            t->list[i].stats = t->stats_count;
        }
        t->stats[t->stats_count++] = *stats;
        *stats = (struct layer_stats){.flags = 0};
    }
    t->with_stats = t->count;
    return 0;
}

void tuned_clear(struct run *run)
{
    struct tuning *t = run->tuning;

    if (t == NULL) {
        return;
    }
    for (int i = 0; i < t->count; i++) {
        gpu_tensor_free(run->p->gpu, &t->list[i].weight);
    }
    for (int i = 0; i < t->stats_count; i++) {
        stats_deinit(&t->stats[i], run->p->gpu);
    }
    free(t->list);
    free(t->stats);
    t->list = NULL;
    t->stats = NULL;
    t->count = t->stats_count = t->with_stats = 0;
    t->curve.done = false;
    run->part_begin = run->part_left = 0;
}
