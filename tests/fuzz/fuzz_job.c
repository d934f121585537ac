/* Job requests: JSON text -> json_parse -> spec_parse. What is accepted must read back to itself. */

#include "base/json.h"
#include "jobs/spec.h"

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct validation_errors errors = {0};
    struct job_spec spec;
    struct job_spec again;
    json_t *body;

    if (json_parse((const char *)data, size, 32, &body) != 0) {
        return 0;
    }
    if (spec_parse(body, &errors, &spec) == 0) {
        json_t *canonical = spec_json(&spec);
        if (canonical == NULL || spec_parse(canonical, &errors, &again) != 0) {
            abort();
        }
        json_t *twice = spec_json(&again);
        if (!json_equal(canonical, twice)) {
            abort();
        }
        json_decref(canonical);
        json_decref(twice);
        spec_deinit(&again);
        spec_deinit(&spec);
    } else if (errors.count == 0) {
        abort(); /* a refusal names its reason */
    }
    json_decref(body);
    return 0;
}
