/* Keyset pages: rows beyond a key in the order asked, by one walk along the primary key. There is no OFFSET, so page
 * 10,000 costs what page 1 does and a row that comes or goes never shifts the others. Ids are ULIDs: their order is by
 * age. */

#include "storage/sqlite.h"

#include "base/err.h"

#define LIST_LIMIT_MAX 100

/* A cursor is a place in the order, not a row: the page goes on where it was also when that object has been deleted. */
static int sqlite_list_check_cursor(const char *kind, const char *id, const char *name)
{
    if (id == NULL || id_valid(id, kind != NULL ? kind : "job")) {
        return 0;
    }
    return err_raise(ERR_INVALID_CURSOR, "%s is no id of this list", name);
}

static void add_equal(struct sqlite_query *query, const char *condition, const char *value)
{
    if (value != NULL) {
        sqlite_query_add(query, condition);
        sqlite_query_text(query, value);
    }
}

static void add_filters(struct sqlite_query *query, const char *kind, const struct page *page)
{
    add_equal(query, " AND project = ?", page->project);
    add_equal(query, " AND status = ?", page->status);
    add_equal(query, " AND method = ?", page->method);
    add_equal(query, " AND model = ?", page->model);
    if (kind != NULL) {
        add_equal(query, " AND purpose = ?", page->purpose);
        add_equal(query, " AND job = ?", page->job);
    }
    if (page->created_after != 0) {
        sqlite_query_add(query, " AND created_at > ?");
        sqlite_query_int(query, page->created_after);
    }
    if (page->metadata_key != NULL) {
        sqlite_query_add(query, kind == NULL ? " AND EXISTS (SELECT 1 FROM json_each(request, '$.metadata') AS m"
                                             : " AND EXISTS (SELECT 1 FROM json_each(body, '$.metadata') AS m");
        sqlite_query_add(query, " WHERE m.key = ? AND m.atom = ?)");
        sqlite_query_text(query, page->metadata_key);
        sqlite_query_text(query, page->metadata_value == NULL ? "" : page->metadata_value);
    }
}

/* One row more than asked, to know whether there are more. */
static void build(struct sqlite_query *query, const char *kind, const char *columns, const struct page *page,
                  bool ascending)
{
    sqlite_query_add(query, "SELECT ");
    sqlite_query_add(query, columns);
    if (kind == NULL) {
        sqlite_query_add(query, " FROM jobs WHERE 1");
    } else {
        sqlite_query_add(query, " FROM objects WHERE kind = ?");
        sqlite_query_text(query, kind);
    }
    add_filters(query, kind, page);
    add_equal(query, page->ascending ? " AND id > ?" : " AND id < ?", page->after);
    add_equal(query, page->ascending ? " AND id < ?" : " AND id > ?", page->before);
    sqlite_query_add(query, ascending ? " ORDER BY id LIMIT ?" : " ORDER BY id DESC LIMIT ?");
    sqlite_query_int(query, (int64_t)page->limit + 1);
}

static int sqlite_list_collect(struct state *state, const struct sqlite_query *query, const struct page *page,
                               bool backwards, int (*to_json)(sqlite3_stmt *row, json_t **out), json_t *data,
                               bool *more)
{
    sqlite3_stmt *row;
    int rc = sqlite_query_first(state, query, &row);

    for (; rc > 0; rc = sqlite_next(state, row)) {
        json_t *item;
        if (json_array_size(data) == (size_t)page->limit) {
            *more = true;
            sqlite_done(row);
            return 0;
        }
        rc = to_json(row, &item);
        if (rc == 0 && (backwards ? json_array_insert_new(data, 0, item) : json_array_append_new(data, item)) != 0) {
            rc = err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a list");
        }
        if (rc != 0) {
            sqlite_done(row);
            return rc;
        }
    }
    return rc;
}

static json_t *id_at(const json_t *data, size_t index)
{
    json_t *id = json_object_get(json_array_get(data, index), "id");

    return id == NULL ? json_null() : json_incref(id);
}

int sqlite_list(struct state *state, const char *kind, const char *columns, const struct page *page,
                int (*to_json)(sqlite3_stmt *row, json_t **out), json_t **list)
{
    struct sqlite_query query = {0};
    bool backwards = page->before != NULL && page->after == NULL;
    bool more = false;

    if (page->limit < 1 || page->limit > LIST_LIMIT_MAX) {
        return err_raise(ERR_INVALID_PARAMETER, "limit is %d; it may be 1 to %d", page->limit, LIST_LIMIT_MAX);
    }
    int rc = sqlite_list_check_cursor(kind, page->after, "after");
    rc = rc != 0 ? rc : sqlite_list_check_cursor(kind, page->before, "before");
    if (rc != 0) {
        return rc;
    }
    json_t *data = json_array();
    build(&query, kind, columns, page, backwards ? !page->ascending : page->ascending);
    rc = sqlite_list_collect(state, &query, page, backwards, to_json, data, &more);
    json_t *answer = NULL;
    if (rc == 0) {
        size_t count = json_array_size(data);
        answer = json_pack("{s:s, s:O, s:o, s:o, s:b}", "object", "list", "data", data, "first_id", id_at(data, 0),
                           "last_id", id_at(data, count == 0 ? 0 : count - 1), "has_more", (int)more);
        rc = answer == NULL ? err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a list") : 0;
    }
    json_decref(data);
    if (rc == 0) {
        *list = answer;
    }
    return rc;
}
