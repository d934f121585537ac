/* JSON parameters against rows: the first byte chooses a method, the rest is its "quantization" object -> params_parse.
 * What is accepted passes through params_json and back to itself; what is refused is an error with a pointer into the
 * object. */

#include "base/json.h"
#include "base/params.h"
#include "quantizers/quantizer.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const struct quantizer *choose(uint8_t byte)
{
    const struct quantizer *const *list = quantizer_list();
    size_t count = 0;

    while (list[count] != NULL) {
        count++;
    }
    return list[byte % count];
}

static void check_errors(const struct validation_errors *errors)
{
    if (errors->count == 0) {
        abort();
    }
    for (size_t i = 0; i < errors->count; i++) {
        if (errors->items[i].detail[0] == '\0' ||
            strncmp(errors->items[i].param, "/quantization", strlen("/quantization")) != 0) {
            abort();
        }
    }
}

static void check_again(const struct quantizer *quantizer, const json_t *first)
{
    struct validation_errors errors = {0};
    void *values = calloc(1, quantizer->params_size);

    if (values == NULL || params_parse(quantizer->params, first, "/quantization", values, &errors) != 0) {
        abort();
    }
    json_t *second = params_json(quantizer->params, values);
    if (second == NULL || !json_equal(first, second)) {
        abort();
    }
    json_decref(second);
    params_release(quantizer->params, values);
    free(values);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct validation_errors errors = {0};
    json_t *object;

    if (size == 0 || json_parse((const char *)data + 1, size - 1, 32, &object) != 0) {
        return 0;
    }
    const struct quantizer *quantizer = choose(data[0]);
    void *values = calloc(1, quantizer->params_size);
    if (values == NULL) {
        abort();
    }
    if (params_parse(quantizer->params, object, "/quantization", values, &errors) != 0) {
        check_errors(&errors);
    } else {
        if (quantizer->check != NULL) {
            quantizer->check(values, "/quantization", &errors);
        }
        if (errors.count > 0) {
            check_errors(&errors);
        }
        json_t *echo = params_json(quantizer->params, values);
        if (echo == NULL) {
            abort();
        }
        check_again(quantizer, echo);
        json_decref(echo);
        params_release(quantizer->params, values);
    }
    free(values);
    json_decref(object);
    return 0;
}
