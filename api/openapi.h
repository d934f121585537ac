#pragma once
/* The API described by its own route table (OpenAPI 3.1). */

#include <jansson.h>

/* New reference, which must not be changed; NULL when out of memory. Any thread. */
json_t *openapi_document(void);
/* JSON Schema of a parameter of a query. New reference. Any thread. */
struct query_row;
json_t *openapi_parameter_schema(const struct query_row *row);
