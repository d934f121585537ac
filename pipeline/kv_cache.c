/* "kv_cache": {"dtype": "fp8_e4m3" | "int8", "granularity": "per_tensor" | "per_head"}. */

#include "pipeline/kv_cache.h"

#include "base/params.h"

#include <stddef.h>

enum { DTYPE_CHOICE_E4M3, DTYPE_CHOICE_INT8 };
static const char *const dtype_choices[] = {"fp8_e4m3", "int8", NULL};
static const char *const granularity_choices[] = {"per_tensor", "per_head", NULL};

struct member {
    int dtype, granularity;
};

static const struct params_row rows[] = {
    {.name = "dtype",
     .type = PARAMS_ENUM,
     .offset = offsetof(struct member, dtype),
     .size = sizeof(int),
     .fallback = "\"fp8_e4m3\"",
     .choices = dtype_choices,
     .help = "What keys and values are kept as."},
    {.name = "granularity",
     .type = PARAMS_ENUM,
     .offset = offsetof(struct member, granularity),
     .size = sizeof(int),
     .fallback = "\"per_tensor\"",
     .choices = granularity_choices,
     .help = "One scale for all key heads of a block, or one for each."},
    {.name = NULL},
};
static const struct params_row *const tables[] = {rows, NULL};

int kv_cache_parse(const json_t *object, const char *pointer, struct validation_errors *errors,
                   struct cache_scheme *out)
{
    struct member member = {0};

    if (object == NULL || json_is_null(object)) {
        *out = (struct cache_scheme){.element = DTYPE_F32};
        return 0;
    }
    int rc = params_parse(tables, object, pointer, &member, errors);
    if (rc == 0) {
        out->element = member.dtype == DTYPE_CHOICE_INT8 ? DTYPE_I8 : DTYPE_F8_E4M3;
        out->per_head = member.granularity == 1;
    }
    return rc;
}

json_t *kv_cache_schema(void)
{
    return params_schema(tables);
}

json_t *kv_cache_json(const struct cache_scheme *scheme)
{
    const struct member member = {.dtype = scheme->element == DTYPE_I8 ? DTYPE_CHOICE_INT8 : DTYPE_CHOICE_E4M3,
                                  .granularity = scheme->per_head};

    return scheme->element == DTYPE_F32 ? json_null() : params_json(tables, &member);
}
