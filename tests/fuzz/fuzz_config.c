/* config.json: JSON text -> json_parse -> arch_parse_config. What is parsed takes no more memory than its budget, and
 * what is accepted has shapes that no later product wraps. */

#include "base/json.h"
#include "models/plan.h"

#include <malloc.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Memory that the parser has, and had at most. */
static size_t held, held_most;

static void *count_malloc(size_t size)
{
    void *memory = malloc(size);

    held += malloc_usable_size(memory);
    held_most = held > held_most ? held : held_most;
    return memory;
}

static void count_free(void *memory)
{
    held -= memory != NULL ? malloc_usable_size(memory) : 0;
    free(memory);
}

/* A budget that is enough for some inputs and not for others. What the parser needs for one token at a
 * time comes on top. */
static void check_budget(const char *text, size_t size)
{
    const struct json_budget budget = {.depth = 32, .memory = 8 * size, .flags = JSON_DECODE_ANY | JSON_ALLOW_NUL};
    json_t *json;

    json_set_alloc_funcs(count_malloc, count_free);
    held_most = 0;
    if (json_parse_within(text, size, &budget, &json) == 0) {
        json_decref(json);
    }
    if (held != 0 || held_most > budget.memory + 4 * size + 4096) {
        abort();
    }
    json_set_alloc_funcs(malloc, free);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct model_config config;
    json_t *json;

    check_budget((const char *)data, size);
    if (json_parse((const char *)data, size, 32, &json) != 0) {
        return 0;
    }
    if (arch_parse_config(json, &config) == 0) {
        float cosine[2048], sine[2048];
        struct plans *plans;
        if (plans_new(&config, &plans) != 0) {
            abort(); /* what a configuration may say, a plan can be made of */
        }
        for (size_t i = 0; i < plans_modules(plans); i++) {
            int number;
            int64_t layer = plans_module_at(plans, i, &number);
            const struct plan_module *m = &plans_layer(plans, layer)->modules[number];
            if (m->rows < 1 || m->cols < 1 || m->rows > INT32_MAX || m->cols > INT32_MAX) {
                abort();
            }
        }
        plans_free(plans);
        if (config.head_dim < 2 || config.head_dim % 2 != 0 || config.num_heads % config.num_kv_heads != 0 ||
            arch_window(&config, 0) < 0 || config.num_layers < 1) {
            abort();
        }
        for (int r = 0; r < config.rope_count; r++) {
            rope_tables(&config.ropes[r], config.head_dim <= 2048 ? 2 : 1, cosine, sine);
            for (int64_t i = 0; i < config.ropes[r].dims / 2; i++) {
                if (!(cosine[i] > 0 && sine[i] == 0)) {
                    abort(); /* position 0 is not turned; NaN neither */
                }
            }
        }
    }
    json_decref(json);
    return 0;
}
