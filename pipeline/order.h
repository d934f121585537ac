#pragma once
/* What another process needs to run a struct pipeline: its members, by name where they are pointers. The model root is
 * passed as a descriptor (child.h). */

#include "base/trace.h"
#include "pipeline/pipeline.h"
#include "pipeline/wire.h"

struct order_set {
    int64_t sequences, length; /* sequences 0: there is none */
    char digest[65];
};

struct order {
    char *method, *quantization; /* JSON texts of the recipe */
    char format[32];
    char device[32];
    int64_t threads;
    int64_t log_level;
    char trace_id[TRACE_ID_SIZE];        /* of every line in the log; "": none */
    char *module_folders, *cache_folder; /* of backends; "": none */
    char *cpu_products;                  /* as gpu_cpu_products takes it */
    char *model, *directory;             /* the model's folder, below its root */
    char model_digest[DIGEST_HEX_SIZE];
    bool bare; /* the model is opened as one, whatever its architecture is */
    struct generation generation;
    struct saved_activations float_model;
    uint64_t seed;
    int64_t host_memory_bytes;
    struct order_set calibration, evaluation;
    struct saved_block *blocks;
    int64_t block_count, rows_before;
};

void order_encode(const struct order *order, struct wire_out *out);
/* *out is set on success only; order_deinit. ERR_WORKER_LOST: it is not an order. */
int order_decode(struct wire_in *in, struct order *out);
void order_deinit(struct order *order);
