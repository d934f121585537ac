/* The list of methods, in the order in which clients see them. */

#include "quantizers/common.h"

#include <string.h>

static const struct quantizer *const quantizers[] = {&quantizer_rtn, &quantizer_gptq, &quantizer_ggml, NULL};

const struct quantizer *const *quantizer_list(void)
{
    return quantizers;
}

const struct quantizer *quantizer_find(const char *name)
{
    for (size_t i = 0; quantizers[i] != NULL; i++) {
        if (strcmp(quantizers[i]->name, name) == 0) {
            return quantizers[i];
        }
    }
    return NULL;
}
