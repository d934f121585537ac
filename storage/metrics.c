#include "storage/metrics.h"

#include "base/metrics.h"

#include <stddef.h>
#include <string.h>

#define STATE_ROW(name) {#name, offsetof(struct state_ops, name)},
static const struct {
    const char *name;
    size_t offset; /* of the function in struct state_ops */
} operations[] = {STATE_OPERATIONS(STATE_ROW)};
#undef STATE_ROW

#define OPERATION_COUNT (sizeof(operations) / sizeof(operations[0]))

static const struct metrics_bounds duration_bounds = {10, {0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 10}};
static struct metrics_histogram durations[OPERATION_COUNT];

void storage_metrics_observe(const struct state_ops *ops, state_op op, double seconds)
{
    for (size_t i = 0; i < OPERATION_COUNT; i++) {
        state_op row;
        memcpy(&row, (const char *)ops + operations[i].offset, sizeof(row));
        if (row == op) {
            metrics_observe(&durations[i], &duration_bounds, seconds);
            return;
        }
    }
}

void storage_metrics_write(const struct state_ops *ops, FILE *out)
{
    metrics_family(out, "quantd_storage_duration_seconds", "histogram",
                   "Time of one operation of the database, without the wait for its turn.");
    for (size_t i = 0; i < OPERATION_COUNT; i++) {
        const struct metrics_label labels[] = {{"op", operations[i].name}, {"backend", ops->name}, {NULL, NULL}};
        metrics_distribution(out, "quantd_storage_duration_seconds", labels, &duration_bounds, &durations[i]);
    }
}
