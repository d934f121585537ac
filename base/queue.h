#pragma once
/* A bounded mailbox of pointers between threads: many producers, many consumers, first in first out. */

#include "base/cleanup.h"

#include <stdbool.h>
#include <stddef.h>

struct queue;

/* New queue of `capacity` >= 1 items; NULL when out of memory. */
struct queue *queue_new(size_t capacity);
/* Items still inside are not freed: close and pop them first. NULL is accepted. */
void queue_free(struct queue *queue);
/* Waits for capacity. False once closed: the item was not taken. */
bool queue_push(struct queue *queue, void *item);
/* False at once when full or closed. */
bool queue_try_push(struct queue *queue, void *item);
/* Next item; NULL when nothing came in timeout_ms (-1 = wait for ever) or when closed and empty. */
void *queue_pop(struct queue *queue, int timeout_ms);
/* Wakes everybody; pushes fail from now on, pops drain what is left. */
void queue_close(struct queue *queue);

CLEANUP_FREE(queue, struct queue, queue_free)
