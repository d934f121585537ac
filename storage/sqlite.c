/* Plumbing over the SQLite C API: errors, cached statements, values by letter, transactions.
 *
 * Every value is bound; SQL text is made of literals only, so nothing a client sends can become SQL. Statements live as
 * long as the connection, found again by their text: a store runs some forty different ones. */

#include "storage/sqlite.h"

#include "base/err.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

/* The errno of an I/O error. After a failed COMMIT only the write-ahead log's file has it. */
static int cause_of(struct state *state, int answer)
{
    sqlite3_file *log = NULL;
    int cause = 0;

    if ((answer & 0xff) == SQLITE_IOERR || (answer & 0xff) == SQLITE_CANTOPEN) {
        cause = sqlite3_system_errno(state->db);
    }
    if ((answer & 0xff) == SQLITE_IOERR && cause == 0 &&
        sqlite3_file_control(state->db, NULL, SQLITE_FCNTL_JOURNAL_POINTER, &log) == SQLITE_OK && log != NULL &&
        log->pMethods != NULL) {
        (void)log->pMethods->xFileControl(log, SQLITE_FCNTL_LAST_ERRNO, &cause);
    }
    return cause;
}

static bool no_room(int answer, int cause)
{
    return (answer & 0xff) == SQLITE_FULL || cause == ENOSPC || cause == EDQUOT || cause == EFBIG;
}

int sqlite_raise(struct state *state, int answer, const char *what)
{
    int cause = cause_of(state, answer);
    const char *message = sqlite3_errmsg(state->db);
    int rc;

    if (no_room(answer, cause)) {
        rc = err_raise(ERR_DISK_FULL, "the database cannot grow: %s", message);
    } else if ((answer & 0xff) == SQLITE_BUSY || (answer & 0xff) == SQLITE_LOCKED) {
        rc = err_raise(ERR_STORAGE_UNAVAILABLE, "the database is busy");
    } else if ((answer & 0xff) == SQLITE_NOMEM) {
        rc = err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for the database");
    } else if ((answer & 0xff) == SQLITE_CONSTRAINT) {
        rc = err_raise(ERR_JOB_STATE_CONFLICT, "the row contradicts what is stored: %s", message);
    } else {
        rc = err_raise(ERR_STORAGE, "the database failed: %s", message);
    }
    return err_pass(rc, "%s", what);
}

static int prepare(struct state *state, const char *sql, sqlite3_stmt **out)
{
    for (int i = 0; i < SQLITE_STATEMENTS && state->statements[i] != NULL; i++) {
        if (strcmp(sqlite3_sql(state->statements[i]), sql) == 0) {
            *out = state->statements[i];
            return 0;
        }
    }
    sqlite3_stmt *statement;
    int answer = sqlite3_prepare_v3(state->db, sql, -1, SQLITE_PREPARE_PERSISTENT, &statement, NULL);
    if (answer != SQLITE_OK) {
        return sqlite_raise(state, answer, sql);
    }
    while (state->statements[state->next] != NULL && sqlite3_stmt_busy(state->statements[state->next])) {
        state->next = (state->next + 1) % SQLITE_STATEMENTS;
    }
    sqlite3_finalize(state->statements[state->next]);
    state->statements[state->next] = statement;
    state->next = (state->next + 1) % SQLITE_STATEMENTS;
    *out = statement;
    return 0;
}

static int bind_text(sqlite3_stmt *row, int index, const char *text)
{
    return text == NULL ? sqlite3_bind_null(row, index) : sqlite3_bind_text(row, index, text, -1, SQLITE_TRANSIENT);
}

static int bind_json(sqlite3_stmt *row, int index, const json_t *value)
{
    if (value == NULL || json_is_null(value)) {
        return sqlite3_bind_null(row, index);
    }
    char *text = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY);
    return text == NULL ? SQLITE_NOMEM : sqlite3_bind_text(row, index, text, -1, free);
}

static int bind_all(struct state *state, sqlite3_stmt *row, const char *types, va_list arguments)
{
    for (int i = 0; types[i] != '\0'; i++) {
        int answer;
        switch (types[i]) {
        case 't':
            answer = bind_text(row, i + 1, va_arg(arguments, const char *));
            break;
        case 'i':
            answer = sqlite3_bind_int64(row, i + 1, va_arg(arguments, int64_t));
            break;
        default:
            answer = bind_json(row, i + 1, va_arg(arguments, const json_t *));
            break;
        }
        if (answer != SQLITE_OK) {
            return sqlite_raise(state, answer, "bind");
        }
    }
    return 0;
}

int sqlite_next(struct state *state, sqlite3_stmt *row)
{
    int answer = sqlite3_step(row);

    if (answer == SQLITE_ROW) {
        return 1;
    }
    int rc = answer == SQLITE_DONE ? 0 : sqlite_raise(state, answer, sqlite3_sql(row));
    sqlite_done(row);
    return rc;
}

void sqlite_done(sqlite3_stmt *row)
{
    sqlite3_reset(row);
    sqlite3_clear_bindings(row);
}

static int first(struct state *state, sqlite3_stmt **row, const char *sql, const char *types, va_list arguments)
{
    int rc = prepare(state, sql, row);

    if (rc != 0) {
        return rc;
    }
    rc = bind_all(state, *row, types, arguments);
    if (rc != 0) {
        sqlite_done(*row);
        return rc;
    }
    return sqlite_next(state, *row);
}

int sqlite_first(struct state *state, sqlite3_stmt **row, const char *sql, const char *types, ...)
{
    va_list arguments;

    va_start(arguments, types);
    int rc = first(state, row, sql, types, arguments);
    va_end(arguments);
    return rc;
}

int sqlite_run(struct state *state, int64_t *changes, const char *sql, const char *types, ...)
{
    sqlite3_stmt *row;
    va_list arguments;

    va_start(arguments, types);
    int rc = first(state, &row, sql, types, arguments);
    va_end(arguments);
    while (rc > 0) {
        rc = sqlite_next(state, row);
    }
    if (rc == 0 && changes != NULL) {
        *changes = sqlite3_changes64(state->db);
    }
    return rc;
}

int sqlite_script(struct state *state, const char *sql)
{
    int answer = sqlite3_exec(state->db, sql, NULL, NULL, NULL);

    return answer == SQLITE_OK ? 0 : sqlite_raise(state, answer, "script");
}

int sqlite_begin(struct state *state)
{
    return sqlite_run(state, NULL, "BEGIN IMMEDIATE", "");
}

int sqlite_end(struct state *state, int rc)
{
    struct err_record kept;

    if (rc >= 0) {
        int failed = sqlite_run(state, NULL, "COMMIT", "");
        if (failed == 0) {
            return rc;
        }
        rc = failed;
    }
    err_take(&kept);
    if (sqlite3_get_autocommit(state->db) == 0) {
        (void)sqlite_run(state, NULL, "ROLLBACK", "");
    }
    err_restore(&kept);
    return rc;
}

void sqlite_query_add(struct sqlite_query *query, const char *fixed_text)
{
    size_t size = strlen(fixed_text);

    if (size >= sizeof(query->text) - query->length) {
        query->overflow = true;
        return;
    }
    memcpy(query->text + query->length, fixed_text, size + 1);
    query->length += size;
}

static void sqlite_add_value(struct sqlite_query *query, char type, const void *pointer, int64_t number, double real)
{
    if (query->count == SQLITE_QUERY_VALUES) {
        query->overflow = true;
        return;
    }
    query->values[query->count].type = type;
    query->values[query->count].pointer = pointer;
    query->values[query->count].number = number;
    query->values[query->count].real = real;
    query->count++;
}

void sqlite_query_text(struct sqlite_query *query, const char *value)
{
    sqlite_add_value(query, 't', value, 0, 0);
}

void sqlite_query_int(struct sqlite_query *query, int64_t value)
{
    sqlite_add_value(query, 'i', NULL, value, 0);
}

void sqlite_query_real(struct sqlite_query *query, double value)
{
    sqlite_add_value(query, 'r', NULL, 0, value);
}

void sqlite_query_json(struct sqlite_query *query, const json_t *value)
{
    sqlite_add_value(query, 'j', value, 0, 0);
}

static int sqlite_bind_value(sqlite3_stmt *row, const struct sqlite_query *query, int i)
{
    switch (query->values[i].type) {
    case 'i':
        return sqlite3_bind_int64(row, i + 1, query->values[i].number);
    case 'r':
        return sqlite3_bind_double(row, i + 1, query->values[i].real);
    case 't':
        return bind_text(row, i + 1, query->values[i].pointer);
    default:
        return bind_json(row, i + 1, query->values[i].pointer);
    }
}

int sqlite_query_first(struct state *state, const struct sqlite_query *query, sqlite3_stmt **row)
{
    if (query->overflow) {
        return err_raise(ERR_INTERNAL, "a query has too many parts");
    }
    int rc = prepare(state, query->text, row);
    for (int i = 0; rc == 0 && i < query->count; i++) {
        int answer = sqlite_bind_value(*row, query, i);
        if (answer != SQLITE_OK) {
            rc = sqlite_raise(state, answer, "bind");
            sqlite_done(*row);
        }
    }
    return rc != 0 ? rc : sqlite_next(state, *row);
}

int sqlite_query_run(struct state *state, const struct sqlite_query *query, int64_t *changes)
{
    sqlite3_stmt *row;

    int rc = sqlite_query_first(state, query, &row);
    while (rc > 0) {
        rc = sqlite_next(state, row);
    }
    if (rc == 0 && changes != NULL) {
        *changes = sqlite3_changes64(state->db);
    }
    return rc;
}

json_t *sqlite_column_text_json(sqlite3_stmt *row, int column)
{
    const char *text = (const char *)sqlite3_column_text(row, column);

    return text == NULL ? json_null() : json_stringn(text, (size_t)sqlite3_column_bytes(row, column));
}

json_t *sqlite_column_int_json(sqlite3_stmt *row, int column)
{
    return sqlite3_column_type(row, column) == SQLITE_NULL ? json_null()
                                                           : json_integer(sqlite3_column_int64(row, column));
}

int sqlite_column_json(sqlite3_stmt *row, int column, json_t **out)
{
    const char *text = (const char *)sqlite3_column_text(row, column);
    json_error_t error;

    if (text == NULL) {
        *out = json_null();
        return 0;
    }
    json_t *value = json_loadb(text, (size_t)sqlite3_column_bytes(row, column), JSON_DECODE_ANY, &error);
    if (value == NULL) {
        return err_raise(ERR_STORAGE, "column %s holds damaged JSON: %s", sqlite3_column_name(row, column), error.text);
    }
    *out = value;
    return 0;
}

int sqlite_append_take(json_t *array, json_t *value)
{
    return json_array_append_new(array, value) == 0 ? 0 : err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a list");
}

int sqlite_first_json(sqlite3_stmt *row, json_t **out)
{
    return sqlite_column_json(row, 0, out);
}
