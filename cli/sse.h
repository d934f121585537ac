#pragma once
/* Server-sent events (the HTML standard, "event stream interpretation"): bytes in, events out. Memory is bounded. */

#include "base/cleanup.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SSE_EVENT_MAX ((size_t)16 << 20) /* bytes of one line, and of one event's data */
#define SSE_ID_SIZE 64
#define SSE_NAME_SIZE 64

struct sse {
    char id[SSE_ID_SIZE]; /* of the last event that had one: what Last-Event-ID says after a reconnection */
    int64_t retry_ms;     /* what the server asked for, or -1 */
    /* An event: its name ("message" without one) and its data, NUL-terminated. Not 0 ends the parsing. */
    int (*event)(void *context, const char *name, const char *data, size_t size);
    void *context;
    /* the parser's own */
    char name[SSE_NAME_SIZE], next_id[SSE_ID_SIZE];
    char *line, *data;
    size_t line_size, line_capacity, data_size, data_capacity;
    bool has_data, after_cr;
};

void sse_init(struct sse *sse, int (*event)(void *, const char *, const char *, size_t), void *context);
void sse_deinit(struct sse *sse);
CLEANUP_DEINIT(sse, struct sse, sse_deinit)
/* The next bytes. STATUS_SERVER for an event that is too large; else what event returned. */
int sse_feed(struct sse *sse, const char *data, size_t size);
/* The connection ended: an event that is not complete is dropped; id and retry_ms stay. */
void sse_break(struct sse *sse);
