/* Webhooks. What clients see of one is built without its secret, which leaves the database with a message that is due
 * and in no other way. */

#include "storage/sqlite.h"

#include "base/err.h"

const char sqlite_webhook_body[] =
    "json_object('id', id, 'object', 'webhook', 'name', name, 'url', url, 'jobs', CASE every_job WHEN 0 THEN 'named'"
    " ELSE 'all' END, 'events', json(events), 'disabled', json(CASE WHEN disabled_at IS NULL THEN 'false' ELSE 'true'"
    " END), 'disabled_at', disabled_at, 'disabled_reason', disabled_reason, 'created_at', created_at)";

int sqlite_webhook_missing(const char *id)
{
    return err_raise(ERR_NOT_FOUND, "there is no webhook \"%.80s\"", id);
}

static int webhook_insert(struct state *state, const struct webhook_row *webhook, int64_t max)
{
    sqlite3_stmt *row;

    int rc = sqlite_first(state, &row, "SELECT COUNT(*) FROM webhooks WHERE project = ?", "t", webhook->project);
    if (rc <= 0) {
        return rc;
    }
    int64_t count = sqlite3_column_int64(row, 0);
    sqlite_done(row);
    if (count >= max) {
        return err_set_hint(err_raise(ERR_QUOTA_EXCEEDED, "the project has %lld webhooks, its limit", (long long)count),
                            "delete one that is not needed");
    }
    return sqlite_run(
        state, NULL,
        "INSERT INTO webhooks (id, project, name, url, events, every_job, secret, created_at, disabled_at,"
        " disabled_reason) VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULLIF(?, 0), ?)",
        "ttttjitiit", webhook->id, webhook->project, webhook->name, webhook->url, webhook->events,
        (int64_t)webhook->every_job, webhook->secret, webhook->created_at,
        webhook->disabled ? webhook->created_at : (int64_t)0, webhook->disabled_reason);
}

int sqlite_webhook_create(struct state *state, struct state_args *args)
{
    TRY(sqlite_begin(state));
    return sqlite_end(state, webhook_insert(state, args->webhook, args->after));
}

static int webhook_read(struct state *state, const char *project, const char *id, json_t **out)
{
    sqlite3_stmt *row;
    struct sqlite_query query = {0};

    sqlite_query_add(&query, "SELECT ");
    sqlite_query_add(&query, sqlite_webhook_body);
    sqlite_query_add(&query, " FROM webhooks WHERE id = ? AND project = COALESCE(?, project)");
    sqlite_query_text(&query, id);
    sqlite_query_text(&query, project);
    int rc = sqlite_query_first(state, &query, &row);
    if (rc <= 0) {
        return rc < 0 ? rc : sqlite_webhook_missing(id);
    }
    rc = sqlite_first_json(row, out);
    sqlite_done(row);
    return rc;
}

int sqlite_webhook_get(struct state *state, struct state_args *args)
{
    return webhook_read(state, args->project, args->id, args->out);
}

/* disabled_at is set by the first change that disables it. */
static void webhook_assign(struct sqlite_query *query, const struct webhook_row *webhook, unsigned set)
{
    if ((set & WEBHOOK_SET_NAME) != 0) {
        sqlite_query_add(query, ", name = ?");
        sqlite_query_text(query, webhook->name);
    }
    if ((set & WEBHOOK_SET_URL) != 0) {
        sqlite_query_add(query, ", url = ?");
        sqlite_query_text(query, webhook->url);
    }
    if ((set & WEBHOOK_SET_EVENTS) != 0) {
        sqlite_query_add(query, ", events = ?");
        sqlite_query_json(query, webhook->events);
    }
    if ((set & WEBHOOK_SET_JOBS) != 0) {
        sqlite_query_add(query, ", every_job = ?");
        sqlite_query_int(query, webhook->every_job);
    }
    if ((set & WEBHOOK_SET_SECRET) != 0) {
        sqlite_query_add(query, ", previous_secret = secret, previous_until = ?, secret = ?");
        sqlite_query_int(query, webhook->previous_until);
        sqlite_query_text(query, webhook->secret);
    }
    if ((set & WEBHOOK_SET_DISABLED) != 0 && webhook->disabled) {
        sqlite_query_add(query,
                         ", disabled_at = COALESCE(disabled_at, ?), disabled_reason = COALESCE(disabled_reason, ?)");
        sqlite_query_int(query, clock_unix_seconds());
        sqlite_query_text(query, webhook->disabled_reason);
    } else if ((set & WEBHOOK_SET_DISABLED) != 0) {
        sqlite_query_add(query, ", disabled_at = NULL, disabled_reason = NULL");
    }
}

int sqlite_webhook_stop(struct state *state, const char *id, int64_t now)
{
    return sqlite_run(state, NULL,
                      "UPDATE deliveries SET status = 'failed', finished_at = ?, error = 'the webhook was disabled'"
                      " WHERE webhook = ? AND status = 'pending' AND once = 0",
                      "it", now, id);
}

static int webhook_change_in(struct state *state, struct state_args *args, json_t **after)
{
    const struct webhook_row *webhook = args->webhook;
    struct sqlite_query query = {0};
    int64_t changes = 0;

    sqlite_query_add(&query, "UPDATE webhooks SET id = id");
    webhook_assign(&query, webhook, args->set);
    sqlite_query_add(&query, " WHERE id = ? AND project = ?");
    sqlite_query_text(&query, webhook->id);
    sqlite_query_text(&query, webhook->project);
    TRY(sqlite_query_run(state, &query, &changes));
    if (changes == 0) {
        return sqlite_webhook_missing(webhook->id);
    }
    if ((args->set & WEBHOOK_SET_DISABLED) != 0 && webhook->disabled) {
        TRY(sqlite_webhook_stop(state, webhook->id, clock_unix_seconds()));
    }
    return webhook_read(state, webhook->project, webhook->id, after);
}

int sqlite_webhook_change(struct state *state, struct state_args *args)
{
    json_t *after = NULL;

    TRY(sqlite_begin(state));
    int rc = sqlite_end(state, webhook_change_in(state, args, &after));
    if (rc != 0) {
        json_decref(after);
        return rc;
    }
    *args->out = after;
    return 0;
}

int sqlite_webhook_delete(struct state *state, struct state_args *args)
{
    int64_t changes = 0;

    TRY(sqlite_run(state, &changes, "DELETE FROM webhooks WHERE id = ? AND project = ?", "tt", args->id,
                   args->project));
    return changes > 0 ? 0 : sqlite_webhook_missing(args->id);
}
