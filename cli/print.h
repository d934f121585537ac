#pragma once
/* Output on standard output: JSON, tables, numbers as people read them. Text of a server is made harmless. */

#include "base/cleanup.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define PRINT_SIZE 48 /* of a formatted number */

/* Indented; on a terminal in ASCII. */
void print_json(const json_t *value);

/* In one line. */
void print_json_line(const json_t *value);

/* "-" for null and what is missing; else text, true/false or a number in its shortest form. Into out, which it returns.
 */
const char *print_value(const json_t *value, char out[PRINT_SIZE]);
/* A member as text: "-" if there is none. */
const char *print_text(const json_t *object, const char *key);
/* A number member with so many significant digits, "-" without one. */
const char *print_number(const json_t *object, const char *key, int digits, char out[PRINT_SIZE]);
const char *print_bytes(double bytes, char out[PRINT_SIZE]);
const char *print_seconds(double seconds, char out[PRINT_SIZE]);
/* A time in Unix seconds, as local time. */
const char *print_time(const json_t *object, const char *key, char out[PRINT_SIZE]);

/* Columns of standard output's terminal, 100 if it is none. */
int print_columns(void);

/* A table: columns as wide as their widest cell, those whose title begins with '>' aligned to the right. Cells are
 * copied and made harmless. Failures (memory) are kept until table_print. */
struct table;
struct table *table_new(const char *const *titles); /* NULL-terminated */
void table_free(struct table *table);
CLEANUP_FREE(table, struct table, table_free)
/* As many cells as there are titles. NULL is "-". */
void table_row(struct table *table, const char *const *cells);
#define TABLE_ROW(table, ...) table_row((table), (const char *const[]){__VA_ARGS__})
int table_print(const struct table *table, FILE *out);
