#pragma once
/* Parameters of the analysis of a model's sensitivity, which the pipeline runs (quantizer.measures). */

#include "quantizers/quantizer.h"

struct sensitivity_params {
    struct quant_base base;
    json_t *candidates; /* [{"method", parameters}]; NULL: the widths of the solver */
    char solver[32];    /* the method of candidates that name none */
    int64_t group_size; /* theirs, where they have none; likewise sym */
    bool sym;
    int64_t max_tokens, kl_tokens, max_streams; /* struct sensitivity_request of pipeline/sensitivity.h */
};

extern const struct quantizer quantizer_sensitivity;
