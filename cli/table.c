/* Table layout. */

#include "base/err.h"
#include "base/mem.h"
#include "cli/print.h"
#include "cli/safe.h"

#include <stdlib.h>
#include <string.h>

#define TABLE_GAP 2

struct table {
    size_t columns, rows; /* rows with that of the titles */
    bool *right;
    char **cells; /* rows x columns */
    int rc;
};

struct table *table_new(const char *const *titles)
{
    AUTO(table) struct table *table = NULL;
    size_t columns = 0;

    while (titles[columns] != NULL) {
        columns++;
    }
    if (mem_new(&table) != 0 || mem_array(&table->right, columns) != 0) {
        return NULL;
    }
    table->columns = columns;
    const char **cells = NULL;
    if (mem_array(&cells, columns) != 0) {
        return NULL;
    }
    for (size_t i = 0; i < columns; i++) {
        table->right[i] = titles[i][0] == '>';
        cells[i] = titles[i] + table->right[i];
    }
    table_row(table, cells);
    free((void *)cells);
    return MOVE(table);
}

void table_free(struct table *table)
{
    for (size_t i = 0; i < table->rows * table->columns; i++) {
        free(table->cells[i]);
    }
    free((void *)table->cells);
    free(table->right);
    free(table);
}

void table_row(struct table *table, const char *const *cells)
{
    if (table == NULL || table->rc != 0) {
        return;
    }
    table->rc = mem_resize(&table->cells, (table->rows + 1) * table->columns);
    if (table->rc != 0) {
        return;
    }
    char **row = table->cells + table->rows * table->columns;
    memset((void *)row, 0, table->columns * sizeof(*row));
    for (size_t i = 0; i < table->columns && table->rc == 0; i++) {
        table->rc = safe_copy(cells[i] != NULL ? cells[i] : "-", &row[i]);
    }
    table->rows++;
}

static size_t width_of(const struct table *table, size_t column)
{
    size_t widest = 0;

    for (size_t row = 0; row < table->rows; row++) {
        size_t width = safe_width(table->cells[row * table->columns + column]);
        widest = width > widest ? width : widest;
    }
    return widest;
}

int table_print(const struct table *table, FILE *out)
{
    AUTO_FREE size_t *widths = NULL;

    if (table == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a table");
    }
    TRY(table->rc);
    TRY(mem_array(&widths, table->columns));
    for (size_t i = 0; i < table->columns; i++) {
        widths[i] = width_of(table, i);
    }
    for (size_t row = 0; row < table->rows; row++) {
        for (size_t i = 0; i < table->columns; i++) {
            const char *cell = table->cells[row * table->columns + i];
            int blanks = (int)(widths[i] - safe_width(cell));
            bool last = i + 1 == table->columns;
            fprintf(out, "%*s%s%*s", table->right[i] ? blanks : 0, "", cell,
                    last ? 0 : (table->right[i] ? 0 : blanks) + TABLE_GAP, "");
        }
        fputc('\n', out);
    }
    return 0;
}
