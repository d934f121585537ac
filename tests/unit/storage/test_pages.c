/* Lists: every row once in pages of any size and both directions, filters, cursors. */

#include "storage/sqlite.h"
#include "tests/unit/storage/support.h"

#define PAGE_MAX 100

/* A page of ids. */
struct ids {
    char id[PAGE_MAX][ID_SIZE];
    size_t count;
    bool more;
};

static void read_jobs(struct store *store, const struct page *page, struct ids *ids)
{
    struct job_list list;

    ck_assert_rc_ok(store_job_list(store, page, &list));
    ids->count = list.count;
    ids->more = list.more;
    for (size_t i = 0; i < list.count; i++) {
        memcpy(ids->id[i], list.rows[i].id, strlen(list.rows[i].id) + 1);
    }
    job_list_deinit(&list);
}

static void read_objects(struct store *store, const char *kind, const struct page *page, struct ids *ids)
{
    json_t *list;

    ck_assert_rc_ok(store_object_list(store, kind, page, &list));
    const json_t *data = json_object_get(list, "data");
    ids->count = json_array_size(data);
    ids->more = json_is_true(json_object_get(list, "has_more"));
    for (size_t i = 0; i < ids->count; i++) {
        memcpy(ids->id[i], text_at(json_array_get(data, i), "id"), strlen(text_at(json_array_get(data, i), "id")) + 1);
    }
    ck_assert_str_eq(text_at(list, "first_id"), ids->count > 0 ? ids->id[0] : "");
    ck_assert_str_eq(text_at(list, "last_id"), ids->count > 0 ? ids->id[ids->count - 1] : "");
    json_decref(list);
}

static void read_page(struct store *store, const char *kind, const struct page *page, struct ids *ids)
{
    kind != NULL ? read_objects(store, kind, page, ids) : read_jobs(store, page, ids);
}

/* Walk a complete list in pages, both ways; the ids must come as they went in. */
static void walk(struct store *store, const char *kind, char (*ids)[ID_SIZE], int count, int limit, bool ascending)
{
    static struct ids found;
    char cursor[ID_SIZE] = "";
    int seen = 0;

    for (bool more = true; more;) {
        struct page page = {.limit = limit, .after = cursor[0] ? cursor : NULL, .ascending = ascending};
        read_page(store, kind, &page, &found);
        for (size_t i = 0; i < found.count; i++, seen++) {
            ck_assert_int_lt(seen, count);
            ck_assert_str_eq(found.id[i], ids[ascending ? seen : count - 1 - seen]);
        }
        more = found.more;
        ck_assert(more == (seen < count));
        ck_assert(!more || found.count == (size_t)limit);
        memcpy(cursor, found.id[found.count - 1], sizeof(cursor));
    }
    ck_assert_int_eq(seen, count);
    for (bool more = true; more;) { /* back: pages end where the last began */
        struct page page = {.limit = limit, .before = cursor, .ascending = ascending};
        read_page(store, kind, &page, &found);
        seen -= seen == count ? 1 : 0; /* the cursor itself */
        for (size_t i = found.count; i-- > 0;) {
            seen--;
            ck_assert_str_eq(found.id[i], ids[ascending ? seen : count - 1 - seen]);
        }
        more = found.more;
        memcpy(cursor, found.id[0], sizeof(cursor));
    }
    ck_assert_int_eq(seen, 0);
}

START_TEST(pages_cover_every_row_once)
{
    enum { COUNT = 23 };
    struct bench bench;
    char jobs[COUNT][ID_SIZE], files[COUNT][ID_SIZE];

    bench_init(&bench);
    for (int i = 0; i < COUNT; i++) {
        add_job(bench.store, i, i, jobs[i]);
        id_new("file", files[i]);
        json_t *file = json_pack("{s:s, s:i}", "id", files[i], "created_at", i);
        ck_assert_rc_ok(store_object_put(bench.store, "default", "file", file));
        json_decref(file);
    }
    for (int limit = 1; limit <= 30; limit += 4) {
        for (int ascending = 0; ascending < 2; ascending++) {
            walk(bench.store, NULL, jobs, COUNT, limit, ascending);
            walk(bench.store, "file", files, COUNT, limit, ascending);
        }
    }
    bench_deinit(&bench);
}
END_TEST

static size_t count_of(struct store *store, const char *kind, const struct page *page)
{
    static struct ids found;

    read_page(store, kind, page, &found);
    return found.count;
}

START_TEST(filters_narrow_lists)
{
    struct bench bench;
    struct store *store;
    struct job_row job;
    json_t *file;
    char id[ID_SIZE];

    bench_init(&bench);
    store = bench.store;
    for (int i = 0; i < 7; i++) { /* 4 gptq/search, 3 rtn/ads */
        add_job(store, i, 10 + i, id);
    }
    job = claim_job(store);
    job_row_deinit(&job);
    ck_assert_uint_eq(count_of(store, NULL, &(struct page){.limit = 100, .status = "queued"}), 6);
    ck_assert_uint_eq(count_of(store, NULL, &(struct page){.limit = 100, .method = "rtn"}), 3);
    ck_assert_uint_eq(count_of(store, NULL, &(struct page){.limit = 100, .model = "mdl_x"}), 7);
    ck_assert_uint_eq(count_of(store, NULL, &(struct page){.limit = 100, .model = "mdl_y"}), 0);
    ck_assert_uint_eq(count_of(store, NULL, &(struct page){.limit = 100, .created_after = 14}), 2);
    ck_assert_uint_eq(count_of(store, NULL, &(struct page){.limit = 100, .status = "queued", .method = "gptq"}), 3);
    ck_assert_uint_eq(
        count_of(store, NULL, &(struct page){.limit = 100, .metadata_key = "team", .metadata_value = "search"}), 4);
    ck_assert_uint_eq(
        count_of(store, NULL, &(struct page){.limit = 100, .metadata_key = "t'eam", .metadata_value = "\"]"}), 0);
    /* With metadata, pages are walked along another index. */
    struct page page = {.limit = 3, .project = "default", .metadata_key = "team", .metadata_value = "search"};
    static struct ids all, part;
    page.limit = 100;
    read_page(store, NULL, &page, &all);
    ck_assert_uint_eq(all.count, 4);
    page.limit = 1;
    page.after = all.id[0];
    read_page(store, NULL, &page, &part);
    ck_assert(part.more);
    ck_assert_str_eq(part.id[0], all.id[1]);
    page.after = NULL;
    page.before = all.id[3];
    read_page(store, NULL, &page, &part);
    ck_assert_str_eq(part.id[0], all.id[2]);
    page.status = "running"; /* the one of the highest priority */
    ck_assert_uint_eq(count_of(store, NULL, &page), 1);
    page.status = "failed";
    ck_assert_uint_eq(count_of(store, NULL, &page), 0);
    page.status = "queued";
    page.limit = 100;
    ck_assert_uint_eq(count_of(store, NULL, &page), 2);
    page.metadata_value = "ads";
    page.created_after = 14;
    ck_assert_uint_eq(count_of(store, NULL, &page), 1);
    page.metadata_value = "search";
    page.created_after = 0;
    page.project = "other";
    page.before = page.status = NULL;
    ck_assert_uint_eq(count_of(store, NULL, &page), 0);
    page = (struct page){.limit = 9, .metadata_key = "team", .metadata_value = "search", .created_after = 12};
    ck_assert_uint_eq(count_of(store, NULL, &page), 2);
    ck_assert_uint_eq(count_of(store, NULL, &(struct page){.limit = 9, .created_after = INT64_MAX}), 0);
    for (int i = 0; i < 3; i++) {
        id_new("file", id);
        file = json_pack("{s:s, s:i, s:s, s:s, s:s}", "id", id, "created_at", i, "purpose",
                         i == 0 ? "evaluation" : "calibration", "job_id", "job_x", "model_id", "mdl_z");
        ck_assert_rc_ok(store_object_put(store, "default", "file", file));
        json_decref(file);
    }
    ck_assert_uint_eq(count_of(store, "file", &(struct page){.limit = 100, .purpose = "calibration"}), 2);
    ck_assert_uint_eq(count_of(store, "file", &(struct page){.limit = 100, .job = "job_x"}), 3);
    ck_assert_uint_eq(count_of(store, "file", &(struct page){.limit = 100, .model = "mdl_z"}), 3);
    ck_assert_uint_eq(count_of(store, "mdl", &(struct page){.limit = 100}), 0);
    bench_deinit(&bench);
}
END_TEST

START_TEST(cursors_and_limits_are_checked)
{
    struct bench bench;
    struct job_list jobs = {.rows = NULL};
    json_t *list = NULL;
    char a[ID_SIZE], b[ID_SIZE];

    bench_init(&bench);
    add_job(bench.store, 0, 1, a);
    add_job(bench.store, 0, 1, b);
    static const int limits[] = {0, -1, 101};
    for (int i = 0; i < 3; i++) {
        ck_assert_int_eq(store_job_list(bench.store, &(struct page){.limit = limits[i]}, &jobs), ERR_INVALID_PARAMETER);
    }
    ck_assert_int_eq(store_job_list(bench.store, &(struct page){.limit = 5, .after = "job_1"}, &jobs),
                     ERR_INVALID_CURSOR);
    ck_assert_int_eq(store_object_list(bench.store, "file", &(struct page){.limit = 5, .before = a}, &list),
                     ERR_INVALID_CURSOR);
    ck_assert_ptr_null(list);
    ck_assert_ptr_null(jobs.rows);
    ck_assert_rc_ok(store_job_delete(bench.store, a)); /* its place in the order is still one */
    ck_assert_uint_eq(count_of(bench.store, NULL, &(struct page){.limit = 5, .after = a, .ascending = true}), 1);
    ck_assert_rc_ok(store_job_delete(bench.store, b));
    ck_assert_rc_ok(store_job_list(bench.store, &(struct page){.limit = 5}, &jobs));
    ck_assert_uint_eq(jobs.count, 0);
    ck_assert(!jobs.more);
    job_list_deinit(&jobs);
    ck_assert_rc_ok(store_object_list(bench.store, "file", &(struct page){.limit = 5}, &list));
    assert_json_take(list, "{'object': 'list', 'data': [], 'first_id': null, 'last_id': null, 'has_more': false}");
    bench_deinit(&bench);
}
END_TEST

/* Whatever is asked for, rows come out of an index in the order of the page. */
START_TEST(lists_never_sort)
{
    enum { STATUS = 1, METHOD = 2, MODEL = 4, METADATA = 8, CREATED = 16, AFTER = 32, ASCENDING = 64, ALL = 128 };
    static const char *const statuses[] = {"queued", "failed"};
    struct state *state;
    char id[ID_SIZE];
    struct bench bench;

    bench_init(&bench);
    for (int i = 0; i < 20; i++) {
        add_job(bench.store, i, 10 + i, id);
    }
    store_close(bench.store);
    ck_assert_rc_ok(state_sqlite.open(bench.dir, false, &state));
    for (int filters = 0; filters < 2 * ALL; filters++) {
        const struct page page = {.limit = 5,
                                  .project = "default",
                                  .status = (filters & STATUS) != 0 ? statuses[filters >= ALL] : NULL,
                                  .method = (filters & METHOD) != 0 ? "gptq" : NULL,
                                  .model = (filters & MODEL) != 0 ? "mdl_x" : NULL,
                                  .metadata_key = (filters & METADATA) != 0 ? "team" : NULL,
                                  .metadata_value = "search",
                                  .created_after = (filters & CREATED) != 0 ? 12 : 0,
                                  .after = (filters & AFTER) != 0 ? id : NULL,
                                  .ascending = (filters & ASCENDING) != 0};
        struct job_list list = {.rows = NULL};
        struct state_args args = {.page = &page, .jobs = &list};
        ck_assert_rc_ok(state_sqlite.job_list(state, &args));
        job_list_deinit(&list);
        for (sqlite3_stmt *row = sqlite3_next_stmt(state->db, NULL); row != NULL;
             row = sqlite3_next_stmt(state->db, row)) {
            bool list_row = strstr(sqlite3_sql(row), "LIMIT ?") != NULL;
            ck_assert_msg(!list_row || sqlite3_stmt_status(row, SQLITE_STMTSTATUS_SORT, 0) == 0, "a sort: %s",
                          sqlite3_sql(row));
            ck_assert_msg(!list_row || sqlite3_stmt_status(row, SQLITE_STMTSTATUS_FULLSCAN_STEP, 0) == 0, "a scan: %s",
                          sqlite3_sql(row));
        }
    }
    state_sqlite.close(state);
    bench_open(&bench);
    bench_deinit(&bench);
}
END_TEST

UNIT_MAIN("pages", lists_never_sort, pages_cover_every_row_once, filters_narrow_lists, cursors_and_limits_are_checked)
