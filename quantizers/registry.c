/* The list of methods, in the order in which clients see them. */

#include "quantizers/common.h"
#include "quantizers/sensitivity.h"

#include <string.h>

static const struct quantizer *const quantizers[] = {&quantizer_rtn,
                                                     &quantizer_gptq,
                                                     &quantizer_awq,
                                                     &quantizer_smoothquant,
                                                     &quantizer_autoround,
                                                     &quantizer_qat,
                                                     &quantizer_llm_int8,
                                                     &quantizer_nf4,
                                                     &quantizer_fp8,
                                                     &quantizer_kmeans,
                                                     &quantizer_aqlm,
                                                     &quantizer_tune,
                                                     &quantizer_ggml,
                                                     &quantizer_kv_cache,
                                                     &quantizer_kv_analysis,
                                                     &quantizer_sensitivity,
                                                     NULL};

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

unsigned quantizer_stats(const struct quantizer *quantizer, const void *params)
{
    return quantizer->stats | (quantizer->needs != NULL ? quantizer->needs(params) : STATS_NONE);
}

bool quantizer_data_free(const struct quantizer *quantizer, const void *params)
{
    return quantizer->data_free != NULL && quantizer->data_free(params) &&
           quantizer_stats(quantizer, params) == STATS_NONE;
}

bool quantizer_follows(const struct quantizer *quantizer)
{
    return quantizer->solve == NULL && quantizer->tune != NULL;
}

bool quantizer_analyses(const struct quantizer *quantizer)
{
    return quantizer->analyse != NULL || quantizer->measures;
}
