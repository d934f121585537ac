#pragma once
/* A few threads that take items from one bounded mailbox. */

#include <stdbool.h>
#include <stddef.h>

struct worker_team;

int worker_team_new(int threads, size_t capacity, void (*work)(void *data, void *item), void *data,
                    struct worker_team **out);
/* Any thread, never waits. False when full or closed. */
bool worker_team_push(struct worker_team *team, void *item);
/* No more items; what is queued is still worked off. Joins and frees. NULL is fine. */
void worker_team_free(struct worker_team *team);
