#pragma once
/* Text of a server made harmless for a terminal: control bytes (C0, DEL, C1), which move the cursor or change a
 * terminal's state, marks that reorder text, and bytes that are not UTF-8 are shown as \xHH or \u{HHHH}. A newline is
 * one of them: a value cannot begin a line of its own. Any thread. */

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

/* Append text to out (a stream). */
void safe_print(FILE *out, const char *text, size_t size);
/* The same of a string into new memory; never fails but by memory. Caller frees. */
int safe_copy(const char *text, char **out);
/* printf with a result that is made harmless, but for newlines with which the format itself begins or ends. */
void safe_printf(FILE *out, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Columns that harmless text takes on a terminal. */
size_t safe_width(const char *text);
/* The length in bytes of the character at the start of text, 0 if it is not valid UTF-8; *code is its number. */
size_t safe_decode(const char *text, size_t size, unsigned *code);
