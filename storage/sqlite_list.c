/* Keyset pages: rows beyond a key in the order asked, by one walk along an index that ends with the id. There is no
 * OFFSET, so page 10,000 costs what page 1 does and a row that comes or goes never shifts the others. Ids are ULIDs:
 * their order is by age. */

#include "storage/sqlite.h"

#include "base/err.h"
#include "base/mem.h"

#define LIST_LIMIT_MAX 100
#define LIST_CLOCK_SECONDS 60 /* by which the time in an id may be before the row's created_at */

/* What a list is of. */
struct list_source {
    const char *prefix; /* of ids; NULL: they are names */
    const char *kind;   /* of objects; NULL: jobs */
    const char *from;   /* of another table; or NULL */
    const char *columns;
    int (*add)(void *data, sqlite3_stmt *row);
    void *data;
};

/* A cursor is a place in the order, not a row: the page goes on where it was also when that object has been deleted. */
static int list_check_cursor(const char *prefix, const char *id, const char *name)
{
    return id == NULL || prefix == NULL || id_valid(id, prefix)
               ? 0
               : err_raise(ERR_INVALID_CURSOR, "%s is not an id of this list", name);
}

static void list_add_equal(struct sqlite_query *query, const char *condition, const char *value)
{
    if (value != NULL) {
        sqlite_query_add(query, condition);
        sqlite_query_text(query, value);
    }
}

/* Rows are found by their metadata, unless the status is one that few jobs have: then they are those of that status,
 * and have the metadata. */
static bool list_by_metadata(const struct list_source *source, const struct page *page)
{
    enum job_status status;
    bool few = page->status != NULL && job_status_find(page->status, &status) && !job_status_is_final(status);

    return source->kind == NULL && page->metadata_key != NULL && !few;
}

/* The rows that are looked at: those of the table, or those that have the metadata. */
static void list_add_from(struct sqlite_query *query, const struct list_source *source, const struct page *page)
{
    if (source->from != NULL) {
        sqlite_query_add(query, source->from);
        return;
    }
    if (source->kind != NULL) {
        sqlite_query_add(query, " FROM objects WHERE kind = ?");
        sqlite_query_text(query, source->kind);
        return;
    }
    const char *value = page->metadata_value == NULL ? "" : page->metadata_value;
    if (list_by_metadata(source, page)) {
        sqlite_query_add(query, " FROM (SELECT job FROM job_metadata WHERE key = ? AND value = ?");
        sqlite_query_text(query, page->metadata_key);
        sqlite_query_text(query, value);
        list_add_equal(query, " AND project = ?", page->project);
        sqlite_query_add(query, ") AS m CROSS JOIN jobs ON jobs.id = m.job WHERE 1");
        return;
    }
    sqlite_query_add(query, page->unended && page->model != NULL
                                ? " FROM jobs INDEXED BY jobs_project_status_model WHERE 1"
                            : page->unended ? " FROM jobs INDEXED BY jobs_project_status WHERE 1"
                                            : " FROM jobs WHERE 1");
    if (page->metadata_key != NULL) {
        sqlite_query_add(query, " AND EXISTS (SELECT 1 FROM job_metadata AS m WHERE m.project = jobs.project AND"
                                " m.key = ? AND m.value = ? AND m.job = jobs.id)");
        sqlite_query_text(query, page->metadata_key);
        sqlite_query_text(query, value);
    }
}

/* In one statement: a job that moves between two could be in neither. Few jobs have not ended, so the status is looked
 * up, as the index above says, and the ids are sorted. */
static void list_add_unended(struct sqlite_query *query)
{
    const char *before = " AND status IN (?";

    for (int status = 0; status < STATUS_COUNT; status++) {
        if (!job_status_is_final((enum job_status)status)) {
            sqlite_query_add(query, before);
            sqlite_query_text(query, job_status_name((enum job_status)status));
            before = ", ?";
        }
    }
    sqlite_query_add(query, ")");
}

/* Ids hold the time at which they were made, so created_after ends the walk along them. */
static void list_add_created(struct sqlite_query *query, const struct list_source *source, const struct page *page,
                             char floor[ID_SIZE])
{
    if (page->created_after != 0) {
        id_floor(source->prefix, page->created_after - LIST_CLOCK_SECONDS, floor);
        sqlite_query_add(query, list_by_metadata(source, page) ? " AND m.job > ?" : " AND id > ?");
        sqlite_query_text(query, floor);
        sqlite_query_add(query, " AND created_at > ?");
        sqlite_query_int(query, page->created_after);
    }
}

/* One row more than asked, to know whether there are more. */
static void list_build(struct sqlite_query *query, const struct list_source *source, const struct page *page,
                       bool ascending, char floor[ID_SIZE])
{
    bool joined = list_by_metadata(source, page); /* the index that is walked is m's */

    sqlite_query_add(query, "SELECT ");
    sqlite_query_add(query, source->columns);
    list_add_from(query, source, page);
    list_add_equal(query, " AND project = ?", page->project);
    list_add_equal(query, " AND status = ?", page->status);
    if (page->unended) {
        list_add_unended(query);
    }
    list_add_equal(query, " AND method = ?", page->method);
    list_add_equal(query, " AND model = ?", page->model);
    if (source->kind != NULL) {
        list_add_equal(query, " AND purpose = ?", page->purpose);
        list_add_equal(query, " AND job = ?", page->job);
        list_add_equal(query, " AND webhook = ?", page->webhook);
    }
    list_add_created(query, source, page, floor);
    if (joined) {
        list_add_equal(query, page->ascending ? " AND m.job > ?" : " AND m.job < ?", page->after);
        list_add_equal(query, page->ascending ? " AND m.job < ?" : " AND m.job > ?", page->before);
        sqlite_query_add(query, ascending ? " ORDER BY m.job LIMIT ?" : " ORDER BY m.job DESC LIMIT ?");
    } else {
        list_add_equal(query, page->ascending ? " AND id > ?" : " AND id < ?", page->after);
        list_add_equal(query, page->ascending ? " AND id < ?" : " AND id > ?", page->before);
        sqlite_query_add(query, ascending ? " ORDER BY id LIMIT ?" : " ORDER BY id DESC LIMIT ?");
    }
    sqlite_query_int(query, (int64_t)page->limit + 1);
}

/* The rows of a page to source->add. A page that ends before a row is read from there, in the order opposite to the
 * requested one: *reversed. *more: there are rows beyond it. */
static int list_read(struct state *state, const struct list_source *source, const struct page *page, bool *reversed,
                     bool *more)
{
    struct sqlite_query query = {0};
    char floor[ID_SIZE];
    sqlite3_stmt *row;
    int count = 0;

    if (page->limit < 1 || page->limit > LIST_LIMIT_MAX) {
        return err_raise(ERR_INVALID_PARAMETER, "limit is %d; it may be 1 to %d", page->limit, LIST_LIMIT_MAX);
    }
    TRY(list_check_cursor(source->prefix, page->after, "after"));
    TRY(list_check_cursor(source->prefix, page->before, "before"));
    *more = false;
    *reversed = page->before != NULL && page->after == NULL;
    list_build(&query, source, page, *reversed ? !page->ascending : page->ascending, floor);
    int rc = sqlite_query_first(state, &query, &row);
    for (; rc > 0; rc = sqlite_next(state, row)) {
        if (count++ == page->limit) {
            *more = true;
            sqlite_done(row);
            return 0;
        }
        rc = source->add(source->data, row);
        if (rc != 0) {
            sqlite_done(row);
            return rc;
        }
    }
    return rc;
}

static int list_add_job(void *data, sqlite3_stmt *row)
{
    struct job_list *list = data;

    TRY(sqlite_job_read(row, &list->rows[list->count]));
    list->count++;
    return 0;
}

int sqlite_job_list(struct state *state, struct state_args *args)
{
    AUTO(job_list) struct job_list list = {.rows = NULL};
    const struct list_source source = {
        .prefix = "job", .columns = sqlite_job_columns(), .add = list_add_job, .data = &list};
    bool reversed;

    TRY(mem_array(&list.rows, LIST_LIMIT_MAX));
    TRY(list_read(state, &source, args->page, &reversed, &list.more));
    for (size_t i = 0; reversed && i < list.count / 2; i++) {
        struct job_row first = list.rows[i];
        list.rows[i] = list.rows[list.count - 1 - i];
        list.rows[list.count - 1 - i] = first;
    }
    *args->jobs = list;
    list = (struct job_list){.rows = NULL};
    return 0;
}

static int list_add_object(void *data, sqlite3_stmt *row)
{
    json_t *body;

    TRY(sqlite_first_json(row, &body));
    return sqlite_append_take(data, body);
}

static json_t *list_id_at(const json_t *data, size_t index)
{
    json_t *id = json_object_get(json_array_get(data, index), "id");

    return id == NULL ? json_null() : json_incref(id);
}

static int list_reverse(json_t **data)
{
    json_t *turned = json_array();

    for (size_t i = json_array_size(*data); turned != NULL && i-- > 0;) {
        json_array_append(turned, json_array_get(*data, i));
    }
    if (turned == NULL || json_array_size(turned) != json_array_size(*data)) {
        json_decref(turned);
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a list");
    }
    json_decref(*data);
    *data = turned;
    return 0;
}

static int list_bodies(struct state *state, struct list_source source, struct state_args *args)
{
    AUTO_JSON json_t *data = json_array();
    bool reversed, more;

    source.add = list_add_object;
    source.data = data;
    TRY(list_read(state, &source, args->page, &reversed, &more));
    if (reversed) {
        TRY(list_reverse(&data));
    }
    size_t count = json_array_size(data);
    json_t *list =
        json_pack("{s:s, s:O, s:o, s:o, s:b}", "object", "list", "data", data, "first_id", list_id_at(data, 0),
                  "last_id", list_id_at(data, count == 0 ? 0 : count - 1), "has_more", (int)more);
    if (list == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a list");
    }
    *args->out = list;
    return 0;
}

int sqlite_object_list(struct state *state, struct state_args *args)
{
    return list_bodies(state, (struct list_source){.prefix = args->kind, .kind = args->kind, .columns = "body"}, args);
}

int sqlite_key_list(struct state *state, struct state_args *args)
{
    const struct list_source keys = {
        .prefix = "key", .kind = "key", .from = " FROM api_keys WHERE 1", .columns = sqlite_key_body};

    return list_bodies(state, keys, args);
}

int sqlite_project_list(struct state *state, struct state_args *args)
{
    const struct list_source projects = {
        .kind = "project",
        .from = " FROM (SELECT project AS id FROM quotas UNION SELECT project FROM api_keys"
                " UNION SELECT project FROM job_counts UNION SELECT project FROM project_bytes) WHERE 1",
        .columns = "json_object('id', id)",
    };

    return list_bodies(state, projects, args);
}

int sqlite_webhook_list(struct state *state, struct state_args *args)
{
    const struct list_source webhooks = {
        .prefix = "wh", .kind = "wh", .from = " FROM webhooks WHERE 1", .columns = sqlite_webhook_body};

    return list_bodies(state, webhooks, args);
}

int sqlite_delivery_list(struct state *state, struct state_args *args)
{
    const struct list_source deliveries = {
        .prefix = "msg", .kind = "msg", .from = " FROM deliveries WHERE 1", .columns = sqlite_delivery_body};

    return list_bodies(state, deliveries, args);
}
