/* Messages to webhooks: made in the transaction that they tell of, read when they are due, ended by what came of an
 * attempt. A message keeps the body that it was made with, so that each attempt at it sends the same bytes. */

#include "storage/sqlite.h"

#include "base/err.h"
#include "base/ids.h"
#include "base/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WEBHOOKS_PAGE 64 /* of those that a move is told to, read at a time */

const char sqlite_delivery_body[] =
    "json_object('id', id, 'object', 'webhook.delivery', 'webhook_id', webhook, 'job_id', job, 'type', type, 'status',"
    " status, 'attempts', attempts, 'created_at', created_at, 'last_attempt_at', last_at, 'next_attempt_at',"
    " CASE status WHEN 'pending' THEN next_at END, 'finished_at', finished_at, 'response_status', status_code, 'error',"
    " error)";

static const char *const status_names[] = {"pending", "delivered", "failed"};

const char *delivery_status_name(enum delivery_status status)
{
    return status_names[status];
}

void delivery_list_deinit(struct delivery_list *list)
{
    for (size_t i = 0; i < list->count; i++) {
        free(list->rows[i].body);
        explicit_bzero(list->rows[i].secret, sizeof(list->rows[i].secret));
        explicit_bzero(list->rows[i].previous, sizeof(list->rows[i].previous));
    }
    free(list->rows);
    *list = (struct delivery_list){.rows = NULL};
}

/* --- made */

static int insert_delivery(struct state *state, const char *id, const char *webhook, const char *job, const char *type,
                           const json_t *body)
{
    int64_t now = clock_unix_seconds();

    return sqlite_run(state, NULL,
                      "INSERT INTO deliveries (id, webhook, job, type, body, once, created_at, next_at)"
                      " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                      "ttttjiii", id, webhook, job, type, body, (int64_t)(job == NULL), now, now);
}

/* Ids of the webhooks after `after` that are told of it. */
static int deliveries_wanting(struct state *state, const char *job, const char *type, const char *after,
                              char ids[WEBHOOKS_PAGE][ID_SIZE], int *count)
{
    sqlite3_stmt *row;

    *count = 0;
    int rc = sqlite_first(state, &row,
                          "SELECT w.id FROM jobs AS j JOIN webhooks AS w ON w.project = j.project WHERE j.id = ?"
                          " AND w.id > ? AND w.disabled_at IS NULL"
                          " AND (w.every_job = 1 OR w.id = json_extract(j.request, '$.webhook_id'))"
                          " AND (w.events IS NULL OR EXISTS (SELECT 1 FROM json_each(w.events) WHERE value = ?))"
                          " ORDER BY w.id LIMIT ?",
                          "ttti", job, after, type, (int64_t)WEBHOOKS_PAGE);
    for (; rc > 0; rc = sqlite_next(state, row)) {
        (void)snprintf(ids[(*count)++], ID_SIZE, "%s", (const char *)sqlite3_column_text(row, 0));
    }
    return rc;
}

int sqlite_delivery_announce(struct state *state, struct state_args *args)
{
    const struct job_update *update = args->update;
    char ids[WEBHOOKS_PAGE][ID_SIZE], id[ID_SIZE], after[ID_SIZE] = "";
    AUTO_JSON json_t *body = NULL;
    int count;

    do {
        TRY(deliveries_wanting(state, update->id, update->message, after, ids, &count));
        if (count > 0 && body == NULL) {
            AUTO(job_row) struct job_row job = {0};
            TRY(sqlite_job_select(state, NULL, update->id, &job));
            body = update->message_body(update->message, &job);
            if (body == NULL) {
                return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a message to webhooks");
            }
        }
        for (int i = 0; i < count; i++) {
            id_new("msg", id);
            TRY(insert_delivery(state, id, ids[i], update->id, update->message, body));
            memcpy(after, ids[i], sizeof(after));
            args->posted = true;
        }
    } while (count == WEBHOOKS_PAGE);
    return 0;
}

int sqlite_delivery_create(struct state *state, struct state_args *args)
{
    TRY(insert_delivery(state, args->id, args->kind, NULL, args->event, args->body));
    args->posted = true;
    return 0;
}

/* --- shown */

int sqlite_delivery_get(struct state *state, struct state_args *args)
{
    struct sqlite_query query = {0};
    sqlite3_stmt *row;

    sqlite_query_add(&query, "SELECT ");
    sqlite_query_add(&query, sqlite_delivery_body);
    sqlite_query_add(&query, " FROM deliveries WHERE id = ? AND webhook = ?");
    sqlite_query_text(&query, args->id);
    sqlite_query_text(&query, args->kind);
    int rc = sqlite_query_first(state, &query, &row);
    if (rc <= 0) {
        return rc < 0 ? rc : err_raise(ERR_NOT_FOUND, "there is no delivery \"%.80s\"", args->id);
    }
    rc = sqlite_first_json(row, args->out);
    sqlite_done(row);
    return rc;
}

/* --- due */

static void delivery_text(sqlite3_stmt *row, int column, char *out, size_t size)
{
    const unsigned char *text = sqlite3_column_text(row, column);

    (void)snprintf(out, size, "%s", text != NULL ? (const char *)text : "");
}

static int delivery_read(sqlite3_stmt *row, struct delivery_row *out)
{
    const unsigned char *body = sqlite3_column_text(row, 2);

    TRY(mem_strdup(&out->body, body != NULL ? (const char *)body : ""));
    delivery_text(row, 0, out->id, sizeof(out->id));
    delivery_text(row, 1, out->webhook, sizeof(out->webhook));
    out->created_at = sqlite3_column_int64(row, 3);
    out->attempts = sqlite3_column_int64(row, 4);
    out->once = sqlite3_column_int64(row, 5) != 0;
    delivery_text(row, 6, out->url, sizeof(out->url));
    delivery_text(row, 7, out->secret, sizeof(out->secret));
    delivery_text(row, 8, out->previous, sizeof(out->previous));
    delivery_text(row, 9, out->traceparent, sizeof(out->traceparent));
    delivery_text(row, 10, out->tracestate, sizeof(out->tracestate));
    delivery_text(row, 11, out->type, sizeof(out->type));
    delivery_text(row, 12, out->project, sizeof(out->project));
    out->again = sqlite3_column_int64(row, 13) != 0;
    return 0;
}

/* Index look-ups for each webhook, so that one whose messages pile up does not stand before the others. Projects take
 * turns, and within a project webhooks that failed wait for those that did not. Ids are sorted, and then the rows of
 * those that are wanted read: bodies are large. */
static int read_due(struct state *state, int64_t now, int64_t each, int limit, struct delivery_list *list)
{
    sqlite3_stmt *row;

    static const char due[] =
        "SELECT d.id, d.webhook, d.body, d.created_at, d.attempts, d.once, w.url, w.secret,"
        " CASE WHEN w.previous_until > ? THEN w.previous_secret END, j.traceparent, j.tracestate, d.type, w.project,"
        " due.again"
        " FROM (SELECT id, again, next_at, ROW_NUMBER() OVER (PARTITION BY project ORDER BY again, next_at, id) AS turn"
        " FROM (SELECT c.id AS id, v.project AS project, c.next_at AS next_at, c.attempts > 0 OR EXISTS (SELECT 1"
        " FROM deliveries AS t WHERE t.webhook = v.id AND t.status = 'pending' AND t.attempts > 0) AS again"
        " FROM webhooks AS v JOIN deliveries AS c ON c.id IN (SELECT o.id FROM deliveries AS o WHERE o.webhook = v.id"
        " AND o.status = 'pending' AND o.next_at <= ? ORDER BY o.next_at, o.id LIMIT ?))"
        " ORDER BY turn, again, next_at, id LIMIT ?) AS due"
        " CROSS JOIN deliveries AS d ON d.id = due.id JOIN webhooks AS w ON w.id = d.webhook"
        " LEFT JOIN jobs AS j ON j.id = d.job ORDER BY due.turn, due.again, due.next_at, due.id";

    int rc = sqlite_first(state, &row, due, "iiii", now, now, each, (int64_t)limit);
    for (; rc > 0; rc = sqlite_next(state, row)) {
        rc = delivery_read(row, &list->rows[list->count]);
        if (rc != 0) {
            sqlite_done(row);
            return rc;
        }
        list->count++;
    }
    return rc;
}

int sqlite_delivery_due(struct state *state, struct state_args *args)
{
    AUTO(delivery_list) struct delivery_list list = {.rows = NULL};
    sqlite3_stmt *row;

    TRY(mem_array(&list.rows, (size_t)args->limit));
    TRY(read_due(state, args->after, *args->counts, args->limit, &list));
    int rc = sqlite_first(state, &row,
                          "SELECT COALESCE(MIN(next_at), 0) FROM deliveries WHERE status = 'pending' AND next_at > ?",
                          "i", args->after);
    if (rc <= 0) {
        return rc;
    }
    list.next_at = sqlite3_column_int64(row, 0);
    sqlite_done(row);
    *args->deliveries = list;
    list = (struct delivery_list){.rows = NULL};
    return 0;
}

/* --- ended */

static int disable_gone(struct state *state, const struct delivery_attempt *attempt)
{
    sqlite3_stmt *row;
    char webhook[ID_SIZE];

    int rc = sqlite_first(state, &row, "SELECT webhook FROM deliveries WHERE id = ?", "t", attempt->id);
    if (rc <= 0) {
        return rc;
    }
    delivery_text(row, 0, webhook, sizeof(webhook));
    sqlite_done(row);
    TRY(sqlite_run(state, NULL,
                   "UPDATE webhooks SET disabled_at = COALESCE(disabled_at, ?), disabled_reason ="
                   " COALESCE(disabled_reason, 'the receiver answered 410') WHERE id = ?",
                   "it", attempt->at, webhook));
    return sqlite_webhook_stop(state, webhook, attempt->at);
}

static int delivery_end_in(struct state *state, const struct delivery_attempt *attempt)
{
    bool pending = attempt->status == DELIVERY_PENDING;
    int64_t changes = 0;

    TRY(sqlite_run(state, &changes,
                   "UPDATE deliveries SET status = ?, attempts = attempts + 1, last_at = ?, next_at = ?, finished_at ="
                   " NULLIF(?, 0), status_code = NULLIF(?, 0), error = ? WHERE id = ? AND status = 'pending'",
                   "tiiiitt", delivery_status_name(attempt->status), attempt->at,
                   pending ? attempt->next_at : attempt->at, pending ? (int64_t)0 : attempt->at,
                   (int64_t)attempt->status_code, attempt->error, attempt->id));
    if (changes == 0) {
        return err_raise(ERR_NOT_FOUND, "there is no pending delivery \"%.80s\"", attempt->id);
    }
    return attempt->gone ? disable_gone(state, attempt) : 0;
}

int sqlite_delivery_end(struct state *state, struct state_args *args)
{
    TRY(sqlite_begin(state));
    return sqlite_end(state, delivery_end_in(state, args->attempt));
}

int sqlite_delivery_sweep(struct state *state, struct state_args *args)
{
    return sqlite_run(state, args->counts,
                      "DELETE FROM deliveries WHERE id IN (SELECT id FROM deliveries WHERE status <> 'pending'"
                      " AND created_at < ? ORDER BY created_at LIMIT ?)",
                      "ii", args->after, (int64_t)args->limit);
}
