#pragma once
/* Macros that write the tables of api/schema.h. Only for files that hold such tables: their names are short. */

#include "api/schema.h"

#include <stddef.h>

/* The list of a macro's arguments ends in an empty one, so that there is always one after those that it names. */
#define ROW(member_, type_, ...)                              \
    {                                                         \
        .name = #member_, .type = SCHEMA_##type_, __VA_ARGS__ \
    }
#define MEMBER(member_, ...) ROW(member_, __VA_ARGS__, )
#define CONST(member_, value_) ROW(member_, CONST, .text = (value_))
#define ID(member_, ...) ID_ROW(member_, __VA_ARGS__, )
#define ID_ROW(member_, prefix_, ...) ROW(member_, ID, .text = (prefix_), __VA_ARGS__)
#define OBJECT(member_, ...) OF_ROW(member_, OBJECT, __VA_ARGS__, )
#define LIST(member_, ...) OF_ROW(member_, LIST, __VA_ARGS__, )
#define OF_ROW(member_, type_, of_, ...) ROW(member_, type_, .of = &(of_), __VA_ARGS__)
#define END          \
    {                \
        .name = NULL \
    }
#define NULLABLE .nullable = true
#define OPTIONAL .optional = true
#define HELP(text_) .help = (text_)

/* A page of objects whose ids have that prefix. */
#define PAGE(symbol_, name_, item_, prefix_)                                                     \
    static const struct schema_row symbol_##_rows[] = {                                          \
        CONST(object, "list"),          LIST(data, item_),      ID(first_id, prefix_, NULLABLE), \
        ID(last_id, prefix_, NULLABLE), MEMBER(has_more, BOOL), END};                            \
    const struct schema symbol_ = {.name = name_, .rows = symbol_##_rows}
