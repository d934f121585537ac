#pragma once
/* The API described by its own route table (OpenAPI 3.1). */

#include <jansson.h>

/* New reference; NULL when out of memory. Any thread. */
json_t *openapi_document(void);
