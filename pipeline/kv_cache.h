#pragma once
/* The "kv_cache" member of a request's parameters. */

#include "base/validation.h"
#include "models/cache.h"

#include <jansson.h>

/* object: {"dtype","granularity"}, or NULL for an unquantized cache (element F32). Errors name pointer or a member
 * below it; *out is set on success only. */
int kv_cache_parse(const json_t *object, const char *pointer, struct validation_errors *errors,
                   struct cache_scheme *out);
/* Its members as JSON Schema. New reference. */
json_t *kv_cache_schema(void);
/* The member with every default filled in, null for none. New reference. */
json_t *kv_cache_json(const struct cache_scheme *scheme);
