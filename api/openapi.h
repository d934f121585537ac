#pragma once
/* The API described by its own route table (OpenAPI 3.1). */

#include <jansson.h>

/* The document as text with a final newline, malloc'ed. Any thread. */
int openapi_text(char **text);
/* JSON Schema of a parameter of a query. New reference. Any thread. */
struct query_row;
json_t *openapi_parameter_schema(const struct query_row *row);
