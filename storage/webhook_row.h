#pragma once
/* Webhooks, and the messages that are on their way to them. */

#include "base/cleanup.h"
#include "base/ids.h"
#include "base/trace.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define WEBHOOK_URL_SIZE 2049
#define WEBHOOK_SECRET_SIZE 64
#define WEBHOOK_TYPE_SIZE 48 /* of a message */

/* Parts that a change sets. */
enum webhook_columns {
    WEBHOOK_SET_NAME = 1 << 0,
    WEBHOOK_SET_URL = 1 << 1,
    WEBHOOK_SET_EVENTS = 1 << 2,
    WEBHOOK_SET_JOBS = 1 << 3,
    WEBHOOK_SET_DISABLED = 1 << 4, /* what waits for it fails */
    WEBHOOK_SET_SECRET = 1 << 5,   /* the one that it has is valid until previous_until as well */
};

/* All texts are the caller's. */
struct webhook_row {
    const char *id, *project, *name, *url, *secret;
    const json_t *events; /* types of messages; NULL: all */
    bool every_job;       /* of the project; else those that name it */
    bool disabled;
    const char *disabled_reason;
    int64_t created_at, previous_until;
};

/* A message that is due. */
struct delivery_row {
    char id[ID_SIZE], webhook[ID_SIZE], project[PROJECT_SIZE];
    char type[WEBHOOK_TYPE_SIZE];
    char url[WEBHOOK_URL_SIZE];
    char secret[WEBHOOK_SECRET_SIZE], previous[WEBHOOK_SECRET_SIZE]; /* previous "": none is valid any longer */
    char traceparent[TRACE_PARENT_SIZE], tracestate[TRACE_STATE_SIZE];
    int64_t created_at, attempts; /* so far */
    bool once;                    /* it is not tried again */
    bool again; /* it was tried before, or another message to the webhook was, which is still pending */
    char *body;
};

struct delivery_list {
    struct delivery_row *rows;
    size_t count;
    int64_t next_at; /* when the next one that is not due yet is; 0: there is none */
};

void delivery_list_deinit(struct delivery_list *list);
CLEANUP_DEINIT(delivery_list, struct delivery_list, delivery_list_deinit)

enum delivery_status { DELIVERY_PENDING, DELIVERY_DELIVERED, DELIVERY_FAILED };
/* As the API and the table name it. */
const char *delivery_status_name(enum delivery_status status);

/* What came of an attempt. */
struct delivery_attempt {
    const char *id;
    enum delivery_status status;
    int64_t at, next_at; /* next_at: of one that is pending */
    int status_code;     /* of the answer; 0: there was none */
    const char *error;   /* NULL of a success */
    bool gone;           /* the receiver is not there any more: the webhook is disabled */
};
