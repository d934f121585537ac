#pragma once
/* Within jobs/: how fast a runtime can serve a model at most, by what it must read and compute (the roofline model:
 * Williams, Waterman and Patterson 2009, doi 10.1145/1498765.1498785). Bytes, seconds, operations. Any thread. */

#include "models/model.h"

/* What an accelerator can do: of dense products, 10^12 operations a second. */
struct roofline_device {
    double memory_bytes, bandwidth; /* bytes a second */
    double bf16, int8, fp8;         /* 0: it has no such products */
};

struct roofline_load {
    int64_t batch;   /* sequences that are generated at once */
    int64_t context; /* tokens of each: the prompt, and what was generated */
};

/* Of a model. */
struct roofline_model {
    double shared, experts; /* parameters that each token needs; those of all experts */
    double chosen;          /* share of the experts that a token needs */
    double cache;           /* bytes of keys and values of one sequence at the load's context, in 16 bits */
};
struct roofline_model roofline_model(const struct model *model, const struct roofline_load *load);

/* How a runtime keeps and multiplies it. */
struct roofline_form {
    double weights;     /* bytes of all weights */
    double cache_share; /* of the 16 bits of keys and values: 1, 0.5 */
    double operations;  /* 10^12 a second, of the type that products are in */
};

enum roofline_bound { BOUND_WEIGHTS, BOUND_CACHE, BOUND_ARITHMETIC };
extern const char *const roofline_bounds[]; /* "weights", "kv_cache", "arithmetic" */

struct roofline_time {
    double seconds;
    double weights, cache, arithmetic; /* seconds of each alone */
    enum roofline_bound bound;         /* the longest */
};
/* One token for each sequence of the batch; a prompt as long as the context, alone. */
struct roofline_time roofline_decode(const struct roofline_model *model, const struct roofline_form *form,
                                     const struct roofline_device *device, const struct roofline_load *load);
struct roofline_time roofline_prefill(const struct roofline_model *model, const struct roofline_form *form,
                                      const struct roofline_device *device, const struct roofline_load *load);
